from __future__ import annotations

import os
import warnings
from functools import cache
from math import inf
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.cluster._arguments import check_known
from torch_sdt.cluster._selection import judge
from torch_sdt.cluster.edges import (
    ALIKE,
    MERGES,
    EdgeRule,
    Edges,
    choose_rule,
    mean_fscore,
)
from torch_sdt.cluster.topk_jaccard_clustering import TopKJaccardClustering
from torch_sdt.cluster.trained import Table, TrainedClustering
from torch_sdt.loader import AlternatingLoader, NeighborSubgraphs, RandomViews
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models import (
    AdaptiveFilter,
    SparseDiffTransformer,
    TopKPredictor,
)
from torch_sdt.nn.models.neighbor_encoder import ATTENTIONS
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.topk import expected_topk
from torch_sdt.training import infer
from torch_sdt.training.trainer import TrainingLoader, Validate
from torch_sdt.typing import ArrayLike, check_count, require

SIZES: Dict[str, Dict[str, int]] = {
    'small': dict(hidden_channels=128, ffn_channels=256, num_layers=2,
                  heads=4),
    'base': dict(hidden_channels=256, ffn_channels=1024, num_layers=3,
                 heads=4),
}
PREDICTORS = ('rank', 'regression', 'bilstm')
TOKENS = ('relation', 'feature')
AUGMENTS = ('none', 'half', 'all')

_VIEW_SIZE = 4_000
# After so many epochs a small set is known by heart: how dense it is.
_BY_HEART = 10
# Subgraphs that a GPU judges at once; batches to learn from it leave idle.
_GPU_BATCH = 4096
_NO_VERDICT = ("'adapt' needs a verdict on pairs, which a model with "
               "attention=None has from predictor='rank' only")
# No rule of edges: settings that suit the samples at hand.
_ADAPT = EdgeRule('adapt')
# How good, of 1, clusters by the rule must look among labelled samples for
# looks to tell; and what share of that they must have among others.
_TELLS, _WORSE = .5, 2 / 3
# Of more samples than these, some are compared.
_COMPARED = 50_000


def _require_numba() -> None:
    # For settings found without labels.
    require(torch_sdt.typing.WITH_NUMBA, 'SDTClustering(adapt=True)', 'numba')


def _quality(table: Table, cluster: Tensor) -> float:
    # How well a partition looks, without labels.
    return judge(table.x.cpu(), table.neighbors.to('cpu'), cluster.cpu(),
                 table.background).quality(table.x.size(0))


def _likeness(table: Table, cluster: Tensor, other: Tensor) -> float:
    # The quality of one partition over that of another.
    best, most = _quality(table, cluster), _quality(table, other)
    return best / most if most > 0 else inf


class Measured(NamedTuple):
    r"""What a rule turns into clusters.

    Args:
        table (Table): The samples.
        edges (Edges): What the networks say of their neighbours.
    """
    table: Table
    edges: Edges


