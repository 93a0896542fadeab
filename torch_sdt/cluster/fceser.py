from __future__ import annotations

from itertools import product
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from torch_sdt.cluster._arguments import check_between
from torch_sdt.cluster.lcepce import (
    check_pair_network,
    pair_loader,
    pair_network,
    pair_probability,
)
from torch_sdt.cluster.trained import Table, TrainedClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.early_stop import early_stop
from torch_sdt.ops.edge_probability import edge_probability
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.map_equation import check_backend, table_communities

# What is tried of each threshold, the published first.
THETAS = (.22, .1, .3, .4, .5, .6, .7)
DELTAS = (.12, .3)
# Above 1 nothing is recalled: FC-ES is among what is tried.
ETAS = (.6, .8, .95, 2.)
# Pairs that the network learns from, at most.
_PAIRS = 40_000


class RecallRule(NamedTuple):
    r"""Which neighbours are linked.

    Args:
        theta (float): The edge probability at which a row stops.
        delta (float): The edge probability of a pair that is judged.
        eta (float): The verdict at which it is linked.
    """
    theta: float = .22
    delta: float = .12
    eta: float = .6


class FCESER(TrainedClustering):
    r"""Face clustering with early stopping and edge recall (FC-ESER) from
    `"Face Clustering via Early Stopping and Edge Recall"
    <https://arxiv.org/abs/2408.13431>`_.

    1. FC-ES (:class:`~torch_sdt.cluster.FCES`): with the neighbour-based edge
       probability :math:`\tilde p_{ij}`, the Jaccard of
       :meth:`~torch_sdt.ops.topk_jaccard` over all :math:`K` neighbours with
       :math:`p_{ij} = \exp(-d_{ij} / .5)`, neighbours are linked in the order
       of their cosine while :math:`\tilde p_{ij} \geq \theta`; the first
       below ends the row.
    2. :class:`~torch_sdt.nn.PairTransformer` judges the neighbours behind
       that stop of :math:`\tilde p_{ij} \geq \delta`: one that is of the same
       identity with probability :math:`q_{ij} \geq \eta` is linked after all,
       with :math:`q_{ij}` as the weight.
    3. The map equation clusters the links.

    The published thresholds are ``theta=.22, delta=.12, eta=.6`` with
    ``k=80`` (MS1M), the published network is ``size='base'``.

    How it differs from the released code: see
    :class:`~torch_sdt.cluster.FCES` and
    :class:`~torch_sdt.nn.PairTransformer`; AdamW, on at most 40,000 of the
    pairs that any threshold which is tried asks for; thresholds are chosen on
    held-out identities, and nothing on test data.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        theta (float, optional): The edge probability :math:`\theta` at which
            a row stops; published is .22. (default: chosen on held-out
            identities among :obj:`(.1, .22, .3, .4, .5, .6, .7)`)
        delta (float, optional): The smallest edge probability :math:`\delta`
            of a pair that is judged; published is .12. (default: chosen among
            :obj:`(.12, .3)`)
        eta (float, optional): The smallest verdict :math:`\eta` that links a
            pair; published is .6. Above 1 none does, and what remains is
            FC-ES. (default: chosen among :obj:`(.6, .8, .95, 2.)`)
        neighbors_per_side (int, optional): Neighbours of each of a pair's
            samples, itself included, that the network sees at most.
            (default: 20 if ``size='small'``, else all, as published)
        backend (str, optional): See
            :meth:`~torch_sdt.ops.map_equation_communities`.
            (default: :obj:`"networkit"`)
        size (str, optional): The network: :obj:`"base"`, width 416, 3 layers
            and 8 heads, as published, or :obj:`"small"`, width 128, 2 layers
            and 4 heads. (default: :obj:`"small"`)
        epochs (int, optional): Passes of the training. (default: as many as
            show 40,000 pairs, at most 25)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Pairs in a batch. (default: :obj:`128`)
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
        pair_ (torch.nn.Module): The pair network.
        rule_ (RecallRule): The thresholds.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            the network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = RecallRule
    _networks = ('pair', )
    # The pairs of training depend on theta and delta.
    _no_weights = ('device', 'workdir', 'verbose', 'backend', 'eta')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        theta: Optional[float] = None,
        delta: Optional[float] = None,
        eta: Optional[float] = None,
        neighbors_per_side: Optional[int] = None,
        backend: str = 'networkit',
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
        self.theta = theta
        self.delta = delta
        self.eta = eta
        self.neighbors_per_side = neighbors_per_side
        self.backend = backend
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
        check_backend(self.backend)
        for name, high in (('theta', 1.), ('delta', 1.), ('eta', np.inf)):
            value = getattr(self, name)
            if value is not None:
                check_between(name, value, 0, high)
        super()._check_arguments()

    def _tried(self) -> Tuple[Tuple[float, ...], ...]:
        # Of each threshold.
        return (THETAS if self.theta is None else (self.theta, ),
                DELTAS if self.delta is None else (self.delta, ),
                ETAS if self.eta is None else (self.eta, ))

    # Training ################################################################

    def _build(self) -> None:
        self.pair_ = pair_network(self.size, self.neighbors_per_side, self.k_,
                                  self.n_features_in_)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._train('pair', pair_loader(
            self.pair_, table, self._pairs(table.neighbors), self.batch_size,
            y, self.seed), self._clusters(held_out, y_held_out))

    def _pairs(self, neighbors: Neighbors) -> Tensor:
        # Of all that any of the rules may ask.
        thetas, deltas, _ = self._tried()
        pairs = listed(neighbors, behind(nep(neighbors), max(thetas),
                                         min(deltas)))
        generator = torch.Generator().manual_seed(int(self.seed))
        chosen = torch.randperm(pairs.size(1), generator=generator)[:_PAIRS]
        return pairs[:, chosen.to(pairs.device)]

    # Clustering ##############################################################

    def _measure(self, table: Table) -> _Measured:
        jaccard = nep(table.neighbors)
        return _Measured(table, jaccard, torch.full_like(jaccard, torch.nan))

    def _rules(self, measured: _Measured) -> List[RecallRule]:
        return [RecallRule(*rule) for rule in product(*self._tried())]

    def _partition(self, measured: _Measured, rule: RecallRule) -> Tensor:
        return table_communities(measured.table.neighbors,
                                 self._weight(measured, rule), self.backend,
                                 seed=self.seed)

    def _weight(self, measured: _Measured, rule: RecallRule) -> Tensor:
        # The weight of each entry, 0 where there is no link, shape [N, K].
        table, jaccard, verdict = measured
        weight = jaccard * early_stop(jaccard, rule.theta)
        if rule.eta > 1:
            return weight  # Nothing to ask the network.
        asked = behind(jaccard, rule.theta, rule.delta)
        new = asked & verdict.isnan()
        verdict[new] = pair_probability(
            self.pair_, table, listed(table.neighbors, new), self.batch_size,
            self.verbose)
        recalled = asked & (verdict >= rule.eta)
        return torch.where(recalled, verdict, weight)


class _Measured(NamedTuple):
    # A table, its edge probabilities, and the verdicts on those pairs that a
    # rule has asked for: the others are not a number. Which pairs are judged
    # depends on the rule, and to judge is what takes time.
    table: Table
    jaccard: Tensor
    verdict: Tensor


def nep(neighbors: Neighbors) -> Tensor:
    r"""The neighbour-based edge probability, shape ``[N, K]``."""
    return topk_jaccard(neighbors, probability=edge_probability(
        neighbors.similarity, 'exponential'))


def behind(jaccard: Tensor, theta: float, delta: float) -> Tensor:
    r"""Which entries behind their row's stop are worth asking for, bool, shape
    ``[N, K]``.
    """
    return ~early_stop(jaccard, theta) & (jaccard >= delta)


def listed(neighbors: Neighbors, mask: Tensor) -> Tensor:
    r"""The pairs of a row's sample and its entry where a mask holds, row by
    row, int64, shape ``[2, P]``.
    """
    row, rank = mask.nonzero(as_tuple=True)
    return torch.stack([row, neighbors.index[row, rank]])
