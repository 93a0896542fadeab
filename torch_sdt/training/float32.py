r"""Networks are float32, whatever torch makes by default."""
from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def float32_by_default() -> Iterator[None]:
    r"""Makes float32 the default of what is created inside, as features of
    networks here are; afterwards it is what it was.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
