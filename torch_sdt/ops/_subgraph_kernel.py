r"""The CPU kernel of subgraph values, apart so that numba is imported at the
first call only.
"""
# mypy: ignore-errors
import numba
import numpy as np

import torch_sdt.ops._numba_threads  # noqa: F401


@numba.njit(parallel=True, cache=True)
def subgraph_kernel(index, value, nodes, out, threads):
    r"""Fills :obj:`out`, of zeros, see
    :meth:`torch_sdt.ops.subgraph_values`.

    A thread marks where in the subgraph each node stands, and takes the marks
    back after each row. Returns, of each thread, a row that names no row of
    the table, or -1.
    """
    n, k = index.shape
    bad = np.full(threads, -1, dtype=np.int64)
    for t in numba.prange(threads):
        rank = np.full(n, -1, dtype=np.int32)
        for b in range(t, nodes.size, threads):
            row = index[nodes[b]]
            if row.min() < 0 or row.max() >= n:
                bad[t] = nodes[b]
                continue
            for s in range(k):
                rank[row[s]] = s
            for r in range(k):
                h = row[r]
                for e in range(k):
                    j = index[h, e]
                    if j < 0 or j >= n:
                        bad[t] = h
                        break
                    s = rank[j]
                    if s >= 0:
                        out[b, r, s] = value[h, e]
            for s in range(k):
                rank[row[s]] = -1
    return bad


@numba.njit(parallel=True, cache=True)
def reverse_kernel(index, value, out):
    r"""Fills :obj:`out` where there is a value, see
    :meth:`torch_sdt.ops.reverse_values`.
    """
    n, k = index.shape
    for i in numba.prange(n):
        for r in range(k):
            j = index[i, r]
            for e in range(k):
                if index[j, e] == i:
                    out[i, r] = value[j, e]
                    break
