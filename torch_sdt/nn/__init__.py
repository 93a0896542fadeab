r"""Neural network components: layers, pooling operators and models."""
from .conv import DenseDiffAttentionConv, SparseDiffAttentionConv
from .pool import MapEquationPool, MergeEdges, PoolOutput, SelectMapEquation

__all__ = [
    'SparseDiffAttentionConv',
    'DenseDiffAttentionConv',
    'MapEquationPool',
    'PoolOutput',
    'SelectMapEquation',
    'MergeEdges',
]
