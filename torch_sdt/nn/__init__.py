r"""Neural network components: layers, pooling operators and models."""
from .conv import DenseDiffAttentionConv, SparseDiffAttentionConv
from .models import (
    GCNE,
    GCNV,
    AdaptiveFilter,
    MixtureOfExperts,
    NeighborEncoder,
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
    'MapEquationPool',
    'PoolOutput',
    'SelectMapEquation',
    'MergeEdges',
]
