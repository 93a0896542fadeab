r"""Estimators with the contract of scikit-learn: features in, labels out."""
from .cosine_map_equation import CosineMapEquation
from .fces import FCES
from .topk_jaccard_clustering import TopKJaccardClustering

__all__ = [
    'CosineMapEquation',
    'FCES',
    'TopKJaccardClustering',
]
