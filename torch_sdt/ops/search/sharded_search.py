from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import Dict, Sequence, Tuple

from torch import Tensor

from torch_sdt.ops.search.search import Search
from torch_sdt.typing import Device


class ShardedSearch:
    r"""A search whose blocks are shared among several devices.

    Every device holds all samples and searches every so-manieth block; while
    one block is waited for, the other devices search those after it.

    Args:
        search (Search): An index in torch.
        devices (sequence of str or torch.device): Where to search.
    """

    def __init__(self, search: Search, devices: Sequence[Device]) -> None:
        self.search = search
        self.exact = search.exact
        self.replicas = [_replica(search, device) for device in devices]
        self._pool = ThreadPoolExecutor(len(self.replicas))
        self._ahead: Dict[Tuple[int, int],
                          Future[Tuple[Tensor, Tensor]]] = {}

    def __len__(self) -> int:
        return len(self.search)

    def rows(self, block: int) -> Tensor:
        r"""The rows of a block."""
        return self.search.rows(block)

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block,
        on the device of :meth:`rows`.
        """
        count = len(self.replicas)
        for other in range(block, min(block + count, len(self))):
            if (other, k) not in self._ahead:
                self._ahead[other, k] = self._pool.submit(
                    self.replicas[other % count], other, k)
        similarity, index = self._ahead.pop((block, k)).result()
        device = self.rows(block).device
        return similarity.to(device), index.to(device)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.search}, '
                f'devices={len(self.replicas)})')


def _replica(search: Search, device: Device) -> Search:
    out = copy(search)
    for name, value in vars(search).items():
        if isinstance(value, Tensor):
            setattr(out, name, value.to(device))
    return out
