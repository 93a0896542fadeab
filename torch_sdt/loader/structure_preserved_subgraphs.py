from __future__ import annotations

from math import ceil
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from torch_sdt.loader.neighbor_pairs import NeighborPairs
from torch_sdt.neighbors import Neighbors

# As published.
_NEAREST, _IDENTITIES = 1500, 1300


class StructurePreservedSubgraphs(NeighborPairs):
    r"""Pairs of neighbours in another sample of labelled identities in each
    epoch: the structure-preserved subgraph sampling of `"Structure-Aware Face
    Clustering on a Large-Scale Graph with 10^7 Nodes"
    <https://arxiv.org/abs/2103.13225>`_ (STAR-FC).

    Around a random identity lie those of the nearest centres, by cosine; of
    these some are drawn, and of each of them a share of its samples. Hence
    what is hard to tell apart is in a sample together, which neither single
    nodes nor single edges drawn at random would be, while the two draws make
    no sample like another. Neighbours are searched anew within it.

    How it differs from the released code: that goes twice through all pairs
    of a sample, in 40 batches each time, and it skips a sample of more than
    100,000 nodes, of which identities are left out here.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        y (torch.Tensor): Identities, int64, shape ``[N]``.
        k (int): Neighbours per sample, itself included.
        num_nearest (int, optional): Identities around a centre, itself
            included. (default: half of all, at most the published 1,500)
        num_identities (int, optional): How many of them are drawn.
            (default: as published, 13 of 15)
        share (float, optional): Share of an identity's samples that is drawn,
            rounded up. (default: :obj:`.9`)
        max_nodes (int, optional): Samples at most: of the identities drawn
            the first that fit, at least one. (default: :obj:`100_000`)
        num_pairs (int, optional): Pairs in an epoch, at random among all of
            a node and one of its neighbours; all, if there are no more.
            (default: :obj:`10_000`)
        batch_size (int, optional): Pairs in a batch. (default: :obj:`256`)
        seed (int, optional): The sample of an epoch depends on both.
            (default: :obj:`0`)

    Raises:
        ValueError: If a shape or a number is wrong.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        k: int,
        num_nearest: Optional[int] = None,
        num_identities: Optional[int] = None,
        share: float = .9,
        max_nodes: int = 100_000,
        num_pairs: int = 10_000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        if x.dim() != 2 or y.shape != (x.size(0), ):
            raise ValueError(f"'x' and 'y' must have shapes [N, D] and [N] "
                             f"(got {list(x.shape)} and {list(y.shape)})")
        _, identity = y.unique(return_inverse=True)
        count = int(identity.max()) + 1 if identity.numel() > 0 else 0
        if num_nearest is None:
            num_nearest = min(ceil(count / 2), _NEAREST)
        if num_identities is None:
            num_identities = ceil(num_nearest * _IDENTITIES / _NEAREST)
        for name, value, low, high in (
                ('num_nearest', num_nearest, 1, count),
                ('num_identities', num_identities, 1, num_nearest),
                ('max_nodes', max_nodes, 1, None),
                ('num_pairs', num_pairs, 1, None), ('k', k, 2, None)):
            if value < low or (high is not None and value > high):
                least = f'at least {low}' if high is None else (
                    f'in {low}..{high}')
                raise ValueError(f"'{name}' must be {least} (got {value})")
        if not 0 < share <= 1:
            raise ValueError(f"'share' must be in (0, 1] (got {share})")
        self.all_x, self.all_y, self.width = x, y, k
        self.num_nearest, self.num_identities = num_nearest, num_identities
        self.share, self.max_nodes = share, max_nodes
        self.num_pairs = num_pairs
        self._identity = identity.cpu().numpy()
        centers = x.new_zeros(count, x.size(1)).index_add(0, identity, x)
        self._centers = torch.nn.functional.normalize(centers, dim=1)
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = 0, 1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        r"""Draws the sample of an epoch, and its pairs."""
        rng = np.random.default_rng([self.seed, epoch])
        rows = self._sampled(rng).to(self.all_x.device)
        x, y = self.all_x[rows], self.all_y[rows]
        table = Neighbors.search(x, min(self.width, x.size(0)), 'flat')
        entries = x.size(0) * (table.k - 1)
        drawn = torch.from_numpy(rng.choice(
            entries, min(self.num_pairs, entries), replace=False))
        drawn = drawn.to(x.device)
        node = drawn // max(table.k - 1, 1)
        other = table.index[node, 1 + drawn % max(table.k - 1, 1)]
        super().__init__(
            table, x, torch.stack([node, other]), self.batch_size, y,
            shuffle=True, seed=self.seed, rank=self.rank,
            world_size=self.world_size)
        self.epoch = epoch

    def _sampled(self, rng: np.random.Generator) -> Tensor:
        center = rng.integers(self._centers.size(0))
        cosine = self._centers @ self._centers[center]
        cosine[center] = torch.inf  # Its nearest, whatever is rounded.
        near = cosine.topk(self.num_nearest)[1].cpu().numpy()
        drawn = rng.permutation(near)[:self.num_identities]
        size = np.bincount(self._identity)
        wanted = np.zeros_like(size)
        # Rounded first, or 70 % of 10 would be 8.
        wanted[drawn] = np.ceil((self.share * size[drawn]).round(6))
        fits = wanted[drawn].cumsum() <= self.max_nodes
        wanted[drawn[1:][~fits[1:]]] = 0
        # Where each sample stands among those of its identity, at random.
        order = rng.permutation(self._identity.size)
        order = order[np.argsort(self._identity[order], kind='stable')]
        start = np.repeat(size.cumsum() - size, size)
        place = np.empty(order.size, dtype=np.int64)
        place[order] = np.arange(order.size) - start
        return torch.from_numpy(np.flatnonzero(place < wanted[self._identity]))
