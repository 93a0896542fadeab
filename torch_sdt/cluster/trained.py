from __future__ import annotations

import os
from functools import partial
from inspect import signature
from typing import (
    Any,
    Dict,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor
from torch.nn import Module

from torch_sdt.cluster._split import check_labels, split_identities
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.io import fingerprint, load_tensors, save_tensors
from torch_sdt.loader import BatchLoader
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.background import Background, estimate_background
from torch_sdt.ops.knn import default_k
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.progress import progress
from torch_sdt.training import History, Trainer
from torch_sdt.training.default_dtype import default_dtype
from torch_sdt.training.seeded import seeded
from torch_sdt.training.trainer import TrainingLoader, Validate
from torch_sdt.typing import ArrayLike, check_count, check_integer, check_seed

Self = TypeVar('Self', bound='TrainedClustering')

# Training shows a network this many items unless told otherwise.
_SHOWN, _MOST_EPOCHS = 40_000, 25
# The share of its epochs for which a network goes on with all identities.
_FURTHER = 1 / 3
# Items on which an epoch is validated, at most.
_VALIDATED = 4_000
# Samples on which the rule is chosen, at most.
_CHOOSE_UP_TO = 50_000
_FORMAT = 3
# Of networks and what they read, whatever torch makes by default.
_DTYPE = torch.float32


class Table(NamedTuple):
    r"""A set of samples as the networks see it.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        neighbors (Neighbors): Their table.
        background (Background): Of their cosines; its scale is positive.
        folder (str, optional): Where finished parts of what is found out
            about them are kept. (default: nowhere)
    """
    x: Tensor
    neighbors: Neighbors
    background: Background
    folder: Optional[str] = None


class Cut(NamedTuple):
    r"""The rule of methods with one threshold.

    Args:
        tau (float): Where links are cut.
    """
    tau: float


def cuts(value: Tensor, tau: Optional[float] = None, num: int = 40
         ) -> List[Cut]:
    r"""The thresholds worth a try: so many that each cuts another share of the
    finite values, or the one that is given.
    """
    if tau is not None:
        return [Cut(tau)]
    value = value[value.isfinite()].double().cpu()
    if value.numel() == 0:
        return [Cut(0.)]
    share = np.linspace(0, 1, num + 1)
    return [Cut(float(t)) for t in np.unique(np.quantile(value, share))]


def _negative_loss(model: Any, loader: BatchLoader[Any]) -> Dict[str, float]:
    # On so many items of a loader, the same ones in each epoch.
    total, count = 0., 0
    loader.set_epoch(0)
    for batch in loader:
        size = batch.node.numel()
        total += float(model.loss(batch)) * size
        count += size
        if count >= _VALIDATED:
            break
    return {'negative_loss': -total / max(count, 1)}


def _further(history: History) -> int:
    # For how many epochs a network goes on.
    return round(_FURTHER * len(history))


def _some_identities(y: np.ndarray, rows: np.ndarray, share: float, seed: int
                     ) -> np.ndarray:
    # Of some rows a share, all rows of an identity or none.
    name, size = np.unique(y[rows], return_counts=True)
    order = np.random.default_rng(seed).permutation(name.size)
    count = int((size[order].cumsum() <= share * rows.size).sum())
    return rows[np.isin(y[rows], name[order[:max(count, 1)]])]


def _as_tuple(value: Any) -> Any:
    # Lists, and lists in lists, as tuples.
    if not isinstance(value, list):
        return value
    return tuple(_as_tuple(one) for one in value)


class TrainedClustering(BaseEstimator):
    r"""Base class of the estimators that learn on labelled identities and
    cluster others.

    Inherit from it, store the constructor's arguments unchanged, and
    implement :meth:`_build` (networks), :meth:`_learn` (their training),
    :meth:`_measure` (from a table to all that is costly), :meth:`_rules` (the
    thresholds to choose from) and :meth:`_partition` (from the measured and a
    rule to clusters). Here are the split of identities, the choice of the rule
    on those that are held out, bounded tables, and files. A network is told
    to keep the epoch that clusters held-out identities best
    (:meth:`_clusters`) or, where it does not cluster yet, has the least loss
    on them. With :obj:`refit`
    networks in the end go on, with all identities, for a third of their
    epochs.

    The arguments :obj:`k`, :obj:`center`, :obj:`epochs`, :obj:`lr`,
    :obj:`batch_size`, :obj:`val_share`, :obj:`index`, :obj:`seed`,
    :obj:`device`, :obj:`workdir` and :obj:`verbose` are read here, and, where
    there are, :obj:`precision`, :obj:`patience` and :obj:`refit`.
    """
    k: Optional[int]
    center: bool
    epochs: Optional[int]
    lr: float
    batch_size: int
    val_share: float
    index: str
    seed: int
    device: Any
    workdir: Optional[str]
    verbose: bool
    precision: str = '32-true'
    patience: Optional[int] = None
    refit: bool = False

    # The class of the rule: a named tuple of JSON's types.
    _rule: Type[Any]
    # The attributes that hold networks (or None), in the order of training.
    _networks: Tuple[str, ...] = ()
    # What is found beside the rule, and saved with it.
    _figures: Tuple[str, ...] = ('validation_score_', )
    # Arguments of which the networks' weights are independent.
    _no_weights: Tuple[str, ...] = ('device', 'workdir', 'verbose')

    k_: int
    n_features_in_: int
    rule_: Any
    validation_score_: float
    history_: Dict[str, History]
    labels_: np.ndarray

    # Training ################################################################

    def fit(self: Self, X: ArrayLike, y: Any = None, groups: Any = None,
            neighbors: Optional[Neighbors] = None) -> Self:
        r"""Learns from labelled identities.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``.
            y (numpy.ndarray or torch.Tensor): Identities, of any kind that
                can be sorted, shape ``[N]``; every value is one, negative
                ones included.
            groups (optional): What keeps related identities on one side of
                the validation split, shape ``[N]``. (default: :obj:`None`)
            neighbors (Neighbors, optional): A ready table for :obj:`X`, on
                which the rule is chosen and what follows is learned; before,
                training and held-out samples get tables of their own. It
                lists :obj:`k` neighbours at least, or, by default, is what
                :obj:`k` cannot exceed. Of
                more than 50,000 samples the rule is chosen on some, with a
                table of their own. (default: :obj:`None`)

        Raises:
            ValueError: If features, labels, groups, the table or an argument
                is bad, or there are too few identities.
            FloatingPointError: If the loss is not finite.
        """
        check_seed(self.seed)
        self._check_arguments()
        x = self._features(X)
        labels = check_labels(y, x.size(0))
        train, val = split_identities(labels, groups, self.val_share,
                                      self.seed)
        width, listed = self.k, x.size(0)
        if neighbors is not None:
            neighbors.validate(x.size(0)).check_features(x)
            listed = neighbors.k
        if width is None:
            width = min(default_k(x.size(0)), train.size, listed)
        if not 2 <= width <= train.size:
            raise ValueError(f"'k' must be between 2 and the number of "
                             f"training samples {train.size} (got {width})")
        if listed < width:
            raise ValueError(f"The table lists {listed} neighbours, and the "
                             f"networks take k={width}: search for as many, "
                             f"or set k={listed}")
        self.k_, self.n_features_in_ = width, x.size(1)
        # Until all is learned anew there is nothing to predict by.
        self.__dict__.pop('rule_', None)
        self._build_networks()
        self._fingerprint = ''
        if self.workdir is not None:
            self._fingerprint = self._fingerprint_of(x, labels, train,
                                                     neighbors)
        self.history_ = {}
        on_train, on_val = self._table(x[train]), self._table(x[val])
        y_train = torch.from_numpy(labels[train]).to(x.device)
        y_val = torch.from_numpy(labels[val]).to(x.device)
        with default_dtype(_DTYPE):
            self._learn(on_train, y_train, on_val, y_val)
            self._choose(x, labels, train, val, neighbors)
        return self

    def _train(self, name: str, loader: TrainingLoader,
               validate: Union[BatchLoader[Any], Validate, None] = None,
               *, shown: int = _SHOWN) -> None:
        # Trains one network, for as many epochs as are asked for or as show
        # a number of items, and keeps the best of them: a network that reads
        # features soon knows the training identities by heart. The best has
        # the least loss on held-out identities, if a loader of them is given.
        # A network that has learned already goes on, with all identities.
        if name in self.history_:
            epochs = _further(self.history_[name])
            title, validate = f'{name}-all', None
            if epochs == 0:
                return
        else:
            epochs = self._epochs(loader.nodes.numel(), shown)
            title = name
        if isinstance(validate, BatchLoader):
            empty = validate.nodes.numel() == 0
            validate = None if empty else partial(_negative_loss,
                                                  loader=validate)
        trainer = self._trainer(epochs, title, loader.x.device)
        self.history_[title] = trainer.fit(
            getattr(self, f'{name}_'), loader, validate, self._fingerprint)

    def _epochs(self, items: int, shown: int = _SHOWN) -> int:
        most = _MOST_EPOCHS * shown // _SHOWN
        return self.epochs or min(max(round(shown / max(items, 1)), 1), most)

    def _clusters(self, table: Table, y: Tensor) -> Validate:
        # Or it clusters held-out identities best, with their best rule: of
        # all, also where one is given, so that weights do not depend on it.
        labels = y.cpu().numpy()
        scored = np.ones(labels.size, dtype=bool)
        default = signature(type(self).__init__).parameters
        free = {name: default[name].default for name in self._no_weights
                if name not in TrainedClustering._no_weights}

        def validate(_: Module) -> Dict[str, float]:
            given = {name: getattr(self, name) for name in free}
            self.set_params(**free)
            try:
                measured = self._measure(table)
                best = max(mean_fscore(labels, self._partition(
                    measured, rule).cpu().numpy(), scored)
                           for rule in self._rules(measured))
            finally:
                self.set_params(**given)
            return {'mean_f': best}

        return validate

    def _trainer(self, epochs: int, name: str, device: Any = None) -> Trainer:
        return Trainer(
            epochs, self.lr, patience=self.patience, seed=self.seed,
            device=device, precision=self.precision, workdir=self.workdir,
            name=name, verbose=self.verbose)

    def _fingerprint_of(self, x: Tensor, y: np.ndarray, train: np.ndarray,
                        neighbors: Optional[Neighbors]) -> str:
        # Of all that a checkpoint's weights depend on.
        table = [] if neighbors is None else [*neighbors]
        return fingerprint(self._arguments(*self._no_weights), x,
                           torch.from_numpy(y), torch.from_numpy(train),
                           *table)

    def _arguments(self, *without: str) -> Dict[str, Any]:
        return {name: value
                for name, value in sorted(self.get_params(deep=False).items())
                if name not in without}

    def _check_arguments(self) -> None:
        # The trainer checks the arguments that are its own.
        self._trainer(1, 'model')
        if self.k is not None:
            check_integer('k', self.k)
        check_count('batch_size', self.batch_size)
        if not 0 < self.val_share < 1:
            raise ValueError(f"'val_share' must be between 0 and 1 (got "
                             f"{self.val_share})")
        if self.epochs is not None:
            check_count('epochs', self.epochs)

    def _features(self, X: ArrayLike) -> Tensor:
        X = X if isinstance(X, Tensor) else np.asarray(X)
        x = normalize_features(X, center=self.center)
        return x if self.device is None else x.to(self.device)

    def _table(self, x: Tensor, neighbors: Optional[Neighbors] = None,
               workdir: Optional[str] = None) -> Table:
        width = min(self.k_, x.size(0))
        if neighbors is None:
            neighbors = Neighbors.search(x, width, self.index, None,
                                         self.seed, self.verbose,
                                         workdir=workdir)
        else:
            neighbors = neighbors.truncate(min(width, neighbors.k)).to(
                x.device, torch.float32)
        location, scale = estimate_background(x, self.seed)
        return Table(x, neighbors, Background(location, max(scale, 1e-6)))

    def _build_networks(self) -> None:
        # The networks, with weights that the seed determines.
        with seeded(self.seed), default_dtype(_DTYPE):
            self._build()
        for name in self._networks:
            network = getattr(self, f'{name}_')
            if network is not None and self.device is not None:
                network.to(self.device)

    def _choose(self, x: Tensor, y: np.ndarray, train: np.ndarray,
                val: np.ndarray, neighbors: Optional[Neighbors]) -> None:
        # Held-out identities among all others, or of many samples some of
        # both.
        rows, few = np.arange(y.size), y.size <= _CHOOSE_UP_TO
        if not few:
            share = _CHOOSE_UP_TO / y.size
            rows = np.sort(np.concatenate([
                _some_identities(y, part, share, self.seed)
                for part in (train, val)]))
        table = self._table(x[rows], neighbors if few else None)
        rule, score = self._best_rule(self._measure(table), y[rows],
                                      np.isin(rows, val))
        if self.refit and any(map(_further, self.history_.values())):
            # All is chosen: held-out identities are identities, too.
            table = table if few else self._table(x, neighbors)
            everyone = torch.from_numpy(y).to(x.device)
            self._learn(table, everyone, table, everyone)
        self.rule_, self.validation_score_ = rule, score

    # For the methods ########################################################

    def _build(self) -> None:
        # Sets the attributes named in `_networks`, from `k_` and
        # `n_features_in_`.
        raise NotImplementedError

    def _learn(self, table: Table, y: Tensor, held_out: Table,
               y_held_out: Tensor) -> None:
        # Trains the networks on a table of training identities; where there is
        # a refit once more, on all, which then are held out as well.
        raise NotImplementedError

    def _measure(self, table: Table) -> Any:
        # All that does not depend on the rule.
        raise NotImplementedError

    def _rules(self, measured: Any) -> List[Any]:
        # What to choose from.
        raise NotImplementedError

    def _partition(self, measured: Any, rule: Any) -> Tensor:
        # The cluster of each sample.
        raise NotImplementedError

    def _best_rule(self, measured: Any, y: np.ndarray, scored: np.ndarray
                   ) -> Tuple[Any, float]:
        # The first of the best.
        best, best_score = None, -1.
        rules = self._rules(measured)
        with progress(len(rules), 'rule', self.verbose, 'rules') as bar:
            for rule in rules:
                cluster = self._partition(measured, rule).cpu().numpy()
                score = mean_fscore(y, cluster, scored)
                if score > best_score:
                    best, best_score = rule, score
                bar.update()
        return best, best_score

    # Clustering ##############################################################

    def predict(self, X: ArrayLike, neighbors: Optional[Neighbors] = None
                ) -> np.ndarray:
        r"""Clusters another set of samples.

        Args:
            X (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``.
            neighbors (Neighbors, optional): A ready table for :obj:`X`; of a
                wider one the first neighbours are taken, a narrower one is
                taken as it is. (default: :obj:`None`)

        Returns:
            numpy.ndarray: The cluster of each sample, int64, shape ``[N]``,
            0-based.

        Raises:
            ValueError: If the features or the table are bad, or of another
                dimension than the networks take.
            sklearn.exceptions.NotFittedError: If nothing was learned yet.
        """
        return self._predict(X, neighbors)

    def _predict(self, X: ArrayLike, neighbors: Optional[Neighbors],
                 rule: Any = None) -> np.ndarray:
        # By the chosen rule, unless another is given.
        table = self._to_predict(X, neighbors)
        if table.x.size(0) == 1:
            self.labels_ = np.zeros(1, dtype=np.int64)
        else:
            with default_dtype(_DTYPE):
                measured = self._measure(table)
                cluster = (self._cluster(measured) if rule is None else
                           self._partition(measured, rule))
            self.labels_ = cluster.cpu().numpy().astype(np.int64)
        return self.labels_

    def _cluster(self, measured: Any) -> Tensor:
        return self._partition(measured, self.rule_)

    def _to_predict(self, X: ArrayLike, neighbors: Optional[Neighbors]
                    ) -> Table:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, 'rule_')
        x = self._features(X)
        self.check_dimension(x.size(1))
        if neighbors is not None:
            neighbors.validate(x.size(0)).check_features(x)
        table = self._table(x, neighbors, self.workdir)
        if self.workdir is None:
            return table
        name = fingerprint(
            self._arguments('workdir', 'verbose'), *self._tensors().values(),
            x, *table.neighbors)
        return table._replace(
            folder=os.path.join(self.workdir, f'predict-{name}'))

    def check_dimension(self, dim: int) -> None:
        r"""Raises a :class:`ValueError` unless features of this dimension can
        be clustered.
        """
        if self._reads_features() and dim != self.n_features_in_:
            raise ValueError(f"The model was fitted to features of dimension "
                             f"{self.n_features_in_} (got {dim})")

    def _reads_features(self) -> bool:
        return True

    # Files ###################################################################

    def save(self, path: Any) -> None:
        r"""Writes the fitted model to one safetensors file, its settings as
        JSON in the header; nothing is pickled.
        """
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, 'rule_')
        save_tensors(path, self._tensors(), {
            'class': type(self).__name__, 'format': _FORMAT,
            'arguments': self._arguments('device', 'workdir', 'verbose'),
            'k': self.k_,
            'n_features_in': self.n_features_in_,
            'rule': self.rule_._asdict(),
            'figures': {name: getattr(self, name)
                        for name in self._figures}})

    def _tensors(self) -> Dict[str, Tensor]:
        # The weights of all networks.
        tensors: Dict[str, Tensor] = {}
        for name in self._networks:
            network = getattr(self, f'{name}_')
            if network is not None:
                tensors.update((f'{name}.{key}', value)
                               for key, value in network.state_dict().items())
        return tensors

    @classmethod
    def load(cls: Type[Self], path: Any, device: Any = None) -> Self:
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
        try:
            # JSON knows no tuples.
            arguments = {name: _as_tuple(value)
                         for name, value in meta['arguments'].items()}
            model = cls(**arguments, device=device)
            model.k_, model.n_features_in_ = meta['k'], meta['n_features_in']
            model.rule_ = cls._rule(**meta['rule'])
            for name in cls._figures:
                setattr(model, name, float(meta['figures'][name]))
            model._build_networks()
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"The settings in '{path}' are damaged: {e}"
                             ) from e
        for name in cls._networks:
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
        model.history_ = {}
        return model
