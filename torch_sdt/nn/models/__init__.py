r"""Models that read the neighbours of a node."""
from .adaptive_filter import AdaptiveFilter
from .clusformer import ClusformerModel
from .edge_gcn import EdgeGCN
from .gcn_e import GCNE
from .gcn_v import GCNV
from .hinge_gcn import HingeGCN
from .lgcn import LGCNModel
from .local_connectivity import LocalConnectivity
from .mixture_of_experts import MixtureOfExperts
from .neighbor_encoder import NeighborEncoder
from .pair_classifier import PairClassifier
from .pair_transformer import PairTransformer
from .proposal_gcn import GCND, GCNS
from .similarity_transformer import SimilarityTransformer
from .sparse_diff_transformer import SparseDiffTransformer
from .topk_predictor import TopKPredictor

__all__ = [
    'TopKPredictor',
    'SparseDiffTransformer',
    'NeighborEncoder',
    'MixtureOfExperts',
    'AdaptiveFilter',
    'GCNV',
    'GCNE',
    'SimilarityTransformer',
    'HingeGCN',
    'PairTransformer',
    'LocalConnectivity',
    'PairClassifier',
    'EdgeGCN',
    'LGCNModel',
    'ClusformerModel',
    'GCND',
    'GCNS',
]
