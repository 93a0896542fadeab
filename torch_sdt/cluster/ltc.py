from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from torch_sdt.cluster._arguments import check_between, check_known
from torch_sdt.cluster.trained import Table, TrainedClustering, cuts
from torch_sdt.loader.proposal_graphs import ProposalBatch, ProposalGraphs
from torch_sdt.nn.models.proposal_gcn import GCND, GCNS
from torch_sdt.ops.proposals import (
    Proposals,
    cluster_proposals,
    de_overlap,
    proposal_overlap,
)
from torch_sdt.training import infer
from torch_sdt.typing import check_count

# Width of both networks.
SIZES = {'small': 128, 'base': 512}
# Proposals that each of them sees.
_SHOWN = 100_000
# Share of the majority identity in proposals that GCN-S learns to segment.
_LEARNED_IOP = (.2, .8)
# Samples in a proposal, relative to the largest identity.
_FACTOR = 2


class ProposalRule(NamedTuple):
    r"""Which proposals count.

    Args:
        tau (float): Their least estimated IoU.
        max_size (int): How many samples they hold at most.
    """
    tau: float
    max_size: int


class LTC(TrainedClustering):
    r"""GCN-D and GCN-S from `"Learning to Cluster Faces on an Affinity Graph"
    <https://arxiv.org/abs/1904.02749>`_ (LTC).

    1. Many overlapping cluster proposals are made: super-vertices of the
       table at several thresholds, and unions of super-vertices
       (:meth:`~torch_sdt.ops.cluster_proposals`).
    2. :class:`~torch_sdt.nn.GCND` estimates how good they are: their IoU and
       their IoP with the majority identity.
    3. In proposals of a middling estimated IoP, :class:`~torch_sdt.nn.GCNS`
       estimates which members are of one identity. Those of a probability of
       more than 1/2 stay, and the others are a proposal of their own.
    4. Each sample goes to the proposal of the highest estimated IoU, the
       first of equals (:meth:`~torch_sdt.ops.de_overlap`).

    The published networks are ``size='base'``. The published proposals for
    MS1M, with ``k=80, min_size=3, max_size=300, merged_size=500``, are
    ``thresholds=(.6, .7, .75)``, of the last of which only the unions, and
    in training up to ``widths=(30, 60, 80), thresholds=(.6, .65, .7, .75)``;
    for DeepFashion ``k=5, thresholds=(.55, .6, .65), max_size=50,
    merged_size=200``.

    How it differs from the released code: see :class:`~torch_sdt.nn.GCND` and
    :class:`~torch_sdt.nn.GCNS`; AdamW; proposals of another grid unless asked
    for, of two samples as well; training and clustering propose alike;
    the largest proposals are twice as large as the largest training identity;
    proposals of an estimated IoU below :math:`\tau` do not count, where
    :math:`\tau` is chosen on held-out identities (``tau=-1`` lets all count,
    as published).

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature.
            (default: :obj:`False`)
        widths (sequence of int, optional): How many of those make
            super-vertices, itself included; one set of proposals each.
            (default: :obj:`k` only)
        thresholds (sequence of float, optional): The least cosine within
            super-vertices; one set of proposals each.
            (default: :obj:`(.4, .5, .6, .7)`)
        merges (sequence of (int, int), optional): How many neighbours of a
            super-vertex, itself included, and how many super-vertices a union
            holds at most; one set of proposals each, for each of the sets
            above. (default: the published :obj:`((2, 8), (2, 12), (2, 16),
            (3, 5), (3, 10), (4, 4))`)
        merge_threshold (float, optional): The least cosine of super-vertices
            within unions. (default: :obj:`.4`)
        min_size (int, optional): Samples in a proposal at least.
            (default: :obj:`2`)
        max_size (int, optional): Samples in a super-vertex at most.
            (default: twice those of the largest training identity)
        merged_size (int, optional): Samples in a union at most.
            (default: :obj:`max_size`)
        segment (bool, optional): If :obj:`False`, there is no GCN-S.
            (default: :obj:`True`)
        segmented ((float, float), optional): The estimated IoP of proposals
            that are segmented; GCN-S learns from those in [.2, .8] by the
            labels. (default: :obj:`(.1, .9)`)
        tau (float, optional): The IoU :math:`\tau`.
            (default: chosen on held-out identities)
        size (str, optional): Width of the networks: :obj:`"base"`, 512 as
            published, or :obj:`"small"`, 128. (default: :obj:`"small"`)
        epochs (int, optional): Passes of each training. (default: as many as
            show 100,000 proposals, at most 62)
        lr (float, optional): Learning rate. (default: :obj:`3e-3`)
        batch_size (int, optional): Proposals in a batch.
            (default: :obj:`32`)
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
        detect_ (torch.nn.Module): GCN-D.
        segment_ (torch.nn.Module): GCN-S, or :obj:`None`.
        rule_ (ProposalRule): Which proposals count.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each network.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = ProposalRule
    _networks = ('detect', 'segment')
    _no_weights = ('device', 'workdir', 'verbose', 'segmented', 'tau')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        widths: Optional[Sequence[int]] = None,
        thresholds: Sequence[float] = (.4, .5, .6, .7),
        merges: Sequence[Tuple[int, int]] = ((2, 8), (2, 12), (2, 16),
                                             (3, 5), (3, 10), (4, 4)),
        merge_threshold: float = .4,
        min_size: int = 2,
        max_size: Optional[int] = None,
        merged_size: Optional[int] = None,
        segment: bool = True,
        segmented: Tuple[float, float] = (.1, .9),
        tau: Optional[float] = None,
        size: str = 'small',
        epochs: Optional[int] = None,
        lr: float = 3e-3,
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
        self.widths = widths
        self.thresholds = thresholds
        self.merges = merges
        self.merge_threshold = merge_threshold
        self.min_size = min_size
        self.max_size = max_size
        self.merged_size = merged_size
        self.segment = segment
        self.segmented = segmented
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
        check_known('size', self.size, tuple(SIZES))
        for name in ('thresholds', 'widths'):
            value = getattr(self, name)
            if value is not None and len(value) == 0:
                raise ValueError(f"'{name}' must not be empty")
        for name, values in (('thresholds', self.thresholds),
                             ('merge_threshold', [self.merge_threshold]),
                             ('segmented', self.segmented)):
            for value in values:
                check_between(name, value, -1, 1)
        if len(self.segmented) != 2 or (
                self.segmented[0] > self.segmented[1]):
            raise ValueError(f"'segmented' must be a lower and an upper bound "
                             f"(got {self.segmented})")
        for width in self.widths or ():
            if width < 2 or (self.k is not None and width > self.k):
                raise ValueError(f"'widths' must be between 2 and 'k' (got "
                                 f"{width})")
        for pair in self.merges:
            if len(pair) != 2 or min(pair) < 2:
                raise ValueError(f"'merges' must be pairs of numbers of at "
                                 f"least 2 (got {pair})")
        check_count('min_size', self.min_size, 2)
        for name in ('max_size', 'merged_size'):
            value = getattr(self, name)
            if value is not None and value < self.min_size:
                raise ValueError(f"'{name}' must be at least 'min_size' "
                                 f"{self.min_size} (got {value})")
        super()._check_arguments()

    # Training ################################################################

    def _build(self) -> None:
        width = SIZES[self.size]
        self.detect_ = GCND(self.n_features_in_, width)
        self.segment_: Optional[GCNS] = None
        if self.segment:
            self.segment_ = GCNS(self.n_features_in_, width)

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        self._largest = self.max_size or _FACTOR * int(y.bincount().max())
        proposals = self._proposals(table, self._largest)
        if proposals.num_proposals == 0:
            raise ValueError(
                "There are no proposals to learn from: lower 'thresholds' or "
                "'min_size', or raise 'max_size'")
        validate, segment = self._clusters(held_out, y_held_out), self.segment_
        self.segment_ = None  # It knows nothing yet.
        self._train('detect', self._graphs(table, proposals, y=y), validate,
                    shown=_SHOWN)
        self.segment_ = segment
        if segment is not None:
            _, iop = proposal_overlap(proposals, y)
            low, high = _LEARNED_IOP
            mixed = ((iop >= low) & (iop <= high)).nonzero().view(-1)
            # Where all are pure, there is that to learn.
            nodes = mixed if mixed.numel() > 0 else None
            self._train('segment', self._graphs(table, proposals, nodes, y),
                        validate, shown=_SHOWN)

    def _proposals(self, table: Table, max_size: int) -> Proposals:
        return cluster_proposals(
            table.neighbors, table.x, self.widths or (self.k_, ),
            self.thresholds, self.merges, self.merge_threshold, self.min_size,
            max_size, self.merged_size or max_size, index=self.index,
            seed=self.seed)

    def _graphs(self, table: Table, proposals: Proposals,
                nodes: Optional[Tensor] = None, y: Optional[Tensor] = None
                ) -> ProposalGraphs:
        return ProposalGraphs(
            table.neighbors, table.x, proposals, self.batch_size, nodes, y,
            shuffle=y is not None, seed=self.seed)

    # Clustering ##############################################################

    def _measure(self, table: Table) -> _Scored:
        # What was learned just now, or read from a file.
        learned = hasattr(self, '_largest')
        size = self._largest if learned else self.rule_.max_size
        proposals = self._proposals(table, size)
        node, proposal = proposals.node, proposals.batch
        num_nodes = table.x.size(0)
        if proposals.num_proposals == 0:
            return _Scored(node, proposal, table.x.new_empty(0), num_nodes)
        quality = infer(self.detect_, self._graphs(table, proposals),
                        self.detect_, desc='GCN-D', verbose=self.verbose)
        iou, iop = quality.unbind(dim=1)
        if self.segment_ is None:
            return _Scored(node, proposal, iou, num_nodes)
        low, high = self.segmented
        asked = ((iop >= low) & (iop <= high)).nonzero().view(-1)
        out = torch.zeros_like(node, dtype=torch.bool)
        if asked.numel() > 0:
            out[torch.isin(proposal, asked)] = self._outside(
                self._graphs(table, proposals, asked))
        # Each proposal, and right behind it what it rejects.
        part, proposal = (2 * proposal + out).unique(return_inverse=True)
        return _Scored(node, proposal, iou[part // 2], num_nodes)

    def _outside(self, graphs: ProposalGraphs) -> Tensor:
        # Which members GCN-S rejects, of one proposal after another.
        segment, parts = self.segment_, []
        assert segment is not None

        def call(batch: ProposalBatch) -> Tensor:
            parts.append(segment(batch) <= 0)
            return batch.node

        infer(segment, graphs, call, desc='GCN-S', verbose=self.verbose)
        return torch.cat(parts)

    def _rules(self, measured: _Scored) -> List[ProposalRule]:
        return [ProposalRule(cut.tau, self._largest)
                for cut in cuts(measured.score, self.tau)]

    def _partition(self, measured: _Scored, rule: ProposalRule) -> Tensor:
        return de_overlap(measured.node, measured.proposal, measured.score,
                          measured.num_nodes, rule.tau)


class _Scored(NamedTuple):
    # Members, the proposal of each, and the proposals' estimated IoU.
    node: Tensor
    proposal: Tensor
    score: Tensor
    num_nodes: int
