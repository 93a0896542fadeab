r"""What surrounds a sample, in one vector."""
from __future__ import annotations

import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors

_ROWS = 256


def neighbor_context(neighbors: Neighbors, x: Tensor, sharpness: float = 10.
                     ) -> Tensor:
    r"""The mean of a sample's neighbours, the more similar the more weight.

    .. math::
        \mathbf{c}_i = \sum_{h \in \mathcal{N}_i \setminus i} w_{ih}
        \mathbf{x}_h, \qquad w_{ih} = \frac{\exp(s \, a_{ih})}
        {\sum_{h' \in \mathcal{N}_i \setminus i} \exp(s \, a_{ih'})},

    with cosines :math:`a`.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Features, shape ``[N, D]``.
        sharpness (float, optional): The :math:`s`: 0 for the plain mean.
            (default: :obj:`10.`)

    Returns:
        torch.Tensor: :math:`\mathbf{c}`, shape ``[N, D]``; 0 where there is
        nobody but the sample itself.
    """
    weight = torch.softmax(
        sharpness * neighbors.similarity[:, 1:].float(), dim=1).to(x.dtype)
    return torch.cat([
        (weight[rows].unsqueeze(1) @ x[neighbors.index[rows, 1:]]).squeeze(1)
        for rows in torch.arange(x.size(0), device=x.device).split(_ROWS)])
