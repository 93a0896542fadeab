from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import numpy as np
from torch import Tensor

from torch_sdt.cluster._arguments import check_known
from torch_sdt.cluster.trained import Table, TrainedClustering
from torch_sdt.loader.pivot_subgraphs import PivotSubgraphs
from torch_sdt.nn.models.lgcn import LGCNModel
from torch_sdt.ops.components import size_constrained_components
from torch_sdt.ops.reverse import symmetric_values
from torch_sdt.training import infer
from torch_sdt.typing import check_count

# Widths of the network.
SIZES = {'small': 128, 'base': 512}
# Pivots that it sees: a subgraph holds hundreds of nodes.
_SHOWN = 10_000
# The largest clusters to choose from: multiples of quantiles of the training
# identities' sizes.
_QUANTILES, _FACTORS = (.5, .9, 1.), (1., 2.)
# So many that the bar comes as close to 1 as probabilities do.
_ROUNDS = 300


class SizeRule(NamedTuple):
    r"""The rule of methods that bound the size of a cluster.

    Args:
        max_size (int): The size of the largest cluster.
    """
    max_size: int


class LGCN(TrainedClustering):
    r"""L-GCN from `"Linkage Based Face Clustering via Graph Convolution
    Network" <https://arxiv.org/abs/1903.11306>`_.

    1. Every sample is the pivot of a subgraph of its neighbours and theirs
       (:class:`~torch_sdt.loader.PivotSubgraphs`).
    2. :class:`~torch_sdt.nn.LGCNModel` estimates the probability that a pivot
       and each of its neighbours are of one identity; it is averaged over
       both directions,

       .. math::
           w_{ij} = \frac{1}{2} (p_{ij} + p_{ji}),

       or stands alone where only one of the two lists the other.
    3. The graph falls apart into components of bounded size
       (:meth:`~torch_sdt.ops.size_constrained_components`): all edges first;
       within what is larger than :obj:`max_size` only those above a bar that
       rises by :obj:`step`.

    The published network is ``size='base'``; published settings on MS1M are
    ``k=80, k2=10, u=10, max_size=300, step=.6`` and ``batch_size=16``, on
    DeepFashion ``k=5, k2=5, u=5, max_size=50, step=.5``.

    How it differs from the released code: AdamW instead of SGD; training sees
    as many neighbours as clustering; :obj:`max_size` is chosen on held-out
    identities, among multiples of quantiles of the training identities'
    sizes; :obj:`step` is small, as coarse ones jump over the probabilities of
    a network that has not seen much; see also
    :class:`~torch_sdt.nn.LGCNModel`.

    Args:
        k (int, optional): Neighbours per sample, itself included: those one
            hop away. (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        k2 (int, optional): Neighbours of each neighbour: those two hops away.
            (default: :obj:`10`)
        u (int, optional): Two nodes of a subgraph are linked if one is among
            so many nearest neighbours of the other. (default: :obj:`10`)
        max_size (int, optional): Samples in the largest cluster.
            (default: chosen on held-out identities)
        step (float, optional): How fast the bar for edges within too large
            components rises: by this share of what is missing to 1.
            (default: :obj:`.05`)
        size (str, optional): Width of the network: :obj:`"base"`, 512 as
            published, or :obj:`"small"`, 128. (default: :obj:`"small"`)
        epochs (int, optional): Passes of the training. (default: as many as
            show 10,000 pivots, at most 6)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Pivots in a batch. (default: :obj:`32`)
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
        link_ (torch.nn.Module): The link predictor.
        rule_ (SizeRule): The size of the largest cluster.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            the network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = SizeRule
    _networks = ('link', )
    _no_weights = ('device', 'workdir', 'verbose', 'max_size', 'step')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        k2: int = 10,
        u: int = 10,
        max_size: Optional[int] = None,
        step: float = .05,
        size: str = 'small',
        epochs: Optional[int] = None,
        lr: float = 1e-3,
        batch_size: int = 32,
        val_share: float = .3,
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        workdir: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.center = center
        self.k2 = k2
        self.u = u
        self.max_size = max_size
        self.step = step
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
        for name in ('k2', 'u', 'max_size'):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if not 0 < self.step <= 1:
            raise ValueError(f"'step' must be in (0, 1] (got {self.step})")
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        self.link_ = LGCNModel(self.n_features_in_, SIZES[self.size])

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._sizes = y.bincount().cpu().numpy()
        self._train('link', self._subgraphs(table, y),
                    self._clusters(held_out, y_held_out), shown=_SHOWN)

    def _subgraphs(self, table: Table, y: Optional[Tensor] = None
                   ) -> PivotSubgraphs:
        return PivotSubgraphs(
            table.neighbors, table.x, self.batch_size, self.k2, self.u, y,
            shuffle=y is not None, seed=self.seed)

    # Clustering ##############################################################

    def _measure(self, table: Table) -> _Links:
        p = infer(self.link_, self._subgraphs(table),
                  lambda batch: self.link_(batch).sigmoid(), desc='L-GCN',
                  verbose=self.verbose)
        index = table.neighbors.index
        weight = symmetric_values(index, p)
        return _Links(*table.neighbors.to_edge_index(weight), index.size(0))

    def _rules(self, measured: _Links) -> List[SizeRule]:
        if self.max_size is not None:
            return [SizeRule(self.max_size)]
        size = np.quantile(self._sizes[self._sizes > 0], _QUANTILES)
        return [SizeRule(int(most)) for most in np.unique(
            np.outer(size, _FACTORS).round())]

    def _partition(self, measured: _Links, rule: SizeRule) -> Tensor:
        return size_constrained_components(
            measured.edge_index, measured.weight, measured.num_nodes,
            rule.max_size, self.step, _ROUNDS)


class _Links(NamedTuple):
    # What the network leaves to the propagation.
    edge_index: Tensor
    weight: Tensor
    num_nodes: int
