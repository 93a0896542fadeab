from __future__ import annotations

import hashlib
import os
from typing import Any, Iterator, List, Protocol, Tuple

import torch
from torch import Tensor

from torch_sdt.io import PathLike, load_tensors, save_tensors

Rows = Tuple[Tensor, Tensor, Tensor]
# Blocks in a file: seconds of work.
_GROUP = 64


class Blocks(Protocol):
    r"""What can be kept, see :class:`torch_sdt.ops.knn.KNNBlocks`."""

    def __len__(self) -> int:
        r"""The number of blocks."""

    def __getitem__(self, block: int) -> Rows:
        r"""Rows, their neighbours and similarities."""


def keep(blocks: Blocks, folder: PathLike) -> Iterator[Rows]:
    r"""Yields the blocks of a search, in groups, from files in
    :obj:`folder` where they are there, and writes them there where not.

    Files are written whole or not at all; a damaged one is made again.
    """
    os.makedirs(folder, exist_ok=True)
    for first in range(0, len(blocks), _GROUP):
        path = os.path.join(folder, f'{first // _GROUP:05}.safetensors')
        group = range(first, min(first + _GROUP, len(blocks)))
        try:
            tensors, meta = load_tensors(path)
            if meta['blocks'] != [group.start, group.stop, len(blocks)]:
                raise ValueError(f"'{path}' holds other blocks")
        except (FileNotFoundError, ValueError):
            found: List[Rows] = [blocks[block] for block in group]
            tensors = {
                name: torch.cat(parts)
                for name, parts in zip(('rows', 'index', 'similarity'),
                                       zip(*found))}
            save_tensors(path, tensors, {
                'blocks': [group.start, group.stop, len(blocks)]})
        yield tensors['rows'], tensors['index'], tensors['similarity']


def fingerprint(x: Tensor, *settings: Any) -> str:
    r"""A short name of features and settings: another one for others."""
    out = hashlib.sha256(repr((list(x.shape), settings)).encode())
    for block in x.split(65536):
        out.update(block.cpu().numpy().tobytes())
    return out.hexdigest()[:16]
