r"""Pure functions on tensors: the mathematics of the library."""
from .background import Background, estimate_background
from .components import connected_components, size_constrained_components
from .density_peaks import DensityPeaks, density_peaks
from .diff_attention import diff_attention, topk_edge_mask
from .early_stop import early_stop
from .edge_probability import edge_probability
from .grouped_linear import grouped_linear
from .jaccard import topk_jaccard, topk_jaccard_csr
from .knn import knn
from .local_scaling import local_scaling
from .locality_order import locality_order
from .map_equation import (
    map_equation,
    map_equation_communities,
    map_equation_ladder,
)
from .ndde import ndde, tpdi, transition_probability
from .neighbor_context import neighbor_context
from .node_intimacy import node_intimacy
from .normalize import normalize_features
from .proposals import (
    Proposals,
    cluster_proposals,
    de_overlap,
    proposal_overlap,
    super_vertices,
)
from .rank_weighted_density import rank_weighted_density
from .reverse import reverse_values, symmetric_values
from .structure_space import structure_space
from .subgraph import subgraph_values
from .topk import expected_topk, topk_target

__all__ = [
    'normalize_features',
    'estimate_background',
    'Background',
    'knn',
    'edge_probability',
    'local_scaling',
    'locality_order',
    'topk_jaccard',
    'topk_jaccard_csr',
    'topk_target',
    'expected_topk',
    'subgraph_values',
    'reverse_values',
    'symmetric_values',
    'diff_attention',
    'topk_edge_mask',
    'grouped_linear',
    'connected_components',
    'size_constrained_components',
    'density_peaks',
    'DensityPeaks',
    'transition_probability',
    'ndde',
    'structure_space',
    'tpdi',
    'map_equation',
    'map_equation_communities',
    'map_equation_ladder',
    'early_stop',
    'node_intimacy',
    'neighbor_context',
    'rank_weighted_density',
    'Proposals',
    'cluster_proposals',
    'proposal_overlap',
    'de_overlap',
    'super_vertices',
]
