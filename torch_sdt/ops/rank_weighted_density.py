r"""The density of Pair-Cls."""
from __future__ import annotations

import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors


def rank_weighted_density(neighbors: Neighbors) -> Tensor:
    r"""Cosines of a sample's neighbours, the nearer the more weight.

    .. math::
        \rho_i = \frac{\sum_{r=1}^{K-1} (K - r) \, a_{ir}}
        {\sum_{r=1}^{K-1} (K - r)},

    where :math:`a_{ir}` is the cosine of the neighbour at rank :math:`r`.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.

    Returns:
        torch.Tensor: :math:`\rho`, float32, shape ``[N]``; 0 where there is
        nobody but the sample itself.
    """
    similarity = neighbors.similarity
    weight = torch.arange(neighbors.k - 1, 0, -1, device=similarity.device)
    weight = weight / weight.sum().clamp(min=1)
    return (similarity[:, 1:] * weight).sum(dim=1)
