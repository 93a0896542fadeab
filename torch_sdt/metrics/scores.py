from typing import NamedTuple


class Scores(NamedTuple):
    r"""Precision, recall and their harmonic mean, each in :math:`[0, 1]`.

    Unpacks as ``precision, recall, fscore = scores``.
    """
    precision: float
    recall: float
    fscore: float

    @classmethod
    def from_precision_recall(
        cls,
        precision: float,
        recall: float,
    ) -> 'Scores':
        r"""Adds :math:`F = 2 P R / (P + R)`, which is 0 where both are 0."""
        total = precision + recall
        fscore = 2 * precision * recall / total if total > 0 else 0.
        return cls(precision, recall, fscore)
