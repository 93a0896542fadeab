from __future__ import annotations

import math
import os
import time
from typing import Any, Callable, Dict, Iterator, Optional, Protocol

import torch
from torch import Tensor
from torch.nn import Module

from torch_sdt.io import load_tensors, save_tensors
from torch_sdt.progress import progress
from torch_sdt.training.history import History
from torch_sdt.training.seeded import seeded
from torch_sdt.typing import check_count

Validate = Callable[[Module], Dict[str, float]]

PRECISIONS = ('32-true', 'bf16-mixed')

_FORMAT = 1


def check_precision(precision: str) -> None:
    r"""Raises a :class:`ValueError` unless Fabric is asked for it here."""
    if precision not in PRECISIONS:
        raise ValueError(f"'precision' must be one of {list(PRECISIONS)} (got "
                         f"{precision!r})")


class TrainingLoader(Protocol):
    r"""What :class:`Trainer` asks of a loader, see
    :class:`~torch_sdt.loader.BatchLoader`.
    """
    x: Tensor
    nodes: Tensor
    batch_size: int
    seed: int
    rank: int
    world_size: int

    def set_epoch(self, epoch: int) -> None:
        r"""Chooses the order of the next pass."""

    def __len__(self) -> int:
        r"""The number of batches."""

    def __iter__(self) -> Iterator[Any]:
        r"""Yields batches with a ``node``, one entry an item."""


