r"""Values of a neighbour table inside the subgraphs of single rows."""
from __future__ import annotations

import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.ops.reverse import check_values


def subgraph_values(index: Tensor, value: Tensor, nodes: Tensor) -> Tensor:
    r"""What the neighbours of a node say about each other.

    The subgraph of node :math:`b` are the entries :math:`\mathcal{N}_b` of its
    row. With :math:`v_{ij}` the table's value at the entry of :math:`j` in
    row :math:`i`, 0 where row :math:`i` does not list :math:`j`,

    .. math::
        V_{brs} = v_{\mathcal{N}_b(r), \mathcal{N}_b(s)}.

    On a CPU a numba kernel walks :math:`K` rows a node with one mark a table
    entry; elsewhere entries are found by binary search.

    Args:
        index (torch.Tensor): Neighbour ids, int64, shape ``[N, K]``.
        value (torch.Tensor): Values, float32, shape ``[N, K]``.
        nodes (torch.Tensor): The nodes :math:`b`, int64, shape ``[B]``.

    Returns:
        torch.Tensor: :math:`V`, float32, shape ``[B, K, K]``.

    Raises:
        ValueError: If the values are not one an entry, or a row that is read
            names a neighbour that is none of the table.
        IndexError: If a node is none of the table.
    """
    check_values(index, value)
    value = value.detach()
    if not index.is_cuda:
        bad = nodes[(nodes < 0) | (nodes >= index.size(0))]
        if bad.numel() > 0:
            raise IndexError(f"There is no node {int(bad[0])} in a table of "
                             f"{index.size(0)} rows")
        if torch_sdt.typing.WITH_NUMBA:
            return _numba(index, value, nodes)
    return _search(index, value, nodes)


def _numba(index: Tensor, value: Tensor, nodes: Tensor) -> Tensor:
    from torch_sdt.ops._subgraph_kernel import subgraph_kernel

    n, k = index.shape
    out = torch.zeros(nodes.numel(), k, k)
    threads = min(torch.get_num_threads(), max(nodes.numel(), 1))
    bad = subgraph_kernel(index.numpy(), value.float().numpy(),
                          nodes.numpy(), out.numpy(), threads).max()
    if bad >= 0:
        raise ValueError(f"Row {bad} has a neighbour outside 0..{n - 1}")
    return out


def _search(index: Tensor, value: Tensor, nodes: Tensor) -> Tensor:
    ids = index[nodes]
    (batch, k), far = ids.shape, index[ids].flatten(1)
    ordered, order = ids.sort(dim=1)
    place = torch.searchsorted(ordered, far).clamp_(max=k - 1)
    hit = (ordered.gather(1, place) == far).view(batch, k, k)
    column = order.gather(1, place).view(batch, k, k)
    found = torch.where(hit, value[ids].float(), 0.)
    out = torch.zeros(batch, k, k, device=index.device)
    # A row lists nobody twice: where there are several, all but one are 0.
    return out.scatter_add_(2, column, found)
