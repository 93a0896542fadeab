from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, Iterable, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module

from torch_sdt.io import PathLike
from torch_sdt.loader import BatchLoader
from torch_sdt.progress import progress
from torch_sdt.resume import keep
from torch_sdt.training.trainer import check_precision


class _Answers:
    # The rows of each batch, as blocks that can be kept.

    def __init__(self, loader: BatchLoader[Any],
                 call: Callable[[Any], Tensor], context: Any) -> None:
        self.loader = loader
        self.call = call
        self.context = context
        self.parts = loader.nodes.split(loader.batch_size)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, block: int) -> Tuple[Tensor]:
        batch = self.loader.gather(self.parts[block])
        with self.context:
            rows = self.call(batch)
        return (rows.float() if rows.is_floating_point() else rows, )


@torch.no_grad()
def infer(
    model: Module,
    loader: BatchLoader[Any],
    call: Callable[[Any], Tensor],
    precision: str = '32-true',
    desc: Optional[str] = None,
    verbose: bool = False,
    folder: Optional[PathLike] = None,
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
        folder (str, optional): Where finished rows are kept, so that the same
            call goes on after a kill; of this model and these nodes only.
            (default: nothing is written)

    Returns:
        torch.Tensor: The rows, float32 if they are floating point, on the
        device of the loader.

    Raises:
        ValueError: If the loader shuffles or is empty, or there is no such
            precision.
        FloatingPointError: If what comes out is not a number.
    """
    if loader.shuffle:
        raise ValueError("The loader shuffles: rows would come out in another "
                         "order than the nodes")
    check_precision(precision)
    total = loader.nodes.numel()
    if total == 0:
        raise ValueError("There are no nodes to infer")
    device = loader.x.device
    model.to(device).eval()
    context: Any = nullcontext()
    if precision == 'bf16-mixed':
        context = torch.autocast(device.type, torch.bfloat16)
    answers = _Answers(loader, call, context)
    parts: Iterable[Tuple[Tensor, ...]] = (
        answers[block] for block in range(len(answers)))
    if folder is not None:
        parts = keep(answers, folder)
    out, start = None, 0
    with progress(total, desc or type(model).__name__, verbose,
                  'nodes') as bar:
        for rows, in parts:
            if rows.is_floating_point() and bool(rows.isnan().any()):
                raise FloatingPointError(
                    f"What {type(model).__name__} says is not a number; if it "
                    f"was just trained, lower 'lr'")
            if out is None:
                out = rows.new_empty((total, *rows.shape[1:]), device=device)
            out[start:start + rows.size(0)] = rows
            start += rows.size(0)
            bar.update(rows.size(0))
    assert out is not None
    return out
