from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import DenseGraphConv

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.pair_head import targets


class GCNE(torch.nn.Module):
    r"""The connectivity estimator of `"Learning to Cluster Faces via
    Confidence and Connectivity Estimation"
    <https://arxiv.org/abs/2004.00445>`_ (GCN-E): which of a node's denser
    neighbours is of its identity?

    The graph of a node are its denser neighbours with features
    :math:`\mathbf{x}_j - \mathbf{x}_i` and the row-normalised cosines among
    them. Four convolutions of the mean aggregator (see :class:`GCNV`), the
    last two half as wide, and a multilayer perceptron give a logit each.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width. (default: :obj:`512`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch` of which the
          first relation are cosines and the second marks denser neighbours
          (of the node at rank :math:`r` in its own row, by 1)
        - **output:** logits :math:`(B, K)`, and which of them are candidates
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512) -> None:
        super().__init__()
        half = max(hidden_channels // 2, 1)
        widths = [in_channels, hidden_channels, hidden_channels, half, half]
        self.convs = torch.nn.ModuleList(
            DenseGraphConv(a, b, aggr='add')
            for a, b in zip(widths[:-1], widths[1:]))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(half, half), torch.nn.PReLU(half),
            torch.nn.Linear(half, 1))

    def forward(self, batch: SubgraphBatch) -> Tuple[Tensor, Tensor]:
        r"""Runs the forward pass of the module."""
        if batch.relation is None or batch.relation.size(1) != 4:
            raise ValueError("The batch must have two relations, cosines and "
                             "who is denser")
        candidate = batch.relation[:, 2, 0] > 0
        adj = torch.maximum(batch.relation[:, 0], batch.relation[:, 1])
        adj = adj.clamp(min=0) * candidate.unsqueeze(1)
        adj = adj / adj.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        x = batch.x - batch.x[:, :1]
        for conv in self.convs:
            x = conv(x, adj).relu()
        logits = self.mlp(x.flatten(0, 1)).view(candidate.shape)
        return logits, candidate

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""Binary cross entropy of the candidates."""
        same, _ = targets(batch)
        logits, candidate = self(batch)
        return F.binary_cross_entropy_with_logits(
            logits, same.to(logits.dtype), candidate.to(logits.dtype),
            reduction='sum') / candidate.sum().clamp(min=1)
