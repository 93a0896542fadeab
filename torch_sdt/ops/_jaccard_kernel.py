r"""The CPU kernel of Top-K Jaccard, apart so that numba is imported at the
first call only.
"""
# mypy: ignore-errors
import numba
import numpy as np

import torch_sdt.ops._numba_threads  # noqa: F401

_BLOCK = 256


@numba.njit(parallel=True, nogil=True, cache=True)
def row_key(rowptr, col, length):
    r"""The smallest id in each row, :math:`N` for an empty row.

    Rows of one neighbourhood mostly agree on it. Worked on one after the
    other, they find each other's entries in the cache, which halves the time.
    """
    n = length.size
    key = np.full(n, n, dtype=np.uint32)
    for i in numba.prange(n):
        for e in range(rowptr[i], rowptr[i] + length[i]):
            key[i] = min(key[i], col[e])
    return key


@numba.njit(parallel=True, nogil=True, fastmath=True, cache=True)
def jaccard_kernel(rowptr, col, length, p, out, order, threads):
    r"""Fills :obj:`out`, row by row in the order :obj:`order`; :obj:`p`
    becomes :math:`\hat p` in place. Returns whether it could: sums beyond
    what single precision holds are left to the caller.

    A thread keeps one scratch row: the :math:`\hat p` of the row it works
    on, scattered over all nodes, so that asking whether a neighbour is common
    costs one look-up. The inner loop has no branch left and is vectorised.
    """
    one, zero, tiny = np.float32(1), np.float32(0), np.float32(1e-30)
    least, most = np.float32(1e-37), np.float32(1e37)
    n = length.size
    mass, fits = np.zeros(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
    for i in numba.prange(n):
        first, last = rowptr[i], rowptr[i] + length[i]
        total = zero
        for e in range(first, last):
            total += p[e]
        mass[i] = total > zero
        # The reciprocal of a smaller sum would not fit.
        fits[i] = total == zero or least < total < most
        scale = one / total if total > zero else zero
        for e in range(first, last):
            p[e] *= scale
    if not fits.all():
        return False

    num_blocks = (n + _BLOCK - 1) // _BLOCK
    for t in numba.prange(threads):
        scratch = np.zeros(n, dtype=np.float32)
        for b in range(t, num_blocks, threads):
            for i in order[b * _BLOCK:(b + 1) * _BLOCK]:
                first, last = rowptr[i], rowptr[i] + length[i]
                for e in range(first, last):
                    # Never 0, which means absent.
                    scratch[col[e]] = max(p[e], tiny)
                for e in range(first, last):
                    j = col[e]
                    start = rowptr[j]
                    ids = col[start:start + length[j]]
                    theirs = p[start:start + length[j]]
                    both = zero
                    for f in range(ids.size):
                        mine = scratch[ids[f]]
                        both += mine + theirs[f] if mine > zero else zero
                    # The denominator: a row with any weight sums to one.
                    rows = np.float32(mass[i]) + np.float32(mass[j])
                    out[e] = both / rows if rows > zero else zero
                    if j == i:
                        out[e] = one
                for e in range(first, last):
                    scratch[col[e]] = zero
    return True
