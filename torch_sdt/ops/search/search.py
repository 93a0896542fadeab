from typing import Protocol, Tuple

from torch import Tensor


class Search(Protocol):
    r"""What :meth:`~torch_sdt.ops.knn` asks of an index: neighbours of all
    samples, block by block, so that finished blocks can be kept.
    """
    exact: bool

    def __len__(self) -> int:
        r"""The number of blocks."""

    def rows(self, block: int) -> Tensor:
        r"""The rows of a block; each row is in one."""

    def __call__(self, block: int, k: int) -> Tuple[Tensor, Tensor]:
        r"""Cosines and ids of the :obj:`k` best for the rows of a block, in
        any order, id -1 where there are less.
        """
