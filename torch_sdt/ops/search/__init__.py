r"""Indices that find neighbours: what :meth:`torch_sdt.ops.knn` drives."""
from .cell_search import CellSearch
from .exact_search import ExactSearch
from .faiss_search import FaissSearch
from .search import Search
from .sharded_search import ShardedSearch
from .torch_cluster_search import TorchClusterSearch

__all__ = [
    'Search',
    'ExactSearch',
    'CellSearch',
    'FaissSearch',
    'TorchClusterSearch',
    'ShardedSearch',
]
