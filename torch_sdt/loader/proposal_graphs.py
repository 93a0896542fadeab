from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch_geometric.utils import coalesce, scatter

from torch_sdt.loader.batch_loader import BatchLoader
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.proposals import Proposals, proposal_overlap


@dataclass  # Not frozen: Fabric casts its tensors.
class ProposalBatch:
    r"""The graphs of :math:`B` cluster proposals, with :math:`n` members in
    all, as one disconnected graph.

    Args:
        node (torch.Tensor): The proposals, int64, shape ``[B]``.
        n_id (torch.Tensor): Their members in the whole set of samples, int64,
            shape ``[n]``.
        batch (torch.Tensor): The graph of each, 0 to :math:`B - 1`, int64,
            shape ``[n]``.
        x (torch.Tensor): Their features, float32, shape ``[n, D]``.
        edge_index (torch.Tensor): Edges, self-loops included, sorted by
            target, int64, shape ``[2, E]``.
        edge_weight (torch.Tensor): Cosines, of sum 1 at each target, float32,
            shape ``[E]``.
        y (torch.Tensor, optional): The members' identities, int64, shape
            ``[n]``.
        iou (torch.Tensor, optional): Each proposal's IoU with its majority
            identity (:meth:`~torch_sdt.ops.proposal_overlap`), float32, shape
            ``[B]``.
        iop (torch.Tensor, optional): The share of that identity, float32,
            shape ``[B]``.
    """
    node: Tensor
    n_id: Tensor
    batch: Tensor
    x: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    y: Optional[Tensor] = None
    iou: Optional[Tensor] = None
    iop: Optional[Tensor] = None


class ProposalGraphs(BatchLoader[ProposalBatch]):
    r"""A loader of cluster proposals, each as the graph of its members.

    Two members are linked if the table of one lists the other. With their
    cosines as weights (the larger one where they differ; negative ones count
    0) in :math:`\mathbf{A}`, the edges hold :math:`\mathbf{D}^{-1}
    (\mathbf{A} + \mathbf{I})`.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Unit features, shape ``[N, D]``, on the device of
            the table.
        proposals (Proposals): The proposals.
        batch_size (int, optional): Proposals :math:`B` in a batch.
            (default: :obj:`32`)
        nodes (torch.Tensor, optional): Which proposals are wanted, int64.
            (default: all, in order)
        y (torch.Tensor, optional): Identities from 0, int64, shape ``[N]``,
            from which the targets of training follow. (default: :obj:`None`)
        shuffle (bool, optional): See
            :class:`~torch_sdt.loader.BatchLoader`, also for :obj:`seed`,
            :obj:`rank` and :obj:`world_size`.
            (default: :obj:`False`)

    Raises:
        ValueError: If a shape or a number is wrong.
    """

    def __init__(
        self,
        neighbors: Neighbors,
        x: Tensor,
        proposals: Proposals,
        batch_size: int = 32,
        nodes: Optional[Tensor] = None,
        y: Optional[Tensor] = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        n = neighbors.num_nodes
        if x.dim() != 2 or x.size(0) != n:
            raise ValueError(f"'x' must have a row for each of the table's "
                             f"{n} (got shape {list(x.shape)})")
        if y is not None and y.shape != (n, ):
            raise ValueError(f"'y' must have shape [{n}] (got "
                             f"{list(y.shape)})")
        bad = proposals.node[(proposals.node < 0) | (proposals.node >= n)]
        if bad.numel() > 0:
            raise ValueError(f"The members of 'proposals' must be in 0.."
                             f"{n - 1} (got {int(bad[0])})")
        ascending = (proposals.node.diff() > 0) | (proposals.batch.diff() > 0)
        if not bool(ascending.all()):
            place = int((~ascending).nonzero()[0]) + 1
            raise ValueError(f"The members of 'proposals' must be ascending "
                             f"within each (got "
                             f"{int(proposals.node[place])} after "
                             f"{int(proposals.node[place - 1])})")
        count = proposals.num_proposals
        if nodes is None:
            nodes = torch.arange(count)
        bad = nodes[(nodes < 0) | (nodes >= count)]
        if bad.numel() > 0:
            raise ValueError(f"'nodes' must be in 0..{count - 1} (got "
                             f"{int(bad[0])})")
        super().__init__(nodes, batch_size, shuffle, seed, rank, world_size)
        self.neighbors = neighbors
        self.x = x
        self.proposals = proposals
        self.y = y
        self.overlap = None if y is None else proposal_overlap(proposals, y)

    def gather(self, nodes: Tensor) -> ProposalBatch:
        r"""The graphs of some proposals, int64, shape ``[B]``."""
        ptr = self.proposals.ptr
        nodes = nodes.to(ptr.device)
        size = ptr[nodes + 1] - ptr[nodes]
        graph = torch.arange(nodes.numel(), device=ptr.device)
        batch = graph.repeat_interleave(size)
        shift = ptr[nodes] - (size.cumsum(0) - size)
        place = torch.arange(batch.numel(), device=ptr.device) + shift[batch]
        n_id = self.proposals.node[place]
        edge_index, edge_weight = self._edges(n_id, batch)
        out = ProposalBatch(nodes, n_id, batch, self.x[n_id].float(),
                            edge_index, edge_weight)
        if self.y is not None and self.overlap is not None:
            out.y = self.y[n_id]
            out.iou, out.iop = (value[nodes] for value in self.overlap)
        return out

    def _edges(self, n_id: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        index, similarity = self.neighbors
        n = n_id.numel()
        # Ascending, as members are within each of the proposals.
        key = batch * index.size(0) + n_id
        far = batch.view(-1, 1) * index.size(0) + index[n_id, 1:]
        place = torch.searchsorted(key, far).clamp_(max=n - 1)
        row, rank = (key[place] == far).nonzero(as_tuple=True)
        col = place[row, rank]
        weight = similarity[n_id[row], rank + 1].clamp(min=0)
        own = torch.arange(n, device=n_id.device)
        # Sorted by row, and here rows are targets.
        (target, source), weight = coalesce(
            torch.stack([torch.cat([row, col, own]),
                         torch.cat([col, row, own])]),
            torch.cat([weight, weight, weight.new_ones(n)]), n, reduce='max')
        total = scatter(weight, target, dim_size=n)
        return torch.stack([source, target]), weight / total[target]

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.neighbors}, '
                f'batch_size={self.batch_size}, '
                f'num_proposals={self.nodes.numel()})')
