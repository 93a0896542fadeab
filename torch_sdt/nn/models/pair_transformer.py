from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import PairBatch, SubgraphBatch
from torch_sdt.nn.models.neighbor_encoder import NeighborEncoder


class PairTransformer(torch.nn.Module):
    r"""The pair classifier of `"Local Connectivity-Based Density Estimation
    for Face Clustering"
    <https://github.com/illian01/LCE-PCENet>`_
    (PCENet), which `"Face Clustering via Early Stopping and Edge Recall"
    <https://arxiv.org/abs/2408.13431>`_ takes as well: are two nodes of one
    identity?

    The :math:`K` neighbours of node :math:`i` and the :math:`K` of node
    :math:`j`, themselves at rank 0, are :math:`2K` tokens, each of its
    feature and its row of cosines to all of them. Through a Transformer
    encoder the two nodes' own tokens become :math:`\mathbf{z}_i` and
    :math:`\mathbf{z}_j`, and

    .. math::
        \ell_{ij} = \mathrm{MLP} \left( \left[ \mathbf{x}_i \, \Vert \,
        \mathbf{h}_i \, \Vert \, \mathbf{x}_j \, \Vert \, \mathbf{h}_j \right]
        \right), \qquad \mathbf{h} = \mathrm{MLP}_0(\mathbf{z}),

    with :math:`\mathbf{h}` as wide as the features. A neighbour of both is
    known by its cosine of 1 to its twin.

    How it differs from the released code: the encoder is
    :class:`NeighborEncoder` with plain attention, whose tokens are a linear
    map of feature and row (so that heads divide any dimension) to which an
    embedding of side and rank is added, and which ends in a layer norm; one
    logit with binary cross entropy in place of two with cross entropy, which
    is the same.

    Args:
        k (int): Neighbours of each side :math:`K`; narrower tables pass as
            well. (published: 80)
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width of tokens. (default:
            :obj:`128`; published: :math:`D + 2K = 416`)
        head_channels (int, optional): Width of the last perceptron.
            (default: :obj:`256`; published: 2048)
        **kwargs (optional): Further arguments of :class:`NeighborEncoder`
            (published: ``num_layers=3, heads=8, ffn_channels=1024``).

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.PairBatch`
        - **output:** logits :math:`(B)`
    """

    def __init__(self, k: int, in_channels: int, hidden_channels: int = 128,
                 head_channels: int = 256, **kwargs: Any) -> None:
        super().__init__()
        self.k = k
        self.encoder = NeighborEncoder(
            2 * k, in_channels, hidden_channels=hidden_channels,
            attention='vanilla', **kwargs)
        self.lin = torch.nn.Sequential(
            torch.nn.Linear(hidden_channels, in_channels), torch.nn.PReLU(),
            torch.nn.Linear(in_channels, in_channels))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(4 * in_channels, head_channels),
            torch.nn.PReLU(),
            torch.nn.Linear(head_channels, head_channels), torch.nn.PReLU(),
            torch.nn.Linear(head_channels, 1))

    def forward(self, batch: PairBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        if batch.index.size(2) > self.k:
            raise ValueError(f"The model was built for tables of at most "
                             f"{self.k} neighbours (got "
                             f"{batch.index.size(2)})")
        # In turn from both sides: a narrower table is a prefix of a wider.
        x = batch.x.transpose(1, 2).flatten(1, 2)
        index = batch.index.transpose(1, 2).flatten(1, 2)
        # The encoder brings features to the scale of a normalised layer. At
        # unit length, as published, they are a fraction of the token beside
        # the cosines, and training identities are not learned by heart.
        z = self.encoder(SubgraphBatch(batch.node, index,
                                       x @ x.transpose(1, 2),
                                       x * x.size(-1)**-.5), first=2)
        both = torch.cat([x[:, :2], self.lin(z)], dim=-1)
        return self.mlp(both.flatten(1)).squeeze(-1)

    def loss(self, batch: PairBatch) -> Tensor:
        r"""The binary cross entropy of a batch with targets (``y`` of
        :class:`~torch_sdt.loader.NeighborPairs`).
        """
        if batch.same is None:
            raise ValueError("The batch has no targets to train on: give the "
                             "loader the identities 'y'")
        return F.binary_cross_entropy_with_logits(self(batch).float(),
                                                  batch.same.float())
