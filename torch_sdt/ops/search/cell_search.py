from __future__ import annotations

from math import log, sqrt
from typing import List, Tuple

import torch
from torch import Tensor

from torch_sdt.ops.background import estimate_background
from torch_sdt.ops.search.exact_search import ExactSearch
from torch_sdt.ops.search.halves import in_halves

# Rows that the cells are learned from, for each cell; passes over them; rows
# that are searched exactly to see how much is found.
_TRAIN, _PASSES, _SAMPLE = 64, 8, 1024
# How many times as many cells the last of the wanted neighbours may cost.
_MOST_MORE = 16
_BYTES = 2**28


class CellSearch:
    r"""Approximate search in an inverted file, a cell at a time.

    Spherical k-means parts the samples into :math:`C \approx 3 \sqrt{N}`
    cells. All samples of a cell are compared, in one matrix product, with
    those of the :math:`P` cells whose centroids are nearest to its own: an
    inverted file asks for :math:`P` cells for each query and multiplies
    vectors with matrices, which is bound by memory; here, where every sample
    is a query, the product of two matrices is bound by arithmetic.

    :math:`P` is the smallest that finds the wanted share of the *trusted*
    neighbours of 1,024 random samples, which are searched exactly: a
    neighbour is trusted if its cosine is above what chance brings among
    :math:`N`, :math:`m + s \sqrt{2 \ln N}` with median :math:`m` and spread
    :math:`s` of random pairs. Beyond that a table lists whatever is least
    far, which no index finds and nobody needs. From a million samples on the
    last percent may be strewn over all cells: a noisy image lies in whichever
    cell chance leads it to. So :math:`P` is at most 16 times what finds
    :math:`r^2` in place of the wanted share :math:`r`; what is found then
    stands in :obj:`recall`.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
        k (int): Neighbours :math:`K` that will be asked for.
        recall (float): The share of trusted neighbours to find, in (0, 1],
            within reason.
        seed (int): Seed of the cells and of the sample.

    Attributes:
        num_cells (int): The number of cells :math:`C`.
        num_probes (int): The number of cells :math:`P` that each is compared
            with, itself included; more where those hold less than :math:`K`
            others.
        recall (float): The share of trusted neighbours that is found.
        recall_all (float): The share of all :math:`K`.
    """
    exact = False

    def __init__(self, x: Tensor, k: int, recall: float, seed: int) -> None:
        n = x.size(0)
        self.x = x
        self.num_cells = max(1, min(n, round(3 * sqrt(n))))
        centroids = _spherical_k_means(x, self.num_cells, seed)
        cell = _nearest(x, centroids)
        self.member = cell.argsort(stable=True)
        size = cell.bincount(minlength=self.num_cells)
        self.bounds = [0, *size.cumsum(0).tolist()]
        self.near = torch.cat([
            (part @ centroids.t()).argsort(dim=1, descending=True, stable=True)
            for part in centroids.split(1024)])
        # Itself first, also where two centroids are the same.
        own = self.near == torch.arange(self.num_cells,
                                        device=x.device).view(-1, 1)
        self.near = self.near.gather(1, (~own).byte().argsort(
            dim=1, stable=True))
        # Cells that together hold less than a row of the table are too few.
        full = size[self.near].cumsum(dim=1) >= min(k + 1, n)
        self._least = full.byte().argmax(dim=1) + 1
        self._choose_probes(cell, k, recall, seed)
        self._blocks: List[Tuple[int, int, int]] = []
        share = self.num_probes / self.num_cells
        step = max(1, round(_BYTES / (4 * n * share)))
        for c, (start, stop) in enumerate(zip(self.bounds, self.bounds[1:])):
            self._blocks += [(c, at, min(at + step, stop))
                             for at in range(start, stop, step)]

    def _choose_probes(self, cell: Tensor, k: int, recall: float, seed: int
                       ) -> None:
        x, n = self.x, self.x.size(0)
        generator = torch.Generator().manual_seed(int(seed))
        row = torch.randperm(n, generator=generator)[:_SAMPLE].to(x.device)
        similarity, index = ExactSearch(x).best(row, min(k, n))
        location, scale = estimate_background(x, seed)
        trusted = similarity > location + scale * sqrt(2 * log(max(n, 2)))
        # Oneself is found anyway.
        other = index != row.view(-1, 1)
        trusted &= other
        if not bool(trusted.any()):
            trusted = other
        # The place of each neighbour's cell in the list of the sample's.
        place = self.near[cell[row]].argsort(dim=1).gather(1, cell[index])
        # What is compared whatever P is.
        place[place < self._least[cell[row]].view(-1, 1)] = 0
        found = place[trusted].bincount(minlength=self.num_cells).cumsum(0)
        total = max(int(found[-1]), 1)  # No others: all of them are found.
        self.num_probes = _num_probes(found, recall)
        seen = place < self.num_probes
        self.recall = float(seen[trusted].sum()) / total
        self.recall_all = float(seen[other].sum()) / max(int(other.sum()), 1)

    def __len__(self) -> int:
        return len(self._blocks)

    def rows(self, block: int) -> Tensor:
        r"""The rows of a block: a cell, or a part of one."""
        cell, start, stop = self._blocks[block]
        return self.member[start:stop]

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block;
        id -1 where there are less.
        """
        candidates = self._candidates(block)
        most = min(k, candidates.numel())
        others = self.x[candidates].float().t()
        similarity, place = in_halves(
            lambda rows: (self.x[rows].float() @ others).topk(most),
            self.rows(block))
        missing = (0, k - most)
        return (torch.nn.functional.pad(similarity, missing),
                torch.nn.functional.pad(candidates[place], missing, value=-1))

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(num_cells={self.num_cells}, '
                f'num_probes={self.num_probes}, recall={self.recall:.4f}, '
                f'recall_all={self.recall_all:.4f})')

    def _candidates(self, block: int) -> Tensor:
        cell = self._blocks[block][0]
        probes = max(self.num_probes, int(self._least[cell]))
        near = self.near[cell, :probes].tolist()
        return torch.cat([
            self.member[self.bounds[cell]:self.bounds[cell + 1]]
            for cell in near])


def _num_probes(found: Tensor, recall: float) -> int:
    # From how many are found in the first cell, in the first two, ...
    found = found.double()
    wanted, easier = (int((found < share * found[-1] - 1e-9).sum()) + 1
                      for share in (recall, recall**2))
    return min(wanted, _MOST_MORE * easier)


def _spherical_k_means(x: Tensor, num_cells: int, seed: int) -> Tensor:
    # Means of unit length; one that loses all its samples stays where it was.
    generator = torch.Generator().manual_seed(int(seed))
    row = torch.randperm(x.size(0), generator=generator)
    x = x[row[:_TRAIN * num_cells].to(x.device)].float()
    centroids = x[:num_cells].clone()
    for _ in range(_PASSES):
        cell = _nearest(x, centroids)
        # In double precision: in which order a GPU adds does not matter.
        mean = torch.zeros_like(centroids, dtype=torch.double)
        for part, rows in zip(x.split(8192), cell.split(8192)):
            mean.index_add_(0, rows, part.double())
        mean = mean.float()
        length = mean.norm(dim=1, keepdim=True)
        centroids = torch.where(length > 1e-6, mean / length.clamp(min=1e-6),
                                centroids)
    return centroids


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    out: List[Tensor] = [(part.float() @ centroids.t()).argmax(dim=1)
                         for part in x.split(8192)]
    return torch.cat(out)
