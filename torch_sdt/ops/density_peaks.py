r"""Clusters as trees in which everything points to something denser."""
from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import connected_components


class DensityPeaks(NamedTuple):
    r"""Whom each sample follows.

    Args:
        parent (torch.Tensor): The nearest denser neighbour, or the sample
            itself where its row holds none, int64, shape ``[N]``.
        distance (torch.Tensor): How far it is, float32, shape ``[N]``;
            infinite where there is none.
    """
    parent: Tensor
    distance: Tensor

    def cut(self, tau: float) -> Tensor:
        r"""The clusters that remain if links of a distance of :math:`\tau` or
        more are cut: the components of the others.

        Returns:
            torch.Tensor: The cluster of each sample, int64, shape ``[N]``.
        """
        node = torch.arange(self.parent.numel(), device=self.parent.device)
        kept = self.distance < tau
        edge_index = torch.stack([self.parent[kept], node[kept]])
        return connected_components(edge_index, node.numel())


def density_peaks(
    neighbors: Neighbors,
    density: Tensor,
    distance: Optional[Tensor] = None,
    ties: bool = False,
) -> DensityPeaks:
    r"""Links each sample to its nearest denser neighbour.

    .. math::
        \mathrm{parent}(i) = \underset{j \in \mathcal{N}_i \setminus i, \;
        \rho_j > \rho_i}{\mathrm{argmin}} \; d_{ij},

    as in `"Clustering by Fast Search and Find of Density Peaks"
    <https://doi.org/10.1126/science.1242072>`_, within the rows of a
    table. Links always lead uphill, so that whatever is not cut is a forest.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        density (torch.Tensor): Densities :math:`\rho`, shape ``[N]``.
        distance (torch.Tensor, optional): Distances :math:`d`, shape
            ``[N, K]``. (default: :math:`1 - a_{ij}`)
        ties (bool, optional): If :obj:`True`, neighbours of equal density
            count as denser. (default: :obj:`False`)

    Returns:
        DensityPeaks: Parents and their distances; of equally distant ones the
        first in the row.

    Raises:
        ValueError: If a shape is wrong or a density not finite.
    """
    index = neighbors.index
    if distance is None:
        distance = 1 - neighbors.similarity
    if distance.shape != index.shape:
        raise ValueError(f"'distance' must have the table's shape "
                         f"{list(index.shape)} (got {list(distance.shape)})")
    if density.shape != (index.size(0), ):
        raise ValueError(f"'density' must have shape [{index.size(0)}] (got "
                         f"{list(density.shape)})")
    if not bool(density.isfinite().all()):
        row = int((~density.isfinite()).nonzero()[0])
        raise ValueError(f"Row {row} has a density that is not finite "
                         f"({float(density[row])})")
    theirs, own = density[index], density.view(-1, 1)
    denser = theirs >= own if ties else theirs > own
    denser[:, 0] = False
    far = distance.masked_fill(~denser, torch.inf)
    nearest, rank = far.min(dim=1)
    rank = torch.where(nearest.isfinite(), rank, torch.zeros_like(rank))
    parent = index.gather(1, rank.view(-1, 1)).view(-1)
    return DensityPeaks(parent, nearest)
