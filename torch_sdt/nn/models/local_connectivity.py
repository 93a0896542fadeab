from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.neighbor_encoder import NeighborEncoder
from torch_sdt.nn.models.pair_head import PairHead, pair_loss, targets


class LocalConnectivity(torch.nn.Module):
    r"""The connectivity estimator of `"Local Connectivity-Based Density
    Estimation for Face Clustering"
    <https://github.com/illian01/LCE-PCENet>`_
    (LCENet): which of a node's neighbours are of its identity?

    The :math:`K` neighbours, the node itself at rank 0, are tokens, each of
    its feature and its row of cosines to all of them. They pass a Transformer
    encoder, and a perceptron on :math:`[\mathbf{z}_0 \, \Vert \,
    \mathbf{z}_r]` (:class:`~torch_sdt.nn.models.pair_head.PairHead`) gives
    the logit of the neighbour at rank :math:`r`.

    How it differs from the released code: the encoder is
    :class:`NeighborEncoder` with plain attention, whose tokens are a linear
    map of feature and row (so that heads divide any dimension) to which an
    embedding of the rank is added, and which ends in a layer norm; the
    perceptron is as wide as the tokens; one logit with binary cross entropy
    in place of two with cross entropy, which is the same.

    Args:
        k (int): The width :math:`K` of the table; narrower tables pass as
            well. (published: 80)
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width of tokens. (default:
            :obj:`128`; published: :math:`D + K = 336`)
        **kwargs (optional): Further arguments of :class:`NeighborEncoder`
            (published: ``num_layers=3, heads=8, ffn_channels=1024``).

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** logits :math:`(B, K)`
    """

    def __init__(self, k: int, in_channels: int, hidden_channels: int = 128,
                 **kwargs: Any) -> None:
        super().__init__()
        self.encoder = NeighborEncoder(
            k, in_channels, hidden_channels=hidden_channels,
            attention='vanilla', **kwargs)
        self.head = PairHead(hidden_channels)

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        # At unit length, see `PairTransformer`.
        x = batch.x * batch.x.size(-1)**-.5
        return self.head(self.encoder(replace(batch, x=x)))

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The binary cross entropy of all neighbours but the node itself, of
        a batch with targets (``y`` of
        :class:`~torch_sdt.loader.NeighborSubgraphs`).
        """
        same, _ = targets(batch)
        return pair_loss(self(batch), same)
