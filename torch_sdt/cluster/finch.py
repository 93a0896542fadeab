from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.cluster._arguments import check_n_clusters
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.map_equation import number_by_appearance
from torch_sdt.typing import require


class FINCH(NeighborClustering):
    r"""FINCH from `"Efficient Parameter-Free Clustering Using First Neighbor
    Relations" <https://arxiv.org/abs/1902.11266>`_, by its own package
    finch-clust: samples that are each other's first neighbours or share one
    are linked, the links' components are the clusters of the first level, and
    the same on their means gives the next.

    A hierarchy, of which somebody has to say which level is meant.

    Args:
        level (int, optional): Which level, 0 the finest; negative ones count
            from the coarsest. (default: :obj:`0`)
        n_clusters (int, optional): Takes the level whose number of clusters
            is nearest to this (by their ratio), instead of :obj:`level`.
            (default: :obj:`None`)
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
        levels_ (numpy.ndarray): Clusters at every level, int64, ``[N, L]``.
    """

    def __init__(
        self,
        level: int = 0,
        n_clusters: Optional[int] = None,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.level = level
        self.n_clusters = n_clusters
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        require(torch_sdt.typing.WITH_FINCH, 'FINCH', 'finch-clust')
        n = x.size(0)
        if self.n_clusters is not None:
            check_n_clusters('FINCH', self.n_clusters, n)
        if neighbors.k == 1 or n == 1:
            self.levels_ = np.arange(n).reshape(-1, 1)
            return torch.arange(n)
        with warnings.catch_warnings():
            # It misses a package for searches that we make ourselves.
            warnings.simplefilter('ignore')
            from finch import FINCH as method

        # The package prints, and takes the neighbours that are known.
        first = neighbors.index[:, 1].cpu().numpy()
        with contextlib.redirect_stdout(io.StringIO()):
            levels, counts, _ = method(x.cpu().numpy(), initial_rank=first,
                                       distance='cosine', verbose=False)
        self.levels_ = np.asarray(levels).astype(np.int64)
        level = self.level
        if self.n_clusters is not None:
            ratio = np.log(np.asarray(counts) / self.n_clusters)
            level = int(np.abs(ratio).argmin())
        if not -len(counts) <= level < len(counts):
            raise ValueError(f"'level' must be in {-len(counts)}.."
                             f"{len(counts) - 1} for these samples (got "
                             f"{level})")
        return number_by_appearance(torch.from_numpy(self.levels_[:, level]))
