r"""Sets of samples that may be clusters, and clusters out of them."""
from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import scatter

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import size_constrained_components
from torch_sdt.ops.map_equation import number_by_appearance


class Proposals(NamedTuple):
    r"""Sets of nodes, which may overlap.

    Args:
        node (torch.Tensor): The members of one proposal after another,
            ascending within each, int64, shape ``[M]``.
        ptr (torch.Tensor): Where each proposal begins, and the end, int64,
            shape ``[P + 1]``.
    """
    node: Tensor
    ptr: Tensor

    @property
    def num_proposals(self) -> int:
        r"""The number of proposals :math:`P`."""
        return self.ptr.numel() - 1

    @property
    def size(self) -> Tensor:
        r"""The members of each proposal, int64, shape ``[P]``."""
        return self.ptr.diff()

    @property
    def batch(self) -> Tensor:
        r"""The proposal of each member, int64, shape ``[M]``."""
        proposal = torch.arange(self.num_proposals, device=self.ptr.device)
        return proposal.repeat_interleave(self.size)


def super_vertices(
    neighbors: Neighbors,
    k: int,
    threshold: float,
    max_size: int = 300,
    step: float = .05,
) -> Tensor:
    r"""The components, of bounded size, of each row's first :obj:`k`
    neighbours whose similarity is at least a threshold, see
    :meth:`~torch_sdt.ops.size_constrained_components`.

    Args:
        neighbors (Neighbors): The table.
        k (int): Neighbours that count, the sample itself included; a narrower
            table gives all that it has.
        threshold (float): Their least similarity.
        max_size (int, optional): Nodes in a component. (default: :obj:`300`)
        step (float, optional): How fast the threshold rises within larger
            ones. (default: :obj:`.05`)

    Returns:
        torch.Tensor: The super-vertex of each sample, int64, shape ``[N]``.
    """
    table = neighbors.truncate(min(k, neighbors.k))
    edge_index, weight = table.to_edge_index(
        mask=table.similarity >= threshold)
    return size_constrained_components(edge_index, weight, table.num_nodes,
                                       max_size, step)


def cluster_proposals(
    neighbors: Neighbors,
    x: Tensor,
    widths: Sequence[int] = (80, ),
    thresholds: Sequence[float] = (.6, .7, .75),
    merges: Sequence[Tuple[int, int]] = ((2, 8), (2, 12), (2, 16), (3, 5),
                                         (3, 10), (4, 4)),
    merge_threshold: float = .4,
    min_size: int = 3,
    max_size: int = 300,
    merged_size: int = 500,
    step: float = .05,
    index: str = 'auto',
    seed: int = 0,
) -> Proposals:
    r"""The cluster proposals of `"Learning to Cluster Faces on an Affinity
    Graph" <https://arxiv.org/abs/1904.02749>`_.

    First iteration: for each width and threshold, the super-vertices of the
    table (:meth:`super_vertices`). Second iteration: the super-vertices of
    super-vertices, in the table of their mean features, so that each merges a
    few of the first. Every set is proposed once, however often it is found.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        widths (sequence of int, optional): How many of a row's neighbours
            count, itself included. (default: :obj:`(80, )`)
        thresholds (sequence of float, optional): Least similarities.
            (default: :obj:`(.6, .7, .75)`)
        merges (sequence of (int, int), optional): Of the second iteration,
            how many neighbours of a super-vertex count, itself included, and
            how many super-vertices are merged at most.
            (default: :obj:`((2, 8), (2, 12), (2, 16), (3, 5), (3, 10),
            (4, 4))`)
        merge_threshold (float, optional): Its least similarity.
            (default: :obj:`.4`)
        min_size (int, optional): Samples in a proposal at least.
            (default: :obj:`3`)
        max_size (int, optional): Samples in a proposal of the first iteration
            at most. (default: :obj:`300`)
        merged_size (int, optional): And of the second.
            (default: :obj:`500`)
        step (float, optional): How fast thresholds rise within what is too
            large. (default: :obj:`.05`)
        index (str, optional): The index in which mean features are searched,
            see :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        seed (int, optional): Its seed. (default: :obj:`0`)

    Returns:
        Proposals: In the order in which they are first found.
    """
    found: Dict[bytes, np.ndarray] = {}
    for width in widths:
        for threshold in thresholds:
            part = super_vertices(neighbors, width, threshold, max_size, step)
            _collect(found, part, min_size, max_size)
            if len(merges) == 0:
                continue
            # Of opposite features nothing may be left.
            mean = F.normalize(scatter(x, part, reduce='mean') + 1e-12)
            most = min(max(k for k, _ in merges), mean.size(0))
            table = Neighbors.search(mean, most, index, None, seed)
            for k, limit in merges:
                merged = super_vertices(table, k, merge_threshold, limit, step)
                _collect(found, merged[part], min_size, merged_size)
    members = list(found.values())
    node = np.concatenate([np.empty(0, np.int64)] + members)
    ptr = np.cumsum([0] + [part.size for part in members], dtype=np.int64)
    device = neighbors.index.device
    return Proposals(torch.from_numpy(node).to(device),
                     torch.from_numpy(ptr).to(device))


