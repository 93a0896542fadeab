import numpy as np

from .contingency import Contingency, Labels
from .scores import Scores


def pairwise_scores(labels_true: Labels, labels_pred: Labels) -> Scores:
    r"""Pairwise precision, recall and F-score of a clustering.

    Over all pairs of different samples, a pair is predicted when both lie in
    one cluster and true when both are of one class. With :math:`n_{rc}`
    samples of class :math:`r` in cluster :math:`c`, :math:`a_r` samples in
    class :math:`r`, :math:`b_c` samples in cluster :math:`c` and :math:`N`
    samples in all,

    .. math::
        P = \frac{\sum_{rc} n_{rc}^2 - N}{\sum_c b_c^2 - N}, \quad
        R = \frac{\sum_{rc} n_{rc}^2 - N}{\sum_r a_r^2 - N}, \quad
        F = \frac{2 P R}{P + R}.

    A score whose denominator is 0 (no pair is predicted, or none is true) is
    0. This is the :math:`F_P` of `"Learning to Cluster Faces on an Affinity
    Graph" <https://arxiv.org/abs/1904.02749>`_.

    Args:
        labels_true (list, numpy.ndarray or torch.Tensor): The classes,
            integers or strings, shape ``[N]``, on any device. Every value is
            a class.
        labels_pred (list, numpy.ndarray or torch.Tensor): The clusters,
            likewise, but the integer -1 means unassigned: each such sample
            is a cluster of its own.

    Returns:
        Scores: ``(precision, recall, fscore)``, each in :math:`[0, 1]`.

    Raises:
        ValueError: If the labels are empty, of different lengths, not
            one-dimensional, or neither integers nor strings.

    Example:
        >>> from torch_sdt.metrics import pairwise_scores
        >>> pairwise_scores([0, 0, 1, 1], [5, 5, 5, -1])
        Scores(precision=0.3333333333333333, recall=0.5, fscore=0.4)
    """
    return pairwise_from_contingency(
        Contingency.from_labels(labels_true, labels_pred))


def pairwise_from_contingency(table: Contingency) -> Scores:
    r"""The scores of :meth:`pairwise_scores`, from a finished table."""
    both = _num_pairs(table.count, table.num_samples)
    pred = _num_pairs(table.pred_size, table.num_samples)
    true = _num_pairs(table.true_size, table.num_samples)
    return Scores.from_precision_recall(
        both / pred if pred > 0 else 0.,
        both / true if true > 0 else 0.,
    )


def _num_pairs(size: np.ndarray, num_samples: int) -> int:
    # Ordered pairs. A sum of squares is at most N^2, which int64 holds to
    # N = 3e9; what follows is Python's own integers, exact at any size.
    return int(np.dot(size, size)) - num_samples
