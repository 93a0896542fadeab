r"""Which optional packages are there, found without importing them; types,
and checks of arguments that all parts share.

The flags are read at call time (``torch_sdt.typing.WITH_FAISS``), so that a
test can switch one off, and so that importing :mod:`torch_sdt` imports none
of them: faiss and infomap share a type table that breaks when they are loaded
in the wrong order.
"""
from importlib.util import find_spec
from numbers import Integral
from typing import Any, Sequence, Union

import numpy as np
import torch
from torch import Tensor

WITH_FAISS = find_spec('faiss') is not None
WITH_INFOMAP = find_spec('infomap') is not None
WITH_NETWORKIT = find_spec('networkit') is not None
WITH_NUMBA = find_spec('numba') is not None
WITH_TRITON = find_spec('triton') is not None
WITH_TORCH_CLUSTER = find_spec('torch_cluster') is not None
WITH_FINCH = find_spec('finch') is not None
WITH_MATPLOTLIB = find_spec('matplotlib') is not None

ArrayLike = Union[np.ndarray, Tensor]
Device = Union[str, torch.device]
# One, or several that share the work.
Devices = Union[Device, Sequence[Device]]


def require(available: bool, what: str, package: str) -> None:
    r"""Raises one clear sentence when an optional package is absent.

    Args:
        available (bool): The package's flag, for example
            ``typing.WITH_NETWORKIT``.
        what (str): The public name that needs the package.
        package (str): The requirement, as given to ``pip install``.

    Raises:
        ImportError: If :obj:`available` is :obj:`False`.
    """
    if not available:
        raise ImportError(f"'{what}' requires '{package}'")


def check_integer(name: str, value: Any) -> None:
    r"""Raises a :class:`ValueError` unless a value is an integer, of Python
    or of numpy.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"'{name}' must be an integer (got {value!r})")


def check_count(name: str, value: Any, least: int = 1) -> None:
    r"""Raises a :class:`ValueError` unless a value is an integer, and not
    below the least that makes sense.
    """
    check_integer(name, value)
    if int(value) < least:
        raise ValueError(f"'{name}' must be at least {least} (got {value})")


def check_seed(seed: Any) -> None:
    r"""Raises a :class:`ValueError` unless every library takes a seed."""
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise ValueError(f"'seed' must be an integer in 0..{2**32 - 1} (got "
                         f"{seed!r})")
