from __future__ import annotations

import math

import torch
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.pair_head import pair_loss, targets


class SimilarityTransformer(torch.nn.Module):
    r"""The similarity network of `"On Mitigating Hard Clusters for Face
    Clustering" <https://arxiv.org/abs/2207.11895>`_ (NDDe + TPDi): is each
    neighbour of the node's identity?

    The :math:`K` neighbours' features pass one post-norm Transformer layer, in
    which sinusoidal positions of the ranks are added to queries and keys only;
    a multilayer perceptron on the node's token and the neighbour's gives the
    logit.

    How it differs from the released code: that gives the batch to the
    attention as its sequence, so that each neighbour attends to those of equal
    rank of the **other nodes** in the batch. Here neighbours of one node
    attend to each other, and no node's result depends on its batch.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width of the tokens.
            (default: :math:`D`, as published; a linear map leads to any other)
        ffn_channels (int, optional): Width of the feed-forward block.
            (default: :obj:`2048`)
        heads (int, optional): Attention heads; they divide the width.
            (default: :obj:`8`)
        dropout (float, optional): Dropout probability. (default: :obj:`.2`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** logits :math:`(B, K)`
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | None = None,
        ffn_channels: int = 2048,
        heads: int = 8,
        dropout: float = .2,
    ) -> None:
        super().__init__()
        width = in_channels if hidden_channels is None else hidden_channels
        if width % heads != 0:
            raise ValueError(f"'hidden_channels' must be a multiple of the "
                             f"{heads} heads (got {width})")
        self.lin_in: torch.nn.Module = torch.nn.Identity()
        if width != in_channels:
            self.lin_in = torch.nn.Linear(in_channels, width, bias=False)
        self.attention = torch.nn.MultiheadAttention(
            width, heads, dropout, batch_first=True)
        self.ffn = torch.nn.Sequential(
            torch.nn.Linear(width, ffn_channels), torch.nn.ReLU(),
            torch.nn.Dropout(dropout), torch.nn.Linear(ffn_channels, width))
        self.norm1 = torch.nn.LayerNorm(width)
        self.norm2 = torch.nn.LayerNorm(width)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Sequential(
            torch.nn.Linear(2 * width, 256), torch.nn.ReLU(),
            torch.nn.Linear(256, 128), torch.nn.ReLU(),
            torch.nn.Linear(128, 1))

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        x = self.lin_in(batch.x)
        where = x + positions(x.size(1), x.size(2), x.device).to(x.dtype)
        attended = self.attention(where, where, x, need_weights=False)[0]
        x = self.norm1(x + self.dropout(attended))
        x = self.norm2(x + self.dropout(self.ffn(x)))
        pair = torch.cat([x[:, :1].expand_as(x), x], dim=-1)
        return self.head(pair).squeeze(-1)

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""Binary cross entropy of all neighbours but the node itself."""
        return pair_loss(self(batch), targets(batch)[0])


def positions(length: int, channels: int, device: torch.device) -> Tensor:
    r"""Sinusoidal positions, shape ``[length, channels]``."""
    place = torch.arange(length, device=device).view(-1, 1)
    rate = torch.exp(torch.arange(0, channels, 2, device=device) *
                     (-math.log(10_000.) / channels))
    out = torch.zeros(length, channels, device=device)
    out[:, 0::2] = torch.sin(place * rate)
    out[:, 1::2] = torch.cos(place * rate)[:, :channels // 2]
    return out
