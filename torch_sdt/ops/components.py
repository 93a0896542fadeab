r"""Connected components, plain and of bounded size."""
from __future__ import annotations

from typing import Optional

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as _components
from torch import Tensor
from torch_geometric.utils.num_nodes import maybe_num_nodes

from torch_sdt.ops.map_equation import number_by_appearance
from torch_sdt.typing import check_count


def connected_components(
    edge_index: Tensor,
    num_nodes: Optional[int] = None,
) -> Tensor:
    r"""The connected components of a graph, edges read in both directions.

    Args:
        edge_index (torch.Tensor): Edges, int64, shape ``[2, E]``.
        num_nodes (int, optional): The number of nodes :math:`N`.
            (default: :obj:`max(edge_index) + 1`)

    Returns:
        torch.Tensor: The component of each node, int64, shape ``[N]``,
        numbered by first appearance.
    """
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    if num_nodes == 0:
        return edge_index.new_empty(0)
    find = _by_least_node if edge_index.is_cuda else _by_search
    return number_by_appearance(find(edge_index, num_nodes))


def _by_search(edge_index: Tensor, num_nodes: int) -> Tensor:
    row, col = edge_index.numpy()
    graph = coo_array((np.ones(row.size, dtype=bool), (row, col)),
                      (num_nodes, num_nodes))
    return torch.from_numpy(
        _components(graph, directed=False)[1].astype(np.int64))


def _by_least_node(edge_index: Tensor, num_nodes: int) -> Tensor:
    # Every node points to the least node that it knows of. What an end of an
    # edge points to, learns of what the other end points to; then pointers
    # are followed to their ends.
    row, col = edge_index
    node = torch.arange(num_nodes, device=row.device)
    while True:
        least = node.scatter_reduce(0, node[row], node[col], 'amin')
        least = least.scatter_reduce(0, node[col], node[row], 'amin')
        while not torch.equal(least, least[least]):
            least = least[least]
        if torch.equal(least, node):
            return node
        node = least


def size_constrained_components(
    edge_index: Tensor,
    edge_weight: Tensor,
    num_nodes: Optional[int] = None,
    max_size: int = 600,
    step: float = .05,
    max_rounds: int = 100,
) -> Tensor:
    r"""Connected components of which none is larger than wanted: the
    propagation of `"Consensus-Driven Propagation in Massive Unlabeled Data for
    Face Recognition" <https://arxiv.org/abs/1809.01407>`_.

    The components of all edges of at most :obj:`max_size` nodes are final.
    Within the others only edges of weight :math:`w \geq \theta` are kept and
    the components looked for anew, while :math:`\theta`, at first the
    smallest weight, goes up by :math:`\theta \leftarrow \theta +
    (1 - \theta) \cdot \mathrm{step}`. What is still too large after
    :obj:`max_rounds` stays in one piece.

    Args:
        edge_index (torch.Tensor): Edges, int64, shape ``[2, E]``.
        edge_weight (torch.Tensor): Weights of at most 1, floating point,
            shape ``[E]``.
        num_nodes (int, optional): The number of nodes :math:`N`.
            (default: :obj:`max(edge_index) + 1`)
        max_size (int, optional): Nodes in a component. (default: :obj:`600`)
        step (float, optional): See above, in (0, 1]. (default: :obj:`.05`)
        max_rounds (int, optional): Rounds at most. (default: :obj:`100`)

    Returns:
        torch.Tensor: The cluster of each node, int64, shape ``[N]``, numbered
        by first appearance.

    Raises:
        ValueError: If a shape or an argument is wrong.
    """
    if edge_weight.shape != edge_index.shape[1:]:
        raise ValueError(f"'edge_weight' must have shape "
                         f"[{edge_index.size(1)}] (got "
                         f"{list(edge_weight.shape)})")
    check_count('max_size', max_size)
    if not 0 < step <= 1:
        raise ValueError(f"'step' must be in (0, 1] (got {step})")
    check_count('max_rounds', max_rounds)
    # Cosines may exceed 1 by rounding.
    bad = ~(edge_weight.detach() <= 1 + 1e-3)
    if bool(bad.any()):
        edge = int(bad.nonzero()[0])
        raise ValueError(f"Edge {edge} has a weight above 1 or not a number "
                         f"({float(edge_weight[edge])})")
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    edge_index, weight = edge_index.cpu(), edge_weight.detach().cpu()
    cluster = torch.full((num_nodes, ), -1)
    open_nodes = torch.arange(num_nodes)
    threshold, found = float(weight.min()) if weight.numel() > 0 else 0., 0
    for _ in range(max_rounds):
        component = connected_components(edge_index, num_nodes)[open_nodes]
        component = component + found  # Ids that no earlier round has given.
        size = torch.bincount(component)[component]
        cluster[open_nodes] = component
        found = int(component.max()) + 1 if component.numel() > 0 else found
        too_large = torch.zeros(num_nodes, dtype=torch.bool)
        too_large[open_nodes] = size > max_size
        open_nodes = open_nodes[size > max_size]
        if open_nodes.numel() == 0:
            break
        threshold += (1 - threshold) * step
        keep = too_large[edge_index].all(dim=0) & (weight >= threshold)
        edge_index, weight = edge_index[:, keep], weight[keep]
    return number_by_appearance(cluster).to(edge_weight.device)
