import os
from typing import Iterator, Optional, Tuple, TypeGuard, Union

import numpy as np
import torch
from torch import Tensor

from torch_sdt.io import PathLike, atomic_path

_ROWS = 65536


def normalize_features(
    x: Union[np.ndarray, Tensor],
    center: bool = False,
    dtype: torch.dtype = torch.float32,
    path: Optional[PathLike] = None,
) -> Tensor:
    r"""Checks features and scales every row to unit length; rows of unit
    length stay as they are. Both in float32, or float64 for features in it,
    65,536 rows at a time.

    Args:
        x (numpy.ndarray or torch.Tensor): Features, floating point or
            integer, shape ``[N, D]``; memory-mapped and non-contiguous
            arrays work. It is not changed.
        center (bool, optional): If :obj:`True`, the mean feature is removed
            first, unless there is a single sample, whose mean is itself:
            embeddings that share an offset need it. (default: :obj:`False`)
        dtype (torch.dtype, optional): What the rows are kept in, float32, or
            float16 at half the memory, which
            :meth:`torch_sdt.neighbors.Neighbors.search` takes as well;
            cosines are then off by :math:`2^{-10}` at most. (default: float32)
        path (str, optional): A file to which the rows are written, without a
            header, and from which they are mapped, so that they need not fit
            into memory; for features on the CPU. It must outlive the result.
            (default: they are kept in memory)

    Returns:
        torch.Tensor: Unit rows, contiguous, shape ``[N, D]``, on the device
        of :obj:`x`; a tensor that is all this already shares its memory.

    Raises:
        ValueError: If :obj:`x` is empty or has another shape, or if a row
            holds NaN or infinity or has length zero (it has no direction);
            the message names the row.
        OSError: If the file cannot be written; what was there before stays.
    """
    if dtype not in {torch.float32, torch.float16}:
        raise ValueError(f"'dtype' must be torch.float32 or torch.float16 "
                         f"(got {dtype})")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in 'fiu':
            raise ValueError(f"Features must be numbers (got dtype "
                             f"{x.dtype})")
    elif not isinstance(x, Tensor):
        raise TypeError(f"Features must be a numpy array or a tensor (got "
                        f"'{type(x).__name__}')")
    elif x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"Features must be numbers (got dtype {x.dtype})")
    if x.ndim != 2:
        raise ValueError(f"Features must have shape [N, D] (got "
                         f"{list(x.shape)})")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"Features are empty (shape {list(x.shape)})")

    mean = _mean(x) if center and x.shape[0] > 1 else None
    device = x.device if isinstance(x, Tensor) else torch.device('cpu')
    if path is None:
        if mean is None and dtype == torch.float32 and _is_normalized(x):
            return x.detach()
        out = torch.empty(tuple(x.shape), dtype=dtype, device=device)
        for start, block in _unit_blocks(x, mean):
            out[start:start + block.size(0)] = block
        return out
    if device.type != 'cpu':
        raise ValueError(f"Features on '{device}' are not mapped from a file; "
                         f"leave 'path' out")
    # Written before it is mapped: where a disk is full, that is an error and
    # no crash.
    with atomic_path(path) as tmp:
        with open(tmp, 'wb') as file:
            for _, block in _unit_blocks(x, mean):
                file.write(block.to(dtype).contiguous().numpy().data)
    return torch.from_file(os.fspath(path), shared=False,
                           size=x.shape[0] * x.shape[1],
                           dtype=dtype).view(tuple(x.shape))


def _unit_blocks(x: Union[np.ndarray, Tensor], mean: Optional[Tensor]
                 ) -> Iterator[Tuple[int, Tensor]]:
    for start in range(0, x.shape[0], _ROWS):
        block = _block(x, start)
        _check_rows(~block.isfinite().all(dim=1), start,
                    "holds NaN or infinity")
        if mean is not None:
            scale = block.abs().amax(dim=1)
            block = block - mean.to(block.dtype)
            # What is left of a row that equals the mean is rounding error.
            size = block.abs().amax(dim=1)
            error = 1e-6 if block.dtype == torch.float32 else 1e-14
            _check_rows(size <= error * scale, start,
                        "equals the mean feature, so it has no direction "
                        "once the mean is removed; use center=False")
        size = block.abs().amax(dim=1, keepdim=True)
        # Unit rows come back as they are, to the last bit.
        is_unit = _is_unit(block)
        _check_rows(size.view(-1) == 0, start,
                    "is all zeros, so it has no direction; remove it first")
        # Scaled by the largest entry first: squares may not overflow.
        scaled = block / size
        scaled = scaled / scaled.norm(dim=1, keepdim=True)
        yield start, torch.where(is_unit, block, scaled).float()


def _is_normalized(x: Union[np.ndarray, Tensor]) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.dtype == torch.float32 and (
        x.is_contiguous() and all(bool(_is_unit(block).all())
                                  for block in x.detach().split(_ROWS)))


def _is_unit(block: Tensor) -> Tensor:
    return (block.norm(dim=1, keepdim=True) - 1).abs() <= 1e-6


def _block(x: Union[np.ndarray, Tensor], start: int) -> Tensor:
    block = x[start:start + _ROWS]
    if isinstance(block, Tensor):
        block = block.detach()
    else:
        # A copy: a memory map may be read-only, which torch warns about.
        block = torch.from_numpy(np.array(block, block.dtype.newbyteorder('=')))
    return block if block.dtype == torch.float64 else block.float()


def _mean(x: Union[np.ndarray, Tensor]) -> Tensor:
    total = sum(
        _block(x, start).sum(dim=0, dtype=torch.float64)
        for start in range(0, x.shape[0], _ROWS))
    assert isinstance(total, Tensor)
    return total / x.shape[0]


def _check_rows(bad: Tensor, start: int, what: str) -> None:
    if bool(bad.any()):
        raise ValueError(f"Row {start + int(bad.nonzero()[0])} of the "
                         f"features {what}")
