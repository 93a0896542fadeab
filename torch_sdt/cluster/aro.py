from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import connected_components
from torch_sdt.ops.reverse import reverse_values
from torch_sdt.ops.subgraph import subgraph_values

_ROWS = 1024


class ARO(NeighborClustering):
    r"""Approximate rank-order clustering from `"Clustering Millions of Faces by
    Identity" <https://arxiv.org/abs/1604.00989>`_.

    With :math:`O_i(j)` the rank of :math:`j` in the row of :math:`i`, the
    sample itself at 0, pairs that list each other are as far apart as those
    before them differ:

    .. math::
        d(i, j) = \left| \{ h : O_i(h) < O_i(j) \} \setminus \mathcal{N}_j
        \right|, \qquad
        D(i, j) = \frac{d(i, j) + d(j, i)}{\min(O_i(j), O_j(i))}.

    Pairs with :math:`D \leq` :obj:`threshold` are linked; the components are
    the clusters.

    How it differs from the released code: that counts ranks in the second
    row from 1, which makes :math:`D` asymmetric.

    Args:
        threshold (float, optional): The largest :math:`D` of a link.
            (default: :obj:`1.`)
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
        threshold: float = 1.,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        device: Any = None,
        verbose: bool = False,
    ) -> None:
        self.threshold = threshold
        self.k = k
        self.center = center
        self.index = index
        self.device = device
        self.verbose = verbose

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if not self.threshold >= 0:
            raise ValueError(f"'threshold' must not be negative (got "
                             f"{self.threshold})")

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        distance = rank_order_distance(neighbors)
        edge_index, _ = neighbors.to_edge_index(
            mask=distance <= self.threshold)
        return connected_components(edge_index, neighbors.num_nodes)


def rank_order_distance(neighbors: Neighbors) -> Tensor:
    r"""The distances :math:`D` of :class:`ARO`, infinite where one of a pair
    does not list the other.

    Returns:
        torch.Tensor: float32, shape ``[N, K]``; 0 at rank 0.
    """
    index = neighbors.index
    one = torch.ones(index.shape, device=index.device)
    parts = []
    for nodes in torch.arange(index.size(0), device=index.device).split(
            _ROWS):
        # [b, r, s]: does the neighbour at rank r list the one at rank s?
        listed = subgraph_values(index, one, nodes)
        # Those before rank r that it does not list.
        parts.append((1 - listed).tril(-1).sum(dim=2))
    missed = torch.cat(parts)
    rank = torch.arange(index.size(1), device=index.device).float()
    rank = rank.expand(index.shape)
    mutual = reverse_values(index, one) > 0
    nearest = torch.minimum(rank, reverse_values(index, rank))
    distance = (missed + reverse_values(index, missed)) / nearest
    distance = distance.masked_fill(~mutual, torch.inf)
    distance[:, 0] = 0
    return distance
