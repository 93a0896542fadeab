from __future__ import annotations

from itertools import count
from typing import Generic, Iterator, TypeVar

from torch_sdt.loader.batch_loader import BatchLoader

T = TypeVar('T')


class AlternatingLoader(Generic[T]):
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
        self.first, self.second = first, second
        self.x, self.nodes = first.x, first.nodes
        self.batch_size, self.seed = first.batch_size, first.seed
        self.rank, self.world_size = first.rank, first.world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        r"""Chooses what the next pass shows."""
        self.epoch = epoch

    def __len__(self) -> int:
        r"""The number of batches, the same in every process."""
        self._share_out()
        return len(self.first)

    def __iter__(self) -> Iterator[T]:
        self._share_out()
        self.first.set_epoch(self.epoch)
        num = len(self.first)
        start = self.epoch * num
        turns = iter(self.first), self._endless(start)
        for step in range(start, start + num):
            yield next(turns[step % 2])

    def _endless(self, epoch: int) -> Iterator[T]:
        for part in count(epoch):
            self.second.set_epoch(part)
            yield from self.second

    def _share_out(self) -> None:
        for loader in (self.first, self.second):
            loader.rank, loader.world_size = self.rank, self.world_size