class Trainer:
    r"""The training loop of all per-node models, on Lightning Fabric.

    AdamW with a linear warm-up and a cosine decay to zero, clipped gradients,
    the same weights for the same seed on the same machine. After each epoch
    the model is validated; at the end it has the weights of the epoch with
    the best score. With a :obj:`workdir` the whole state is written there
    after each epoch, atomically and without pickle
    (``<name>.safetensors``), beside the curves (``<name>.csv`` and
    ``<name>.png``); the same call goes on where a killed one stopped.

    Args:
        epochs (int): Passes over the data.
        lr (float, optional): Highest learning rate. (default: :obj:`1e-3`)
        weight_decay (float, optional): See :class:`torch.optim.AdamW`.
            (default: :obj:`.01`)
        warmup (int, optional): Steps of the warm-up. (default: :obj:`50`)
        clip (float, optional): Largest norm of the gradient.
            (default: :obj:`1.`)
        patience (int, optional): Stops after so many epochs without a better
            score. (default: never)
        seed (int, optional): Seed of what is random in the model, such as
            dropout; the order is that of the loader. (default: :obj:`0`)
        device (str or torch.device, optional): Where to train, and where the
            data are. (default: that of the data)
        precision (str, optional): :obj:`"32-true"`, or :obj:`"bf16-mixed"`
            for weights in float32 under autocast to bfloat16.
            (default: :obj:`"32-true"`)
        devices (int, optional): How many devices; more than one needs a
            script launched for them, as ``fabric run`` does.
            (default: :obj:`1`)
        workdir (str, optional): The folder of checkpoints and curves.
            (default: nothing is written)
        name (str, optional): What is trained. (default: :obj:`"model"`)
        verbose (bool, optional): If :obj:`True`, shows a progress bar.
            (default: :obj:`False`)

    Raises:
        ValueError: If :obj:`epochs` or :obj:`patience` is no positive integer,
            :obj:`lr` is not positive, or :obj:`precision` is unknown.
    """

    def __init__(
        self,
        epochs: int,
        lr: float = 1e-3,
        weight_decay: float = .01,
        warmup: int = 50,
        clip: float = 1.,
        patience: Optional[int] = None,
        seed: int = 0,
        device: Any = None,
        precision: str = '32-true',
        devices: int = 1,
        workdir: Optional[str] = None,
        name: str = 'model',
        verbose: bool = False,
    ) -> None:
        check_count('epochs', epochs)
        if not lr > 0:
            raise ValueError(f"'lr' must be positive (got {lr})")
        if patience is not None:
            check_count('patience', patience)
        check_precision(precision)
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.clip = clip
        self.patience = patience
        self.seed = seed
        self.device = device
        self.precision = precision
        self.devices = devices
        self.workdir = workdir
        self.name = name
        self.verbose = verbose

    def fit(
        self,
        model: Module,
        loader: TrainingLoader,
        validate: Optional[Validate] = None,
        fingerprint: str = '',
    ) -> History:
        r"""Trains a model in place.

        Args:
            model (torch.nn.Module): The model; ``model.loss(batch)`` is what
                is minimised.
            loader (TrainingLoader): What to train on, shuffled; all of
                :mod:`torch_sdt.loader` do.
            validate (callable, optional): ``validate(model)``, scores of
                which the first decides which epoch is best.
                (default: the last epoch is)
            fingerprint (str, optional): What the data are: a checkpoint of
                others is not continued. (default: :obj:`""`)

        Returns:
            History: One row an epoch.

        Raises:
            ValueError: If the folder holds the checkpoint of another run, or
                a damaged one.
            FloatingPointError: If the loss, its gradient or the score is not
                finite; what is on disk is the last epoch before.
        """
        fabric = self._fabric(loader)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr,
                                      weight_decay=self.weight_decay)
        state = _State(model, optimizer,
                       self._settings(model, loader, fingerprint))
        if self.workdir is not None:
            os.makedirs(self.workdir, exist_ok=True)
            state.load(self._path())
        wrapped, optimizer = fabric.setup(model, optimizer)
        wrapped.mark_forward_method('loss')
        loader.rank, loader.world_size = fabric.global_rank, fabric.world_size
        for epoch in range(len(state.history) + 1, self.epochs + 1):
            if state.stale(self.patience):
                break
            start = time.perf_counter()
            with seeded(int(self.seed) * 1_000_003 + epoch, fabric.device):
                mean = self._epoch(fabric, wrapped, optimizer, loader, epoch)
            row: Dict[str, Any] = {'epoch': epoch, 'loss': mean}
            score = float(epoch)  # The last is the best.
            if validate is not None:
                model.eval()
                with torch.no_grad():
                    scores = validate(model)
                row.update(scores)
                score = next(iter(scores.values()))
                self._check('score', score, epoch)
            row['seconds'] = time.perf_counter() - start
            state.update(row, score)
            if self.workdir is not None and fabric.is_global_zero:
                state.save(self._path())
                state.history.write(self.workdir, self.name)
        model.load_state_dict(state.best)
        model.eval()
        return state.history

    def _epoch(self, fabric: Any, model: Any, optimizer: Any,
               loader: TrainingLoader, epoch: int) -> float:
        model.train()
        loader.set_epoch(epoch)
        total, count = 0., 0
        step = (epoch - 1) * len(loader)
        text = f'{self.name} {epoch}/{self.epochs}'
        with progress(len(loader.nodes), text, self.verbose, 'nodes') as bar:
            for batch in loader:
                for group in optimizer.param_groups:
                    group['lr'] = self._lr(step, len(loader))
                # On one device Fabric would run `loss` as it is.
                with fabric.autocast():
                    value = model.loss(batch)
                amount = float(value.detach())
                self._check('loss', amount, epoch)
                fabric.backward(value)
                norm = fabric.clip_gradients(
                    model, optimizer, max_norm=self.clip,
                    error_if_nonfinite=False)
                self._check('gradient', float(norm), epoch)
                optimizer.step()
                optimizer.zero_grad()
                size = batch.node.numel()
                total, count, step = total + amount * size, count + size, \
                    step + 1
                bar.update(size)
                bar.set_postfix(loss=f'{total / count:.4f}', refresh=False)
        return total / max(count, 1)

    def _lr(self, step: int, per_epoch: int) -> float:
        warm = min(1., (step + 1) / max(self.warmup, 1))
        done = step / max(self.epochs * per_epoch, 1)
        return self.lr * warm * .5 * (1 + math.cos(math.pi * done))

    def _check(self, what: str, value: float, epoch: int) -> None:
        if math.isfinite(value):
            return
        kept = ''
        if self.workdir is not None and epoch > 1:
            kept = f"; '{self._path()}' holds epoch {epoch - 1}"
        raise FloatingPointError(
            f"The {what} of '{self.name}' is {value} in epoch {epoch}; lower "
            f"'lr' (now {self.lr:g}){kept}")

    def _path(self) -> str:
        assert self.workdir is not None
        return os.path.join(self.workdir, f'{self.name}.safetensors')

    def _fabric(self, loader: TrainingLoader) -> Any:
        from lightning_fabric import Fabric

        device = torch.device(self.device or loader.x.device)
        if device.type != loader.x.device.type:
            raise ValueError(f"The data are on '{loader.x.device}', and "
                             f"nothing moves them to 'device' '{device}'")
        devices: Any = self.devices
        if self.devices == 1 and device.type == 'cuda':
            devices = [device.index or 0]
        fabric = Fabric(accelerator=device.type, devices=devices,
                        precision=self.precision)  # type: ignore[arg-type]
        fabric.launch()
        return fabric

    def _settings(self, model: Module, loader: TrainingLoader,
                  fingerprint: str) -> Dict[str, Any]:
        # What must agree for a checkpoint to be of this very run.
        return {
            'format': _FORMAT, 'name': self.name, 'epochs': self.epochs,
            'lr': self.lr, 'weight_decay': self.weight_decay,
            'warmup': self.warmup, 'clip': self.clip, 'seed': self.seed,
            'precision': self.precision, 'data': fingerprint,
            'batch_size': loader.batch_size, 'order': loader.seed,
            'parameters': {name: list(p.shape)
                           for name, p in model.named_parameters()},
        }


