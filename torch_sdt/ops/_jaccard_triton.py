r"""Top-K Jaccard of a neighbour table on a GPU.

A program an edge's row: it keeps the row's ids and weights, and for each
neighbour compares all of them with all of the neighbour's, in registers. That
is K times more comparisons than look-ups in a hash table would be, and none
of them waits for memory: what is read is each neighbour's row, once.

Apart so that triton is imported at the first call only.
"""
# mypy: ignore-errors
import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 16


@triton.jit
def _jaccard_kernel(index, p, length, mass, out, width, BLOCK: tl.constexpr,
                    CHUNK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, BLOCK)
    k_i = tl.load(length + i)
    inside = rank < k_i
    mine = tl.load(index + i * width + rank, mask=inside, other=-1)
    p_i = tl.load(p + i * width + rank, mask=inside, other=0.)
    mass_i = tl.load(mass + i)
    for r in range(k_i):
        j = tl.load(index + i * width + r).to(tl.int64)
        k_j = tl.load(length + j)
        both = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, k_j, CHUNK):
            place = start + tl.arange(0, CHUNK)
            there = place < k_j
            theirs = tl.load(index + j * width + place, mask=there, other=-2)
            p_j = tl.load(p + j * width + place, mask=there, other=0.)
            common = mine[:, None] == theirs[None, :]
            both += tl.sum(tl.where(common, p_i[:, None] + p_j[None, :], 0.),
                           axis=1)
        # A row with any weight sums to one.
        rows = tl.maximum(mass_i + tl.load(mass + j), 1.)
        value = tl.where(i == j, 1., tl.sum(both, axis=0) / rows)
        tl.store(out + i * width + r, value)


def jaccard_triton(index: Tensor, length: Tensor, probability: Tensor
                   ) -> Tensor:
    r"""What :meth:`torch_sdt.ops.topk_jaccard` returns, float32, for a table
    ``[N, K]``, numbers of trusted entries ``[N]`` and edge probabilities.
    """
    n, width = index.shape
    rank = torch.arange(width, device=index.device)
    p = probability.float().masked_fill(rank >= length.view(-1, 1), 0)
    total = p.sum(dim=1, keepdim=True)
    p /= torch.where(total > 0, total, torch.ones_like(total))
    out = torch.zeros_like(p)
    if n > 0:
        _jaccard_kernel[(n, )](
            index.int().contiguous(), p, length.int(), (total > 0).float(),
            out, width, BLOCK=max(triton.next_power_of_2(width), 16),
            CHUNK=_CHUNK)
    return out
