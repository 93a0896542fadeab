from __future__ import annotations

import hashlib
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from torch_sdt.cluster._split import check_labels, split_identities
from torch_sdt.cluster.edges import (
    DEFAULT_MERGES,
    MERGES,
    EdgeRule,
    Edges,
    choose_rule,
    mean_fscore,
)
from torch_sdt.cluster.topk_jaccard_clustering import TopKJaccardClustering
from torch_sdt.io import load_tensors, save_tensors
from torch_sdt.loader import NeighborSubgraphs, RandomViews
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn.models import (
    AdaptiveFilter,
    SparseDiffTransformer,
    TopKPredictor,
)
from torch_sdt.nn.models.neighbor_encoder import ATTENTIONS
from torch_sdt.ops.background import estimate_background
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.knn import default_k
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.ops.topk import expected_topk
from torch_sdt.training import History, Trainer, infer
from torch_sdt.typing import ArrayLike

SIZES: Dict[str, Dict[str, int]] = {
    'small': dict(hidden_channels=128, ffn_channels=256, num_layers=2,
                  heads=4),
    'base': dict(hidden_channels=256, ffn_channels=1024, num_layers=3,
                 heads=4),
}
PREDICTORS = ('rank', 'regression', 'bilstm')
TOKENS = ('relation', 'feature')

# Training shows each network this many subgraphs unless told otherwise.
_SHOWN, _MOST_EPOCHS = 40_000, 10
_VIEW_SIZE = 4_000
# Samples on which the edge rule is chosen, at most.
_CHOOSE_UP_TO = 50_000
_FORMAT = 1


class Table(NamedTuple):
    r"""A set of samples as the networks see it.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        neighbors (Neighbors): Their table.
        background ((float, float)): Location and scale of background cosines.
    """
    x: Tensor
    neighbors: Neighbors
    background: Tuple[float, float]


