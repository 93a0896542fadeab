r"""Estimators with the contract of scikit-learn: features in, labels out."""
from ._split import split_identities
from .ada_nets import AdaNETS
from .aro import ARO
from .cdp import CDP
from .chinese_whispers import ChineseWhispers
from .clusformer import Clusformer
from .cosine_map_equation import CosineMapEquation
from .edges import EdgeRule, Edges, choose_rule
from .fces import FCES
from .fceser import FCESER
from .finch import FINCH
from .gcn_ve import GCNVE
from .hac import HAC
from .hdbscan import HDBSCAN
from .kmeans import KMeans
from .knn_dbscan import KNNDBSCAN
from .lcepce import LCEPCE
from .lgcn import LGCN
from .ltc import LTC
from .ndde_tpdi import NDDeTPDi
from .pair_cls import PairCls
from .sdt_clustering import SDTClustering
from .star_fc import STARFC
from .topk_jaccard_clustering import TopKJaccardClustering

__all__ = [
    'CosineMapEquation',
    'FCES',
    'TopKJaccardClustering',
    'KMeans',
    'HAC',
    'KNNDBSCAN',
    'HDBSCAN',
    'FINCH',
    'ChineseWhispers',
    'ARO',
    'CDP',
    'SDTClustering',
    'GCNVE',
    'NDDeTPDi',
    'LCEPCE',
    'FCESER',
    'AdaNETS',
    'EdgeRule',
    'Edges',
    'choose_rule',
    'split_identities',
    'PairCls',
    'STARFC',
    'LGCN',
    'Clusformer',
    'LTC',
]
