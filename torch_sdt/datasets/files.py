import os
from typing import Optional, Sequence, Union

import numpy as np
from torch import Tensor

from torch_sdt.io import PathLike, atomic_path

_LINES = 1 << 20


def read_features(path: PathLike, dim: Optional[int] = None) -> np.ndarray:
    r"""Maps a file of features into memory, without reading it.

    Args:
        path (str): A ``.npy`` file, or a ``.bin`` file of raw little-endian
            float32 rows without a header.
        dim (int, optional): The width :math:`D` of a ``.bin`` file; a
            ``.npy`` file states its own. (default: :obj:`None`)

    Returns:
        numpy.ndarray: Read-only features, shape ``[N, D]``: float32, or, in
        a ``.npy`` file, also float16 or float64 as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, truncated, pickled, of another type
            or shape, or if its size is no multiple of a row's.
    """
    path = os.fspath(path)
    suffix = _suffix(path, 'features', ('.bin', '.npy'))
    if suffix == '.bin':
        return _map_bin(path, dim)
    x = _map_npy(path)
    if x.dtype not in (np.float16, np.float32, np.float64) or x.ndim != 2:
        raise ValueError(f"Features must be floating point of shape [N, D], "
                         f"but '{path}' holds {x.dtype} of shape "
                         f"{list(x.shape)}")
    if x.size == 0:
        raise ValueError(f"'{path}' is empty (shape {list(x.shape)})")
    return x


def read_labels(path: PathLike) -> np.ndarray:
    r"""Reads one label a sample.

    Args:
        path (str): A ``.meta`` or ``.txt`` file with one integer a line, or
            a ``.npy`` file of integers of shape ``[N]``.

    Returns:
        numpy.ndarray: The labels, int64, shape ``[N]``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no integer (the message names the first one,
            counted from 1), or if the file is empty, truncated, pickled, or
            of another type or shape.
    """
    path = os.fspath(path)
    suffix = _suffix(path, 'labels', ('.meta', '.txt', '.npy'))
    y = _map_npy(path) if suffix == '.npy' else _read_lines(path)
    if y.dtype.kind not in 'iu' or y.ndim != 1:
        raise ValueError(f"Labels must be integers of shape [N], but "
                         f"'{path}' holds {y.dtype} of shape "
                         f"{list(y.shape)}")
    if y.size == 0:
        raise ValueError(f"'{path}' is empty")
    return _to_int64(np.array(y), path)


def write_labels(
    path: PathLike,
    labels: Union[Sequence[int], np.ndarray, Tensor],
) -> None:
    r"""Writes one label a line, to a temporary name that is then renamed.

    Args:
        path (str): The ``.meta`` or ``.txt`` file.
        labels (list, numpy.ndarray or torch.Tensor): Integers, shape
            ``[N]``, on any device.

    Raises:
        ValueError: If the labels are empty, no integers, or not
            one-dimensional.
    """
    path = os.fspath(path)
    _suffix(path, 'labels', ('.meta', '.txt'), exists=False)
    labels = check_labels(labels)
    with atomic_path(path) as tmp:
        write_lines(tmp, labels)


def write_lines(path: PathLike, labels: np.ndarray) -> None:
    r"""Writes one label a line, whatever the file is called."""
    with open(path, 'w', newline='\n') as f:
        for start in range(0, labels.size, _LINES):
            block = labels[start:start + _LINES].tolist()
            f.write('\n'.join(map(str, block)) + '\n')


def check_labels(
    labels: Union[Sequence[int], np.ndarray, Tensor],
) -> np.ndarray:
    r"""Labels as a numpy array, int64, shape ``[N]``.

    Raises:
        ValueError: If they are empty, no integers, or not one-dimensional.
    """
    if isinstance(labels, Tensor):
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"Labels must be integers (got dtype "
                             f"{labels.dtype})")
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"Labels must have shape [N] with N > 0 (got "
                         f"{list(array.shape)})")
    if array.dtype.kind not in 'iu':
        raise ValueError(f"Labels must be integers (got dtype "
                         f"{array.dtype})")
    return _to_int64(array, 'the labels')


def _to_int64(labels: np.ndarray, where: str) -> np.ndarray:
    if int(labels.max()) > np.iinfo(np.int64).max:
        row = int(labels.argmax())
        raise ValueError(f"Label {labels[row]} of row {row} in {where} "
                         f"exceeds int64")
    return labels.astype(np.int64, copy=False)


def _suffix(path: str, what: str, known: Sequence[str],
            exists: bool = True) -> str:
    suffix = os.path.splitext(path)[1]
    if suffix not in known:
        raise ValueError(f"A file of {what} must end in {' or '.join(known)} "
                         f"(got '{path}')")
    if exists and not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file '{path}'")
    return suffix


def _map_bin(path: str, dim: Optional[int]) -> np.ndarray:
    if dim is None or dim < 1:
        raise ValueError(f"'{path}' has no header: pass its width with 'dim' "
                         f"(got {dim})")
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f"'{path}' is empty")
    if size % (4 * dim) != 0:
        raise ValueError(
            f"'{path}' has {size} bytes, which is no multiple of the "
            f"{4 * dim} bytes of a row of dim={dim} float32 features: pass "
            f"the file's own width with 'dim', unless the file is truncated")
    shape = (size // (4 * dim), dim)
    return np.memmap(path, dtype='<f4', mode='r', shape=shape)


def _map_npy(path: str) -> np.ndarray:
    # Reads a plain array or fails: it knows neither pickles nor archives.
    try:
        return np.lib.format.open_memmap(path, mode='r')
    except ValueError as e:
        raise ValueError(f"'{path}' is truncated, or no .npy file of a plain "
                         f"array (no pickle is loaded here): {e}") from e


def _read_lines(path: str) -> np.ndarray:
    try:
        with open(path, 'rb') as f:
            return np.fromiter(map(_integer, f), dtype=np.int64)
    except (ValueError, OverflowError):
        _raise_at_first_bad_line(path)
        raise


def _integer(line: bytes) -> int:
    # Unlike Python, labels have no digits in groups: 1_0 is not 10.
    if b'_' in line:
        raise ValueError
    return int(line)


def _raise_at_first_bad_line(path: str) -> None:
    with open(path, 'rb') as f:
        for number, line in enumerate(f, start=1):
            try:
                np.int64(_integer(line))
            except (ValueError, OverflowError):
                text = line[:80].decode(errors='replace').strip()
                raise ValueError(f"Line {number} of '{path}' is no integer "
                                 f"of 64 bits: '{text}'") from None
