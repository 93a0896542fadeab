from __future__ import annotations

from math import ceil, exp, log
from typing import Callable, Optional

import numpy as np
import torch
from torch import Tensor

from torch_sdt.loader.neighbor_subgraphs import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.background import estimate_background
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.ops.topk import expected_topk


class RandomViews(NeighborSubgraphs):
    r"""Ego subgraphs of another random view of labelled samples in each epoch,
    so that a model of relations learns no one kind of embedding by heart.

    A view thins identities to random sizes (log-uniform up to a largest size
    that is itself drawn anew, so that some views hold small identities only),
    projects the features to a random share of their dimensions, removes the
    mean, and searches neighbours among what is left.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        y (torch.Tensor): Identities, int64, shape ``[N]``.
        k (int): Neighbours per sample, itself included.
        view_size (int, optional): Subgraphs in an epoch, and samples in a
            view at most. (default: :obj:`4000`)
        relate (callable, optional): From the loader of a view, in order, to a
            probability of each table entry, shape ``[N', K]``, which becomes
            a relation and, by :meth:`~torch_sdt.ops.expected_topk`, the
            number of trusted neighbours. (default: :obj:`None`)
        batch_size (int, optional): Subgraphs in a batch.
            (default: :obj:`128`)
        seed (int, optional): The view of an epoch depends on both.
            (default: :obj:`0`)
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        k: int,
        view_size: int = 4000,
        relate: Optional[Callable[[NeighborSubgraphs], Tensor]] = None,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        y = y.unique(return_inverse=True)[1]
        self.all_x, self.all_y, self.width = x, y, k
        self.view_size, self.relate = view_size, relate
        index = torch.arange(x.size(0), device=x.device).view(-1, 1)
        table = Neighbors(index, torch.ones(index.shape, device=x.device))
        super().__init__(table, x, batch_size, y=y, shuffle=True, seed=seed)
        self._draw(0)

    def set_epoch(self, epoch: int) -> None:
        r"""Draws the view of an epoch."""
        if epoch != self.epoch:
            self._draw(epoch)

    def _draw(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        rows = self._thinned(rng)
        x = self.all_x[rows]
        dim = max(round(x.size(1) / 2**rng.integers(4)), 2)
        if dim < x.size(1):
            project = rng.standard_normal((x.size(1), dim)).astype(np.float32)
            x = x @ torch.from_numpy(project).to(x.device)
        try:
            x = normalize_features(x, center=True)
        except ValueError:  # A sample equals the mean, as where all are one.
            x = normalize_features(x)
        table = Neighbors.search(x, min(self.width, x.size(0)), 'flat')
        location, scale = estimate_background(x, self.seed)
        background = location, max(scale, 1e-6)
        order = torch.arange(x.size(0), device=x.device)
        trust = None
        if self.relate is not None:
            trust = self.relate(NeighborSubgraphs(
                table, x, self.batch_size, background=background))
        super().__init__(
            table, x, self.batch_size,
            # As many in each epoch, some more than once in a small view.
            order.repeat(ceil(self.view_size / x.size(0)))[:self.view_size],
            [] if trust is None else [trust],
            None if trust is None else expected_topk(trust, beta=1.),
            self.all_y[rows], background=background, shuffle=True,
            seed=self.seed, rank=self.rank, world_size=self.world_size)
        self.epoch = epoch

    def _thinned(self, rng: np.random.Generator) -> Tensor:
        y = self.all_y.cpu().numpy()
        size = np.bincount(y)
        largest = exp(rng.uniform(log(3), log(max(int(size.max()), 3))))
        order = rng.permutation(y.size)
        # Where each sample stands among those of its identity.
        by_identity = order[np.argsort(y[order], kind='stable')]
        start = np.repeat(size.cumsum() - size, size)
        place = np.empty(y.size, dtype=np.int64)
        place[by_identity] = np.arange(y.size) - start
        wanted = np.ceil(np.exp(rng.uniform(0, log(largest), size.size)))
        kept = np.flatnonzero(place < wanted[y])
        if kept.size > self.view_size:
            # Whole identities, as long as they fit.
            first = rng.permutation(size.size)
            count = np.bincount(y[kept], minlength=size.size)[first].cumsum()
            fits = first[:max(int((count <= self.view_size).sum()), 1)]
            kept = kept[np.isin(y[kept], fits)]
        return torch.from_numpy(kept).to(self.all_x.device)
