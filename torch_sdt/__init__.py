r"""Which embeddings are the same thing, without knowing how many there are."""
from torch_sdt.cluster import SDTClustering, TopKJaccardClustering
from torch_sdt.nn import MapEquationPool, SparseDiffAttentionConv
from torch_sdt.transforms import CosineKNNGraph, TopKJaccard

__version__ = '0.1.0'

__all__ = [
    'CosineKNNGraph',
    'TopKJaccard',
    'SparseDiffAttentionConv',
    'MapEquationPool',
    'TopKJaccardClustering',
    'SDTClustering',
]
