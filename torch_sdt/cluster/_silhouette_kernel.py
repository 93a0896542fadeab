r"""Silhouettes of mean cosines, one dot product per neighbouring cluster.

Apart so that numba is imported at the first call only.
"""
# mypy: ignore-errors
import numba
import numpy as np

import torch_sdt.ops._numba_threads  # noqa: F401


@numba.njit(parallel=True, nogil=True, fastmath=True, cache=True)
def silhouette_kernel(x, index, cluster, total, size, rival, asked, location):
    r"""See :meth:`torch_sdt.cluster._selection.silhouettes`.

    :obj:`rival` lists, per cluster, other clusters to compare with besides
    those of a sample's neighbours.
    """
    n, dim = x.shape
    width, num_rivals = index.shape[1], rival.shape[1]
    out = np.zeros(n, dtype=np.float32)
    for i in numba.prange(n):
        own = cluster[i]
        if not asked[own]:
            continue
        tried = np.empty(width + num_rivals, dtype=np.int64)
        count = 0
        best, second = np.float32(location), np.float32(location)
        for r in range(width + num_rivals):
            m = cluster[index[i, r]] if r < width else rival[own, r - width]
            if m == own:
                continue
            known = False
            for s in range(count):
                if tried[s] == m:
                    known = True
                    break
            if known:
                continue
            tried[count] = m
            count += 1
            dot = np.float32(0)
            for d in range(dim):
                dot += x[i, d] * total[m, d]
            dot /= np.float32(size[m])
            if dot > best:
                best, second = dot, best
            elif dot > second:
                second = dot
        if size[own] == 1:
            out[i] = -(best - second) / max(1 - second, np.float32(1e-6))
            continue
        dot = np.float32(0)
        for d in range(dim):
            dot += x[i, d] * total[own, d]
        mine = (dot - 1) / np.float32(size[own] - 1)
        out[i] = (mine - best) / max(1 - min(mine, best), np.float32(1e-6))
    return out
