r"""One sweep of Chinese Whispers, apart so that numba is imported late."""
# mypy: ignore-errors
import numba
import numpy as np


@numba.njit(cache=True)
def whispers_kernel(rowptr, col, weight, order, label):
    r"""Gives every node of :obj:`order`, in turn, the label of the largest
    summed weight among its neighbours; returns whether any changed.
    """
    total = np.zeros(label.size)
    changed = False
    for i in order:
        best, most = label[i], -1.
        for e in range(rowptr[i], rowptr[i + 1]):
            total[label[col[e]]] += weight[e]
        for e in range(rowptr[i], rowptr[i + 1]):
            name = label[col[e]]
            if total[name] > most or (total[name] == most and name < best):
                best, most = name, total[name]
        for e in range(rowptr[i], rowptr[i + 1]):
            total[label[col[e]]] = 0.
        changed |= best != label[i]
        label[i] = best
    return changed
