from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

import torch_sdt.typing
from torch_sdt.cluster._arguments import check_between
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.map_equation import number_by_appearance
from torch_sdt.typing import check_count, require


class ChineseWhispers(NeighborClustering):
    r"""Chinese Whispers from `"Chinese Whispers: an Efficient Graph Clustering
    Algorithm" <https://aclanthology.org/W06-3812>`_: each sample in turn, in
    random order, takes the label that weighs most among its neighbours, for a
    number of sweeps.

    Edges are the cosines of at least a threshold, in both directions. Of
    equally heavy labels, the smallest is taken. Published on MS1M:
    ``threshold=.6, k=80``.

    Args:
        threshold (float, optional): The smallest cosine of an edge.
            (default: :obj:`.6`)
        sweeps (int, optional): Sweeps at most; it ends before, if nothing
            changes any more. (default: :obj:`20`)
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        index (str, optional): The search index, see
            :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        seed (int, optional): Same seed, same labels. (default: :obj:`0`)
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
        threshold: float = .6,
        sweeps: int = 20,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.threshold = threshold
        self.sweeps = sweeps
        self.k = k
        self.center = center
        self.index = index
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_between('threshold', self.threshold, -1, 1)
        check_count('sweeps', self.sweeps)

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        require(torch_sdt.typing.WITH_NUMBA, 'ChineseWhispers', 'numba')
        from torch_sdt.cluster._whispers_kernel import whispers_kernel

        mask = neighbors.similarity >= self.threshold
        edge_index, weight = neighbors.to_edge_index(
            neighbors.similarity.clamp(min=0), mask)
        n = neighbors.num_nodes
        row, col = edge_index.cpu().numpy()
        graph = csr_array((weight.cpu().numpy(), (row, col)), (n, n))
        graph = csr_array(graph.maximum(graph.T))
        label, rng = np.arange(n), np.random.default_rng(self.seed)
        for _ in range(self.sweeps):
            if not whispers_kernel(graph.indptr, graph.indices, graph.data,
                                   rng.permutation(n), label):
                break
        return number_by_appearance(torch.from_numpy(label))
