r"""A neighbour table as a symmetric CSR matrix, apart so that numba is imported
at the first call only.
"""
# mypy: ignore-errors
import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def symmetric_kernel(index, weight, ids):
    r"""The entries of positive weight, without those of rank 0, in both
    directions at the larger of the two weights.

    :obj:`ids` is an empty array of the type that ids shall have. Returns
    :obj:`indptr`, :obj:`indices`, sorted within rows, and :obj:`data`.
    """
    n, k = index.shape
    start = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        for r in range(1, k):
            if weight[i, r] > 0:
                start[index[i, r] + 1] += 1
    for i in range(n):
        start[i + 1] += start[i]
    row = np.empty(start[n], dtype=ids.dtype)
    value = np.empty(start[n], dtype=weight.dtype)
    fill = start[:-1].copy()
    for i in range(n):
        for r in range(1, k):
            if weight[i, r] > 0:
                slot = fill[index[i, r]]
                row[slot], value[slot] = i, weight[i, r]
                fill[index[i, r]] = slot + 1
    back = (start, row, value)
    # What is transposed is sorted, and what is so twice is the table again.
    return _maximum(_transposed(*back), back)


@numba.njit(cache=True, nogil=True)
def _transposed(start, col, value):
    n = start.size - 1
    out_start = np.zeros(n + 1, dtype=np.int64)
    for e in range(col.size):
        out_start[col[e] + 1] += 1
    for i in range(n):
        out_start[i + 1] += out_start[i]
    out_col, out_value = np.empty_like(col), np.empty_like(value)
    fill = out_start[:-1].copy()
    for i in range(n):
        for e in range(start[i], start[i + 1]):
            slot = fill[col[e]]
            out_col[slot], out_value[slot] = i, value[e]
            fill[col[e]] = slot + 1
    return out_start, out_col, out_value


@numba.njit(cache=True, nogil=True)
def _maximum(a, b):
    # Of two matrices with sorted rows, none of whose entries is negative.
    a_start, a_col, a_value = a
    b_start, b_col, b_value = b
    n = a_start.size - 1
    start = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        s, t, count = a_start[i], b_start[i], 0
        while s < a_start[i + 1] and t < b_start[i + 1]:
            x, y = a_col[s], b_col[t]
            s += x <= y
            t += y <= x
            count += 1
        count += a_start[i + 1] - s + b_start[i + 1] - t
        start[i + 1] = start[i] + count
    col = np.empty(start[n], dtype=a_col.dtype)
    value = np.empty(start[n], dtype=a_value.dtype)
    for i in range(n):
        s, t = a_start[i], b_start[i]
        for e in range(start[i], start[i + 1]):
            # Past its end a row has nothing that comes first.
            x = a_col[s] if s < a_start[i + 1] else n
            y = b_col[t] if t < b_start[i + 1] else n
            col[e] = min(x, y)
            value[e] = max(a_value[s] if x <= y else 0,
                           b_value[t] if y <= x else 0)
            s += x <= y
            t += y <= x
    return start, col, value
