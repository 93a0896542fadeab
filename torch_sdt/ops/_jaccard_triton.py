r"""Top-K Jaccard of a neighbour table on a GPU.

A program a row: it keeps the row's ids and weights in registers, and looks all
of them up at once in each neighbour's row, which is sorted by id: of
:math:`\log_2 K` halvings all but the first find the row in the nearest cache.

Apart so that triton is imported at the first call only.
"""
# mypy: ignore-errors
from typing import Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# More than any id: where a row trusts no more.
_NONE: tl.constexpr = tl.constexpr(2**31 - 1)
# That are sorted at once.
_ROWS = 2**20


@triton.jit
def _jaccard_kernel(index, ids, p, length, mass, out, width,
                    BLOCK: tl.constexpr, HALVINGS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < width
    mine = tl.load(ids + i * width + lane, mask=inside, other=_NONE)
    p_i = tl.load(p + i * width + lane, mask=inside, other=0.)
    mass_i = tl.load(mass + i)
    for r in range(tl.load(length + i)):
        j = tl.load(index + i * width + r)
        # The last of j's entries that is not greater, or the first.
        place = tl.zeros([BLOCK], dtype=tl.int32)
        for halving in tl.static_range(HALVINGS):
            ahead = place + (BLOCK >> (halving + 1))
            theirs = tl.load(ids + j * width + ahead, mask=ahead < width,
                             other=_NONE)
            place = tl.where((ahead < width) & (theirs <= mine), ahead, place)
        # Where both trust no more they agree, and have no weight.
        common = tl.load(ids + j * width + place) == mine
        p_j = tl.load(p + j * width + place, mask=common, other=0.)
        both = tl.sum(tl.where(common, p_i + p_j, 0.), axis=0)
        # A row with any weight sums to one.
        rows = tl.maximum(mass_i + tl.load(mass + j), 1.)
        value = tl.where(i == j, 1., both / rows)
        tl.store(out + i * width + r, value)


def jaccard_triton(index: Tensor, length: Tensor, probability: Tensor
                   ) -> Tensor:
    r"""What :meth:`torch_sdt.ops.topk_jaccard` returns, float32, for a table
    ``[N, K]``, numbers of trusted entries ``[N]`` and edge probabilities.
    """
    n, width = index.shape
    ids, p = _by_id(index, length, probability)
    total = p.sum(dim=1, keepdim=True)
    p /= torch.where(total > 0, total, torch.ones_like(total))
    out = torch.zeros_like(p)
    if n > 0:
        block = max(triton.next_power_of_2(width), 16)
        # A warp waits for none, and each of its threads for four look-ups.
        _jaccard_kernel[(n, )](
            index.contiguous(), ids, p, length.int(), (total > 0).float(),
            out, width, BLOCK=block, HALVINGS=block.bit_length() - 1,
            num_warps=max(block // 128, 1))
    return out


def _by_id(index: Tensor, length: Tensor, probability: Tensor
           ) -> Tuple[Tensor, Tensor]:
    # Each row's trusted entries sorted by id, int32, and their probabilities,
    # float32; 0 where it trusts no more.
    ids = torch.empty(index.shape, dtype=torch.int32, device=index.device)
    p = torch.empty(index.shape, dtype=torch.float32, device=index.device)
    rank = torch.arange(index.size(1), device=index.device)
    for start in range(0, index.size(0), _ROWS):
        part = slice(start, start + _ROWS)
        beyond = rank >= length[part].view(-1, 1)
        ids[part], order = index[part].int().masked_fill(
            beyond, _NONE.value).sort(dim=1)
        value = probability[part].float().masked_fill(beyond, 0)
        p[part] = value.gather(1, order)
    return ids, p
