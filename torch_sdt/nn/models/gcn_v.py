from typing import Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GraphConv
from torch_geometric.utils import scatter

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.pair_head import targets


class GCNV(torch.nn.Module):
    r"""The confidence estimator of `"Learning to Cluster Faces via Confidence
    and Connectivity Estimation" <https://arxiv.org/abs/2004.00445>`_ (GCN-V).

    One graph convolution of the mean aggregator,

    .. math::
        \mathbf{H} = \mathrm{ReLU} \left( [\mathbf{X} \, \Vert \,
        \mathbf{D}^{-1} \mathbf{A} \mathbf{X}] \, \mathbf{W} + \mathbf{b}
        \right),

    with the cosines of the kNN graph, self-loops included, as
    :math:`\mathbf{A}` (negative ones count 0), and a multilayer perceptron
    that estimates how many of a node's neighbours are of its identity,

    .. math::
        c_i = \frac{1}{|\mathcal{N}_i|} \sum_{j \in \mathcal{N}_i}
        (2 \cdot [y_i = y_j] - 1) \, a_{ij}.

    How it differs from the released code: that divides the target by its
    maximum over the data set, the paper by :math:`|\mathcal{N}_i|`.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width. (default: :obj:`512`)
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512) -> None:
        super().__init__()
        self.conv = GraphConv(in_channels, hidden_channels, aggr='add')
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(hidden_channels, hidden_channels),
            torch.nn.PReLU(hidden_channels),
            torch.nn.Linear(hidden_channels, 1))

    def embed(self, x: Union[Tensor, Tuple[Tensor, Tensor]],
              edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        r"""The hidden features :math:`\mathbf{H}`.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): Features of the
                nodes, or of sources and targets.
            edge_index (torch.Tensor): Edges, self-loops included, int64,
                shape ``[2, E]``.
            edge_weight (torch.Tensor): Cosines, shape ``[E]``.

        Returns:
            torch.Tensor: Shape ``[N, C]``.
        """
        num_targets = (x[1] if isinstance(x, tuple) else x).size(0)
        weight = edge_weight.clamp(min=0)
        total = scatter(weight, edge_index[1], dim_size=num_targets)
        weight = weight / total.clamp(min=1e-12)[edge_index[1]]
        return self.conv(x, edge_index, weight).relu()

    def forward(self, x: Union[Tensor, Tuple[Tensor, Tensor]],
                edge_index: Tensor, edge_weight: Tensor
                ) -> Tuple[Tensor, Tensor]:
        r"""Runs the forward pass of the module.

        Takes what :meth:`embed` takes.

        Returns:
            (torch.Tensor, torch.Tensor): Confidence, shape ``[N]``, and hidden
            features, shape ``[N, C]``.
        """
        hidden = self.embed(x, edge_index, edge_weight)
        return self.mlp(hidden).squeeze(-1), hidden

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The mean squared error of the confidence of a batch's nodes."""
        same, _ = targets(batch)
        sign = 2 * same.to(batch.similarity.dtype) - 1
        wanted = (sign * batch.similarity[:, 0]).mean(dim=1)
        return F.mse_loss(self(*batch.to_bipartite())[0], wanted)
