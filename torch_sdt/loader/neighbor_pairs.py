from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader.batch_loader import BatchLoader
from torch_sdt.neighbors import Neighbors


@dataclass  # Not frozen: Fabric casts its tensors.
class PairBatch:
    r"""The neighbourhoods of :math:`B` pairs of nodes.

    Args:
        node (torch.Tensor): The first of each pair, int64, shape ``[B]``.
        other (torch.Tensor): The second, int64, shape ``[B]``.
        index (torch.Tensor): The neighbours of both, themselves at rank 0,
            int64, shape ``[B, 2, K]``.
        x (torch.Tensor): The neighbours' features, float32, shape
            ``[B, 2, K, D]``.
        same (torch.Tensor, optional): Whether both are of one identity, bool,
            shape ``[B]``.
    """
    node: Tensor
    other: Tensor
    index: Tensor
    x: Tensor
    same: Optional[Tensor] = None


class NeighborPairs(BatchLoader[PairBatch]):
    r"""A loader of pairs of nodes, each with its :math:`K` neighbours.

    As in :class:`NeighborSubgraphs`, everything is gathered batch by batch on
    the device of the table.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Unit features, shape ``[N, D]``, on the device of
            the table.
        pairs (torch.Tensor): The pairs, int64, shape ``[2, P]``.
        batch_size (int, optional): Pairs :math:`B` in a batch.
            (default: :obj:`256`)
        y (torch.Tensor, optional): Identities, int64, shape ``[N]``, from
            which the targets of training follow. (default: :obj:`None`)
        shuffle (bool, optional): See :class:`BatchLoader`, also for
            :obj:`seed`, :obj:`rank` and :obj:`world_size`.
            (default: :obj:`False`)

    Raises:
        ValueError: If a shape or a number is wrong, or a pair names no node
            of the table.
    """

    def __init__(
        self,
        neighbors: Neighbors,
        x: Tensor,
        pairs: Tensor,
        batch_size: int = 256,
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
        if pairs.dim() != 2 or pairs.size(0) != 2 or (
                pairs.dtype != torch.long):
            raise ValueError(f"'pairs' must be int64 of shape [2, P] (got "
                             f"{pairs.dtype} of shape {list(pairs.shape)})")
        bad = pairs[(pairs < 0) | (pairs >= n)]
        if bad.numel() > 0:
            raise ValueError(f"'pairs' must be in 0..{n - 1} (got "
                             f"{int(bad[0])})")
        if y is not None and y.shape != (n, ):
            raise ValueError(f"'y' must have shape [{n}] (got "
                             f"{list(y.shape)})")
        super().__init__(torch.arange(pairs.size(1)), batch_size, shuffle,
                         seed, rank, world_size)
        self.neighbors = neighbors
        self.x = x
        self.pairs = pairs.to(neighbors.index.device)
        self.y = y

    def gather(self, nodes: Tensor) -> PairBatch:
        r"""The batch of some pairs, by their place in :obj:`pairs`, int64,
        shape ``[B]``.
        """
        both = self.pairs[:, nodes.to(self.pairs.device)].t()
        index = self.neighbors.index[both]
        same = None
        if self.y is not None:
            same = self.y[both[:, 0]] == self.y[both[:, 1]]
        x = F.embedding(index, self.x).float()
        return PairBatch(both[:, 0], both[:, 1], index, x, same)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.neighbors}, '
                f'batch_size={self.batch_size}, '
                f'num_pairs={self.pairs.size(1)})')
