from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from torch_sdt.cluster._scikit_learn import distance_graph, number_labels
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.typing import check_count


class KNNDBSCAN(NeighborClustering):
    r"""DBSCAN on the kNN graph: scikit-learn's, on the sparse matrix of cosine
    distances to each sample's neighbours.

    Published on MS1M: ``eps=.25, min_samples=1``, on DeepFashion ``k=4,
    eps=.1, min_samples=2``.

    Args:
        eps (float, optional): The largest cosine distance of a neighbour.
            (default: :obj:`.25`)
        min_samples (int, optional): How many neighbours, itself included, make
            a sample a core of a cluster. (default: :obj:`1`)
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
        eps: float = .25,
        min_samples: int = 1,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.eps = eps
        self.min_samples = min_samples
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.eps > 0:
            raise ValueError(f"'eps' must be positive (got {self.eps})")
        check_count('min_samples', self.min_samples)

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        from sklearn.cluster import DBSCAN

        if self.min_samples > neighbors.k:
            raise ValueError(f"'min_samples' must be at most the table's "
                             f"{neighbors.k} neighbours, or nobody is a core "
                             f"(got {self.min_samples})")
        method = DBSCAN(eps=self.eps, min_samples=self.min_samples,
                        metric='precomputed')
        return number_labels(method.fit_predict(distance_graph(neighbors)))
