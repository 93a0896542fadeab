r"""Neural network components: layers, pooling operators and models."""
from .conv import DenseDiffAttentionConv, SparseDiffAttentionConv
from .models import (
    GCNE,
    GCNV,
    AdaptiveFilter,
    ClusformerModel,
    EdgeGCN,
    HingeGCN,
    LGCNModel,
    LocalConnectivity,
    MixtureOfExperts,
    NeighborEncoder,
    PairClassifier,
    PairTransformer,
    SimilarityTransformer,
    SparseDiffTransformer,
    TopKPredictor,
)
from .pool import MapEquationPool, MergeEdges, PoolOutput, SelectMapEquation

__all__ = [
    'SparseDiffAttentionConv',
    'DenseDiffAttentionConv',
    'TopKPredictor',
    'SparseDiffTransformer',
    'NeighborEncoder',
    'MixtureOfExperts',
    'AdaptiveFilter',
    'GCNV',
    'GCNE',
    'SimilarityTransformer',
    'HingeGCN',
    'MapEquationPool',
    'PoolOutput',
    'SelectMapEquation',
    'MergeEdges',
    'PairTransformer',
    'LocalConnectivity',
    'PairClassifier',
    'EdgeGCN',
    'LGCNModel',
    'ClusformerModel',
]
