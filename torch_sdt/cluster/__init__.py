r"""Estimators with the contract of scikit-learn: features in, labels out."""
from ._split import split_identities
from .cosine_map_equation import CosineMapEquation
from .edges import EdgeRule, Edges, choose_rule
from .fces import FCES
from .gcn_ve import GCNVE
from .sdt_clustering import SDTClustering
from .topk_jaccard_clustering import TopKJaccardClustering

__all__ = [
    'CosineMapEquation',
    'FCES',
    'TopKJaccardClustering',
    'SDTClustering',
    'GCNVE',
    'EdgeRule',
    'Edges',
    'choose_rule',
    'split_identities',
]
