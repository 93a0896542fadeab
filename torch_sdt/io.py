r"""Files that are written whole or not at all, and tensors without pickle."""
import hashlib
import json
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Tuple, Union

import numpy as np
import torch
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


def fingerprint(*parts: Any) -> str:
    r"""A short name of tensors and settings: another one for others."""
    out = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Tensor):
            out.update(repr(part).encode())
            continue
        out.update(repr((part.dtype, list(part.shape))).encode())
        for block in part.detach().reshape(-1).split(2**24):
            out.update(block.cpu().view(torch.uint8).numpy())
    return out.hexdigest()[:16]


def save_tensors(path: PathLike, tensors: Dict[str, Tensor],
                 meta: Dict[str, Any]) -> None:
    r"""Writes tensors and what describes them to one safetensors file, the
    description as JSON in its header beside a fingerprint of all,
    atomically.

    Raises:
        OSError: If the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous()
               for name, tensor in tensors.items()}
    try:
        with atomic_path(path) as tmp:
            meta = json.loads(json.dumps(meta, default=_plain))
            # In one entry: safetensors writes several in any order.
            save_file(tensors, tmp, {'torch_sdt': json.dumps({
                **meta, 'fingerprint': _of_file(tensors, meta)})})
    except SafetensorError as e:
        raise OSError(f"'{path}' cannot be written: {e}") from e


def load_tensors(path: PathLike) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    r"""Reads what :meth:`save_tensors` wrote; nothing in it is executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, damaged (by so much as a bit), or
            another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file '{path}'")
    try:
        with safe_open(path, framework='pt') as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(meta['torch_sdt'])
        if meta.pop('fingerprint') != _of_file(tensors, meta):
            raise ValueError("What was written had another fingerprint")
    except KeyError as e:
        raise ValueError(f"'{path}' was not written by torch_sdt, or by a "
                         f"version of other files") from e
    except (SafetensorError, ValueError, OSError) as e:
        raise ValueError(f"'{path}' is truncated, damaged, or no safetensors "
                         f"file") from e
    return tensors, meta


def _of_file(tensors: Dict[str, Tensor], meta: Dict[str, Any]) -> str:
    parts = [part for item in sorted(tensors.items()) for part in item]
    return fingerprint(json.dumps(meta), *parts)


def _plain(value: Any) -> Any:
    # Seeds and rates are often numpy's.
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot be written as JSON")
