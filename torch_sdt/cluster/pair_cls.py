from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor

from torch_sdt.cluster._arguments import check_between, check_known
from torch_sdt.cluster.trained import Cut, Table, TrainedClustering, cuts
from torch_sdt.loader import NeighborPairs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models.pair_classifier import PAIRS, PairClassifier
from torch_sdt.ops.components import connected_components
from torch_sdt.ops.density_peaks import density_peaks
from torch_sdt.ops.ndde import ndde, tpdi
from torch_sdt.ops.neighbor_context import neighbor_context
from torch_sdt.ops.rank_weighted_density import rank_weighted_density
from torch_sdt.training import infer

# Width of the classifier.
SIZES = {'small': 256, 'base': 512}
DENSITIES = ('rank', 'ndde')
DISTANCES = ('cosine', 'tpdi')
# Pairs to train on, how often one is shown, and from how many neighbours.
_PAIRS, _SHOWN, _NEAREST = 100_000, 300_000, 40


class PairCls(TrainedClustering):
    r"""Pair-Cls from `"Learn to Cluster Faces via Pairwise Classification"
    <https://arxiv.org/abs/2205.13117>`_.

    1. Each sample has a density, the cosines of its neighbours weighted by
       rank (:meth:`~torch_sdt.ops.rank_weighted_density`), and
       forms one pair: with its nearest denser neighbour.
    2. The context of a sample is a weighted mean of its neighbours
       (:meth:`~torch_sdt.ops.neighbor_context`).
       :class:`~torch_sdt.nn.PairClassifier` says of each pair, by features
       and contexts of both, how likely they are of one identity. It is
       trained on pairs of a sample and one of its 40 nearest neighbours, one
       half of which are of one identity.
    3. Pairs of a probability of at least :math:`\tau` are linked; what hangs
       together is a cluster.

    With ``density='ndde', distance='tpdi'`` it is the Pair-Cls++ of `"On
    Mitigating Hard Clusters for Face Clustering"
    <https://arxiv.org/abs/2207.11895>`_. The paper's classifier decides by
    itself, which is ``tau=.5``, with ``k=80`` on MS1M.

    How it differs from the paper: of that no code is public, and this is a
    reconstruction. Known are one pair a sample, chosen by a rank-weighted
    density, a classifier of pairs with a context weighted over neighbours,
    and no threshold. Weights that fall linearly with the rank, those of the
    context, the network and its training are ours. It compares two samples by
    difference and product of features and contexts; relatives of the method
    take features and contexts as they are, ``pair='concat'``, and have to
    learn to compare from thousands of identities. :math:`\tau` is chosen on
    held-out identities.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        pair (str, optional): What the network compares: :obj:`"product"`, or
            :obj:`"concat"`. (default: :obj:`"product"`)
        density (str, optional): :obj:`"rank"`, or :obj:`"ndde"`
            (:meth:`~torch_sdt.ops.ndde`) in its place.
            (default: :obj:`"rank"`)
        distance (str, optional): Which denser neighbour is the nearest:
            :obj:`"cosine"`, or :obj:`"tpdi"`
            (:meth:`~torch_sdt.ops.tpdi`). (default: :obj:`"cosine"`)
        tau (float, optional): The probability :math:`\tau`.
            (default: chosen on held-out identities)
        size (str, optional): Width of the network: :obj:`"base"`, 512, or
            :obj:`"small"`, 256. (default: :obj:`"small"`)
        epochs (int, optional): Passes over up to 100,000 pairs.
            (default: as many as show 300,000, at most 187)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Pairs in a batch.
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
        classifier_ (torch.nn.Module): The classifier of pairs.
        rule_ (Cut): The probability from which pairs are linked.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History`.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Cut
    _networks = ('classifier', )
    _no_weights = ('device', 'workdir', 'verbose', 'density', 'distance',
                   'tau')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        pair: str = 'product',
        density: str = 'rank',
        distance: str = 'cosine',
        tau: Optional[float] = None,
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
        self.pair = pair
        self.density = density
        self.distance = distance
        self.tau = tau
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
        check_known('pair', self.pair, PAIRS)
        check_known('density', self.density, DENSITIES)
        check_known('distance', self.distance, DISTANCES)
        check_known('size', self.size, tuple(SIZES))
        if self.tau is not None:
            check_between('tau', self.tau, 0, 1)
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        self.classifier_ = PairClassifier(
            2 * self.n_features_in_, SIZES[self.size], self.pair)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._train('classifier', self._loader(
            table, self._pairs(table.neighbors, y), y),
            self._clusters(held_out, y_held_out), shown=_SHOWN)

    def _loader(self, table: Table, pairs: Tensor,
                y: Optional[Tensor] = None) -> NeighborPairs:
        # Pairs of samples as the classifier knows them. Entries of unit
        # variance learn faster than rows of unit length.
        context = neighbor_context(table.neighbors, table.x)
        z = torch.cat([table.x, context], dim=1)
        return NeighborPairs(
            table.neighbors.truncate(1), z * table.x.size(1)**.5, pairs,
            self.batch_size, y, shuffle=y is not None, seed=self.seed)

    def _pairs(self, neighbors: Neighbors, y: Tensor) -> Tensor:
        # Samples and one of their neighbours, as many of one identity as of
        # two: drawn with replacement, for one kind may be rare.
        near = neighbors.index[:, 1:1 + _NEAREST]
        same = y[near] == y.view(-1, 1)
        amount = max(min(_PAIRS, same.numel()) // 2, 1)
        generator = torch.Generator().manual_seed(int(self.seed))
        drawn = []
        for kind in (same, ~same):
            node, rank = kind.nonzero(as_tuple=True)
            if node.numel() > 0:
                place = torch.randint(node.numel(), (amount, ),
                                      generator=generator).to(node.device)
                node, rank = node[place], rank[place]
                drawn.append(torch.stack([node, near[node, rank]]))
        return torch.cat(drawn, dim=1)

    # Clustering ##############################################################

    def _measure(self, table: Table) -> _Verdicts:
        neighbors, distance = table.neighbors, None
        if self.density == 'ndde':
            density = ndde(neighbors)
        else:
            density = rank_weighted_density(neighbors)
        if self.distance == 'tpdi':
            distance = tpdi(neighbors)
        # Of equally dense samples, duplicates above all, the later counts as
        # denser: else a group of nothing but duplicates would have no pair.
        order = density.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        peaks = density_peaks(neighbors, place, distance)
        node = peaks.distance.isfinite().nonzero().view(-1)
        pairs = torch.stack([node, peaks.parent[node]])
        probability = density.new_empty(0)
        if node.numel() > 0:
            probability = infer(
                self.classifier_, self._loader(table, pairs),
                lambda batch: self.classifier_(batch).sigmoid(),
                verbose=self.verbose)
        return _Verdicts(pairs, probability, neighbors.num_nodes)

    def _rules(self, measured: _Verdicts) -> List[Cut]:
        rules = cuts(measured.probability, self.tau)
        return rules if self.tau is not None else [Cut(.5)] + rules

    def _partition(self, measured: _Verdicts, rule: Cut) -> Tensor:
        kept = measured.probability >= rule.tau
        return connected_components(measured.pairs[:, kept],
                                    measured.num_nodes)


class _Verdicts(NamedTuple):
    # One pair a sample, unless it is the densest around.
    pairs: Tensor
    probability: Tensor
    num_nodes: int
