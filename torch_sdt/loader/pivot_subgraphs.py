from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader.batch_loader import BatchLoader
from torch_sdt.neighbors import Neighbors
from torch_sdt.typing import check_count


@dataclass  # Not frozen: Fabric casts its tensors.
class PivotBatch:
    r"""The instance pivot subgraphs of :math:`B` nodes, padded to the largest
    of them.

    Args:
        node (torch.Tensor): The pivots, int64, shape ``[B]``.
        index (torch.Tensor): Nodes, each once: the :math:`K` entries of the
            pivot's row in the order of their rank, then those two hops away;
            padded with the pivot, int64, shape ``[B, M]``.
        mask (torch.Tensor): Which are no padding, bool, shape ``[B, M]``.
        x (torch.Tensor): Their features less the pivot's, float32, shape
            ``[B, M, D]``; 0 where padded.
        adj (torch.Tensor): Links, 0 or 1, symmetric, without self-loops,
            float32, shape ``[B, M, M]``.
        k (int): The table's width :math:`K`.
        same (torch.Tensor, optional): Whether each of the first :math:`K` is
            of the pivot's identity, bool, shape ``[B, K]``.
    """
    node: Tensor
    index: Tensor
    mask: Tensor
    x: Tensor
    adj: Tensor
    k: int
    same: Optional[Tensor] = None


class PivotSubgraphs(BatchLoader[PivotBatch]):
    r"""A loader of instance pivot subgraphs, from `"Linkage Based Face
    Clustering via Graph Convolution Network"
    <https://arxiv.org/abs/1903.11306>`_.

    The nodes of a pivot's subgraph are the pivot, its :math:`K - 1`
    neighbours and the :math:`k_2` nearest neighbours of each of those; two of
    them are linked if one is among the other's :math:`u` nearest neighbours
    in the whole set of samples.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Unit features, shape ``[N, D]``, on the device of
            the table.
        batch_size (int, optional): Subgraphs :math:`B` in a batch.
            (default: :obj:`32`)
        k2 (int, optional): The :math:`k_2`, itself not included; a narrower
            table gives its :math:`K - 1`. (default: :obj:`10`)
        u (int, optional): The :math:`u`, itself not included; likewise.
            (default: :obj:`10`)
        y (torch.Tensor, optional): Identities, int64, shape ``[N]``, from
            which the targets of training follow. (default: :obj:`None`)
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
        batch_size: int = 32,
        k2: int = 10,
        u: int = 10,
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
        for name, value in (('k2', k2), ('u', u)):
            check_count(name, value)
        super().__init__(torch.arange(n), batch_size, shuffle, seed, rank,
                         world_size)
        self.neighbors = neighbors
        self.x = x
        self.k2 = k2
        self.u = u
        self.y = y

    def gather(self, nodes: Tensor) -> PivotBatch:
        r"""The subgraphs of some pivots, int64, shape ``[B]``."""
        table = self.neighbors.index
        nodes = nodes.to(table.device)
        first = table[nodes]
        second = table[:, 1:self.k2 + 1][first[:, 1:]]
        index = torch.cat([first, second.flatten(1)], dim=1)
        # What comes for the first time, to the front; a row of the table
        # lists nobody twice, so that its K entries stay where they are.
        ordered, order = index.sort(dim=1, stable=True)
        fresh = torch.ones_like(index, dtype=torch.bool)
        fresh.scatter_(1, order[:, 1:], ordered[:, 1:] != ordered[:, :-1])
        place = (~fresh).long().argsort(dim=1, stable=True)
        place = place[:, :int(fresh.sum(dim=1).max())]
        mask = fresh.gather(1, place)
        index = torch.where(mask, index.gather(1, place), nodes.view(-1, 1))
        same = None
        if self.y is not None:
            same = self.y[first] == self.y[nodes].view(-1, 1)
        x = F.embedding(index, self.x).float()
        x = x - self.x[nodes].float().unsqueeze(1)
        return PivotBatch(nodes, index, mask, x, self._links(index, mask),
                          first.size(1), same)

    def _links(self, index: Tensor, mask: Tensor) -> Tensor:
        near = self.neighbors.index[:, 1:self.u + 1][index]
        # Padding sorts behind every node that can be looked for.
        ids = index.masked_fill(~mask, self.neighbors.num_nodes)
        ordered, order = ids.sort(dim=1)
        far = near.flatten(1)
        place = torch.searchsorted(ordered, far).clamp_(max=index.size(1) - 1)
        hit = (ordered.gather(1, place) == far).view(near.shape)
        column = order.gather(1, place).view(near.shape)
        hit &= mask.unsqueeze(-1)
        adj = torch.zeros(*index.shape, index.size(1), device=index.device)
        # A row lists nobody twice: where there are several, all but one are 0.
        adj.scatter_add_(2, column, hit.float())
        return torch.maximum(adj, adj.transpose(1, 2))

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.neighbors}, '
                f'batch_size={self.batch_size}, k2={self.k2}, u={self.u})')
