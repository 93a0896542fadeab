import torch
from torch import Tensor

QUERIES = 4096


class RowBlocks:
    r"""Base class of indices that search rows in their order, 4,096 at a time.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return -(-self.x.size(0) // QUERIES)

    def rows(self, block: int) -> Tensor:
        r"""The rows of a block."""
        start = block * QUERIES
        stop = min(start + QUERIES, self.x.size(0))
        return torch.arange(start, stop, device=self.x.device)
