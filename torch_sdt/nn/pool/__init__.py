r"""Pooling by the map equation, in PyG's Select and Connect interfaces."""
from .map_equation_pool import MapEquationPool, PoolOutput
from .merge_edges import MergeEdges
from .select_map_equation import SelectMapEquation

__all__ = [
    'MapEquationPool',
    'PoolOutput',
    'SelectMapEquation',
    'MergeEdges',
]
