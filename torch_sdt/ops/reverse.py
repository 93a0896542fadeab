r"""Values of a neighbour table, read in the other direction or in both."""
from __future__ import annotations

import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.neighbors import check_ids


def reverse_values(index: Tensor, value: Tensor) -> Tensor:
    r"""At the entry of :math:`j` in row :math:`i`, the value of the entry of
    :math:`i` in row :math:`j`; 0 where row :math:`j` does not list :math:`i`.

    Args:
        index (torch.Tensor): Neighbour ids, int64, shape ``[N, K]``.
        value (torch.Tensor): Values, float32, shape ``[N, K]``.

    Returns:
        torch.Tensor: float32, shape ``[N, K]``.

    Raises:
        ValueError: If the values are not one an entry, or an id is none of
            the table.
    """
    if value.shape != index.shape:
        raise ValueError(f"'value' must have the table's shape "
                         f"{list(index.shape)} (got {list(value.shape)})")
    check_ids(index)
    value = value.detach()
    if torch_sdt.typing.WITH_NUMBA and not index.is_cuda:
        from torch_sdt.ops._subgraph_kernel import reverse_kernel

        out = torch.zeros(index.shape)
        reverse_kernel(index.numpy(), value.float().numpy(), out.numpy())
        return out
    parts = []
    for start in range(0, index.size(0), 4096):
        near = index[start:start + 4096]
        row = torch.arange(start, start + near.size(0), device=index.device)
        is_self = index[near] == row.view(-1, 1, 1)
        found = torch.where(is_self, value[near].float(), 0.)
        parts.append(found.sum(dim=2))
    return torch.cat(parts) if parts else value.float()


def symmetric_values(index: Tensor, value: Tensor) -> Tensor:
    r"""At the entry of :math:`j` in row :math:`i`, the mean of its value and
    of that of the entry of :math:`i` in row :math:`j`; its value alone where
    row :math:`j` does not list :math:`i`.

    What a row does not list, it says nothing about: of what is larger than the
    table, most pairs are listed in one direction only.

    Args:
        index (torch.Tensor): Neighbour ids, int64, shape ``[N, K]``.
        value (torch.Tensor): Values, float32, shape ``[N, K]``.

    Returns:
        torch.Tensor: float32, shape ``[N, K]``.

    Raises:
        ValueError: See :meth:`reverse_values`.
    """
    listed = reverse_values(index, torch.ones_like(value))
    return (value + reverse_values(index, value)) / (1 + listed)
