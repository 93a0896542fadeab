from __future__ import annotations

from typing import Any, Optional

from torch import Tensor

from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.early_stop import early_stop
from torch_sdt.ops.edge_probability import check_transform, edge_probability
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.map_equation import MarkovTime


class FCES(NeighborClustering):
    r"""Face clustering with early stopping (FC-ES) from `"Face Clustering via
    Early Stopping and Edge Recall" <https://arxiv.org/abs/2408.13431>`_.

    The neighbour-based edge probability :math:`\tilde p_{ij}` is the Jaccard
    of :meth:`~torch_sdt.ops.topk_jaccard` over all :math:`K` neighbours. From
    each sample, neighbours are linked in the order of their cosine while
    :math:`\tilde p_{ij} \geq \theta`; the first below ends the row. The map
    equation clusters the links.

    How it differs from the released code: the graph is undirected unless
    :obj:`directed` says otherwise, and a sample without links of its own is
    not torn out of a cluster into which others link it.

    Args:
        theta (float, optional): The probability :math:`\theta` at which a
            row stops. (default: :obj:`.22`, as published)
        distance_transform (str, optional): :obj:`"exponential"`, as
            published, or
            :obj:`"sigmoid"`; see :meth:`~torch_sdt.ops.edge_probability`,
            also for :obj:`delta`, :obj:`epsilon` and :obj:`tau`.
            (default: :obj:`"exponential"`)
        delta (float, optional): Steepness of the sigmoid.
            (default: :obj:`7.5`)
        epsilon (float, optional): Offset of the sigmoid.
            (default: :obj:`-5.`)
        tau (float, optional): Scale of the exponential. (default: :obj:`.5`)
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
            its neighbours only, as in the released code (infomap backend).
            (default: :obj:`False`)
        seed (int, optional): Same seed, same labels. (default: :obj:`0`)
        device (str or torch.device, optional): Where to search neighbours.
            (default: that of the features)
        verbose (bool, optional): If :obj:`True`, shows progress bars.
            (default: :obj:`False`)

    Attributes:
        labels_ (numpy.ndarray): Cluster of each sample, int64, ``[N]``.
        n_clusters_ (int): The number of clusters.
        k_ (numpy.ndarray): Where each row stopped: its links plus itself,
            int64, ``[N]``.
    """

    def __init__(
        self,
        theta: float = .22,
        distance_transform: str = 'exponential',
        delta: float = 7.5,
        epsilon: float = -5.,
        tau: float = .5,
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
        self.theta = theta
        self.distance_transform = distance_transform
        self.delta = delta
        self.epsilon = epsilon
        self.tau = tau
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
        check_transform(self.distance_transform, self.tau)
        if not 0 <= self.theta <= 1:
            raise ValueError(f"'theta' must be a probability in [0, 1] (got "
                             f"{self.theta})")

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        probability = edge_probability(
            neighbors.similarity, self.distance_transform, self.delta,
            self.epsilon, self.tau)
        jaccard = topk_jaccard(neighbors, probability=probability)
        linked = early_stop(jaccard, self.theta)
        self.k_ = linked.sum(dim=1).cpu().numpy()
        return self._communities(neighbors, jaccard, linked)
