from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence, Tuple, Union

import numpy as np
from torch import Tensor

Labels = Union[Sequence[int], Sequence[str], np.ndarray, Tensor]


@dataclass(frozen=True)
class Contingency:
    r"""How many samples each true class shares with each predicted cluster,
    as a list of the :math:`M \leq N` cells that are not zero.

    Every clustering metric here is a sum over these cells, so one sort of
    the :math:`N` label pairs serves them all; the dense table of
    :math:`R \cdot C` cells is never made.

    Args:
        count (numpy.ndarray): The samples :math:`n_{rc}` of every cell,
            int64, shape ``[M]``.
        true_index (numpy.ndarray): The cells' classes :math:`r`, int64,
            shape ``[M]``.
        pred_index (numpy.ndarray): The cells' clusters :math:`c`, int64,
            shape ``[M]``.
        true_size (numpy.ndarray): The samples :math:`a_r \geq 1` of every
            class, int64, shape ``[R]``.
        pred_size (numpy.ndarray): The samples :math:`b_c \geq 1` of every
            cluster, int64, shape ``[C]``.
        num_samples (int): The number of samples :math:`N`.
    """
    count: np.ndarray
    true_index: np.ndarray
    pred_index: np.ndarray
    true_size: np.ndarray
    pred_size: np.ndarray
    num_samples: int

    @classmethod
    def from_labels(
        cls,
        labels_true: Labels,
        labels_pred: Labels,
    ) -> Contingency:
        r"""Counts the label pairs in :math:`O(N \log N)`.

        Args:
            labels_true (list, numpy.ndarray or torch.Tensor): The classes,
                integers or strings, shape ``[N]``, on any device. Every
                value is a class, negative ones included.
            labels_pred (list, numpy.ndarray or torch.Tensor): The clusters,
                likewise, but the integer -1 means unassigned: each such
                sample is a cluster of its own. Every other value is a
                cluster.

        Raises:
            ValueError: If the labels are empty, of different lengths, not
                one-dimensional, or neither integers nor strings.
        """
        true = _to_numpy(labels_true, 'labels_true')
        pred = _to_numpy(labels_pred, 'labels_pred')
        if true.size != pred.size:
            raise ValueError(
                f"'labels_true' and 'labels_pred' must have one label for "
                f"every sample, but 'labels_true' has {true.size} and "
                f"'labels_pred' has {pred.size}")
        true_code, true_size = _encode(true)
        pred_code, pred_size = _encode_with_unassigned(pred)
        # One number a pair, below R * C <= N^2: int64 suffices to N = 3e9.
        pair = true_code * pred_size.size + pred_code
        pair.sort()
        first = np.ones(pair.size, dtype=bool)
        np.not_equal(pair[1:], pair[:-1], out=first[1:])
        start = np.flatnonzero(first)
        count = np.diff(start, append=pair.size)
        true_index, pred_index = np.divmod(pair[start], pred_size.size)
        return cls(count, true_index, pred_index, true_size, pred_size,
                   true.size)


def _to_numpy(labels: Labels, name: str) -> np.ndarray:
    if isinstance(labels, Tensor):
        # Before numpy, which does not know every floating type of torch.
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(_wrong_dtype(name, labels.dtype))
        array = labels.detach().cpu().numpy()
    else:
        array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"'{name}' must have shape [N] (got "
                         f"{list(array.shape)}); flatten it first")
    if array.size == 0:
        raise ValueError(f"'{name}' is empty")
    if array.dtype == object and all(isinstance(v, str) for v in array):
        array = array.astype(str)  # As pandas keeps strings.
    if array.dtype.kind not in 'iuUS':
        raise ValueError(_wrong_dtype(name, array.dtype))
    if (array.dtype.kind in 'US' and not isinstance(labels, np.ndarray) and
            not all(isinstance(label, (str, bytes)) for label in labels)):
        raise ValueError(f"'{name}' mixes strings with other types; make "
                         f"every label a string or every label an integer")
    return array


def _wrong_dtype(name: str, dtype: object) -> str:
    return (f"'{name}' must be integers or strings (got dtype {dtype}); "
            f"convert the labels first, and mark unassigned samples with -1")


def _encode(labels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    # Numbers the occurring values 0, 1, ...: codes of shape [N] and the
    # samples of every code.
    if labels.size == 0:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty
    if labels.dtype.kind in 'iu':
        low, high = int(labels.min()), int(labels.max())
        # A modest range is counted, which spares the sort of `unique`.
        if high - low < 2 * labels.size:
            if labels.dtype != np.uint64:  # Whose labels may exceed int64.
                labels = labels.astype(np.int64, copy=False)
            offset = (labels - labels.dtype.type(low)).astype(
                np.int64, copy=False)
            size = np.bincount(offset, minlength=high - low + 1)
            occurs = size > 0
            if occurs.all():
                return offset, size
            return (np.cumsum(occurs) - 1)[offset], size[occurs]
    _, code, size = np.unique(labels, return_inverse=True, return_counts=True)
    return code, size


def _encode_with_unassigned(
    labels: np.ndarray,
) -> Tuple[np.ndarray, np.ndarray]:
    # As `_encode`, but every -1 gets a code of its own.
    if labels.dtype.kind != 'i':
        return _encode(labels)
    unassigned = labels == -1
    num_unassigned = int(np.count_nonzero(unassigned))
    if num_unassigned == 0:
        return _encode(labels)
    assigned_code, size = _encode(labels[~unassigned])
    code = np.empty(labels.size, dtype=np.int64)
    code[~unassigned] = assigned_code
    code[unassigned] = np.arange(size.size, size.size + num_unassigned)
    return code, np.append(size, np.ones(num_unassigned, dtype=np.int64))
