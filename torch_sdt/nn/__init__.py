r"""Neural network components: layers, pooling operators and models."""
from .pool import MapEquationPool, MergeEdges, PoolOutput, SelectMapEquation

__all__ = [
    'MapEquationPool',
    'PoolOutput',
    'SelectMapEquation',
    'MergeEdges',
]
