import numpy as np

from .contingency import Contingency, Labels
from .scores import Scores


def bcubed_scores(labels_true: Labels, labels_pred: Labels) -> Scores:
    r"""BCubed precision, recall and F-score of a clustering.

    A sample's precision is the share of its cluster that is of its class,
    its recall the share of its class that is in its cluster, itself counted
    in both. With :math:`n_{rc}` samples of class :math:`r` in cluster
    :math:`c`, :math:`a_r` samples in class :math:`r`, :math:`b_c` samples in
    cluster :math:`c` and :math:`N` samples in all, their averages are

    .. math::
        P = \frac{1}{N} \sum_{rc} \frac{n_{rc}^2}{b_c}, \quad
        R = \frac{1}{N} \sum_{rc} \frac{n_{rc}^2}{a_r}, \quad
        F = \frac{2 P R}{P + R}.

    :math:`F` is the harmonic mean of the averages, not the average of the
    samples' harmonic means. A predicted singleton has precision 1. See `"A
    Comparison of Extrinsic Clustering Evaluation Metrics Based on Formal
    Constraints" <https://doi.org/10.1007/s10791-008-9066-8>`_.

    Args:
        labels_true (list, numpy.ndarray or torch.Tensor): The classes,
            integers or strings, shape ``[N]``, on any device. Every value is
            a class.
        labels_pred (list, numpy.ndarray or torch.Tensor): The clusters,
            likewise, but the integer -1 means unassigned: each such sample
            is a cluster of its own.

    Returns:
        Scores: ``(precision, recall, fscore)``, each in :math:`(0, 1]`.

    Raises:
        ValueError: If the labels are empty, of different lengths, not
            one-dimensional, or neither integers nor strings.

    Example:
        >>> from torch_sdt.metrics import bcubed_scores
        >>> bcubed_scores([0, 0, 1, 1], [5, 5, 6, -1])
        Scores(precision=1.0, recall=0.75, fscore=0.8571428571428571)
    """
    return bcubed_from_contingency(
        Contingency.from_labels(labels_true, labels_pred))


def bcubed_from_contingency(table: Contingency) -> Scores:
    r"""The scores of :meth:`bcubed_scores`, from a finished table."""
    # In float64, which is exact for squares to 2^53: cells of 9e7 samples.
    # A perfect average is exactly 1, being a sum of whole numbers over N.
    count = table.count.astype(np.float64)
    square = count * count
    precision = np.sum(square / table.pred_size[table.pred_index])
    recall = np.sum(square / table.true_size[table.true_index])
    return Scores.from_precision_recall(
        float(precision) / table.num_samples,
        float(recall) / table.num_samples,
    )