class SDTClustering(BaseEstimator):
    r"""Clusters identities it has never seen with what it learned on others:
    the method of `"Enhancing Noise Resilience in Face Clustering via Sparse
    Differential Transformer" <https://arxiv.org/abs/2512.22612>`_.

    :meth:`fit` learns on labelled identities, of which a share is held out:

    1. A :class:`~torch_sdt.nn.TopKPredictor` learns how many of its
       neighbours each sample may trust.
    2. A :class:`~torch_sdt.nn.SparseDiffTransformer` learns to judge every
       neighbour, from the cosines among them and from what the first model
       says in each neighbour's own row.
    3. How :meth:`~torch_sdt.ops.topk_jaccard` and verdicts become edges, where
       they are cut, and the Markov time of the map equation
       (:class:`~torch_sdt.cluster.EdgeRule`) are what clusters the held-out
       identities best, among all others as strangers.

    :meth:`predict` runs the same on another set of samples, in memory that
    beside its table grows by a few numbers an entry.

    With ``tokens='relation'`` the networks see relations between neighbours
    only, never features: a model fitted to embeddings of one kind takes any
    other. Networks see cosines relative to the background of their set (median
    and spread of random pairs).

    How it differs from the paper's text: see
    :class:`~torch_sdt.nn.SparseDiffTransformer`; and verdicts are merged by a
    chosen rule; the paper's is ``merge='boundary'``.

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
        augment (bool, optional): If :obj:`True`, trains on
            :class:`~torch_sdt.loader.RandomViews`, another in each epoch: for
            models that shall serve features of other kinds.
            (default: :obj:`False`)
        size (str, optional): :obj:`"small"` (2 layers of width 128) or
            :obj:`"base"` (3 of width 256, for GPUs).
            (default: :obj:`"small"`)
        model_args (dict, optional): Further arguments of
            :class:`~torch_sdt.nn.NeighborEncoder`, for both models.
            (default: :obj:`None`)
        merge (str, optional): One of :class:`~torch_sdt.cluster.EdgeRule`'s
            merges. (default: whichever is best, without the paper's
            :obj:`"boundary"`)
        epochs (int, optional): Passes of each training. (default: as many as
            show 40,000 subgraphs, at most 10)
        lr (float, optional): Learning rate. (default: :obj:`1e-3`)
        batch_size (int, optional): Subgraphs in a batch.
            (default: :obj:`128`)
        val_share (float, optional): Share of identities that is held out.
            (default: :obj:`.3`)
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
        workdir (str, optional): A folder for checkpoints, from which a killed
            :meth:`fit` goes on, and for training curves.
            (default: :obj:`None`)
        verbose (bool, optional): If :obj:`True`, shows progress bars.
            (default: :obj:`False`)

    Attributes:
        predictor_ (torch.nn.Module): The first model.
        transformer_ (torch.nn.Module): The second, or :obj:`None`.
        rule_ (EdgeRule): How edges are made.
        validation_score_ (float): Mean of both F on held-out identities.
        history_ (dict): The training :class:`~torch_sdt.training.History` of
            each model.
        labels_ (numpy.ndarray): Clusters of the last :meth:`predict`.
    """

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        predictor: str = 'rank',
        attention: Optional[str] = 'sparse-diff',
        experts: int = 1,
        tokens: str = 'relation',
        augment: bool = False,
        size: str = 'small',
        model_args: Optional[Dict[str, Any]] = None,
        merge: Optional[str] = None,
        epochs: Optional[int] = None,
        lr: float = 1e-3,
        batch_size: int = 128,
        val_share: float = .3,
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
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.val_share = val_share
        self.patience = patience
        self.precision = precision
        self.index = index
        self.seed = seed
        self.device = device
        self.workdir = workdir
        self.verbose = verbose

    # Training ################################################################

    def fit(self, X: ArrayLike, y: Any = None, groups: Any = None,
            neighbors: Optional[Neighbors] = None) -> SDTClustering:
        r"""Learns from labelled identities.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``.
            y (numpy.ndarray or torch.Tensor): Identities, shape ``[N]``.
            groups (optional): What keeps related identities on one side of
                the validation split, shape ``[N]``. (default: :obj:`None`)
            neighbors (Neighbors, optional): A ready table for :obj:`X`, on
                which the edge rule is chosen; training and held-out samples
                get tables of their own. (default: :obj:`None`)

        Raises:
            ValueError: If features, labels, groups, the table or an argument
                is bad, or there are too few identities.
            FloatingPointError: If the loss is not finite.
        """
        self._check_arguments()
        x = self._features(X)
        labels = check_labels(y, x.size(0))
        train, val = split_identities(labels, groups, self.val_share,
                                      self.seed)
        if neighbors is not None:
            neighbors.validate(x.size(0))
        width = self.k
        if width is None:
            width = min(default_k(x.size(0)), train.size)
        if not 2 <= width <= min(train.size, x.size(0)):
            raise ValueError(f"'k' must be between 2 and the number of "
                             f"training samples {train.size} (got {width})")
        self.k_, self.n_features_in_ = width, x.size(1)
        self._build()
        fingerprint = ''
        if self.workdir is not None:
            fingerprint = self._fingerprint(x, labels, train)
        on_train, on_val = self._table(x[train]), self._table(x[val])
        y_train = torch.from_numpy(labels[train]).to(x.device)
        self.history_: Dict[str, History] = {}
        for name in ('predictor', 'transformer'):
            if getattr(self, f'{name}_') is not None:
                self._train(name, on_train, y_train, on_val, labels[val],
                            fingerprint)
        self._choose(x, labels, train, val, neighbors)
        return self

    def _train(self, name: str, table: Table, y: Tensor, held_out: Table,
               y_held_out: np.ndarray, fingerprint: str) -> None:
        epochs = self.epochs
        if epochs is None and self.augment:
            epochs = _SHOWN // _VIEW_SIZE
        elif epochs is None:
            epochs = min(max(round(_SHOWN / y.numel()), 1), _MOST_EPOCHS)
        trainer = self._trainer(epochs, name, table.x.device)
        model = getattr(self, f'{name}_')
        if self.augment:
            relate = None if name == 'predictor' else self._infer_trust
            self.history_[name] = trainer.fit(
                model, RandomViews(table.x, y, self.k_, _VIEW_SIZE, relate,
                                   self.batch_size, self.seed),
                fingerprint=fingerprint)
            return
        first = first_held_out = None
        if name == 'transformer':
            first, first_held_out = self._trust(table), self._trust(held_out)

        def validate(_: Any) -> Dict[str, float]:
            return self._validate(held_out, y_held_out, first_held_out)

        self.history_[name] = trainer.fit(
            model, self._loader(table, first, y, shuffle=True), validate,
            fingerprint)

    def _trainer(self, epochs: int, name: str, device: Any = None) -> Trainer:
        return Trainer(
            epochs, self.lr, patience=self.patience, seed=self.seed,
            device=device, precision=self.precision, workdir=self.workdir,
            name=name, verbose=self.verbose)

    def _fingerprint(self, x: Tensor, y: np.ndarray, train: np.ndarray
                     ) -> str:
        # Of all that a checkpoint's weights depend on.
        arguments = self.get_params(deep=False)
        for name in ('device', 'workdir', 'verbose', 'patience', 'merge'):
            arguments.pop(name)
        out = hashlib.sha256(repr(sorted(arguments.items())).encode())
        out.update(y.tobytes() + train.tobytes())
        for block in x.split(65536):
            out.update(block.cpu().numpy().tobytes())
        return out.hexdigest()

    def _check_arguments(self) -> None:
        for name, value, known in (
                ('predictor', self.predictor, PREDICTORS),
                ('attention', self.attention, (*ATTENTIONS, None)),
                ('tokens', self.tokens, TOKENS),
                ('size', self.size, tuple(SIZES)),
                ('merge', self.merge, (*MERGES, None))):
            if value not in known:
                raise ValueError(f"'{name}' must be one of {list(known)} "
                                 f"(got {value!r})")
        # It checks the arguments that are its own.
        self._trainer(1, 'predictor')
        if self.batch_size < 1:
            raise ValueError(f"'batch_size' must be at least 1 (got "
                             f"{self.batch_size})")
        if (self.attention is None and self.predictor != 'rank'
                and self.merge not in {None, 'jaccard'}):
            raise ValueError(f"'merge' must be 'jaccard' where nothing gives "
                             f"a verdict on pairs (got '{self.merge}')")
        if self.augment and (self.tokens != 'relation'
                             or self.predictor != 'rank'):
            raise ValueError("'augment' needs tokens='relation' and "
                             "predictor='rank'")
        if not 0 < self.val_share < 1:
            raise ValueError(f"'val_share' must be between 0 and 1 (got "
                             f"{self.val_share})")
        if self.experts < 1:
            raise ValueError(f"'experts' must be at least 1 (got "
                             f"{self.experts})")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"'epochs' must be at least 1 (got "
                             f"{self.epochs})")

    def _features(self, X: ArrayLike) -> Tensor:
        x = normalize_features(X, center=self.center)
        return x if self.device is None else x.to(self.device)

    def _table(self, x: Tensor, neighbors: Optional[Neighbors] = None
               ) -> Table:
        width = min(self.k_, x.size(0))
        if neighbors is None:
            neighbors = Neighbors.search(x, width, self.index, None,
                                         self.seed, self.verbose)
        else:
            neighbors = neighbors.truncate(min(width, neighbors.k))
            neighbors = Neighbors(neighbors.index.to(x.device),
                                  neighbors.similarity.to(x.device))
        location, scale = estimate_background(x, self.seed)
        return Table(x, neighbors, (location, max(scale, 1e-6)))

    def _build(self) -> None:
        # The networks, with weights that the seed determines.
        args = {**SIZES[self.size], **(self.model_args or {})}
        if self.tokens == 'feature':
            args['in_channels'] = self.n_features_in_
        with torch.random.fork_rng([]):
            torch.manual_seed(self.seed)
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
        if self.device is not None:
            self.predictor_.to(self.device)
            if self.transformer_ is not None:
                self.transformer_.to(self.device)

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
        return NeighborSubgraphs(
            table.neighbors, table.x, self.batch_size, relations=relations,
            k=k, y=y, background=table.background, shuffle=shuffle,
            seed=self.seed)

    def _trust(self, table: Table) -> Tensor:
        return self._infer_trust(self._loader(table))

    def _infer_trust(self, loader: NeighborSubgraphs) -> Tensor:
        # The first model's probabilities [N, K], or its k [N].
        model: Any = self.predictor_
        rank = self.predictor == 'rank'
        return infer(
            model, loader,
            lambda batch: model(batch).sigmoid() if rank else
            model.predict(batch), self.precision, 'Top-K', self.verbose)

    def _edges(self, table: Table, trust: Optional[Tensor] = None) -> Edges:
        trust = self._trust(table) if trust is None else trust
        model = self.transformer_
        if model is None:
            verdict = trust if trust.dim() == 2 else None
        else:
            verdict = infer(model, self._loader(table, trust),
                            lambda batch: model(batch).sigmoid(),
                            self.precision, 'SDT', self.verbose)
        return Edges(table.neighbors, trust, verdict)

    def _validate(self, table: Table, y: np.ndarray,
                  trust: Optional[Tensor]) -> Dict[str, float]:
        # A quick look: the model in training alone, at one rule.
        if trust is None:
            first = self._trust(table)
            edges = Edges(table.neighbors, first,
                          first if first.dim() == 2 else None)
        else:
            edges = self._edges(table, trust)
        rule = EdgeRule('mean' if edges.verdict is not None else 'jaccard',
                        threshold=.4 if edges.verdict is not None else 0.)
        cluster = edges.cluster(rule, seed=self.seed).cpu().numpy()
        return {'mean_f': mean_fscore(y, cluster)}

    def _choose(self, x: Tensor, y: np.ndarray, train: np.ndarray,
                val: np.ndarray, neighbors: Optional[Neighbors]) -> None:
        # Held-out identities among as many strangers as affordable.
        rows = np.arange(y.size)
        if y.size > _CHOOSE_UP_TO:
            rng = np.random.default_rng(self.seed)
            size = np.bincount(y)
            order = rng.permutation(np.unique(y[train]))
            room = max(_CHOOSE_UP_TO - val.size, 0)
            kept = order[size[order].cumsum() <= room]
            rows = np.flatnonzero(np.isin(y, kept) | np.isin(
                np.arange(y.size), val))
            neighbors = None
        edges = self._edges(self._table(x[rows], neighbors))
        merges = DEFAULT_MERGES if self.merge is None else (self.merge, )
        self.rule_, self.validation_score_ = choose_rule(
            edges, y[rows], np.isin(rows, val), merges, self.seed,
            self.verbose)

    # Clustering ##############################################################

    def predict(self, X: ArrayLike, neighbors: Optional[Neighbors] = None,
                adapt: bool = False) -> np.ndarray:
        r"""Clusters another set of samples.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``; of
                any dimension if the networks see no features.
            neighbors (Neighbors, optional): A ready table for :obj:`X`; of a
                wider one the first neighbours are taken.
                (default: :obj:`None`)
            adapt (bool, optional): For features of another kind than those
                that :meth:`fit` saw. If :obj:`True`, the edge rule is left
                aside: cosines are raised by the verdict :math:`v_{ij}` (mean
                of both directions) times the spread :math:`\sigma` of
                background cosines, :math:`a_{ij} + \sigma (v_{ij} - 1/2)`,
                and
                :class:`~torch_sdt.cluster.TopKJaccardClustering` finds the
                settings that suit them without labels.
                (default: :obj:`False`)

        Returns:
            numpy.ndarray: The cluster of each sample, int64, shape ``[N]``,
            0-based.

        Raises:
            ValueError: If the features or the table are bad, or of another
                dimension than the networks take.
            sklearn.exceptions.NotFittedError: If nothing was learned yet.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, 'rule_')
        x = self._features(X)
        self.check_dimension(x.size(1))
        if neighbors is not None:
            neighbors.validate(x.size(0))
        if x.size(0) == 1:
            self.labels_ = np.zeros(1, dtype=np.int64)
            return self.labels_
        table = self._table(x, neighbors)
        edges = self._edges(table)
        if adapt:
            self.labels_ = self._adapt(table, edges)
        else:
            cluster = edges.cluster(self.rule_, seed=self.seed)
            self.labels_ = cluster.cpu().numpy()
        return self.labels_

    def check_dimension(self, dim: int) -> None:
        r"""Raises a :class:`ValueError` unless features of this dimension can
        be clustered.
        """
        reads = self.tokens == 'feature' or self.predictor == 'bilstm'
        if reads and dim != self.n_features_in_:
            raise ValueError(f"The model was fitted to features of dimension "
                             f"{self.n_features_in_} (got {dim})")

    def _adapt(self, table: Table, edges: Edges) -> np.ndarray:
        if edges.verdict is None:
            raise ValueError("'adapt' needs a verdict on pairs, which a model "
                             "with attention=None has from predictor='rank' "
                             "only")
        raised = table.neighbors.similarity + table.background[1] * (
            edges.verdict - .5)
        ranked = table.neighbors.reranked(raised)
        ranked = Neighbors(ranked.index, ranked.similarity.clamp(-1, 1))
        return TopKJaccardClustering(
            seed=self.seed, verbose=self.verbose).fit_predict(
                table.x, neighbors=ranked)

    # Files ###################################################################

    def save(self, path: Any) -> None:
        r"""Writes the fitted model to one safetensors file, its settings as
        JSON in the header; nothing is pickled.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, 'rule_')
        tensors: Dict[str, Tensor] = {}
        for name in ('predictor', 'transformer'):
            model = getattr(self, f'{name}_')
            if model is not None:
                tensors.update((f'{name}.{key}', value)
                               for key, value in model.state_dict().items())
        arguments = self.get_params(deep=False)
        for name in ('device', 'workdir', 'verbose'):
            arguments.pop(name)
        save_tensors(path, tensors, {
            'class': type(self).__name__, 'format': _FORMAT,
            'arguments': arguments, 'k': self.k_,
            'n_features_in': self.n_features_in_,
            'rule': self.rule_._asdict(),
            'validation_score': self.validation_score_})

    @classmethod
    def load(cls, path: Any, device: Any = None) -> SDTClustering:
        r"""Reads a model that :meth:`save` wrote.

        Args:
            path (str): The file.
            device (str or torch.device, optional): Where to work.
                (default: that of the features, on the CPU)

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another class, or of a version
                that is not known here.
        """
        tensors, meta = load_tensors(path)
        if meta.get('class') != cls.__name__:
            raise ValueError(f"'{path}' holds no {cls.__name__} (but "
                             f"{meta.get('class', 'something else')!r})")
        if meta.get('format') != _FORMAT:
            raise ValueError(f"'{path}' has format {meta.get('format')}, and "
                             f"this version of torch_sdt reads format "
                             f"{_FORMAT}")
        model = cls(**meta['arguments'], device=device)
        model.k_, model.n_features_in_ = meta['k'], meta['n_features_in']
        model._build()
        for name in ('predictor', 'transformer'):
            network = getattr(model, f'{name}_')
            if network is not None:
                prefix = f'{name}.'
                try:
                    network.load_state_dict({
                        key[len(prefix):]: value
                        for key, value in tensors.items()
                        if key.startswith(prefix)})
                except RuntimeError as e:
                    raise ValueError(f"The weights in '{path}' do not fit the "
                                     f"settings in it") from e
                network.eval()
        model.rule_ = EdgeRule(**meta['rule'])
        model.validation_score_ = meta['validation_score']
        model.history_ = {}
        return model

