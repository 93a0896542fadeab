import warnings
from typing import Callable, Tuple

import torch
from torch import Tensor

Found = Tuple[Tensor, Tensor]


def in_halves(search: Callable[[Tensor], Found], rows: Tensor) -> Found:
    r"""Calls :obj:`search` with some rows, or, where a GPU's memory does not
    suffice for them, with one half after the other, and so on.

    Warns where it does.
    """
    try:
        return search(rows)
    except torch.OutOfMemoryError:
        if rows.numel() < 2:
            raise
    warnings.warn('The GPU has too little memory for a block of neighbours '
                  'to search; halves of it are searched', stacklevel=2)
    if rows.is_cuda:
        torch.cuda.empty_cache()
    first, second = (in_halves(search, half) for half in rows.chunk(2))
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
