from typing import Tuple

import torch
from torch import Tensor

from torch_sdt.ops.search.exact_search import exact_cosines


class TorchClusterSearch:
    r"""Exact search with torch-cluster, all rows in one block.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
    """
    exact = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 1

    def rows(self, block: int) -> Tensor:
        r"""All rows."""
        return torch.arange(self.x.size(0), device=self.x.device)

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for every row."""
        from torch_cluster import knn

        x, rows = self.x, self.rows(block)
        row, col = knn(x.float(), x.float(), k)
        index = torch.full((x.size(0), k), -1, device=x.device)
        rank = torch.arange(row.numel(), device=x.device)
        first = torch.searchsorted(row.contiguous(), row.contiguous())
        index[row, rank - first] = col
        return exact_cosines(x, rows, index), index
