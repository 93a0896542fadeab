from __future__ import annotations

from typing import Generic, Iterator, TypeVar

import torch
from torch import Tensor

from torch_sdt.typing import check_count

T = TypeVar('T')


class BatchLoader(Generic[T]):
    r"""Base class of loaders that gather a batch from tensors on a device:
    what goes through :class:`~torch_sdt.training.Trainer`.

    Inherit from it and implement :meth:`gather`; the trainer asks for
    :obj:`x` as well, whose device is that of the batches, and of each batch
    for ``node``, one entry an item.

    Args:
        nodes (torch.Tensor): The items of an epoch, int64, shape ``[P]``.
        batch_size (int): Items in a batch.
        shuffle (bool, optional): If :obj:`True`, items come in another order
            in each epoch. (default: :obj:`False`)
        seed (int, optional): Seed of that order; epoch :math:`e` has the same
            order whatever came before. (default: :obj:`0`)
        rank (int, optional): Of :obj:`world_size` processes, which one this
            is: each gets its own share of every epoch. (default: :obj:`0`)
        world_size (int, optional): The number of processes.
            (default: :obj:`1`)

    Raises:
        ValueError: If a number is wrong.
    """
    x: Tensor

    def __init__(self, nodes: Tensor, batch_size: int, shuffle: bool = False,
                 seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        check_count('batch_size', batch_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"'rank' must be in 0..{world_size - 1} (got "
                             f"{rank})")
        self.nodes = nodes
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        r"""Chooses the order in which the next pass shuffles the items."""
        self.epoch = epoch

    def __len__(self) -> int:
        r"""The number of batches, the same in every process."""
        share = -(-self.nodes.numel() // self.world_size)
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[T]:
        nodes = self.nodes
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(int(self.seed) * 1_000_003 + self.epoch)
            order = torch.randperm(nodes.numel(), generator=generator)
            nodes = nodes[order.to(nodes.device)]
        if self.world_size > 1 and nodes.numel() > 0:
            # Some items twice, so that no process waits for another.
            share = -(-nodes.numel() // self.world_size)
            place = torch.arange(self.rank, share * self.world_size,
                                 self.world_size, device=nodes.device)
            nodes = nodes[place % nodes.numel()]
        for part in nodes.split(self.batch_size):
            if part.numel() > 0:
                yield self.gather(part)

    def gather(self, nodes: Tensor) -> T:
        r"""The batch of some items, int64, shape ``[B]``."""
        raise NotImplementedError
