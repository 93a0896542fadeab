r"""Batches of neighbour subgraphs."""
from .batch_loader import BatchLoader
from .neighbor_pairs import NeighborPairs, PairBatch
from .neighbor_subgraphs import NeighborSubgraphs, SubgraphBatch
from .random_views import RandomViews

__all__ = [
    'BatchLoader',
    'NeighborSubgraphs',
    'SubgraphBatch',
    'NeighborPairs',
    'PairBatch',
    'RandomViews',
]
