r"""What cosines look like between samples that have nothing in common."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_PAIRS = 2048


class Background(NamedTuple):
    r"""What cosines of samples that have nothing in common look like.

    Args:
        location (float): Their median.
        scale (float): Their spread, half the distance between the 16th and
            the 84th percentile (a Gaussian's standard deviation).
    """
    location: float
    scale: float


def estimate_background(x: Tensor, seed: int = 0) -> Background:
    r"""Measures the background on the pairs of a random sample of unit rows.

    Pairs of one identity are so few among all pairs that the percentiles do
    not see them.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        seed (int, optional): Seed of the sample of 2,048 rows.
            (default: :obj:`0`)

    Returns:
        Background: Median and spread.
    """
    generator = torch.Generator().manual_seed(int(seed))
    rows = torch.randperm(x.size(0), generator=generator)[:_PAIRS]
    sample = x[rows.to(x.device)].float()
    cosine = (sample @ sample.t()).cpu()
    off = ~torch.eye(rows.numel(), dtype=torch.bool)
    values = cosine[off] if rows.numel() > 1 else cosine.view(-1)
    low, median, high = np.percentile(values.numpy(), (16, 50, 84))
    return Background(float(median), float(high - low) / 2)
