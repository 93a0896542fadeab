r"""Long work in parts that survive a kill."""
from __future__ import annotations

import os
from typing import Iterator, Optional, Protocol, Tuple

import torch
from torch import Tensor

from torch_sdt.io import PathLike, load_tensors, save_tensors

Rows = Tuple[Tensor, ...]
# Blocks in a file: seconds of work.
_GROUP = 64


class Blocks(Protocol):
    r"""Work in numbered blocks, such as
    :class:`torch_sdt.ops.knn.KNNBlocks`.
    """

    def __len__(self) -> int:
        r"""The number of blocks."""

    def __getitem__(self, block: int) -> Rows:
        r"""What comes out of one: tensors with a row for each of its items,
        always as many.
        """


def keep(blocks: Blocks, folder: PathLike, group: Optional[int] = None
         ) -> Iterator[Rows]:
    r"""Yields the blocks, joined in groups (of 64 unless told otherwise), from
    files in :obj:`folder` where they are there, and writes them there where
    not.

    Files are written whole or not at all; a damaged one is made again. The
    folder must belong to this very work (:meth:`~torch_sdt.io.fingerprint`).
    """
    os.makedirs(folder, exist_ok=True)
    step = _GROUP if group is None else group
    for first in range(0, len(blocks), step):
        path = os.path.join(folder, f'{first // step:05}.safetensors')
        stop = min(first + step, len(blocks))
        try:
            tensors, meta = load_tensors(path)
            if meta['blocks'] != [first, stop, len(blocks)]:
                raise ValueError(f"'{path}' holds other blocks")
        except (FileNotFoundError, ValueError, KeyError):
            parts = zip(*(blocks[block] for block in range(first, stop)))
            tensors = {str(i): torch.cat(part)
                       for i, part in enumerate(parts)}
            save_tensors(path, tensors, {
                'blocks': [first, stop, len(blocks)]})
        yield tuple(tensors[str(i)] for i in range(len(tensors)))
