r"""Batches of neighbour subgraphs."""
from .alternating_loader import AlternatingLoader
from .batch_loader import BatchLoader
from .neighbor_pairs import NeighborPairs, PairBatch
from .neighbor_subgraphs import NeighborSubgraphs, SubgraphBatch
from .pivot_subgraphs import PivotBatch, PivotSubgraphs
from .proposal_graphs import ProposalBatch, ProposalGraphs
from .random_views import RandomViews
from .structure_preserved_subgraphs import StructurePreservedSubgraphs

__all__ = [
    'BatchLoader',
    'NeighborSubgraphs',
    'SubgraphBatch',
    'NeighborPairs',
    'PairBatch',
    'RandomViews',
    'AlternatingLoader',
    'StructurePreservedSubgraphs',
    'PivotSubgraphs',
    'PivotBatch',
    'ProposalGraphs',
    'ProposalBatch',
]
