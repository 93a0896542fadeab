from __future__ import annotations

from math import inf
from typing import Any, Optional, Tuple

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from torch_sdt.cluster._arguments import (
    check_between,
    check_known,
    check_n_clusters,
)
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import connected_components

LINKAGES = ('single', 'average')


class HAC(NeighborClustering):
    r"""Agglomerative clustering of the kNN graph.

    Only clusters that some edge of the graph connects are ever merged, the
    closest first: with single linkage by their closest pair, with average
    linkage by the mean cosine distance of the pairs that the graph holds.
    Where to stop is a distance or a number of clusters. Single linkage is the
    graph's minimum spanning tree (scipy's), average linkage scikit-learn's.

    Published on MS1M: ``linkage="single"`` at a Euclidean distance of .72
    between unit features, a cosine distance of .26.

    Args:
        linkage (str, optional): :obj:`"single"` or :obj:`"average"`.
            (default: :obj:`"single"`)
        n_clusters (int, optional): The number of clusters at which to stop;
            more remain if the graph has more components.
            (default: :obj:`None`)
        distance_threshold (float, optional): The cosine distance at which to
            stop. (default: :obj:`.26`, as published, if there is no
            :obj:`n_clusters`)
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
        linkage: str = 'single',
        n_clusters: Optional[int] = None,
        distance_threshold: Optional[float] = None,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.linkage = linkage
        self.n_clusters = n_clusters
        self.distance_threshold = distance_threshold
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_known('linkage', self.linkage, LINKAGES)
        if None not in {self.n_clusters, self.distance_threshold}:
            raise ValueError("Give 'n_clusters' or 'distance_threshold', not "
                             "both")
        if self.distance_threshold is not None:
            check_between('distance_threshold', self.distance_threshold, 0,
                          inf)

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        n = neighbors.num_nodes
        merges = _single if self.linkage == 'single' else _average
        # Each merge joins what its two samples are in, at a height.
        edge_index, height = merges(x.cpu().numpy(), neighbors)
        if self.n_clusters is not None:
            kept = n - check_n_clusters('HAC', self.n_clusters, n)
            order = np.argsort(height, kind='stable')[:kept]
        else:
            threshold = (.26 if self.distance_threshold is None
                         else self.distance_threshold)
            order = np.flatnonzero(height <= threshold)
        return connected_components(
            torch.from_numpy(edge_index[:, order]).long(), n)


def _single(x: np.ndarray, neighbors: Neighbors
            ) -> Tuple[np.ndarray, np.ndarray]:
    edge_index, cosine = neighbors.to_edge_index()
    row, col = edge_index.cpu().numpy()
    # A stored 0 would be no edge: distances count from 1.
    graph = csr_array((2 - cosine.cpu().double().numpy(), (row, col)),
                      (len(x), len(x)))
    tree = coo_array(minimum_spanning_tree(graph.maximum(graph.T)))
    return np.stack(tree.coords), tree.data - 1


def _average(x: np.ndarray, neighbors: Neighbors
             ) -> Tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import AgglomerativeClustering

    edge_index = neighbors.to_edge_index()[0].cpu()
    row, col = edge_index.numpy()
    graph = csr_array((np.ones(row.size), (row, col)), (len(x), len(x)))
    part = connected_components(edge_index, len(x)).numpy()
    edges, heights = [np.empty((2, 0), dtype=int)], [np.empty(0)]
    # One component after the other: scikit-learn would connect them.
    for members in np.split(np.argsort(part, kind='stable'),
                            np.cumsum(np.bincount(part))[:-1]):
        m = members.size
        if m == 1:
            continue
        method = AgglomerativeClustering(
            None, distance_threshold=0, metric='cosine', linkage='average',
            connectivity=graph[members][:, members]).fit(x[members])
        sample, top = np.arange(2 * m - 1), np.zeros(2 * m - 1)
        for i, (a, b) in enumerate(method.children_):
            sample[m + i] = sample[a]
            # No merge before those it is made of.
            top[m + i] = max(top[a], top[b], method.distances_[i])
        edges.append(members[sample[method.children_.T]])
        heights.append(top[m:])
    return np.concatenate(edges, axis=1), np.concatenate(heights)
