r"""Values of a neighbour table, read in the other direction or in both."""
from __future__ import annotations

from math import nan

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
    check_values(index, value)
    return _reverse(index, value.detach(), 0.)


def check_values(index: Tensor, value: Tensor) -> None:
    r"""Raises a :class:`ValueError` unless there is a value an entry."""
    if value.shape != index.shape:
        raise ValueError(f"'value' must have the table's shape "
                         f"{list(index.shape)} (got {list(value.shape)})")


def _reverse(index: Tensor, value: Tensor, missing: float) -> Tensor:
    check_ids(index)
    if torch_sdt.typing.WITH_NUMBA and not index.is_cuda:
        from torch_sdt.ops._subgraph_kernel import reverse_kernel

        out = torch.full(index.shape, missing)
        reverse_kernel(index.numpy(), value.float().numpy(), out.numpy())
        return out
    parts = []
    for start in range(0, index.size(0), 4096):
        near = index[start:start + 4096]
        row = torch.arange(start, start + near.size(0), device=index.device)
        is_self = index[near] == row.view(-1, 1, 1)
        found = torch.where(is_self, value[near].float(), 0.)
        parts.append(found.sum(dim=2).masked_fill(~is_self.any(dim=2),
                                                  missing))
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
    check_values(index, value)
    back = _reverse(index, value.detach(), nan)
    return torch.where(back.isnan(), value, (value + back) / 2)
