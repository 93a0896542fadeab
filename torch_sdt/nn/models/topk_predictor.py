from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.neighbor_encoder import NeighborEncoder
from torch_sdt.nn.models.pair_head import PairHead, pair_loss, targets
from torch_sdt.ops.topk import expected_topk

HEADS = ('rank', 'regression')


class TopKPredictor(torch.nn.Module):
    r"""Predicts how many of its nearest neighbours a node may trust, from
    `"Enhancing Noise Resilience in Face Clustering via Sparse Differential
    Transformer" <https://arxiv.org/abs/2512.22612>`_.

    A :class:`NeighborEncoder` reads the node's neighbours, and one of two
    heads the result. The paper does not say which; both are here:

    * :obj:`"rank"`: for each neighbour the logit of being of the node's
      identity, trained by binary cross entropy. :math:`k_i` is where the
      expected :math:`F_\beta` of a prefix of the row is largest
      (:meth:`~torch_sdt.ops.expected_topk`), so that :math:`\beta` is chosen
      after training.
    * :obj:`"regression"`: :math:`k / K` from the node's own token, trained by
      the Huber loss of the relative error, :math:`k_i = \mathrm{round}(K
      \cdot \mathrm{out})` in 1..K, as in Ada-NETS; :math:`\beta` is fixed in
      the targets.

    Args:
        k (int): The width :math:`K` of the table.
        head (str, optional): :obj:`"rank"` or :obj:`"regression"`.
            (default: :obj:`"rank"`)
        hidden_channels (int, optional): Width of tokens.
            (default: :obj:`128`)
        **kwargs (optional): Further arguments of :class:`NeighborEncoder`.

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** logits :math:`(B, K)`, or :math:`k / K` of shape
          :math:`(B)`

    Raises:
        ValueError: If :obj:`head` is unknown.
    """

    def __init__(self, k: int, head: str = 'rank', hidden_channels: int = 128,
                 **kwargs: Any) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"'head' must be one of {list(HEADS)} (got "
                             f"'{head}')")
        self.head = head
        self.encoder = NeighborEncoder(k, hidden_channels=hidden_channels,
                                       **kwargs)
        self.out: torch.nn.Module
        if head == 'rank':
            self.out = PairHead(hidden_channels)
        else:
            self.out = torch.nn.Linear(hidden_channels, 1)

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module.

        Returns:
            torch.Tensor: Logits of shape ``[B, K]`` (head :obj:`"rank"`) or
            the share :math:`k / K` of shape ``[B]``.
        """
        z = self.encoder(batch)
        if self.head == 'rank':
            return self.out(z)
        return self.out(z[:, 0]).squeeze(-1).sigmoid()

    def predict(self, batch: SubgraphBatch, beta: float = .5) -> Tensor:
        r"""The number of trusted neighbours, the node itself included, int64,
        shape ``[B]``; :obj:`beta` is of no effect on the head
        :obj:`"regression"`.
        """
        out, width = self(batch), batch.index.size(1)
        if self.head == 'rank':
            return expected_topk(out.sigmoid(), beta)
        return (out * self.encoder.k).round().long().clamp(1, width)

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The training loss of a batch with targets (``y`` of
        :class:`~torch_sdt.loader.NeighborSubgraphs`).
        """
        same, topk = targets(batch)
        out = self(batch)
        if self.head == 'rank':
            loss = pair_loss(out, same)
        else:
            loss = relative_huber(out, topk, self.encoder.k)
        return loss + .01 * self.encoder.balance_loss()


def relative_huber(share: Tensor, topk: Tensor, k: int) -> Tensor:
    r"""The Huber loss (:math:`\delta = 1`) of the relative error of predicted
    shares :math:`k / K`.
    """
    ratio = share.float() * k / topk.float()
    return F.huber_loss(ratio, torch.ones_like(ratio))
