r"""Which labelled identities train, and which are held out."""
from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from torch_sdt.typing import ArrayLike

MIN_IDENTITIES = 8


def check_labels(y: Any, num_samples: int, name: str = 'y') -> np.ndarray:
    r"""The labels as int64 numpy, numbered from 0.

    Raises:
        ValueError: If there are none, or not one a sample.
    """
    if y is None:
        raise ValueError("Training needs the labels of the samples: call "
                         "fit(X, y) (y is missing)")
    y = np.asarray(y.cpu() if hasattr(y, 'cpu') else y)
    if y.shape != (num_samples, ):
        raise ValueError(f"'{name}' must have shape [{num_samples}], one "
                         f"label a sample (got {list(y.shape)})")
    missing = np.zeros(y.size, dtype=bool)
    if y.dtype.kind == 'f':
        missing = ~np.isfinite(y)
    elif y.dtype.kind == 'O':  # NaN is not equal to itself.
        missing = np.array([v is None or v != v for v in y], dtype=bool)
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"Row {row} of '{name}' has no label (got {y[row]})")
    return np.unique(y, return_inverse=True)[1].astype(np.int64)


def split_identities(
    y: np.ndarray,
    groups: Optional[ArrayLike] = None,
    share: float = .3,
    seed: int = 0,
) -> Tuple[np.ndarray, np.ndarray]:
    r"""Splits labelled samples into rows of training identities and rows of
    held-out ones.

    Args:
        y (numpy.ndarray): Identities, integers, shape ``[N]``.
        groups (optional): Identities of one group stay together, shape
            ``[N]``. (default: each identity is a group)
        share (float, optional): Share of the groups that is held out.
            (default: :obj:`.3`)
        seed (int, optional): Seed of the choice. (default: :obj:`0`)

    Returns:
        (numpy.ndarray, numpy.ndarray): Two arrays of rows, int64, ascending.

    Raises:
        ValueError: If there are too few identities or groups, an identity is
            in two groups, or those that are left to train are fewer than two
            or have one sample each.
    """
    y = check_labels(y, np.shape(y)[0])
    num = int(y.max()) + 1
    if num < MIN_IDENTITIES:
        raise ValueError(f"Training needs at least {MIN_IDENTITIES} "
                         f"identities, some of which are held out (got "
                         f"{num})")
    group = y
    if groups is not None:
        group = check_labels(groups, y.size, 'groups')
        pairs = np.unique(np.stack([y, group]), axis=1)
        if pairs.shape[1] > num:
            twice = int(pairs[0, 1:][pairs[0, 1:] == pairs[0, :-1]][0])
            raise ValueError(f"Identity {twice} (in sorted order) is in two "
                             f"groups of 'groups'")
        if group.max() < 1:
            raise ValueError("'groups' puts all identities into one group, "
                             "so that none can be held out")
    count = int(group.max()) + 1
    held = np.random.default_rng(seed).permutation(count)
    held = held[:min(max(round(share * count), 1), count - 1)]
    val = np.isin(group, held)
    size = np.bincount(y[~val])
    if (size > 0).sum() < 2:
        raise ValueError(f"Of {num} identities in {count} groups one alone "
                         f"would be left to train: make smaller groups, or "
                         f"hold out another share or by another seed")
    if size.max() < 2:
        raise ValueError("No identity that is left to train has two samples, "
                         "so that there is nothing to learn from them")
    return np.flatnonzero(~val), np.flatnonzero(val)