def _collect(found: Dict[bytes, np.ndarray], cluster: Tensor, min_size: int,
             max_size: int) -> None:
    # The clusters whose size is right, by their members.
    label = cluster.cpu().numpy()
    order, size = label.argsort(kind='stable'), np.bincount(label)
    for end, length in zip(size.cumsum(), size):
        if min_size <= length <= max_size:
            members = order[end - length:end]
            found.setdefault(members.tobytes(), members)


def proposal_overlap(proposals: Proposals, y: Tensor
                     ) -> Tuple[Tensor, Tensor]:
    r"""How good proposals are, by the labels.

    With the majority identity :math:`c` of a proposal :math:`\mathcal{P}`,

    .. math::
        \mathrm{IoU} = \frac{|\mathcal{P} \cap \mathcal{C}_c|}
        {|\mathcal{P} \cup \mathcal{C}_c|}, \qquad
        \mathrm{IoP} = \frac{|\mathcal{P} \cap \mathcal{C}_c|}
        {|\mathcal{P}|};

    of equally frequent identities the one of the larger IoU counts.

    Args:
        proposals (Proposals): The proposals.
        y (torch.Tensor): Identities from 0, int64, shape ``[N]``.

    Returns:
        (torch.Tensor, torch.Tensor): IoU and IoP, float32, shape ``[P]``.
    """
    num = int(y.max()) + 1
    size = y.bincount(minlength=num)
    pair, both = (proposals.batch * num + y[proposals.node]).unique(
        return_counts=True)
    proposal, identity = pair // num, pair % num
    count = proposals.num_proposals
    most = scatter(both, proposal, dim_size=count, reduce='max')
    own = proposals.size
    iou = both / (own[proposal] + size[identity] - both)
    iou = iou.masked_fill(both < most[proposal], 0.)
    return (scatter(iou, proposal, dim_size=count, reduce='max'),
            most / own.clamp(min=1))


def de_overlap(
    node: Tensor,
    proposal: Tensor,
    score: Tensor,
    num_nodes: int,
    threshold: Optional[float] = None,
) -> Tensor:
    r"""Clusters out of overlapping proposals: each node goes to the best of
    those it is a member of, the first of equals; a node of none is its own
    cluster.

    Args:
        node (torch.Tensor): Members, int64, shape ``[M]``.
        proposal (torch.Tensor): The proposal of each, int64, shape ``[M]``.
        score (torch.Tensor): How good each proposal is, shape ``[P]``.
        num_nodes (int): The number of nodes :math:`N`.
        threshold (float, optional): Proposals of a smaller score do not
            count. (default: all count)

    Returns:
        torch.Tensor: The cluster of each node, int64, shape ``[N]``, numbered
        by first appearance.
    """
    order = score.argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    if threshold is not None:
        counts = score[proposal] >= threshold
        node, proposal = node[counts], proposal[counts]
    # Behind all proposals, a place for each node alone.
    alone = torch.arange(num_nodes, device=node.device) + order.numel()
    best = alone.scatter_reduce(0, node, place[proposal], 'amin')
    return number_by_appearance(best)
