r"""Clustering metrics from one sparse contingency table."""
from .bcubed import bcubed_scores
from .clustering_scores import ClusteringScores, clustering_scores
from .nmi import nmi_score
from .pairwise import pairwise_scores
from .scores import Scores

__all__ = [
    'pairwise_scores',
    'bcubed_scores',
    'nmi_score',
    'clustering_scores',
    'Scores',
    'ClusteringScores',
]
