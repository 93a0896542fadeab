from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.nn import Module

from torch_sdt.loader import BatchLoader
from torch_sdt.progress import progress


@torch.no_grad()
def infer(
    model: Module,
    loader: BatchLoader[Any],
    call: Callable[[Any], Tensor],
    precision: str = '32-true',
    desc: Optional[str] = None,
    verbose: bool = False,
) -> Tensor:
    r"""What a model says of every node, batch by batch.

    Args:
        model (torch.nn.Module): The model; it is put into evaluation mode
            and moved to the device of the loader.
        loader (BatchLoader): All nodes, in order.
        call (callable): From a batch to one row a node.
        precision (str, optional): As of
            :class:`~torch_sdt.training.Trainer`.
            (default: :obj:`"32-true"`)
        desc (str, optional): Text of the progress bar.
            (default: the model's class)
        verbose (bool, optional): If :obj:`True`, shows it.
            (default: :obj:`False`)

    Returns:
        torch.Tensor: The rows, float32 if they are floating point, on the
        device of the loader.

    Raises:
        ValueError: If the loader shuffles or is empty.
    """
    if loader.shuffle:
        raise ValueError("The loader shuffles: rows would come out in another "
                         "order than the nodes")
    device = loader.x.device
    model.to(device).eval()
    context: Any = nullcontext()
    if precision == 'bf16-mixed':
        context = torch.autocast(device.type, torch.bfloat16)
    out, start = None, 0
    total = loader.nodes.numel()
    with progress(total, desc or type(model).__name__, verbose,
                  'nodes') as bar:
        for batch in loader:
            with context:
                rows = call(batch)
            rows = rows.float() if rows.is_floating_point() else rows
            if out is None:
                out = rows.new_empty((total, *rows.shape[1:]))
            out[start:start + rows.size(0)] = rows
            start += rows.size(0)
            bar.update(rows.size(0))
    if out is None:
        raise ValueError("There are no nodes to infer")
    return out
