from typing import NamedTuple

from .bcubed import bcubed_from_contingency
from .contingency import Contingency, Labels
from .nmi import nmi_from_contingency
from .pairwise import pairwise_from_contingency
from .scores import Scores


class ClusteringScores(NamedTuple):
    r"""What :meth:`~torch_sdt.metrics.clustering_scores` returns.

    Args:
        pairwise (Scores): See :meth:`~torch_sdt.metrics.pairwise_scores`.
        bcubed (Scores): See :meth:`~torch_sdt.metrics.bcubed_scores`.
        nmi (float): See :meth:`~torch_sdt.metrics.nmi_score`, with the
            arithmetic average.
        num_clusters (int): The number of predicted clusters, each unassigned
            sample counted as one.
    """
    pairwise: Scores
    bcubed: Scores
    nmi: float
    num_clusters: int


def clustering_scores(
    labels_true: Labels,
    labels_pred: Labels,
) -> ClusteringScores:
    r"""Every metric of a clustering from one contingency table.

    Args:
        labels_true (list, numpy.ndarray or torch.Tensor): The classes,
            integers or strings, shape ``[N]``, on any device. Every value is
            a class.
        labels_pred (list, numpy.ndarray or torch.Tensor): The clusters,
            likewise, but the integer -1 means unassigned: each such sample
            is a cluster of its own.

    Returns:
        ClusteringScores: ``(pairwise, bcubed, nmi, num_clusters)``.

    Raises:
        ValueError: If the labels are empty, of different lengths, not
            one-dimensional, or neither integers nor strings.

    Example:
        >>> from torch_sdt.metrics import clustering_scores
        >>> clustering_scores([0, 0, 1, 1], [5, 5, 6, -1]).num_clusters
        3
    """
    table = Contingency.from_labels(labels_true, labels_pred)
    return ClusteringScores(
        pairwise_from_contingency(table),
        bcubed_from_contingency(table),
        nmi_from_contingency(table),
        table.pred_size.size,
    )
