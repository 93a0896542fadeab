r"""Pure functions on tensors: the mathematics of the library."""
from .diff_attention import diff_attention, topk_edge_mask
from .edge_probability import edge_probability
from .jaccard import topk_jaccard, topk_jaccard_csr
from .knn import knn
from .local_scaling import local_scaling
from .map_equation import (
    map_equation,
    map_equation_communities,
    map_equation_ladder,
)
from .normalize import normalize_features

__all__ = [
    'normalize_features',
    'knn',
    'edge_probability',
    'local_scaling',
    'topk_jaccard',
    'topk_jaccard_csr',
    'diff_attention',
    'topk_edge_mask',
    'map_equation',
    'map_equation_communities',
    'map_equation_ladder',
]
