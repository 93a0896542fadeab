from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.neighbor_encoder import NeighborEncoder
from torch_sdt.nn.models.pair_head import PairHead, pair_loss, targets


class SparseDiffTransformer(torch.nn.Module):
    r"""The Sparse Differential Transformer (SDT) from `"Enhancing Noise
    Resilience in Face Clustering via Sparse Differential Transformer"
    <https://arxiv.org/abs/2512.22612>`_: a second, closer look at which
    neighbours are of a node's own identity.

    Attention among a node's neighbours is the difference of two softmax maps,
    masked to the Top-K,

    .. math::
        \mathbf{F} = \left(
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_1
        \mathbf{K}_1^{\top}}{\sqrt{d}} \right) \right) - \lambda \,
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_2
        \mathbf{K}_2^{\top}}{\sqrt{d}} \right) \right)
        \right) \mathbf{V},

    where :math:`M` keeps the token itself and the ranks below the predicted
    :math:`k_i` plus a margin (:class:`NeighborEncoder`), so that what is
    surely noise is attended to by none, and what both maps attend to cancels.
    The head judges each neighbour against the node
    (:class:`~torch_sdt.nn.models.pair_head.PairHead`).

    How it differs from the paper's text: tokens hold relations instead of
    features unless :obj:`in_channels` is given, among them the first model's
    verdicts in the neighbours' own rows, and all neighbours are judged, not
    those near the boundary only.

    Args:
        k (int): The width :math:`K` of the table.
        attention (str, optional): :obj:`"vanilla"`, :obj:`"diff"` or
            :obj:`"sparse-diff"`. (default: :obj:`"sparse-diff"`)
        experts (int, optional): More than one makes it the mixture-of-experts
            variant (MoE-SDT). (default: :obj:`1`)
        hidden_channels (int, optional): Width of tokens.
            (default: :obj:`128`)
        **kwargs (optional): Further arguments of :class:`NeighborEncoder`.

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** logits :math:`(B, K)`
    """

    def __init__(self, k: int, attention: str = 'sparse-diff',
                 experts: int = 1, hidden_channels: int = 128,
                 **kwargs: Any) -> None:
        super().__init__()
        self.encoder = NeighborEncoder(
            k, attention=attention, experts=experts,
            hidden_channels=hidden_channels, **kwargs)
        self.out = PairHead(hidden_channels)

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            batch (SubgraphBatch): The subgraphs; sparse attention needs their
                ``k``.

        Returns:
            torch.Tensor: The logit of each neighbour, shape ``[B, K]``.
        """
        return self.out(self.encoder(batch))

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The training loss of a batch with targets: binary cross entropy,
        and .01 times the balance of experts.
        """
        same, _ = targets(batch)
        return (pair_loss(self(batch), same) +
                .01 * self.encoder.balance_loss())
