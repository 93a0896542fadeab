r"""Random numbers that a seed determines, and nobody else notices."""
from contextlib import contextmanager
from typing import Iterator, Optional

import torch


@contextmanager
def seeded(seed: int, device: Optional[torch.device] = None
           ) -> Iterator[None]:
    r"""Seeds the generators of the CPU and of one device for what runs inside;
    afterwards they are as before, and those of other devices never change
    (:meth:`torch.manual_seed` seeds them all).
    """
    on_gpu = device is not None and device.type == 'cuda'
    devices = [device] if on_gpu else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(int(seed))
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(int(seed))
        yield
