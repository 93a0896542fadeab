r"""Checks of arguments that several estimators share."""
from __future__ import annotations

from typing import Any, Sequence

from torch_sdt.typing import check_integer


def check_known(name: str, value: Any, known: Sequence[Any]) -> None:
    r"""Raises a :class:`ValueError` unless a value is one of the known."""
    if value not in known:
        raise ValueError(f"'{name}' must be one of {list(known)} (got "
                         f"{value!r})")


def check_between(name: str, value: float, low: float, high: float) -> None:
    r"""Raises a :class:`ValueError` unless a number lies in the closed
    interval.
    """
    if not low <= value <= high:
        raise ValueError(f"'{name}' must be between {low:g} and {high:g} (got "
                         f"{value})")


def check_n_clusters(method: str, n_clusters: Any, num_samples: int) -> int:
    r"""The number of clusters, which has to be given.

    Raises:
        ValueError: If it is missing or not in 1..N.
    """
    if n_clusters is None:
        raise ValueError(f"{method} needs the number of clusters: pass "
                         f"'n_clusters'")
    check_integer('n_clusters', n_clusters)
    if not 1 <= n_clusters <= num_samples:
        raise ValueError(f"'n_clusters' must be between 1 and the number of "
                         f"samples {num_samples} (got {n_clusters})")
    return int(n_clusters)
