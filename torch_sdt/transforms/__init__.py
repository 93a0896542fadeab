r"""Transforms: from features to a graph, from a graph to better weights."""
from .cosine_knn_graph import CosineKNNGraph
from .topk_jaccard import TopKJaccard

__all__ = [
    'CosineKNNGraph',
    'TopKJaccard',
]
