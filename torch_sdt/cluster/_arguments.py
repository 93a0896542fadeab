r"""Checks of arguments that several estimators share."""
from __future__ import annotations

from typing import Any, Sequence


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