class _State:
    # A training's state between two epochs, in memory and on disk.

    def __init__(self, model: Module, optimizer: torch.optim.Optimizer,
                 settings: Dict[str, Any]) -> None:
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.history = History()
        self.best = _copy(model)
        self.best_score, self.best_epoch = -math.inf, 0

    def update(self, row: Dict[str, Any], score: float) -> None:
        self.history.append(row)
        if score > self.best_score:
            self.best, self.best_score = _copy(self.model), score
            self.best_epoch = row['epoch']

    def stale(self, patience: Optional[int]) -> bool:
        waited = len(self.history) - self.best_epoch
        return patience is not None and waited >= patience

    def save(self, path: str) -> None:
        tensors = {f'model.{name}': value
                   for name, value in self.model.state_dict().items()}
        tensors.update((f'best.{name}', value)
                       for name, value in self.best.items())
        for index, slots in self.optimizer.state_dict()['state'].items():
            tensors.update((f'optimizer.{index}.{slot}', value)
                           for slot, value in slots.items())
        save_tensors(path, _unshared(tensors), {
            'settings': self.settings, 'history': self.history.rows,
            'best_score': self.best_score, 'best_epoch': self.best_epoch})

    def load(self, path: str) -> None:
        if not os.path.exists(path):
            return
        tensors, meta = load_tensors(path)
        if meta.get('settings') != self.settings:
            other = meta.get('settings') or {}
            names = [key for key in self.settings
                     if other.get(key) != self.settings[key]]
            raise ValueError(
                f"'{path}' is the checkpoint of another training (it differs "
                f"in {', '.join(names)}): choose another workdir, or delete "
                f"the file to train anew")
        self.model.load_state_dict(_part(tensors, 'model.'))
        self.best = _part(tensors, 'best.')
        state = self.optimizer.state_dict()
        for name, value in _part(tensors, 'optimizer.').items():
            index, slot = name.split('.', 1)
            state['state'].setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict(state)
        self.history = History(meta['history'])
        self.best_score = meta['best_score']
        self.best_epoch = meta['best_epoch']


def _copy(model: Module) -> Dict[str, Tensor]:
    return {name: value.detach().clone()
            for name, value in model.state_dict().items()}


def _part(tensors: Dict[str, Tensor], prefix: str) -> Dict[str, Tensor]:
    return {name[len(prefix):]: value for name, value in tensors.items()
            if name.startswith(prefix)}


def _unshared(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    # safetensors refuses two names of one memory.
    return {name: value.detach().clone() for name, value in tensors.items()}