class SDTClustering(TrainedClustering):
    r"""Clusters identities it has never seen with what it learned on others:
    the method of `"Enhancing Noise Resilience in Face Clustering via Sparse
    Differential Transformer" <https://arxiv.org/abs/2512.22612>`_.

    :meth:`fit` learns on labelled identities, of which a share is held out:

    1. A :class:`~torch_sdt.nn.TopKPredictor` learns how many of its
       neighbours each sample may trust.
    2. A :class:`~torch_sdt.nn.SparseDiffTransformer` learns to judge every
       neighbour, from the cosines among them and from what the first model
       says in each neighbour's own row.
    3. Where verdicts are cut to become edges, and the Markov time of the map
       equation (:class:`~torch_sdt.cluster.EdgeRule`), are what clusters the
       held-out identities best, among all others as strangers (of more than
       50,000 samples, among so many, whole identities of both); or, where
       that is clearly better, no rule is kept, and :meth:`predict` finds
       settings without labels on each set (its :obj:`adapt`).
    4. Both networks go on with all identities, now with those that were held
       out, for a third as many epochs.

    :meth:`predict` runs the same on another set of samples, in memory that
    beside its table grows by a few numbers an entry.

    A rule suits samples like those that it was chosen on. So :meth:`predict`
    also finds settings without labels, and takes them where the rule fails:
    with :math:`Q` the label-free quality of a partition (the
    :math:`S \, \sqrt{P}` of
    :class:`~torch_sdt.cluster.TopKJaccardClustering`), where
    :math:`Q_{\text{rule}} / Q_{\text{adapt}}` is less than two thirds of what
    it was among all labelled samples; and warns. If it was less than one half
    there, :math:`Q` cannot tell, and the rule stays. Of more than 50,000
    samples that many are compared, in whole clusters.

    With ``tokens='relation'`` the networks see relations between neighbours
    only, never features: a model fitted to embeddings of one kind takes any
    other. Networks see cosines relative to the background of their set (median
    and spread of random pairs).

    How it differs from the paper's text: see
    :class:`~torch_sdt.nn.SparseDiffTransformer`; and edges are its verdicts,
    not the Top-K Jaccard revised near :math:`k_i`, which is
    ``merge='boundary'``.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature, in
            :meth:`fit` and in :meth:`predict` that of the set at hand.
            (default: :obj:`False`)
        predictor (str, optional): :obj:`"rank"` or :obj:`"regression"`, the
            heads of :class:`~torch_sdt.nn.TopKPredictor`, or
            :obj:`"bilstm"`, the :class:`~torch_sdt.nn.AdaptiveFilter` of
            Ada-NETS, which reads features. (default: :obj:`"rank"`)
        attention (str, optional): Of the second model, see
            :class:`~torch_sdt.nn.NeighborEncoder`; :obj:`None` trains no
            second model, and the first one's probabilities are the verdict.
            (default: :obj:`"sparse-diff"`)
        experts (int, optional): Experts of the second model's feed-forward
            blocks; more than one is MoE-SDT. (default: :obj:`1`)
        tokens (str, optional): :obj:`"relation"`, or :obj:`"feature"` to add
            the features themselves. (default: :obj:`"relation"`)
        augment (str, optional): Whether networks train on
            :class:`~torch_sdt.loader.RandomViews`: :obj:`"none"`;
            :obj:`"half"`, every other batch
            (:class:`~torch_sdt.loader.AlternatingLoader`), so that they learn
            more than the density of one set; or :obj:`"all"`, another view in
            each epoch, for models that shall serve features of other kinds.
            (default: :obj:`"half"` where a sample would be shown more than
            ten times, and :obj:`tokens` and :obj:`predictor` allow it)
        size (str, optional): :obj:`"small"` (2 layers of width 128) or
            :obj:`"base"` (3 of width 256, for GPUs).
            (default: :obj:`"small"`)
        model_args (dict, optional): Further arguments of
            :class:`~torch_sdt.nn.NeighborEncoder`, for both models.
            (default: :obj:`None`)
        merge (str, optional): One of :class:`~torch_sdt.cluster.EdgeRule`'s
            merges. (default: :obj:`"verdict"`, or :obj:`"jaccard"` where
            nothing gives one)
        adapt (bool, optional): Whether :meth:`predict` finds settings on each
            set without labels, in place of a rule. (default: where that is
            clearly better, or the rule fails, and no :obj:`merge` is given)
        epochs (int, optional): Passes of each training. (default: as many as
            show 40,000 subgraphs, at most 25)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Subgraphs in a batch; where nothing is
            learned, 4,096 on a GPU. (default: :obj:`128`)
        val_share (float, optional): Share of identities that is held out.
            (default: :obj:`.3`)
        refit (bool, optional): If :obj:`True`, networks in the end learn from
            held-out identities, too, which have done their work by then: for
            a third of their epochs, rounded, and so not after a single one.
            The rule stays. (default: :obj:`True`)
        patience (int, optional): Epochs without a better validation score
            after which training stops. (default: :obj:`None`)
        precision (str, optional): See
            :class:`~torch_sdt.training.Trainer`. (default:
            :obj:`"32-true"`)
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
        predictor_ (torch.nn.Module): The first model.
        transformer_ (torch.nn.Module): The second, or :obj:`None`.
        rule_ (EdgeRule): How edges are made; of merge :obj:`"adapt"` where
            settings are found on each set anew.
        validation_score_ (float): Mean of both F on held-out identities.
        likeness_ (float): :math:`Q_{\text{rule}} / Q_{\text{adapt}}` among all
            labelled samples, 1 at most, see above; 0 where nothing is
            compared.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each model; that on all identities ends in :obj:`"-all"`.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """
    _rule = EdgeRule
    _figures = ('validation_score_', 'likeness_')
    _networks = ('predictor', 'transformer')
    _no_weights = ('device', 'workdir', 'verbose', 'patience', 'merge',
                   'adapt', 'refit')

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        predictor: str = 'rank',
        attention: Optional[str] = 'sparse-diff',
        experts: int = 1,
        tokens: str = 'relation',
        augment: Optional[str] = None,
        size: str = 'small',
        model_args: Optional[Dict[str, Any]] = None,
        merge: Optional[str] = None,
        adapt: Optional[bool] = None,
        epochs: Optional[int] = None,
        lr: float = 1e-3,
        batch_size: int = 128,
        val_share: float = .3,
        refit: bool = True,
        patience: Optional[int] = None,
        precision: str = '32-true',
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        workdir: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.center = center
        self.predictor = predictor
        self.attention = attention
        self.experts = experts
        self.tokens = tokens
        self.augment = augment
        self.size = size
        self.model_args = model_args
        self.merge = merge
        self.adapt = adapt
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.val_share = val_share
        self.refit = refit
        self.patience = patience
        self.precision = precision
        self.index = index
        self.seed = seed
        self.device = device
        self.workdir = workdir
        self.verbose = verbose

    # Training ################################################################

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        for name in self._networks:
            if getattr(self, f'{name}_') is None:
                continue
            validate = None
            if self._augment(len(y)) != 'all':
                validate = self._validation(name, held_out,
                                            y_held_out.cpu().numpy())
            self._train(name, self._lessons(name, table, y), validate)

    def _validation(self, name: str, table: Table, y: np.ndarray) -> Validate:
        # Of the model in training alone. Its verdict's average precision tells
        # epochs apart, also where any verdict clusters the few held-out
        # identities well, or none does; clusters, at one rule, are a look.
        first = cache(lambda: self._trust(table))

        def validate(_: torch.nn.Module) -> Dict[str, float]:
            if name == 'predictor':
                trust = self._trust(table)
                edges = Edges(table.neighbors, trust,
                              trust if trust.dim() == 2 else None)
            else:
                edges = self._edges(table, first())
            scores, rule = {}, EdgeRule('jaccard', threshold=0.)
            if edges.verdict is not None:
                scores['average_precision'] = edges.average_precision(y)
                rule = EdgeRule('mean', threshold=.4)
            cluster = edges.cluster(rule, seed=self.seed).cpu().numpy()
            return {**scores, 'mean_f': mean_fscore(y, cluster)}

        return validate

    def _lessons(self, name: str, table: Table, y: Tensor) -> TrainingLoader:
        # What a network learns from.
        augment = self._augment(len(y))
        if augment == 'all':
            return self._views(name, table, y)
        first = self._trust(table) if name == 'transformer' else None
        loader = self._loader(table, first, y, shuffle=True)
        if augment == 'none':
            return loader
        return AlternatingLoader(loader, self._views(name, table, y))

    def _views(self, name: str, table: Table, y: Tensor) -> RandomViews:
        relate = None if name == 'predictor' else self._infer_trust
        return RandomViews(table.x, y, self.k_, _VIEW_SIZE, relate,
                           self.batch_size, self.seed)

    def _augment(self, items: int) -> str:
        if self.augment is not None:
            return self.augment
        by_heart = self._epochs(items) > _BY_HEART
        return 'half' if by_heart and self._takes_views() else 'none'

    def _takes_views(self) -> bool:
        # Views have other features, and their relations are probabilities.
        return self.tokens == 'relation' and self.predictor == 'rank'

    def _check_arguments(self) -> None:
        for name, value, known in (
                ('predictor', self.predictor, PREDICTORS),
                ('attention', self.attention, (*ATTENTIONS, None)),
                ('tokens', self.tokens, TOKENS),
                ('augment', self.augment, (*AUGMENTS, None)),
                ('size', self.size, tuple(SIZES)),
                ('merge', self.merge, (*MERGES, None))):
            check_known(name, value, known)
        super()._check_arguments()
        if not self._gives_verdict():
            if self.merge not in {None, 'jaccard'}:
                raise ValueError(f"'merge' must be 'jaccard' where nothing "
                                 f"gives a verdict on pairs (got "
                                 f"'{self.merge}')")
            if self.adapt:
                raise ValueError(_NO_VERDICT)
        if self.augment in {'half', 'all'} and not self._takes_views():
            raise ValueError(f"augment='{self.augment}' needs "
                             f"tokens='relation' and predictor='rank'")
        check_count('experts', self.experts)
        if self.adapt:
            _require_numba()

    def _build(self) -> None:
        args = {**SIZES[self.size], **(self.model_args or {})}
        if self.tokens == 'feature':
            args['in_channels'] = self.n_features_in_
        self.predictor_: torch.nn.Module
        if self.predictor == 'bilstm':
            self.predictor_ = AdaptiveFilter(self.k_, self.n_features_in_)
        else:
            plain = self.attention == 'vanilla'
            self.predictor_ = TopKPredictor(
                self.k_, self.predictor,
                attention='vanilla' if plain else 'diff', **args)
        self.transformer_: Optional[torch.nn.Module] = None
        if self.attention is not None:
            self.transformer_ = SparseDiffTransformer(
                self.k_, attention=self.attention, experts=self.experts,
                relations=2, **args)

    # Stages ##################################################################

    def _loader(self, table: Table, trust: Optional[Tensor] = None,
                y: Optional[Tensor] = None, shuffle: bool = False
                ) -> NeighborSubgraphs:
        relations, k = [], None
        if trust is not None:
            relations, k = [trust], trust
            if trust.dim() == 1:
                relations = [topk_jaccard(table.neighbors, trust)]
            else:
                # What to attend to is better too much than too little.
                k = expected_topk(trust, beta=1.)
        size = self.batch_size
        if y is None and table.x.is_cuda:
            size = max(size, _GPU_BATCH)
        return NeighborSubgraphs(
            table.neighbors, table.x, size, relations=relations,
            k=k, y=y, background=table.background, shuffle=shuffle,
            seed=self.seed)

    def _trust(self, table: Table) -> Tensor:
        return self._infer_trust(self._loader(table), table.folder,
                                 self.verbose)

    def _infer_trust(self, loader: NeighborSubgraphs,
                     folder: Optional[str] = None, verbose: bool = False
                     ) -> Tensor:
        # The first model's probabilities [N, K], or its k [N].
        model: Any = self.predictor_
        rank = self.predictor == 'rank'
        return infer(
            model, loader,
            lambda batch: model(batch).sigmoid() if rank else
            model.predict(batch), self.precision, 'Top-K', verbose,
            folder and os.path.join(folder, 'predictor'))

    def _edges(self, table: Table, trust: Optional[Tensor] = None) -> Edges:
        trust = self._trust(table) if trust is None else trust
        model = self.transformer_
        if model is None:
            verdict = trust if trust.dim() == 2 else None
        else:
            verdict = infer(model, self._loader(table, trust),
                            lambda batch: model(batch).sigmoid(),
                            self.precision, 'SDT', self.verbose,
                            table.folder and os.path.join(table.folder,
                                                          'transformer'))
        return Edges(table.neighbors, trust, verdict)

    def _measure(self, table: Table) -> Measured:
        return Measured(table, self._edges(table))

    def _best_rule(self, measured: Measured, y: np.ndarray,
                   scored: np.ndarray) -> Tuple[EdgeRule, float]:
        found = (_ADAPT, -1.)
        if not self.adapt:
            found = choose_rule(measured.edges, y, scored, self.merge,
                                self.seed, self.verbose)
        self.likeness_ = 0.
        # Settings found without labels need numba, a rule does without.
        free = self.adapt is None and self.merge is None and (
            torch_sdt.typing.WITH_NUMBA)
        if self.adapt or (free and self._gives_verdict()):
            adapted = self._partition(measured, _ADAPT)
            score = mean_fscore(y, adapted.cpu().numpy(), scored)
            if score > found[1] + ALIKE:
                found = (_ADAPT, score)
            else:
                self.likeness_ = min(_likeness(
                    measured.table, self._partition(measured, found[0]),
                    adapted), 1.)
        return found

    def _partition(self, measured: Measured, rule: EdgeRule) -> Tensor:
        if rule.merge == _ADAPT.merge:
            return torch.from_numpy(self._adapt(*measured))
        return measured.edges.cluster(rule, seed=self.seed)

    # Clustering ##############################################################

    def predict(self, X: ArrayLike, neighbors: Optional[Neighbors] = None,
                adapt: Optional[bool] = None) -> np.ndarray:
        r"""Clusters another set of samples.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``; of
                any dimension if the networks see no features.
            neighbors (Neighbors, optional): A ready table for :obj:`X`; of a
                wider one the first neighbours are taken, a narrower one is
                taken as it is. (default: :obj:`None`)
            adapt (bool, optional): For features of another kind than those
                that :meth:`fit` saw. If :obj:`True`, an edge rule is left
                aside: cosines are raised by the verdict :math:`v_{ij}` of
                :class:`~torch_sdt.cluster.EdgeRule` times the spread
                :math:`\sigma` of background cosines,
                :math:`a_{ij} + \sigma (v_{ij} - 1/2)`, and
                :class:`~torch_sdt.cluster.TopKJaccardClustering` finds the
                settings that suit them without labels, which needs numba; so
                it does for the cosines as they are, and of both partitions
                the one of the larger :math:`Q` is taken. If :obj:`False`, the
                rule is kept. (default: where the rule fails, see above)

        Returns:
            numpy.ndarray: The cluster of each sample, int64, shape ``[N]``,
            0-based.

        Raises:
            ValueError: If the features or the table are bad, or of another
                dimension than the networks take, or if :obj:`adapt` asks for
                what the model does not have.
            sklearn.exceptions.NotFittedError: If nothing was learned yet.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, 'rule_')
        self.check_adapt(adapt)
        rule = None
        if adapt is not None:
            rule = _ADAPT if adapt else self.rule_
        return self._predict(X, neighbors, rule)

    def check_adapt(self, adapt: Optional[bool]) -> None:
        r"""Raises a :class:`ValueError`, or an :class:`ImportError` without
        numba, unless a fitted model can cluster with :obj:`adapt` as
        :meth:`predict` takes it.
        """
        if adapt and not self._gives_verdict():
            raise ValueError(_NO_VERDICT)
        no_rule = self.rule_.merge == _ADAPT.merge
        if adapt or (no_rule and adapt is None):
            _require_numba()
        if no_rule and adapt is False:
            raise ValueError("The model has no edge rule to keep: settings "
                             "found on each set anew were better when it was "
                             "fitted, or asked for")

    def _cluster(self, measured: Measured) -> Tensor:
        cluster = super()._cluster(measured)
        if self.likeness_ < _TELLS or not torch_sdt.typing.WITH_NUMBA:
            return cluster
        part, own = measured, cluster
        if cluster.numel() > _COMPARED:
            # Whole clusters, but for the last, as a set of their own.
            place = torch.from_numpy(np.random.default_rng(
                self.seed).permutation(int(cluster.max()) + 1))
            rows = place[cluster.cpu()].argsort(stable=True)[:_COMPARED]
            x = measured.table.x
            part = self._measure(self._table(x[rows.to(x.device)]))
            own = self._partition(part, self.rule_)
        adapted = self._partition(part, _ADAPT)
        likeness = _likeness(part.table, own, adapted)
        if likeness >= _WORSE * self.likeness_:
            return cluster
        warnings.warn(
            f"These samples are unlike those that the model was fitted to: its "
            f"edge rule has {likeness:.2f} of the label-free quality of "
            f"settings found on them, where it had {self.likeness_:.2f}. They "
            f"are taken instead; adapt=False keeps the rule", stacklevel=4)
        if part is not measured:
            adapted = self._partition(measured, _ADAPT)
        return adapted

    def _reads_features(self) -> bool:
        return self.tokens == 'feature' or self.predictor == 'bilstm'

    def _gives_verdict(self) -> bool:
        return self.attention is not None or self.predictor == 'rank'

    def _adapt(self, table: Table, edges: Edges) -> np.ndarray:
        # The verdict may be wrong on features of another kind: what the
        # cosines give without it stands where it looks better.
        assert edges.verdict is not None  # Else it was refused.
        cosine = table.neighbors.similarity
        raised = cosine + table.background[1] * (edges.verdict - .5)
        return max((self._without_labels(table, similarity)
                    for similarity in (raised, cosine)),
                   key=lambda found: _quality(table,
                                              torch.from_numpy(found)))

    def _without_labels(self, table: Table, similarity: Tensor) -> np.ndarray:
        ranked = table.neighbors.reranked(similarity)
        ranked = Neighbors(ranked.index, ranked.similarity.clamp(-1, 1))
        return TopKJaccardClustering(
            seed=self.seed, verbose=self.verbose).fit_predict(
                table.x, neighbors=ranked)
