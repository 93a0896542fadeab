import os
from contextlib import contextmanager
from typing import Iterator, Union


@contextmanager
def atomic_path(path: Union[str, 'os.PathLike[str]']) -> Iterator[str]:
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
