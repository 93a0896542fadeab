r"""One linear map for each group of rows."""
from __future__ import annotations

from itertools import accumulate
from typing import Any, List, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor,
                   count: Sequence[int]) -> Tensor:
    r"""Applies another linear map to each group of rows.

    With :math:`g(i)` the group of row :math:`i`,

    .. math::
        \mathbf{y}_i = \mathbf{W}_{g(i)} \mathbf{x}_i + \mathbf{b}_{g(i)}.

    Results and gradients of all groups are written into one tensor each.
    Groups differ in size from call to call, and tensors of their own would
    break the memory of a long training into pieces that fit nothing later.

    Args:
        x (torch.Tensor): Rows, group after group, shape ``[N, C]``.
        weight (torch.Tensor): :math:`\mathbf{W}`, shape ``[G, H, C]``.
        bias (torch.Tensor): :math:`\mathbf{b}`, shape ``[G, H]``.
        count (sequence of int): Rows in each group; they sum to ``N``.

    Returns:
        torch.Tensor: Shape ``[N, H]``; of the lower precision under autocast.

    Raises:
        ValueError: If the counts are not one a group or do not sum to ``N``.
    """
    count = list(count)
    if len(count) != weight.size(0) or sum(count) != x.size(0):
        raise ValueError(f"'count' must hold {weight.size(0)} numbers that "
                         f"sum to {x.size(0)} (got {count})")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    return _GroupedLinear.apply(x, weight, bias, count)


class _GroupedLinear(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor,
                count: List[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.count = count
        out = x.new_empty(x.size(0), weight.size(1))
        for g, rows in enumerate(_groups(count)):
            torch.addmm(bias[g], x[rows], weight[g].t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor
                 ) -> Tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        grad_bias = weight.new_empty(weight.shape[:2])
        for g, rows in enumerate(_groups(ctx.count)):
            torch.mm(grad[rows], weight[g], out=grad_x[rows])
            torch.mm(grad[rows].t(), x[rows], out=grad_weight[g])
            torch.sum(grad[rows], dim=0, out=grad_bias[g])
        return grad_x, grad_weight, grad_bias, None


def _groups(count: List[int]) -> List[slice]:
    return [slice(end - size, end)
            for size, end in zip(count, accumulate(count))]
