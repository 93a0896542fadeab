import torch
from torch import Tensor

_BYTES = 64


def aligned_empty(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    r"""Memory for a matrix, rows of which begin at multiples of 64 bytes.

    BLAS writes a product there up to twice as fast as into rows side by side
    of, say, 2,293 columns, with the same result.

    Args:
        num_rows (int): Rows.
        num_columns (int): Columns.
        like (torch.Tensor): A tensor of the wanted dtype and device.

    Returns:
        torch.Tensor: Shape ``[num_rows, num_columns]``, not initialised, and
        contiguous only where a row fills whole steps of 64 bytes.
    """
    step = _BYTES // like.element_size()
    width = -(-num_columns // step) * step
    return like.new_empty(num_rows, width)[:, :num_columns]


def aligned_product(a: Tensor, b: Tensor) -> Tensor:
    r"""The matrix product :math:`A B` in :meth:`aligned_empty` memory."""
    return torch.mm(a, b, out=aligned_empty(a.size(0), b.size(1), a))
