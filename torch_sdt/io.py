r"""Files that are written whole or not at all, and tensors without pickle."""
import json
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Tuple, Union

import numpy as np
from torch import Tensor

PathLike = Union[str, 'os.PathLike[str]']


@contextmanager
def atomic_path(path: PathLike) -> Iterator[str]:
    r"""A temporary name beside :obj:`path`, renamed to it on success.

    Whatever interrupts the writing, :obj:`path` holds either what it held
    before or the whole new file, and the temporary file is gone.
    """
    path = os.fspath(path)
    tmp = f'{path}.{os.getpid()}.tmp'
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        if os.path.exists(tmp):
            os.remove(tmp)


def save_tensors(path: PathLike, tensors: Dict[str, Tensor],
                 meta: Dict[str, Any]) -> None:
    r"""Writes tensors and what describes them to one safetensors file, the
    description as JSON in its header, atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous()
               for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as tmp:
            text = json.dumps(meta, default=_plain)
            save_file(tensors, tmp, {'torch_sdt': text})
    except SafetensorError as e:
        raise OSError(f"'{path}' cannot be written: {e}") from e


def load_tensors(path: PathLike) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    r"""Reads what :meth:`save_tensors` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file '{path}'")
    try:
        with safe_open(path, framework='pt') as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(meta['torch_sdt'])
    except KeyError as e:
        raise ValueError(f"'{path}' was not written by torch_sdt") from e
    except (SafetensorError, ValueError, OSError) as e:
        raise ValueError(f"'{path}' is truncated, damaged, or no safetensors "
                         f"file") from e
    return tensors, meta


def _plain(value: Any) -> Any:
    # Seeds and rates are often numpy's.
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON")
