r"""Batches of neighbour subgraphs."""
from .neighbor_subgraphs import NeighborSubgraphs, SubgraphBatch
from .random_views import RandomViews

__all__ = [
    'NeighborSubgraphs',
    'SubgraphBatch',
    'RandomViews',
]
