r"""What torch makes of floating-point numbers unless told, for a while."""
from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    r"""Makes another type the default of what is created inside; afterwards it
    is what it was.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
