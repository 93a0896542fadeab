r"""How much of their neighbourhoods two linked nodes share."""
from __future__ import annotations

import torch
from torch import Tensor

from torch_sdt.ops.subgraph import subgraph_values

_ROWS = 1024


def node_intimacy(index: Tensor, keep: Tensor) -> Tensor:
    r"""The node intimacy of `"Structure-Aware Face Clustering on a Large-Scale
    Graph with 10^7 Nodes" <https://arxiv.org/abs/2103.13225>`_ (STAR-FC).

    Of a directed graph without weights, :math:`A_{ij} = 1` where row
    :math:`i` keeps its entry :math:`j`, it is the share of links that two
    linked nodes have in common,

    .. math::
        \mathrm{NI}_{ij} = \max \left( \frac{(\mathbf{A} \mathbf{A})_{ij}}
        {\deg_i}, \frac{(\mathbf{A} \mathbf{A})_{ij}}{\deg_j} \right),
        \qquad \deg_i = \sum_j A_{ij},

    where :math:`(\mathbf{A} \mathbf{A})_{ij}` counts the nodes that
    :math:`i` links to and that link to :math:`j`. Two nodes that have only
    each other have nothing in common; a node that more link to than it links
    to can have more than 1.

    Args:
        index (torch.Tensor): Neighbour ids, int64, shape ``[N, K]``.
        keep (torch.Tensor): The entries that are edges, bool, shape
            ``[N, K]``.

    Returns:
        torch.Tensor: :math:`\mathrm{NI} \geq 0` of the entries that are kept,
        0 at all others and where :math:`\deg_j = 0`; float32, shape
        ``[N, K]``.

    Raises:
        ValueError: If :obj:`keep` is not one truth value an entry.
    """
    if keep.shape != index.shape or keep.dtype != torch.bool:
        raise ValueError(f"'keep' must be bool and of the table's shape "
                         f"{list(index.shape)} (got {keep.dtype} of shape "
                         f"{list(keep.shape)})")
    edge = keep.float()
    deg = edge.sum(dim=1)
    share = torch.zeros_like(edge)
    for nodes in torch.arange(index.size(0), device=index.device).split(
            _ROWS):
        # Entry (r, s): does the neighbour at rank r link to that at rank s?
        theirs = subgraph_values(index, edge, nodes)
        share[nodes] = (edge[nodes].unsqueeze(1) @ theirs).squeeze(1)
    # The larger of two quotients is that of the smaller degree.
    least = torch.minimum(deg.view(-1, 1), deg[index])
    return torch.where(keep & (least > 0), share / least.clamp(min=1), 0.)
