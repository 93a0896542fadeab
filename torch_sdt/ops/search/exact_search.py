from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from torch_sdt.ops.aligned import aligned_product
from torch_sdt.ops.search.halves import in_halves
from torch_sdt.ops.search.row_blocks import RowBlocks

ERROR = 3.1 * 2**-8


class ExactSearch(RowBlocks):
    r"""Exact search in plain torch, tile by tile.

    A block of queries is compared with a block of samples at a time, and the
    best so far are kept, so that memory does not grow with :math:`N`.

    On a GPU products are taken in bfloat16, at many times the rate: three
    times as many neighbours as wanted are found and their cosines computed
    again in float32. That this loses nothing is checked: both factors and the
    product are rounded by at most one part in :math:`2^8`, so that with unit
    rows cosines err by less than :math:`e = 3.1 \cdot 2^{-8}` and all that
    was left behind is below the last one kept plus :math:`e`; rows for which
    that is not below the last one wanted are searched again in float32.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
        dtype (torch.dtype, optional): What products are taken in, float32 or
            bfloat16. (default: bfloat16 on a GPU, else float32)
        tile (int, optional): Most entries of a tile.
            (default: :obj:`2**30` on a GPU, else :obj:`2**26`)
    """
    exact = True

    def __init__(self, x: Tensor, dtype: Optional[torch.dtype] = None,
                 tile: Optional[int] = None) -> None:
        if dtype is None:
            dtype = torch.bfloat16 if x.is_cuda else torch.float32
        super().__init__(x)
        self.dtype = dtype
        # What is multiplied in float32 is widened tile by tile.
        self.reduced = x if dtype == torch.float32 else x.to(dtype)
        self.tile = tile or (2**30 if x.is_cuda else 2**26)

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block."""
        return in_halves(lambda rows: self.best(rows, k), self.rows(block))

    def best(self, rows: Tensor, k: int) -> Tuple[Tensor, Tensor]:
        r"""The same for any rows."""
        n = self.x.size(0)
        if self.dtype == torch.float32 or n <= 4 * k:
            return self._best(self.x, rows, k)
        rough, index = self._best(self.reduced, rows, min(3 * k, n),
                                  self.dtype)
        similarity = exact_cosines(self.x, rows, index)
        similarity, order = similarity.topk(k)
        uncertain = rough[:, -1].float() + ERROR >= similarity[:, -1]
        index = index.gather(1, order)
        if bool(uncertain.any()):
            similarity[uncertain], index[uncertain] = self._best(
                self.x, rows[uncertain], k)
        return similarity, index

    def _best(self, x: Tensor, rows: Tensor, k: int,
              dtype: torch.dtype = torch.float32) -> Tuple[Tensor, Tensor]:
        query = x[rows].to(dtype)
        best = query.new_empty(rows.numel(), 0)
        index = rows.new_empty(rows.numel(), 0)
        step = max(k, self.tile // max(rows.numel(), 1))
        for start in range(0, x.size(0), step):
            score = aligned_product(query,
                                    x[start:start + step].to(dtype).t())
            score, place = score.topk(min(k, score.size(1)))
            best = torch.cat([best, score], dim=1)
            index = torch.cat([index, place + start], dim=1)
            if best.size(1) > k:
                best, order = best.topk(k)
                index = index.gather(1, order)
        return best, index


def exact_cosines(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    r"""Cosines of some rows with the samples that :obj:`index` names, -1
    taken for 0, in float32, shape ``[len(rows), K]``.
    """
    out = torch.empty(index.shape, device=x.device)
    for start in range(0, index.size(0), 512):
        found = index[start:start + 512].clamp(min=0)
        out[start:start + 512] = torch.einsum(
            'qd,qkd->qk', x[rows[start:start + 512]].float(), x[found].float())
    return out
