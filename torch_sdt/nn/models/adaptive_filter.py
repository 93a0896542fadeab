from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.pair_head import targets
from torch_sdt.nn.models.topk_predictor import relative_huber


class AdaptiveFilter(torch.nn.Module):
    r"""The adaptive filter of `"Adaptive Neighbour Discovery for Face
    Clustering" <https://arxiv.org/abs/2202.03800>`_ (Ada-NETS): a
    bidirectional LSTM that predicts how many neighbours a node may trust.

    It reads the neighbours' features in the order of their rank. The step
    outputs pass a linear layer, are added to the features, normalised,
    averaged over the ranks and normalised again; a multilayer perceptron with
    a residual predicts :math:`k / K`. Trained by the Huber loss of the
    relative error.

    Args:
        k (int): The width :math:`K` of the table.
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width of the LSTM in each direction.
            (default: :obj:`256`)
        dropout (float, optional): Dropout probability in the perceptron.
            (default: :obj:`.5`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** the share :math:`k / K` of shape :math:`(B)`
    """

    def __init__(self, k: int, in_channels: int, hidden_channels: int = 256,
                 dropout: float = .5) -> None:
        super().__init__()
        self.k = k
        self.lstm = torch.nn.LSTM(in_channels, hidden_channels,
                                  batch_first=True, bidirectional=True)
        self.lin = torch.nn.Linear(2 * hidden_channels, in_channels)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(in_channels, 2 * in_channels), torch.nn.PReLU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(2 * in_channels, in_channels), torch.nn.PReLU())
        self.out = torch.nn.Linear(in_channels, 1)

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module.

        Returns:
            torch.Tensor: The share :math:`k / K`, shape ``[B]``.
        """
        step = self.lin(self.lstm(batch.x)[0])
        step = F.normalize((batch.x + step) / 2**.5, dim=-1)
        x = F.normalize(step.mean(dim=1), dim=-1)
        x = (x + self.mlp(x)) / 2**.5
        return self.out(x).squeeze(-1)

    def predict(self, batch: SubgraphBatch, beta: float = .5) -> Tensor:
        r"""The number of trusted neighbours, int64, shape ``[B]``;
        :obj:`beta` is of no effect, it is fixed in the targets.
        """
        k = (self(batch) * self.k).round().long()
        return k.clamp(1, batch.index.size(1))

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The training loss, see :meth:`TopKPredictor.loss`."""
        _, topk = targets(batch)
        return relative_huber(self(batch), topk, self.k)
