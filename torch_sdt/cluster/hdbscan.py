from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from torch_sdt.cluster._scikit_learn import distance_graph, number_labels
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import connected_components
from torch_sdt.typing import check_count

# No cosine distance is larger than 2.
_FAR = 4.


class HDBSCAN(NeighborClustering):
    r"""HDBSCAN on the kNN graph: scikit-learn's, on the sparse matrix of cosine
    distances to each sample's neighbours.

    On all pairs of samples it takes minutes at ten thousand of them. Where
    the graph falls apart, its components are connected at a distance larger
    than any, so that no cluster spans two of them.

    Args:
        min_cluster_size (int, optional): Samples in the smallest cluster;
            others are clusters of themselves. (default: :obj:`5`)
        min_samples (int, optional): The neighbour, itself included, whose
            distance measures how sparse it is around a sample.
            (default: :obj:`min_cluster_size`)
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        index (str, optional): The search index, see
            :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        device (str or torch.device, optional): Where to search neighbours.
            (default: that of the features)
        verbose (bool, optional): If :obj:`True`, shows progress bars.
            (default: :obj:`False`)

    Attributes:
        labels_ (numpy.ndarray): Cluster of each sample, int64, ``[N]``.
        n_clusters_ (int): The number of clusters.
    """

    def __init__(
        self,
        min_cluster_size: int = 5,
        min_samples: Optional[int] = None,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count('min_cluster_size', self.min_cluster_size, 2)
        if self.min_samples is not None:
            check_count('min_samples', self.min_samples)

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        from sklearn.cluster import HDBSCAN as Method

        n = neighbors.num_nodes
        if n <= self.min_cluster_size:
            return torch.arange(n)
        samples = self.min_samples or self.min_cluster_size
        if samples > neighbors.k:
            raise ValueError(f"'min_samples' must be at most the table's "
                             f"width {neighbors.k} (got {samples})")
        method = Method(self.min_cluster_size, min_samples=samples,
                        metric='precomputed', copy=True,
                        metric_params={'max_distance': _FAR})
        return number_labels(method.fit_predict(_connected(neighbors)))


def _connected(neighbors: Neighbors) -> csr_matrix:
    # The distances of the table, in both directions, and links between its
    # components.
    graph = distance_graph(neighbors)
    # Where both directions are listed they differ by rounding alone.
    both = graph.maximum(graph.T)
    part = connected_components(neighbors.to_edge_index()[0],
                                neighbors.num_nodes).cpu().numpy()
    first = np.unique(part, return_index=True)[1]
    links = csr_matrix((np.full(first.size - 1, _FAR),
                        (first[:-1], first[1:])), graph.shape)
    return csr_matrix(both + links + links.T)
