from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor

from torch_sdt.ops.search.exact_search import exact_cosines
from torch_sdt.ops.search.row_blocks import RowBlocks


class FaissSearch(RowBlocks):
    r"""Search with an index of faiss, exact for ``'Flat'``; an approximate
    one is followed by exact cosines of what it found.

    Args:
        x (torch.Tensor): Unit rows, float32 or float16, shape ``[N, D]``.
        factory (str): The factory string.
        seed (int): Seed of the index's training.

    Raises:
        ValueError: If :obj:`factory` is no factory string, or there are too
            few samples to train the index on.
    """

    def __init__(self, x: Tensor, factory: str, seed: int) -> None:
        import faiss

        index: Any
        try:
            index = faiss.index_factory(x.size(1), factory,
                                        faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as e:
            raise ValueError(
                f"'index' must be 'auto', 'flat', 'cells', 'torch', "
                f"'torch_cluster' or a faiss factory string (got "
                f"'{factory}')") from e
        data = x.float().cpu().numpy()
        if x.is_cuda and hasattr(faiss, 'StandardGpuResources'):
            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(),
                                           x.device.index or 0, index)
        if not index.is_trained:
            _seed(index, seed)
            try:
                index.train(data)
            except RuntimeError as e:
                raise ValueError(f"The index '{factory}' cannot be trained "
                                 f"on {x.size(0)} samples; use a smaller one "
                                 f"or 'flat'") from e
        try:
            index.add(data)
        except RuntimeError as e:
            raise ValueError(f"The index '{factory}' takes no samples without "
                             f"ids of their own") from e
        if hasattr(index, 'nprobe') and index.nprobe == 1:
            index.nprobe = max(1, min(index.nlist,
                                      max(64, index.nlist // 16)))
        super().__init__(x)
        self.index = index
        self.factory = factory
        self.exact = factory == 'Flat'

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.factory!r})'

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block;
        id -1 where the index finds less.
        """
        rows = self.rows(block)
        similarity, ids = self.index.search(
            self.x[rows].float().cpu().numpy(), k)
        found = torch.from_numpy(ids).to(self.x.device)
        if self.exact:
            return torch.from_numpy(similarity).to(self.x.device), found
        return exact_cosines(self.x, rows, found), found


def _seed(index: Any, seed: int) -> None:
    for part in (index, getattr(index, 'pq', None)):
        clustering: Any = getattr(part, 'cp', None)
        if clustering is not None:
            clustering.seed = int(seed) + 1
