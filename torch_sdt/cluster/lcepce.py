from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from torch_sdt.cluster._arguments import check_between, check_known
from torch_sdt.cluster.trained import Cut, Table, TrainedClustering, cuts
from torch_sdt.loader import NeighborPairs, NeighborSubgraphs
from torch_sdt.nn.models.local_connectivity import LocalConnectivity
from torch_sdt.nn.models.pair_transformer import PairTransformer
from torch_sdt.ops.components import connected_components
from torch_sdt.ops.density_peaks import DensityPeaks, density_peaks
from torch_sdt.ops.reverse import reverse_values
from torch_sdt.training import infer
from torch_sdt.typing import check_count

# Widths of LCENet and PCENet; both have the layers of SIZES.
LOCAL_WIDTH = {'small': 128, 'base': 336}
PAIR_WIDTHS = {'small': (128, 256), 'base': (416, 2048)}
SIZES = {
    'small': dict(num_layers=2, heads=4, ffn_channels=256),
    'base': dict(num_layers=3, heads=8, ffn_channels=1024),
}
# Neighbours of each side that the small PCENet sees; the other sees all.
_SIDE = 20


class LCEPCE(TrainedClustering):
    r"""LCE-PCENet from `"Local Connectivity-Based Density Estimation for Face
    Clustering" <https://github.com/illian01/LCE-PCENet>`_.

    1. :class:`~torch_sdt.nn.LocalConnectivity` estimates the probability
       :math:`s_{ij}` that neighbours are of one identity; both directions are
       averaged, a missing one counts 0. With the cosine :math:`a_{ij}`,
       :math:`w_{ij} = s_{ij} \, a_{ij}` and the density is
       :math:`\rho_i = \sum_{j \in \mathcal{N}_i \setminus i} w_{ij}`.
    2. :math:`E_d` links each sample to its denser neighbour of the largest
       :math:`w_{ij}`; :math:`E_s` links it to all other denser neighbours of
       :math:`w_{ij} \geq \theta`, by default the mean cosine of ranks 1 to 3.
    3. :class:`~torch_sdt.nn.PairTransformer` judges the pairs of
       :math:`E_d`; those of probability :math:`> \tau` stay.
    4. The components of what stays and :math:`E_s` are the clusters.

    The published networks are ``size='base'``; published is :math:`\tau = .5`
    with ``k=80`` on MS1M, ``k=8`` on DeepFashion and ``k=120`` on IJB-B.

    How it differs from the released code: see both networks; the code that
    trained them is not released, so that AdamW on each training sample's pair
    of :math:`E_d` and one with another of its denser neighbours, drawn at
    random, is our choice; :math:`\tau` is chosen on held-out identities.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        tau (float, optional): The probability :math:`\tau` above which a pair
            of :math:`E_d` stays; published is .5.
            (default: chosen on held-out identities)
        theta (float, optional): The smallest weight :math:`\theta` of
            :math:`E_s`; above 1 there is no :math:`E_s`. (default: the mean
            cosine of ranks 1 to 3 of what is clustered, as published)
        neighbors_per_side (int, optional): Neighbours of each of a pair's
            samples, itself included, that PCENet sees at most. (default: 20
            if ``size='small'``, else all, as published)
        size (str, optional): The networks: :obj:`"base"`, widths 336 and 416,
            3 layers and 8 heads, as published, or :obj:`"small"`, width 128,
            2 layers and 4 heads. (default: :obj:`"small"`)
        epochs (int, optional): Passes of each training. (default: as many as
            show a network 40,000 samples or pairs, at most 25)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Samples, or pairs, in a batch.
            (default: :obj:`128`)
        val_share (float, optional): Share of identities that is held out.
            (default: :obj:`.3`)
        index (str, optional): The search index, see
            :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        seed (int, optional): Same seed, same machine, same labels.
            (default: :obj:`0`)
        device (str or torch.device, optional): Where to work.
            (default: that of the features)
        workdir (str, optional): A folder for checkpoints and finished parts,
            from which a killed :meth:`fit` or :meth:`predict` goes on, and
            for training curves. (default: :obj:`None`)
        verbose (bool, optional): If :obj:`True`, shows progress bars.
            (default: :obj:`False`)

    Attributes:
        local_ (torch.nn.Module): LCENet.
        pair_ (torch.nn.Module): PCENet.
        rule_ (Cut): The probability above which pairs stay.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Cut
    _networks = ('local', 'pair')
    _no_weights = ('device', 'workdir', 'verbose', 'tau', 'theta')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        tau: Optional[float] = None,
        theta: Optional[float] = None,
        neighbors_per_side: Optional[int] = None,
        size: str = 'small',
        epochs: Optional[int] = None,
        lr: float = 1e-3,
        batch_size: int = 128,
        val_share: float = .3,
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        workdir: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.center = center
        self.tau = tau
        self.theta = theta
        self.neighbors_per_side = neighbors_per_side
        self.size = size
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.val_share = val_share
        self.index = index
        self.seed = seed
        self.device = device
        self.workdir = workdir
        self.verbose = verbose

    def _check_arguments(self) -> None:
        check_pair_network(self.size, self.neighbors_per_side)
        if self.tau is not None:
            check_between('tau', self.tau, 0, 1)
        if self.theta is not None:
            check_between('theta', self.theta, -1, np.inf)
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        self.local_ = LocalConnectivity(
            self.k_, self.n_features_in_, LOCAL_WIDTH[self.size],
            **SIZES[self.size])
        self.pair_ = pair_network(self.size, self.neighbors_per_side, self.k_,
                                  self.n_features_in_)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        sides = (table, y), (held_out, y_held_out)
        self._train('local', *(NeighborSubgraphs(
            one.neighbors, one.x, self.batch_size, y=y, shuffle=True,
            seed=self.seed) for one, y in sides))
        self._train('pair', pair_loader(
            self.pair_, table, self._pairs(table), self.batch_size, y,
            self.seed), self._clusters(held_out, y_held_out))

    def _pairs(self, table: Table) -> Tensor:
        # Each sample with its parent and with another denser neighbour.
        weight, density = self._local_stage(table)
        peaks = density_peaks(table.neighbors, density, -weight)
        return torch.cat([linked(peaks),
                          self._others(table, density, peaks)], dim=1)

    def _others(self, table: Table, density: Tensor, peaks: DensityPeaks
                ) -> Tensor:
        # One more denser neighbour of each sample, where there is one.
        index = table.neighbors.index
        other = is_denser(index, density) & (index != peaks.parent.view(-1, 1))
        generator = torch.Generator().manual_seed(int(self.seed))
        draw = torch.rand(index.shape, generator=generator).to(index.device)
        drawn, rank = draw.masked_fill(~other, -1).max(dim=1)
        row = (drawn >= 0).nonzero().view(-1)
        return torch.stack([row, index[row, rank[row]]])

    # Clustering ##############################################################

    def _local_stage(self, table: Table) -> Tuple[Tensor, Tensor]:
        # The weights w, shape [N, K], and densities, shape [N].
        probability = infer(
            self.local_,
            NeighborSubgraphs(table.neighbors, table.x, self.batch_size),
            lambda batch: self.local_(batch).sigmoid(), desc='LCENet',
            verbose=self.verbose)
        index = table.neighbors.index
        probability = (probability + reverse_values(index, probability)) / 2
        weight = probability * table.neighbors.similarity
        return weight, weight[:, 1:].sum(dim=1)

    def _measure(self, table: Table) -> _Measured:
        weight, density = self._local_stage(table)
        peaks = density_peaks(table.neighbors, density, -weight)
        index, theta = table.neighbors.index, self.theta
        if theta is None:
            theta = float(table.neighbors.similarity[:, 1:4].mean())
        strong = is_denser(index, density) & (weight >= theta)
        strong &= index != peaks.parent.view(-1, 1)
        row, rank = strong.nonzero(as_tuple=True)
        pairs = linked(peaks)
        probability = pair_probability(self.pair_, table, pairs,
                                       self.batch_size, self.verbose)
        return _Measured(torch.stack([row, index[row, rank]]), pairs,
                         probability, index.size(0))

    def _rules(self, measured: _Measured) -> List[Cut]:
        if self.tau is not None:
            return [Cut(self.tau)]
        return [Cut(.5)] + cuts(measured.probability)

    def _partition(self, measured: _Measured, rule: Cut) -> Tensor:
        kept = measured.pairs[:, measured.probability > rule.tau]
        return connected_components(torch.cat([kept, measured.strong], dim=1),
                                    measured.num_nodes)


class _Measured(NamedTuple):
    # The links that stay whatever the rule, and those that are judged.
    strong: Tensor
    pairs: Tensor
    probability: Tensor
    num_nodes: int


def is_denser(index: Tensor, density: Tensor) -> Tensor:
    r"""Which entries of a table are denser than their row's own sample, bool,
    shape ``[N, K]``.
    """
    return density[index] > density.view(-1, 1)


def linked(peaks: DensityPeaks) -> Tensor:
    r"""Each sample with its parent, where it has one, int64, shape
    ``[2, P]``.
    """
    row = peaks.distance.isfinite().nonzero().view(-1)
    return torch.stack([row, peaks.parent[row]])


# The pair network ############################################################


def check_pair_network(size: str, neighbors_per_side: Optional[int]) -> None:
    r"""Raises a :class:`ValueError` for arguments of which there is no
    network.
    """
    check_known('size', size, tuple(SIZES))
    if neighbors_per_side is not None:
        check_count('neighbors_per_side', neighbors_per_side)


def pair_network(size: str, neighbors_per_side: Optional[int], k: int,
                 in_channels: int) -> PairTransformer:
    r"""PCENet in one of two sizes, for tables of :obj:`k` neighbours."""
    if neighbors_per_side is None:
        neighbors_per_side = _SIDE if size == 'small' else k
    return PairTransformer(min(neighbors_per_side, k), in_channels,
                           *PAIR_WIDTHS[size], **SIZES[size])


def pair_loader(network: PairTransformer, table: Table, pairs: Tensor,
                batch_size: int, y: Optional[Tensor] = None, seed: int = 0
                ) -> NeighborPairs:
    r"""The batches that the network sees: shuffled with identities, in order
    without.
    """
    neighbors = table.neighbors
    return NeighborPairs(neighbors.truncate(min(network.k, neighbors.k)),
                         table.x, pairs, batch_size, y, y is not None, seed)


def pair_probability(network: PairTransformer, table: Table, pairs: Tensor,
                     batch_size: int, verbose: bool = False) -> Tensor:
    r"""The probability that each pair is of one identity, float32, shape
    ``[P]``.
    """
    if pairs.size(1) == 0:
        return table.x.new_empty(0)
    return infer(network, pair_loader(network, table, pairs, batch_size),
                 lambda batch: network(batch).sigmoid(), desc='PCENet',
                 verbose=verbose)
