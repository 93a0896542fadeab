from __future__ import annotations

from typing import Any, Optional, Tuple, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import validate_data
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.knn import default_k
from torch_sdt.ops.map_equation import check_backend, table_communities
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.typing import ArrayLike, check_seed

Self = TypeVar('Self', bound='NeighborClustering')


class NeighborClustering(ClusterMixin, BaseEstimator):
    r"""Base class of the estimators that cluster a cosine kNN table and need
    no training.

    Inherit from it, store the constructor's arguments unchanged, and
    implement :meth:`_fit_table`. The arguments :obj:`k`, :obj:`center`,
    :obj:`index`, :obj:`backend`, :obj:`seed`, :obj:`device`,
    :obj:`workdir` and :obj:`verbose` are read here, where a method has them.
    What reads features alone sets :attr:`_needs_table` to :obj:`False` and
    gets a table of themselves only.
    """
    k: Optional[int] = None
    center: bool
    index: str = 'auto'
    backend: str = 'numba'
    seed: int = 0
    device: Any = None
    verbose: bool = False
    workdir: Any = None

    _needs_table: bool = True

    labels_: np.ndarray
    n_clusters_: int

    def fit(self: Self, X: ArrayLike, y: Any = None,
            neighbors: Optional[Neighbors] = None) -> Self:
        r"""Clusters the samples.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``, of
                any float or integer type, on any device; normalised inside.
            y: Ignored.
            neighbors (Neighbors, optional): A ready table for :obj:`X`,
                which spares the search; of a wider one than :obj:`k` the
                first neighbours are taken, a narrower one is taken as it is.
                (default: :obj:`None`)

        Returns:
            The estimator itself, with ``labels_`` (int64 numpy, shape
            ``[N]``, 0-based) and ``n_clusters_``.

        Raises:
            ValueError: If the features, the table or an argument is bad; the
                message names the row, the shape or the argument.
        """
        check_seed(self.seed)
        self._check_arguments()
        x, neighbors = self._prepare(X, neighbors)
        cluster = self._fit_table(x, neighbors)
        self.labels_ = cluster.cpu().numpy().astype(np.int64)
        self.n_clusters_ = int(self.labels_.max()) + 1
        return self

    def fit_predict(self, X: ArrayLike, y: Any = None,
                    neighbors: Optional[Neighbors] = None) -> np.ndarray:
        r"""Clusters the samples and returns their labels, see :meth:`fit`."""
        return self.fit(X, y, neighbors=neighbors).labels_

    # For the methods ########################################################

    def _check_arguments(self) -> None:
        check_backend(self.backend, getattr(self, 'markov_time', 1.),
                      getattr(self, 'directed', False))

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        # Unit features and their table to the cluster of each sample.
        raise NotImplementedError

    def _communities(self, neighbors: Neighbors, weight: Tensor,
                     mask: Tensor) -> Tensor:
        return table_communities(
            neighbors, weight.masked_fill(~mask, 0.), self.backend,
            getattr(self, 'markov_time', 1.), self.seed,
            getattr(self, 'directed', False))

    def _prepare(self, X: ArrayLike, neighbors: Optional[Neighbors]
                 ) -> Tuple[Tensor, Neighbors]:
        if isinstance(X, Tensor):
            self.n_features_in_ = X.size(-1) if X.dim() > 0 else 0
        else:
            X = validate_data(self, X, ensure_all_finite=False,
                              dtype=[np.float32, np.float64, np.float16])
        x = normalize_features(X, center=self.center)
        if neighbors is not None:
            neighbors = neighbors.validate(x.size(0)).to(
                neighbors.index.device, torch.float32)
            neighbors.check_features(x)
            width = neighbors.k if self.k is None else self.k
            return x, neighbors.truncate(min(width, neighbors.k))
        if not self._needs_table:
            node = torch.arange(x.size(0), device=x.device).view(-1, 1)
            return x, Neighbors(node, torch.ones_like(node, dtype=x.dtype))
        k = default_k(x.size(0)) if self.k is None else self.k
        return x, Neighbors.search(x, k, self.index, self.device, self.seed,
                                   self.verbose, workdir=self.workdir)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


def oneself(neighbors: Neighbors) -> Tensor:
    r"""The mask of rank 0, shape ``[N, K]``."""
    mask = torch.zeros_like(neighbors.index, dtype=torch.bool)
    mask[:, 0] = True
    return mask
