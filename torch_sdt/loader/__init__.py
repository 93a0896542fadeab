r"""Batches of neighbour subgraphs."""
from .neighbor_subgraphs import NeighborSubgraphs, SubgraphBatch

__all__ = [
    'NeighborSubgraphs',
    'SubgraphBatch',
]
