r"""The CPU kernel of the structure space, apart so that numba is imported at
the first call only.
"""
# mypy: ignore-errors
import numba
import numpy as np

import torch_sdt.ops._numba_threads  # noqa: F401


@numba.njit(parallel=True, cache=True)
def common_kernel(index, start, col, other_start, other_col, out, threads):
    r"""Fills :obj:`out` with how many the set of :math:`i` and the other set
    of :math:`j` have in common, at the entry of :math:`j` in row :math:`i`.

    A thread marks the set of a row, and takes the marks back after it.
    """
    n, k = index.shape
    for t in numba.prange(threads):
        marked = np.zeros(n, dtype=np.int32)
        for i in range(t, n, threads):
            marked[col[start[i]:start[i + 1]]] = 1
            for r in range(k):
                j = index[i, r]
                both = 0
                for e in range(other_start[j], other_start[j + 1]):
                    both += marked[other_col[e]]
                out[i, r] = both
            marked[col[start[i]:start[i + 1]]] = 0
