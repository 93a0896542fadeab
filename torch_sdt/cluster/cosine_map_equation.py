from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.map_equation import MarkovTime


class CosineMapEquation(NeighborClustering):
    r"""The map equation on the graph of cosines above a threshold: the
    strongest simple baseline of the field.

    Every sample is linked to those of its :obj:`k` nearest neighbours whose
    cosine is at least :obj:`threshold`, with the cosine as the weight, and
    the communities that minimise the map equation
    (:meth:`~torch_sdt.ops.map_equation`) are the clusters.

    The default threshold is the one published for MS1M features
    (`face-cluster-by-infomap
    <https://github.com/xiaoxiong74/face-cluster-by-infomap>`_); other
    features need another, which is what
    :class:`~torch_sdt.cluster.TopKJaccardClustering` spares.

    Args:
        threshold (float, optional): The smallest cosine of an edge.
            (default: :obj:`.58`)
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        index (str, optional): The search index, see
            :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        backend (str, optional): See
            :meth:`~torch_sdt.ops.map_equation_communities`.
            (default: :obj:`"networkit"`)
        markov_time (float, str or tuple, optional): The resolution, see
            there. (default: :obj:`1.`)
        directed (bool, optional): If :obj:`True`, flow goes from a sample to
            its neighbours only (infomap backend). (default: :obj:`False`)
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
        threshold: float = .58,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        backend: str = 'networkit',
        markov_time: MarkovTime = 1.,
        directed: bool = False,
        seed: int = 0,
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.threshold = threshold
        self.k = k
        self.center = center
        self.index = index
        self.backend = backend
        self.markov_time = markov_time
        self.directed = directed
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"'threshold' must be a cosine in [-1, 1] (got "
                             f"{self.threshold})")

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        # A negative cosine is no weight.
        similarity = neighbors.similarity.clamp(min=0)
        return self._communities(neighbors, similarity,
                                 neighbors.similarity >= self.threshold)
