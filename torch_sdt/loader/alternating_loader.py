from __future__ import annotations

from itertools import count
from typing import Iterator, TypeVar

from torch import Tensor

from torch_sdt.loader.batch_loader import BatchLoader

T = TypeVar('T')


class AlternatingLoader(BatchLoader[T]):
    r"""Batches of two loaders in turn, so that a model learns from both at
    once: from samples as they are, and from :class:`RandomViews` of them.

    An epoch is as long as the first loader's, and shows as many of its
    batches as fit beside those of the second loader, which begins an epoch
    of its own (another view) with each epoch here and whenever one is over.
    What an epoch shows depends on its number alone, whatever came before.

    Args:
        first (BatchLoader): The loader of which each epoch shows a half,
            shuffled if each shall show another.
        second (BatchLoader): Where the other half comes from.

    Raises:
        ValueError: If the second loader has no batch.
    """

    def __init__(self, first: BatchLoader[T], second: BatchLoader[T]) -> None:
        if len(second) == 0:
            raise ValueError("'second' must have a batch (got an empty "
                             "loader)")
        super().__init__(first.nodes, first.batch_size, first.shuffle,
                         first.seed, first.rank, first.world_size)
        self.first, self.second, self.x = first, second, first.x

    def __iter__(self) -> Iterator[T]:
        for loader in (self.first, self.second):
            loader.rank, loader.world_size = self.rank, self.world_size
        self.first.set_epoch(self.epoch)
        num = len(self)
        start = self.epoch * num
        turns = iter(self.first), self._endless(start)
        for step in range(start, start + num):
            yield next(turns[step % 2])

    def gather(self, nodes: Tensor) -> T:
        r"""The first loader's batch of some items."""
        return self.first.gather(nodes)

    def _endless(self, epoch: int) -> Iterator[T]:
        for part in count(epoch):
            self.second.set_epoch(part)
            yield from self.second
