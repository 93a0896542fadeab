r"""How many of its neighbours a sample should trust: target and estimate."""
from __future__ import annotations

import math
from typing import Union

import numpy as np
import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors


def topk_target(
    neighbors: Neighbors,
    y: Union[np.ndarray, Tensor],
    beta: float = .5,
) -> Tensor:
    r"""The best number of neighbours to trust, by the labels: what a Top-K
    predictor is trained on, and the oracle that it is compared with.

    With :math:`t_i(j)` the samples of :math:`i`'s own identity among the first
    :math:`j` entries of its row (itself included), precision
    :math:`P = t_i(j) / j` and recall :math:`R = t_i(j) / \min(n_i, K)`, where
    :math:`n_i` is the size of the identity,

    .. math::
        k_i^{\ast} = \arg\max_{1 \leq j \leq K} Q_i(j), \qquad
        Q_i(j) = \frac{(1 + \beta^2) P R}{\beta^2 P + R}
        = \frac{(1 + \beta^2) \, t_i(j)}{\beta^2 \min(n_i, K) + j},

    the first maximum where there are several. From `"Adaptive Neighbour
    Discovery for Face Clustering" <https://arxiv.org/abs/2202.03800>`_
    (Ada-NETS), which divides by the whole :math:`n_i`: of an identity larger
    than the table no row can recall more than :math:`K`.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        y (numpy.ndarray or torch.Tensor): Identities, integers, shape
            ``[N]``.
        beta (float, optional): Below 1 precision weighs more, above 1
            recall. (default: :obj:`.5`)

    Returns:
        torch.Tensor: :math:`k^{\ast}`, int64, shape ``[N]``, in 1..K.

    Raises:
        ValueError: If the labels are not one an entry, or :obj:`beta` is not
            positive.
    """
    if not isinstance(y, Tensor):
        # A copy: labels may be read-only, or in a foreign order of bytes.
        y = torch.from_numpy(np.array(y, np.asarray(y).dtype.newbyteorder('=')))
    label = y.to(neighbors.index.device)
    if label.shape != (neighbors.num_nodes, ):
        raise ValueError(f"'y' must have shape [{neighbors.num_nodes}], one "
                         f"label a row of the table (got {list(label.shape)})")
    _, label, size = label.unique(return_inverse=True, return_counts=True)
    same = (label[neighbors.index] == label.view(-1, 1)).float()
    positives = size[label].clamp(max=neighbors.k).float()
    return _fscore(same, positives, beta).argmax(dim=1) + 1


def expected_topk(probability: Tensor, beta: float = .5) -> Tensor:
    r"""The number of neighbours to trust under probabilities of belonging.

    The :math:`k_i` of :meth:`topk_target` with expectations in place of
    counts: :math:`t_i(j) = \sum_{r < j} p_{ir}`, and
    :math:`\sum_{r < K} p_{ir}` in place of :math:`\min(n_i, K)`.

    Args:
        probability (torch.Tensor): :math:`p_{ir}`, that rank :math:`r` is of
            the row's own identity, shape ``[N, K]``; rank 0 is the sample
            itself and counts as 1.
        beta (float, optional): See there. (default: :obj:`.5`)

    Returns:
        torch.Tensor: int64, shape ``[N]``, in 1..K.

    Raises:
        ValueError: If :obj:`probability` is no matrix, or :obj:`beta` is not
            positive.
    """
    if probability.dim() != 2:
        raise ValueError(f"'probability' must have shape [N, K] (got "
                         f"{list(probability.shape)})")
    # Sums in half precision would not tell a rank from the next.
    probability = probability.to(
        torch.promote_types(probability.dtype, torch.float), copy=True)
    probability[:, 0] = 1.
    total = probability.sum(dim=1)
    return _fscore(probability, total, beta).argmax(dim=1) + 1


def _fscore(same: Tensor, positives: Tensor, beta: float) -> Tensor:
    if not 0 < beta < math.inf:
        raise ValueError(f"'beta' must be positive (got {beta})")
    length = torch.arange(1, same.size(1) + 1, device=same.device)
    found = same.cumsum(dim=1)
    return ((1 + beta**2) * found /
            (beta**2 * positives.view(-1, 1) + length))
