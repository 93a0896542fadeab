from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.cluster._arguments import check_known
from torch_sdt.cluster.trained import Cut, Table, TrainedClustering, cuts
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models import GCNE, GCNV
from torch_sdt.ops.density_peaks import DensityPeaks, density_peaks
from torch_sdt.ops.ndde import ndde, tpdi
from torch_sdt.training import infer

# Widths of GCN-V and GCN-E.
SIZES = {'small': (512, 128), 'base': (512, 512)}
# Samples that GCN-V sees, which takes them fast.
_SHOWN = 200_000
DENSITIES = ('confidence', 'ndde')
DISTANCES = ('cosine', 'tpdi')
STAGES = ('feature', 'gcn-v', 'gcn-e')


class GCNVE(TrainedClustering):
    r"""GCN(V+E) from `"Learning to Cluster Faces via Confidence and
    Connectivity Estimation" <https://arxiv.org/abs/2004.00445>`_.

    1. :class:`~torch_sdt.nn.GCNV` estimates the confidence of each sample:
       how many of its neighbours are of its identity.
    2. Neighbours are searched anew among GCN-V's hidden features, and each
       sample is linked to its nearest neighbour of higher confidence.
    3. Of the most confident samples, :class:`~torch_sdt.nn.GCNE` chooses the
       link among all more confident neighbours.
    4. Links at least :math:`\tau` apart are cut; what hangs together is a
       cluster.

    With ``density='ndde', distance='tpdi'`` it is the GCN(V+E)++ of `"On
    Mitigating Hard Clusters for Face Clustering"
    <https://arxiv.org/abs/2207.11895>`_. The published networks are
    ``size='base'``; published :math:`\tau`, as cosine distances, are .2 on
    MS1M and .15 on DeepFashion, with ``k=80`` and ``k=5``.

    How it differs from the released code: see
    :class:`~torch_sdt.nn.GCNV`; AdamW on batches of nodes (a
    :obj:`batch_size` of :math:`N` is full-graph training); GCN-E searches
    among as many neighbours as GCN-V; :math:`\tau` is chosen on held-out
    identities.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        stage (str, optional): Whose links are cut: :obj:`"feature"`, nearest
            denser neighbours by the features given; :obj:`"gcn-v"`, by those
            of GCN-V; :obj:`"gcn-e"`, the denser neighbours that GCN-E thinks
            likeliest. (default: :obj:`"gcn-e"`)
        density (str, optional): :obj:`"confidence"`, or :obj:`"ndde"`
            (:meth:`~torch_sdt.ops.ndde`) in its place.
            (default: :obj:`"confidence"`)
        distance (str, optional): :obj:`"cosine"`, or :obj:`"tpdi"`
            (:meth:`~torch_sdt.ops.tpdi`). (default: :obj:`"cosine"`)
        tau (float, optional): The distance :math:`\tau`.
            (default: chosen on held-out identities)
        ignore_ratio (float, optional): Share of samples of least confidence
            whose link GCN-E does not choose; in training, from which it does
            not learn. (default: :obj:`.8`)
        size (str, optional): Width of the networks: :obj:`"base"`, 512 as
            published, or :obj:`"small"`, 128 in GCN-E.
            (default: :obj:`"small"`)
        epochs (int, optional): Passes of each training. (default: as many as
            show GCN-V 200,000 samples, at most 125, and GCN-E 40,000, at most
            25)
        lr (float, optional): Learning rate. (default: :obj:`1e-4`)
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
        vertex_ (torch.nn.Module): GCN-V.
        edge_ (torch.nn.Module): GCN-E, or :obj:`None`.
        rule_ (Cut): Where links are cut.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Cut
    _networks = ('vertex', 'edge')
    _no_weights = ('device', 'workdir', 'verbose', 'tau')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        stage: str = 'gcn-e',
        density: str = 'confidence',
        distance: str = 'cosine',
        tau: Optional[float] = None,
        ignore_ratio: float = .8,
        size: str = 'small',
        epochs: Optional[int] = None,
        lr: float = 1e-4,
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
        self.stage = stage
        self.density = density
        self.distance = distance
        self.tau = tau
        self.ignore_ratio = ignore_ratio
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
        check_known('stage', self.stage, STAGES)
        check_known('density', self.density, DENSITIES)
        check_known('distance', self.distance, DISTANCES)
        check_known('size', self.size, tuple(SIZES))
        if not 0 <= self.ignore_ratio < 1:
            raise ValueError(f"'ignore_ratio' must be in [0, 1) (got "
                             f"{self.ignore_ratio})")
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        vertex, edge = SIZES[self.size]
        self.vertex_ = GCNV(self.n_features_in_, vertex)
        self.edge_: Optional[GCNE] = None
        if self.stage == 'gcn-e':
            self.edge_ = GCNE(vertex, edge)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        validate, edge = self._clusters(held_out, y_held_out), self.edge_
        self.edge_ = None  # It knows nothing yet.
        self._train('vertex', NeighborSubgraphs(
            table.neighbors, table.x, self.batch_size, y=y, pairs=False,
            shuffle=True, seed=self.seed), validate, shown=_SHOWN)
        self.edge_ = edge
        if edge is not None:
            seen = self._vertex_stage(table)
            self._train('edge', self._candidates(seen, y), validate)

    def _candidates(self, seen: _Seen, y: Optional[Tensor] = None
                    ) -> NeighborSubgraphs:
        # The graphs that GCN-E sees, of the most confident samples.
        table = seen.neighbors
        denser = seen.density[table.index] > seen.density.view(-1, 1)
        chosen = round((1 - self.ignore_ratio) * table.num_nodes)
        nodes = seen.density.argsort(descending=True, stable=True)
        nodes = nodes[:max(chosen, 1)].sort()[0]
        return NeighborSubgraphs(
            table, seen.hidden, self.batch_size, nodes,
            [table.similarity, denser.float()], y=y, pairs=False,
            shuffle=y is not None, seed=self.seed)

    # Clustering ##############################################################

    def _vertex_stage(self, table: Table) -> _Seen:
        width = self.vertex_.conv.out_channels
        out = infer(
            self.vertex_,
            NeighborSubgraphs(table.neighbors, table.x, self.batch_size,
                              pairs=False),
            lambda batch: torch.cat([t.view(batch.node.numel(), -1) for t in
                                     self.vertex_(*batch.to_bipartite())],
                                    dim=1),
            desc='GCN-V', verbose=self.verbose)
        confidence, hidden = out.split([1, width], dim=1)
        # Nothing may be left of a sample behind a rectifier.
        hidden = F.normalize(hidden + 1e-6, dim=1)
        neighbors = Neighbors.search(hidden, table.neighbors.k, self.index,
                                     None, self.seed, self.verbose)
        density = confidence.view(-1)
        if self.density == 'ndde':
            density = ndde(table.neighbors)
        return _Seen(density, hidden, neighbors)

    def _measure(self, table: Table) -> DensityPeaks:
        seen = self._vertex_stage(table)
        if self.stage == 'feature':
            return density_peaks(table.neighbors, seen.density,
                                 self._distance(table.neighbors))
        distance = self._distance(seen.neighbors)
        peaks = density_peaks(seen.neighbors, seen.density, distance)
        if self.edge_ is None:
            return peaks
        loader = self._candidates(seen)
        edge = self.edge_

        def likeliest(batch: Any) -> Tensor:
            logits, candidate = edge(batch)
            logits = logits.masked_fill(~candidate, -torch.inf)
            return logits.argmax(dim=1)

        rank = infer(edge, loader, likeliest, desc='GCN-E',
                     verbose=self.verbose)
        nodes = loader.nodes
        # Without a denser neighbour a sample stays a root.
        followed = peaks.distance[nodes].isfinite()
        nodes, rank = nodes[followed], rank[followed]
        parent, far = peaks.parent.clone(), peaks.distance.clone()
        parent[nodes] = seen.neighbors.index[nodes, rank]
        far[nodes] = distance[nodes, rank]
        return DensityPeaks(parent, far)

    def _distance(self, neighbors: Neighbors) -> Tensor:
        if self.distance == 'tpdi':
            return tpdi(neighbors)
        return 1 - neighbors.similarity

    def _rules(self, measured: DensityPeaks) -> List[Cut]:
        return cuts(measured.distance, self.tau)

    def _partition(self, measured: DensityPeaks, rule: Cut) -> Tensor:
        return measured.cut(rule.tau)


class _Seen(NamedTuple):
    # What GCN-V leaves to GCN-E.
    density: Tensor
    hidden: Tensor
    neighbors: Neighbors
