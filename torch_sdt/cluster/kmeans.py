from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from torch_sdt.cluster._arguments import check_n_clusters
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.map_equation import number_by_appearance


class KMeans(NeighborClustering):
    r"""K-means on unit features: scikit-learn's, which is told how many
    clusters there are.

    Args:
        n_clusters (int): The number of clusters; it has to be given.
        n_init (int, optional): Runs, of which the best counts.
            (default: :obj:`1`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        seed (int, optional): Same seed, same labels. (default: :obj:`0`)

    Attributes:
        labels_ (numpy.ndarray): Cluster of each sample, int64, ``[N]``.
        n_clusters_ (int): The number of clusters.
    """
    _needs_table = False

    def __init__(
        self,
        n_clusters: Optional[int] = None,
        n_init: int = 1,
        center: bool = False,
        seed: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.center = center
        self.seed = seed

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        from sklearn.cluster import KMeans as Method

        n_clusters = check_n_clusters('KMeans', self.n_clusters, x.size(0))
        method = Method(n_clusters, n_init=self.n_init,
                        random_state=self.seed)
        labels = method.fit_predict(x.cpu().numpy())
        return number_by_appearance(torch.from_numpy(labels).long())
