r"""The training loop of all per-node models, and their inference."""
from .history import History
from .inference import infer
from .trainer import Trainer

__all__ = [
    'Trainer',
    'History',
    'infer',
]
