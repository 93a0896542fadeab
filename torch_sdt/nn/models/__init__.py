r"""Models that read the neighbours of a node."""
from .adaptive_filter import AdaptiveFilter
from .gcn_e import GCNE
from .gcn_v import GCNV
from .hinge_gcn import HingeGCN
from .mixture_of_experts import MixtureOfExperts
from .neighbor_encoder import NeighborEncoder
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
]
