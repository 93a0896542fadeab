from __future__ import annotations

from math import ceil, log, sqrt
from typing import Tuple

import torch
from torch import Tensor

from torch_sdt.ops.aligned import aligned_empty, aligned_product
from torch_sdt.ops.background import estimate_background
from torch_sdt.ops.search.exact_search import ExactSearch
from torch_sdt.ops.search.halves import in_halves

# Rows that the cells are learned from, for each cell; passes over them; rows
# that are searched exactly to see how much is found.
_TRAIN, _PASSES, _SAMPLE = 64, 8, 1024
# How many times as many cells the last of the wanted neighbours may cost, and
# those of lone samples do; how many cells at most; and of which share on they
# save nothing.
_MORE, _MOST, _TOO_MANY = 16, 256, 1 / 4
# Of the cosines of a block; on a GPU the fewer kernels, the better.
_BYTES, _BYTES_ON_GPU = 2**28, 2**32
# That are compared with centroids at once.
_ROWS = 8192


class CellSearch:
    r"""Approximate search in an inverted file, many samples at a time.

    Spherical k-means parts the samples into :math:`C \approx 3 \sqrt{N}`
    cells. Each sample is compared with those of the :math:`P` cells whose
    centroids are nearest to it. An inverted file that answers one query at a
    time multiplies vectors with matrices, which is bound by memory; here,
    where every sample is a query, all that ask for a cell are compared with it
    in one matrix product, which is bound by arithmetic.

    Noisy images lie in whichever cell chance leads them to, and are lost
    where only its surroundings are searched. So the order of cells is each
    sample's own; and those that find no *trusted* neighbour are compared with
    16 times as many.

    :math:`P` is the smallest that finds the wanted share of the trusted
    neighbours of 1,024 random samples, which are searched exactly: a
    neighbour is trusted if its cosine is above what chance brings among
    :math:`N`, :math:`m + s \sqrt{2 \ln N}` with median :math:`m` and spread
    :math:`s` of random pairs. Beyond that a table lists whatever is least
    far, which no index finds and nobody needs. The last percent may be strewn
    over all cells. So :math:`P` is at most 16 times what finds :math:`r^2` in
    place of the wanted share :math:`r`, and 256; what is found then stands in
    :obj:`recall`. Where identities are so many and so small that even so a
    quarter of all cells is wanted, an exact search is as good.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
        k (int): Neighbours :math:`K` that will be asked for.
        recall (float): The share of trusted neighbours to find, in (0, 1],
            within reason.
        seed (int): Seed of the cells and of the sample.

    Attributes:
        num_cells (int): The number of cells :math:`C`.
        num_probes (int): The number of cells :math:`P` that each sample is
            compared with; at least as many as hold :math:`2 K` others on
            average.
        num_lone_probes (int): The same of those without trusted neighbours.
        pays (bool): Whether it saves anything beside an exact search.
        recall (float): The share of trusted neighbours that is found.
        recall_all (float): The share of all :math:`K`.
    """
    exact = False

    def __init__(self, x: Tensor, k: int, recall: float, seed: int) -> None:
        n = x.size(0)
        self.x = x
        self.num_cells = max(1, min(n, round(3 * sqrt(n))))
        location, scale = estimate_background(x, seed)
        self.trust = location + scale * sqrt(2 * log(max(n, 2)))
        self.centroids = _spherical_k_means(x, self.num_cells, seed)
        self._choose_probes(k, recall, seed)
        self.probe = _nearest(x, self.centroids, self.num_probes)
        cell = self.probe[:, 0].long()
        self.member = cell.argsort(stable=True)
        self.size = cell.bincount(minlength=self.num_cells)
        self.start = self.size.cumsum(0) - self.size
        # As many rows in a block as may be compared with all of their
        # candidates at once: rows that have about as many.
        total = self.size[self.probe.long()].sum(dim=1)
        self.order = total.argsort(stable=True)
        space = _BYTES_ON_GPU if x.is_cuda else _BYTES
        most = (space // (4 * total[self.order])).clamp(min=1)
        self.bounds = [n]
        while self.bounds[0] > 0:
            last = self.bounds[0]
            self.bounds.insert(0, max(last - int(most[last - 1]), 0))

    def _choose_probes(self, k: int, recall: float, seed: int) -> None:
        x, n = self.x, self.x.size(0)
        generator = torch.Generator().manual_seed(int(seed))
        row = torch.randperm(n, generator=generator)[:_SAMPLE].to(x.device)
        similarity, index = ExactSearch(x).best(row, min(k, n))
        # Oneself is found anyway.
        other = index != row.view(-1, 1)
        trusted = (similarity > self.trust) & other
        if not bool(trusted.any()):
            trusted = other
        # The place of each neighbour's cell in the order of the sample's.
        seen, place = index.unique(return_inverse=True)
        cell = _nearest(x[seen], self.centroids, 1)[:, 0].long()[place]
        order = _nearest(x[row], self.centroids, self.num_cells).long()
        place = order.argsort(dim=1).gather(1, cell)
        found = place[trusted].bincount(minlength=self.num_cells).cumsum(0)
        total = max(int(found[-1]), 1)  # No others: all of them are found.
        least = ceil(2 * (k + 1) * self.num_cells / n)
        wanted = max(_num_probes(found, recall), least)
        self.num_probes = min(wanted, max(_MOST, least), self.num_cells)
        self.num_lone_probes = min(_MORE * self.num_probes, self.num_cells)
        near = place < self.num_probes
        lone = ~(near & trusted).any(dim=1)
        near[lone] = place[lone] < self.num_lone_probes
        self.pays = (wanted + float(lone.double().mean()) *
                     self.num_lone_probes) < _TOO_MANY * self.num_cells
        self.recall = float(near[trusted].sum()) / total
        self.recall_all = float(near[other].sum()) / max(int(other.sum()), 1)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def rows(self, block: int) -> Tensor:
        r"""The rows of a block."""
        return self.order[self.bounds[block]:self.bounds[block + 1]]

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block;
        id -1 where there are less.
        """
        return in_halves(lambda rows: self._best(rows, k), self.rows(block))

    def _best(self, rows: Tensor, k: int) -> Tuple[Tensor, Tensor]:
        similarity, index = self._compare(rows, self.probe[rows], k)
        # Oneself is among them.
        lone = (similarity > self.trust).sum(dim=1) < min(k, 2)
        lone = lone.nonzero().view(-1)
        step = max(rows.numel() // _MORE, 1)
        for part in lone.split(step) if lone.numel() > 0 else ():
            probe = _nearest(self.x[rows[part]], self.centroids,
                             self.num_lone_probes)
            similarity[part], index[part] = self._compare(rows[part], probe, k)
        return similarity, index

    def _compare(self, rows: Tensor, probe: Tensor, k: int
                 ) -> Tuple[Tensor, Tensor]:
        # The best for some rows in as many cells.
        probe = probe.long()
        size = self.size[probe]
        stop = size.cumsum(dim=1)  # Of each cell's samples, side by side.
        start = stop - size
        width = int(stop[:, -1].max())
        similarity = torch.full((rows.numel(), width), -torch.inf,
                                device=rows.device)
        query, flat = self.x[rows].float(), similarity.view(-1)
        # Who asks for a cell, and where in memory the answer begins.
        cell, order = probe.flatten().sort(stable=True)
        who = order // probe.size(1)
        at = who * width + start.flatten()[order]
        count = cell.bincount(minlength=self.num_cells).tolist()
        for member, i, j in zip(self.member.split(self.size.tolist()),
                                who.split(count), at.split(count)):
            if i.numel() > 0 and member.numel() > 0:
                # A run of its row each: copied as such, and rows are picked
                # whole, which is several times as fast as entry by entry.
                length = member.numel()
                runs = flat.as_strided(
                    (flat.numel() - length + 1, length), (1, 1))
                runs.index_copy_(0, j, aligned_product(
                    query.index_select(0, i),
                    self.x.index_select(0, member).float().t()))
        similarity, place = similarity.topk(min(k, width))
        which = torch.searchsorted(stop, place, right=True).clamp(
            max=probe.size(1) - 1)
        place = place + (self.start[probe] - start).gather(1, which)
        place[similarity == -torch.inf] = 0
        index = self.member[place]
        index[similarity == -torch.inf] = -1
        missing = (0, k - index.size(1))
        return (torch.nn.functional.pad(similarity, missing),
                torch.nn.functional.pad(index, missing, value=-1))

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(num_cells={self.num_cells}, '
                f'num_probes={self.num_probes}, recall={self.recall:.4f}, '
                f'recall_all={self.recall_all:.4f})')


def _num_probes(found: Tensor, recall: float) -> int:
    # From how many are found in the first cell, in the first two, ...
    found = found.double()
    wanted, easier = (int((found < share * found[-1] - 1e-9).sum()) + 1
                      for share in (recall, recall**2))
    return min(wanted, _MORE * easier)


def _spherical_k_means(x: Tensor, num_cells: int, seed: int) -> Tensor:
    # Means of unit length; one that loses all its samples stays where it was.
    generator = torch.Generator().manual_seed(int(seed))
    row = torch.randperm(x.size(0), generator=generator)
    x = x[row[:_TRAIN * num_cells].to(x.device)].float()
    centroids = x[:num_cells].clone()
    for _ in range(_PASSES):
        cell = _nearest(x, centroids, 1)[:, 0].long()
        # In double precision: in which order a GPU adds does not matter.
        mean = torch.zeros_like(centroids, dtype=torch.double)
        for part, rows in zip(x.split(_ROWS), cell.split(_ROWS)):
            mean.index_add_(0, rows, part.double())
        mean = mean.float()
        length = mean.norm(dim=1, keepdim=True)
        centroids = torch.where(length > 1e-6, mean / length.clamp(min=1e-6),
                                centroids)
    return centroids


def _nearest(x: Tensor, centroids: Tensor, num: int) -> Tensor:
    # The ids of the nearest centroids, int32 [N, num], nearest first. All
    # products in the same memory: new ones are fetched page by page.
    out = torch.empty(x.size(0), num, dtype=torch.int, device=x.device)
    room = aligned_empty(min(_ROWS, x.size(0)), centroids.size(0), centroids)
    for part, place in zip(x.split(_ROWS), out.split(_ROWS)):
        product = torch.mm(part.float(), centroids.t(),
                           out=room[:part.size(0)])
        place.copy_(product.topk(num)[1] if num > 1 else
                    product.argmax(dim=1, keepdim=True))
    return out
