from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor
from torch_geometric.utils import scatter, to_undirected

from torch_sdt.cluster._arguments import check_between, check_known
from torch_sdt.cluster.trained import Cut, Table, TrainedClustering, cuts
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models import AdaptiveFilter, HingeGCN
from torch_sdt.ops.components import connected_components
from torch_sdt.ops.structure_space import structure_space
from torch_sdt.training import infer
from torch_sdt.typing import check_count

# Widths of the adaptive filter's LSTM and of the GCN.
SIZES = {'small': (64, 128), 'base': (256, 512)}
# Thresholds to choose from: one in so many links is cut, and in a data set of
# identities of n images about one in n has to be.
_CUTS = 200


class AdaNETS(TrainedClustering):
    r"""Ada-NETS from `"Adaptive Neighbour Discovery for Face Clustering"
    <https://arxiv.org/abs/2202.03800>`_.

    1. Neighbours are ranked anew in the structure space
       (:meth:`~torch_sdt.ops.structure_space`).
    2. An :class:`~torch_sdt.nn.AdaptiveFilter` predicts from the features in
       that order how many of its neighbours each sample may trust. It learns
       the number of which the :math:`F_\beta` is largest
       (:meth:`~torch_sdt.ops.topk_target`).
    3. Of two samples of which one trusts the other, the larger similarity in
       the structure space is the weight of their edge. With self-loops of
       weight 1 and divided by the sums of its rows, this is the graph on which
       :class:`~torch_sdt.nn.HingeGCN` computes features by which samples of
       one identity are close, and others far.
    4. Among these features neighbours are searched again; what is connected by
       cosines of at least :math:`\tau` is a cluster.

    The published networks are ``size='base'``, the published settings
    ``k=80``, ``tau=.96``.

    How it differs from the released code: AdamW on batches of subgraphs; the
    GCN learns on the graph that the filter leaves of the training samples, as
    it is applied (there, on 256 nearest neighbours by cosine), and from all
    pairs in the subgraph of each sample's :math:`K` neighbours (there, of a
    random 128 of 256); see also :class:`~torch_sdt.nn.HingeGCN` and
    :meth:`~torch_sdt.ops.topk_target`; :math:`\tau` is chosen on held-out
    identities.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        weight (float, optional): Share of the Jaccard distance in the
            structure space; 0 leaves the order of cosines.
            (default: :obj:`.7`)
        beta (float, optional): The :math:`\beta` of the filter's targets;
            below 1 precision weighs more. (default: :obj:`.5`)
        link_k (int, optional): Neighbours that are searched among the GCN's
            features, the sample itself included; of fewer samples all.
            (default: :obj:`121`)
        tau (float, optional): The cosine :math:`\tau`.
            (default: chosen on held-out identities)
        size (str, optional): Width of the networks: :obj:`"base"`, 256 in the
            filter and 512 in the GCN as published, or :obj:`"small"`, 64 and
            128. (default: :obj:`"small"`)
        epochs (int, optional): Passes of each training. (default: as many as
            show 40,000 samples, at most 25)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Samples in a batch; published are 1,024
            for the filter and 1 for the GCN. (default: :obj:`32`)
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
        filter_ (torch.nn.Module): The adaptive filter.
        gcn_ (torch.nn.Module): The GCN.
        rule_ (Cut): Where links are cut.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = Cut
    _networks = ('filter', 'gcn')
    _no_weights = ('device', 'workdir', 'verbose', 'link_k', 'tau')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        weight: float = .7,
        beta: float = .5,
        link_k: int = 121,
        tau: Optional[float] = None,
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
        self.weight = weight
        self.beta = beta
        self.link_k = link_k
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
        check_between('weight', self.weight, 0, 1)
        if not 0 < self.beta < np.inf:
            raise ValueError(f"'beta' must be positive (got {self.beta})")
        check_count('link_k', self.link_k, 2)
        if self.tau is not None:
            check_between('tau', self.tau, -1, 1)
        check_known('size', self.size, tuple(SIZES))
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        lstm, gcn = SIZES[self.size]
        self.filter_ = AdaptiveFilter(self.k_, self.n_features_in_, lstm)
        self.gcn_ = HingeGCN(self.n_features_in_, gcn)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        sides = [(structure_space(one.neighbors, self.weight), one.x, of)
                 for one, of in ((table, y), (held_out, y_held_out))]
        self._train('filter', *(NeighborSubgraphs(
            space, x, self.batch_size, y=y, beta=self.beta, pairs=False,
            shuffle=True, seed=self.seed) for space, x, y in sides))
        # Identities are few numbers, which single precision holds.
        space, x, _ = sides[0]
        identity = y.unique(return_inverse=True)[1].float()
        self._train('gcn', NeighborSubgraphs(
            space, x, self.batch_size,
            relations=[self._trusted(space, x), identity[space.index]],
            pairs=False, shuffle=True, seed=self.seed),
            self._clusters(held_out, y_held_out))

    # Clustering ##############################################################

    def _trusted(self, space: Neighbors, x: Tensor) -> Tensor:
        # The similarities up to where each sample trusts its neighbours.
        k = infer(self.filter_,
                  NeighborSubgraphs(space, x, self.batch_size, pairs=False),
                  self.filter_.predict, desc='Filter', verbose=self.verbose)
        rank = torch.arange(space.k, device=x.device)
        return space.similarity * (rank < k.view(-1, 1))

    @torch.no_grad()
    def _embed(self, table: Table) -> Tensor:
        space = structure_space(table.neighbors, self.weight)
        adj = _adjacency(space, self._trusted(space, table.x))
        return self.gcn_.to(table.x.device).eval()(table.x, adj)

    def _measure(self, table: Table) -> _Links:
        z = self._embed(table)
        return _spanning_links(Neighbors.search(
            z, min(self.link_k, z.size(0)), self.index, None, self.seed,
            self.verbose))

    def _rules(self, measured: _Links) -> List[Cut]:
        return cuts(measured.cosine, self.tau, _CUTS)

    def _partition(self, measured: _Links, rule: Cut) -> Tensor:
        return connected_components(
            measured.edge_index[:, measured.cosine >= rule.tau],
            measured.num_nodes)


class _Links(NamedTuple):
    # What may connect two samples.
    edge_index: Tensor
    cosine: Tensor
    num_nodes: int


def _adjacency(space: Neighbors, weight: Tensor) -> Tensor:
    # The matrix of which each subgraph has its part in `HingeGCN.loss`.
    n = space.num_nodes
    edge_index, weight = space.to_edge_index(weight, weight > 0)
    edge_index, weight = to_undirected(edge_index, weight, n, reduce='max')
    loop = torch.arange(n, device=weight.device)
    edge_index = torch.cat([edge_index, loop.expand(2, n)], dim=1)
    weight = torch.cat([weight, weight.new_ones(n)])
    row = edge_index[0]
    weight = weight / scatter(weight, row, dim_size=n)[row]
    return torch.sparse_coo_tensor(edge_index, weight, (n, n),
                                   check_invariants=True).coalesce()


def _spanning_links(neighbors: Neighbors) -> _Links:
    # Of all links, those of the maximum spanning forest: whatever the
    # threshold, they connect what all of them connect.
    n, device = neighbors.num_nodes, neighbors.index.device
    edge_index, cosine = neighbors.to_edge_index()
    row, col = edge_index.cpu().numpy()
    # A distance of 0 would be no link.
    far = 2 - cosine.cpu().double().numpy()
    tree = minimum_spanning_tree(coo_array((far, (row, col)), (n, n))).tocoo()
    kept = torch.from_numpy(np.stack([tree.row, tree.col]).astype(np.int64))
    return _Links(kept.to(device), torch.from_numpy(2 - tree.data).to(device),
                  n)
