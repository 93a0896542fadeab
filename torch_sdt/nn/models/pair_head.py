from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import SubgraphBatch


class PairHead(torch.nn.Module):
    r"""The logit that a token is of the same identity as the one at rank 0.

    .. math::
        \ell_r = \mathbf{w}^{\top} \mathrm{GELU}(\mathbf{W}_0 \mathbf{z}_0 +
        \mathbf{W}_1 \mathbf{z}_r + \mathbf{b}) + c,

    a multilayer perceptron on :math:`[\mathbf{z}_0; \mathbf{z}_r]` whose first
    layer sees the centre once.

    Shapes:
        - **input:** tokens :math:`(B, K, C)`
        - **output:** logits :math:`(B, K)`
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lin_center = torch.nn.Linear(channels, channels, bias=False)
        self.lin_token = torch.nn.Linear(channels, channels)
        self.lin_out = torch.nn.Linear(channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        hidden = self.lin_center(z[:, :1]) + self.lin_token(z)
        return self.lin_out(F.gelu(hidden)).squeeze(-1)


def pair_loss(logits: Tensor, same: Tensor) -> Tensor:
    r"""Binary cross entropy of all neighbours but the node itself.

    Args:
        logits (torch.Tensor): Shape ``[B, K]``.
        same (torch.Tensor): Whether each is of the node's identity, shape
            ``[B, K]``.
    """
    if logits.size(1) == 1:  # Nobody else: no mean, but a gradient.
        return logits.sum() * 0.
    return F.binary_cross_entropy_with_logits(
        logits[:, 1:].float(), same[:, 1:].float())


def targets(batch: SubgraphBatch) -> Tuple[Tensor, Tensor]:
    r"""What a batch says to train on: who is of the node's identity, shape
    ``[B, K]``, and how many neighbours it had better trust, shape ``[B]``.

    Raises:
        ValueError: If the loader was not given any identities.
    """
    if batch.same is None or batch.topk is None:
        raise ValueError("The batch has no targets to train on: give the "
                         "loader the identities 'y'")
    return batch.same, batch.topk
