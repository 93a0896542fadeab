r"""What cosines look like between samples that have nothing in common."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 2048
# Two heaps of cosines are two if their means are so many spreads apart (those
# of random directions in D dimensions, cut in two, have some 2.65 + 2 / D),
# and the upper one matters if it holds such a share of them.
_APART, _SHARE = 2.95, .16


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

    Pairs of one identity are mostly so few among all pairs that percentiles do
    not see them. Where they are not, with two to four identities or one that
    most samples are of, cosines fall into two heaps, and the lower one is the
    background: cut where the variance between both is largest (`Otsu, 1979
    <https://doi.org/10.1109/TSMC.1979.4310076>`_), if their means
    :math:`\mu` and spreads :math:`\sigma` are apart by (`Ashman et
    al., 1994 <https://doi.org/10.1086/117248>`_) :math:`(\mu_2 - \mu_1) /
    \sqrt{(\sigma_1^2 + \sigma_2^2) / 2} > 2.95 + 3 / D` and the upper one
    holds more than 16 %. That all samples are of one identity cannot be seen.

    Args:
        x (torch.Tensor): Unit features, shape ``[N, D]``.
        seed (int, optional): Seed of the sample of 2,048 rows.
            (default: :obj:`0`)

    Returns:
        Background: Median and spread.
    """
    generator = torch.Generator().manual_seed(int(seed))
    rows = torch.randperm(x.size(0), generator=generator)[:_SAMPLE]
    sample = x[rows.to(x.device)].float()
    cosine = (sample @ sample.t()).cpu()
    off = ~torch.eye(rows.numel(), dtype=torch.bool)
    values = cosine[off] if rows.numel() > 1 else cosine.view(-1)
    value = _lower_heap(values.numpy(), _APART + 3 / x.size(1))
    low, median, high = np.percentile(value, (16, 50, 84))
    return Background(float(median), float(high - low) / 2)


def _lower_heap(value: np.ndarray, apart: float) -> np.ndarray:
    # All of them, unless there are two heaps.
    if value.max() - value.min() < 1e-3:
        return value
    count, edge = np.histogram(value, 512)
    share, centre = count / count.sum(), (edge[1:] + edge[:-1]) / 2
    # Share, mean and variance of what is below each edge, and above.
    low, mean, square = (
        (share * centre**power).cumsum() for power in range(3))
    inner = np.flatnonzero((low > 0) & (low < 1 - 1e-9))
    if inner.size == 0:
        return value
    high = 1 - low[inner]
    mean_high = (mean[-1] - mean[inner]) / high
    variance_high = (square[-1] - square[inner]) / high - mean_high**2
    low = low[inner]
    mean_low = mean[inner] / low
    variance_low = square[inner] / low - mean_low**2
    cut = int((low * high * (mean_high - mean_low)**2).argmax())
    spread = max(variance_low[cut] + variance_high[cut], 0.)**.5 / 2**.5
    if (mean_high - mean_low)[cut] <= apart * spread or high[cut] <= _SHARE:
        return value
    return value[value < edge[inner[cut] + 1]]
