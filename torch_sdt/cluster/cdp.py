from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from torch_sdt.cluster._arguments import check_between
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import size_constrained_components


class CDP(NeighborClustering):
    r"""Consensus-driven propagation from `"Consensus-Driven Propagation in
    Massive Unlabeled Data for Face Recognition"
    <https://arxiv.org/abs/1809.01407>`_, with one model as its own committee:
    neighbours of a cosine above a threshold are linked, and components that
    are too large are cut where links are weakest
    (:meth:`~torch_sdt.ops.size_constrained_components`).

    Published for one model: ``k=15, threshold=.66``; on MS1M in the
    learn-to-cluster benchmark, ``threshold=.7``; on DeepFashion, ``k=2,
    threshold=.5, max_size=200``. With a committee of several models, pairs
    are those on which enough of them agree, which a mediator network weighs:
    that is not here.

    How it differs from the released code: a sample without any link is a
    cluster of itself, where that discards it.

    Args:
        threshold (float, optional): The cosine that a link exceeds.
            (default: :obj:`.7`)
        max_size (int, optional): Samples in a cluster. (default: :obj:`600`)
        step (float, optional): By which share of what is left to 1 the
            threshold rises in a round. (default: :obj:`.05`)
        max_rounds (int, optional): Rounds at most. (default: :obj:`100`)
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
        threshold: float = .7,
        max_size: int = 600,
        step: float = .05,
        max_rounds: int = 100,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.threshold = threshold
        self.max_size = max_size
        self.step = step
        self.max_rounds = max_rounds
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_between('threshold', self.threshold, -1, 1)

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        edge_index, cosine = neighbors.to_edge_index(
            mask=neighbors.similarity > self.threshold)
        return size_constrained_components(
            edge_index, cosine, neighbors.num_nodes, self.max_size, self.step,
            self.max_rounds)
