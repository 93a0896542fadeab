from __future__ import annotations

from typing import Any, Dict, List, Optional

from torch import Tensor

from torch_sdt.cluster._arguments import check_known
from torch_sdt.cluster.trained import Cut, Table, TrainedClustering, cuts
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn.models import SimilarityTransformer
from torch_sdt.ops.density_peaks import DensityPeaks, density_peaks
from torch_sdt.ops.ndde import ndde, tpdi
from torch_sdt.training import infer

SIZES: Dict[str, Dict[str, Any]] = {
    'small': dict(hidden_channels=128, ffn_channels=256),
    'base': dict(hidden_channels=256, ffn_channels=2048),
}
DENSITIES = ('ndde', 'sum')
DISTANCES = ('tpdi', 'similarity')


class NDDeTPDi(TrainedClustering):
    r"""Density peaks by neighbourhood diffusion and transition probabilities,
    from `"On Mitigating Hard Clusters for Face Clustering"
    <https://arxiv.org/abs/2207.11895>`_.

    1. A :class:`~torch_sdt.nn.SimilarityTransformer` judges each neighbour;
       its distance is one minus that probability, and rows are sorted anew.
    2. The density of each sample is how much of everybody's random walk
       arrives there (:meth:`~torch_sdt.ops.ndde`).
    3. Each sample is linked to its nearest neighbour of at least its density,
       by the overlap of where their walks go (:meth:`~torch_sdt.ops.tpdi`).
    4. Links of a distance of :math:`\tau` or more are cut; what hangs
       together is a cluster.

    The paper's ablation M1 to M4 is :obj:`density` and :obj:`distance`, each
    on or off. Published, for MS1M: ``size="base", k=80, tau=.7``, a learning
    rate of 1e-4 and 10 epochs.

    How it differs from the released code: see
    :class:`~torch_sdt.nn.SimilarityTransformer`; :math:`\tau` is chosen on
    held-out identities, where that is chosen on the labels of the test set.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        density (str, optional): :obj:`"ndde"`, or :obj:`"sum"`, that of the
            probabilities in a row. (default: :obj:`"ndde"`)
        distance (str, optional): :obj:`"tpdi"`, or :obj:`"similarity"`, one
            minus the probability. (default: :obj:`"tpdi"`)
        tau (float, optional): The distance :math:`\tau`.
            (default: chosen on held-out identities)
        size (str, optional): Width of the network: :obj:`"small"`, 128, or
            :obj:`"base"`, 256 as published for features of that dimension.
            (default: :obj:`"small"`)
        epochs (int, optional): Passes of the training. (default: as many as
            show 40,000 samples, at most 25)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Samples in a batch.
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
        similarity_ (torch.nn.Module): The network.
        rule_ (Cut): Where links are cut.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History`.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Cut
    _networks = ('similarity', )
    _no_weights = ('device', 'workdir', 'verbose', 'density', 'distance',
                   'tau')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        density: str = 'ndde',
        distance: str = 'tpdi',
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
        check_known('density', self.density, DENSITIES)
        check_known('distance', self.distance, DISTANCES)
        check_known('size', self.size, tuple(SIZES))
        super()._check_arguments()

    def _build(self) -> None:
        self.similarity_ = SimilarityTransformer(self.n_features_in_,
                                                 **SIZES[self.size])

    def _loader(self, table: Table, y: Optional[Tensor] = None
                ) -> NeighborSubgraphs:
        return NeighborSubgraphs(
            table.neighbors, table.x, self.batch_size, y=y, pairs=False,
            shuffle=y is not None, seed=self.seed)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._train('similarity', self._loader(table, y),
                    self._clusters(held_out, y_held_out))

    def _measure(self, table: Table) -> DensityPeaks:
        probability = infer(
            self.similarity_, self._loader(table),
            lambda batch: self.similarity_(batch).sigmoid(),
            desc='similarity', verbose=self.verbose)
        ranked = table.neighbors.reranked(probability)
        far = 1 - ranked.similarity
        density = (ndde(ranked, far) if self.density == 'ndde' else
                   ranked.similarity.sum(dim=1))
        distance = tpdi(ranked, far) if self.distance == 'tpdi' else far
        return density_peaks(ranked, density, distance, ties=True)

    def _rules(self, measured: DensityPeaks) -> List[Cut]:
        return cuts(measured.distance, self.tau)

    def _partition(self, measured: DensityPeaks, rule: Cut) -> Tensor:
        return measured.cut(rule.tau)
