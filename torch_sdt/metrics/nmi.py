import math
from typing import Callable, Dict

import numpy as np

from .contingency import Contingency, Labels

_AVERAGE: Dict[str, Callable[[float, float], float]] = {
    'arithmetic': lambda true, pred: (true + pred) / 2,
    'geometric': lambda true, pred: math.sqrt(true * pred),
    'min': min,
    'max': max,
}


def nmi_score(
    labels_true: Labels,
    labels_pred: Labels,
    average_method: str = 'arithmetic',
) -> float:
    r"""Normalised mutual information of a clustering and its classes.

    With :math:`n_{rc}` samples of class :math:`r` in cluster :math:`c`,
    :math:`a_r` samples in class :math:`r`, :math:`b_c` samples in cluster
    :math:`c` and :math:`N` samples in all,

    .. math::
        \textrm{NMI} = \frac{I}{\textrm{average}(H_a, H_b)}, \quad
        I = \sum_{rc} \frac{n_{rc}}{N} \ln \frac{N n_{rc}}{a_r b_c}, \quad
        H_a = -\sum_r \frac{a_r}{N} \ln \frac{a_r}{N},

    and :math:`H_b` likewise. Where both labelings have one cluster only, it
    is 1; where one of them has, it is 0, as in
    :func:`sklearn.metrics.normalized_mutual_info_score`. Published tables
    differ in the average: scikit-learn's default was geometric before 0.22
    and is arithmetic since.

    Args:
        labels_true (list, numpy.ndarray or torch.Tensor): The classes,
            integers or strings, shape ``[N]``, on any device. Every value is
            a class.
        labels_pred (list, numpy.ndarray or torch.Tensor): The clusters,
            likewise, but the integer -1 means unassigned: each such sample
            is a cluster of its own.
        average_method (str, optional): The average of the two entropies
            (:obj:`"arithmetic"`, :obj:`"geometric"`, :obj:`"min"` or
            :obj:`"max"`). (default: :obj:`"arithmetic"`)

    Returns:
        float: The score, in :math:`[0, 1]`.

    Raises:
        ValueError: If the labels are empty, of different lengths, not
            one-dimensional, or neither integers nor strings, or if the
            average is unknown.

    Example:
        >>> from torch_sdt.metrics import nmi_score
        >>> nmi_score([0, 0, 1, 1], [7, 7, 7, 7])
        0.0
    """
    if average_method not in _AVERAGE:
        raise ValueError(f"'average_method' must be one of {list(_AVERAGE)} "
                         f"(got '{average_method}')")
    return nmi_from_contingency(
        Contingency.from_labels(labels_true, labels_pred), average_method)


def nmi_from_contingency(
    table: Contingency,
    average_method: str = 'arithmetic',
) -> float:
    r"""The score of :meth:`nmi_score`, from a finished table."""
    # The same partition: 1 exactly, also where both are of one cluster.
    if table.count.size == table.true_size.size == table.pred_size.size:
        return 1.
    log_true = np.log(table.true_size / table.num_samples)
    log_pred = np.log(table.pred_size / table.num_samples)
    share = table.count / table.num_samples
    information = float(np.sum(share * (
        np.log(share) - log_true[table.true_index] -
        log_pred[table.pred_index])))
    entropy_true = -float(np.dot(table.true_size, log_true))
    entropy_pred = -float(np.dot(table.pred_size, log_pred))
    normalizer = _AVERAGE[average_method](
        entropy_true / table.num_samples, entropy_pred / table.num_samples)
    if normalizer <= 0:
        return 0.
    # Rounding may lead it a little past either end.
    return min(max(information / normalizer, 0.), 1.)
