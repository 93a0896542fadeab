from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, List, NamedTuple, Optional

from torch import Tensor

from torch_sdt.cluster._arguments import check_between, check_known
from torch_sdt.cluster.star_fc import Pruning
from torch_sdt.cluster.trained import Table, TrainedClustering
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models.clusformer import ClusformerModel
from torch_sdt.ops.components import connected_components
from torch_sdt.ops.node_intimacy import node_intimacy
from torch_sdt.training import infer

# Width, layers, heads and feed-forward width of the network.
SIZES = {'small': (128, 2, 4, 256), 'base': (336, 6, 6, 1024)}
# Samples that it sees: each takes two or three times as long as elsewhere.
_SHOWN = 20_000
# What the thresholds are chosen from; published are .9 and .65.
_TAU1 = (.2, .3, .4, .5, .6, .7, .8, .9, .95)
_TAU2 = (0., .2, .3, .4, .5, .6, .65, .7, .8, .9)


class Clusformer(TrainedClustering):
    r"""Clusformer from `"Clusformer: A Transformer Based Clustering Approach
    to Unsupervised Large-Scale Face and Visual Landmark Recognition"
    <https://openaccess.thecvf.com/content/CVPR2021/html/Nguyen_Clusformer_A_Transformer_Based_Clustering_Approach_to_Unsupervised_Large-Scale_Face_CVPR_2021_paper.html>`_.

    1. :class:`~torch_sdt.nn.ClusformerModel`, a Transformer of encoder and
       decoder, reads the neighbours of a sample and gives each a probability
       of being of the sample's identity.
    2. Pairs of a probability of at least :math:`\tau_1` are directed edges.
    3. Of these, edges of a node intimacy
       (:meth:`~torch_sdt.ops.node_intimacy`) of at least :math:`\tau_2` are
       kept; what hangs together is a cluster.

    The published network is ``size='base'``; published settings on MS1M are
    ``k=80, tau1=.9, tau2=.65, lr=1e-4, epochs=20``.

    How it differs from the released code: see
    :class:`~torch_sdt.nn.ClusformerModel`; edges stay at exactly a threshold,
    so that ``tau2=0`` keeps those as well that share nothing, without which
    no identity of two images could be found; both thresholds are chosen on
    held-out identities.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        tau1 (float, optional): The probability :math:`\tau_1`.
            (default: chosen on held-out identities)
        tau2 (float, optional): The node intimacy :math:`\tau_2`.
            (default: chosen on held-out identities)
        size (str, optional): :obj:`"base"`, 6 + 6 layers of width 336 with
            6 heads as published, or :obj:`"small"`, 2 + 2 layers of width
            128. (default: :obj:`"small"`)
        epochs (int, optional): Passes of the training. (default: as many as
            show 20,000 samples, at most 12)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Samples in a batch.
            (default: :obj:`64`)
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
        transformer_ (torch.nn.Module): The network.
        rule_ (Pruning): Which edges are kept.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            the network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Pruning
    _networks = ('transformer', )
    _no_weights = ('device', 'workdir', 'verbose', 'tau1', 'tau2')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        tau1: Optional[float] = None,
        tau2: Optional[float] = None,
        size: str = 'small',
        epochs: Optional[int] = None,
        lr: float = 1e-3,
        batch_size: int = 64,
        val_share: float = .3,
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        workdir: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.center = center
        self.tau1 = tau1
        self.tau2 = tau2
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
        check_known('size', self.size, tuple(SIZES))
        for name, value in (('tau1', self.tau1), ('tau2', self.tau2)):
            if value is not None:
                check_between(name, value, 0, 1)
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        self.transformer_ = ClusformerModel(self.n_features_in_, self.k_,
                                            *SIZES[self.size])

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._train('transformer', self._subgraphs(table, y),
                    self._clusters(held_out, y_held_out), shown=_SHOWN)

    def _subgraphs(self, table: Table, y: Optional[Tensor] = None
                   ) -> NeighborSubgraphs:
        return NeighborSubgraphs(table.neighbors, table.x, self.batch_size,
                                 y=y, shuffle=y is not None, seed=self.seed)

    # Clustering ##############################################################

    def _measure(self, table: Table) -> _Scored:
        neighbors = table.neighbors
        probability = infer(
            self.transformer_, self._subgraphs(table),
            lambda batch: self.transformer_(batch).sigmoid(),
            desc='Clusformer', verbose=self.verbose)

        def intimacy(tau1: float) -> Tensor:
            keep = probability >= tau1
            keep[:, 0] = False
            # What is no edge is less than any threshold.
            return node_intimacy(neighbors.index, keep).masked_fill(~keep,
                                                                    -1.)

        # Rules that share a threshold come one after another.
        return _Scored(neighbors, lru_cache(maxsize=1)(intimacy))

    def _rules(self, measured: _Scored) -> List[Pruning]:
        return [Pruning(tau1, tau2)
                for tau1 in (_TAU1 if self.tau1 is None else [self.tau1])
                for tau2 in (_TAU2 if self.tau2 is None else [self.tau2])]

    def _partition(self, measured: _Scored, rule: Pruning) -> Tensor:
        edge_index, _ = measured.neighbors.to_edge_index(
            mask=measured.intimacy(rule.tau1) >= rule.tau2)
        return connected_components(edge_index, measured.neighbors.num_nodes)


class _Scored(NamedTuple):
    # The table, and the node intimacies that the first threshold leaves.
    neighbors: Neighbors
    intimacy: Callable[[float], Tensor]
