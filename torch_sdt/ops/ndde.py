r"""Neighbourhood-diffusion density and transition-probability distance."""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.subgraph import subgraph_values
from torch_sdt.typing import check_count

_ROWS = 1024


def transition_probability(distance: Tensor, sigma: float) -> Tensor:
    r"""Where a random walk goes from each sample.

    .. math::
        P_{ij} = \frac{\exp(-d_{ij} / \sigma)}
        {\sum_{h \in \mathcal{N}_i} \exp(-d_{ih} / \sigma)}.

    Args:
        distance (torch.Tensor): Distances :math:`d`, shape ``[N, K]``.
        sigma (float): Their scale :math:`\sigma > 0`.
    """
    if not sigma > 0:
        raise ValueError(f"'sigma' must be positive (got {sigma})")
    return torch.softmax(-distance / sigma, dim=1)


def ndde(
    neighbors: Neighbors,
    distance: Optional[Tensor] = None,
    k: int = 20,
    sigma: float = .5,
    exact: bool = False,
    damping: float = .1,
    tolerance: float = .05,
    max_steps: int = 100,
) -> Tensor:
    r"""The neighbourhood-diffusion-based density of `"On Mitigating Hard
    Clusters for Face Clustering" <https://arxiv.org/abs/2207.11895>`_
    (NDDe): how much of everybody's walk arrives at a sample.

    With the transition probabilities :math:`\mathbf{P}` over the first
    :obj:`k` neighbours of each row (:meth:`transition_probability`), the
    approximate form is one step of diffusion from everywhere,

    .. math::
        \rho_j = \sum_i P_{ij},

    and the exact one its fixed point :math:`\boldsymbol{\rho} = \eta
    \boldsymbol{\rho} + (1 - \eta) \mathbf{P}^{\top} \boldsymbol{\rho}`,
    looked for from :math:`\rho_i = 1 / N` without self-transitions.
    A sample in a small cluster receives as much as one in a large cluster:
    the density does not depend on the cluster's size, which is what sets it
    apart from the sum of similarities.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``, rank 0 the sample
            itself.
        distance (torch.Tensor, optional): Distances, shape ``[N, K]``; the
            :obj:`k` smallest of a row are its neighbours.
            (default: :math:`1 - a_{ij}`)
        k (int, optional): Neighbours that a walk goes to, the sample itself
            included. (default: :obj:`20`)
        sigma (float, optional): Scale of the distances.
            (default: :obj:`.5`)
        exact (bool, optional): If :obj:`True`, iterates to the fixed point.
            (default: :obj:`False`)
        damping (float, optional): The :math:`\eta`. (default: :obj:`.1`)
        tolerance (float, optional): Iteration stops at an :math:`\ell_1`
            change below. (default: :obj:`.05`)
        max_steps (int, optional): Or after so many steps.
            (default: :obj:`100`)

    Returns:
        torch.Tensor: :math:`\rho`, float32, shape ``[N]``, of sum :math:`N`
        in the approximate form and 1 in the exact one.
    """
    index, distance = _nearest(neighbors, distance, k)
    n = index.size(0)
    if not exact:
        p = transition_probability(distance, sigma)
        return p.new_zeros(n).index_add(0, index.reshape(-1), p.reshape(-1))
    own = index == torch.arange(n, device=index.device).view(-1, 1)
    # A row that holds nothing but itself keeps what it has.
    own &= (~own).any(dim=1, keepdim=True)
    p = transition_probability(distance.masked_fill(own, torch.inf), sigma)
    rho = p.new_full((n, ), 1 / n)
    for _ in range(max_steps):
        moved = p * rho.view(-1, 1)
        arrived = torch.zeros_like(rho).index_add(
            0, index.reshape(-1), moved.reshape(-1))
        new = damping * rho + (1 - damping) * arrived
        change = float((new - rho).abs().sum())
        rho = new
        if change < tolerance:
            break
    return rho


def tpdi(
    neighbors: Neighbors,
    distance: Optional[Tensor] = None,
    sigma: float = .05,
) -> Tensor:
    r"""The transition-probability-based distance of `"On Mitigating Hard
    Clusters for Face Clustering" <https://arxiv.org/abs/2207.11895>`_
    (TPDi): one minus the overlap of where two random walks go.

    .. math::
        d^{\mathrm{TPDi}}_{ij} = 1 - \sum_{m \in \mathcal{N}_i \cap
        \mathcal{N}_j} \sqrt{P_{im} P_{jm}},

    with the transition probabilities :math:`\mathbf{P}` over all :math:`K`
    neighbours (:meth:`transition_probability`): the sum is their Bhattacharyya
    coefficient. Symmetric and in [0, 1].

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        distance (torch.Tensor, optional): Distances, shape ``[N, K]``.
            (default: :math:`1 - a_{ij}`)
        sigma (float, optional): Their scale. (default: :obj:`.05`)

    Returns:
        torch.Tensor: Distances of the table's pairs, float32, shape
        ``[N, K]``.
    """
    index = neighbors.index
    distance = _distance(neighbors, distance)
    root = transition_probability(distance, sigma).float().sqrt()
    parts = []
    for nodes in torch.arange(index.size(0), device=index.device).split(
            _ROWS):
        # Row r: what the neighbour at rank r says about each neighbour.
        theirs = subgraph_values(index, root, nodes)
        parts.append((theirs @ root[nodes].unsqueeze(-1)).squeeze(-1))
    return (1 - torch.cat(parts)).clamp(0, 1)


def _distance(neighbors: Neighbors, distance: Optional[Tensor]) -> Tensor:
    if distance is None:
        return 1 - neighbors.similarity
    if distance.shape != neighbors.index.shape:
        raise ValueError(f"'distance' must have the table's shape "
                         f"{list(neighbors.index.shape)} (got "
                         f"{list(distance.shape)})")
    return distance


def _nearest(neighbors: Neighbors, distance: Optional[Tensor], k: int
             ) -> tuple[Tensor, Tensor]:
    check_count('k', k)
    distance = _distance(neighbors, distance)
    near, order = distance.sort(dim=1, stable=True)
    return neighbors.index.gather(1, order[:, :k]), near[:, :k]
