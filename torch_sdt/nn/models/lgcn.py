import torch
from torch import Tensor
from torch_geometric.nn import DenseGraphConv

from torch_sdt.loader.pivot_subgraphs import PivotBatch
from torch_sdt.nn.models.pair_head import pair_loss


class LGCNModel(torch.nn.Module):
    r"""The link predictor of `"Linkage Based Face Clustering via Graph
    Convolution Network" <https://arxiv.org/abs/1903.11306>`_: which of a
    pivot's neighbours are of its identity?

    The features :math:`\mathbf{x}_j - \mathbf{x}_p` of the pivot's subgraph
    (:class:`~torch_sdt.loader.PivotSubgraphs`) are standardised per dimension
    (batch normalisation without a learned scale and shift, over the nodes of
    all subgraphs of a batch), go through four convolutions of the mean
    aggregator

    .. math::
        \mathbf{H} = \mathrm{ReLU} \left( [\mathbf{X} \, \Vert \,
        \mathbf{D}^{-1} \mathbf{A} \mathbf{X}] \, \mathbf{W} + \mathbf{b}
        \right),

    the last two half as wide, and a multilayer perceptron gives a logit each.

    How it differs from the released code: one logit with binary cross entropy
    instead of two with a softmax, which is the same model; the pivot's own
    logit is not trained.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width. (default: :obj:`512`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.PivotBatch`
        - **output:** logits of the pivot and its neighbours :math:`(B, K)`
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512) -> None:
        super().__init__()
        half = max(hidden_channels // 2, 1)
        widths = [in_channels, hidden_channels, hidden_channels, half, half]
        self.norm = torch.nn.BatchNorm1d(in_channels, affine=False)
        self.convs = torch.nn.ModuleList(
            DenseGraphConv(a, b, aggr='add')
            for a, b in zip(widths[:-1], widths[1:]))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(half, half), torch.nn.PReLU(half),
            torch.nn.Linear(half, 1))

    def forward(self, batch: PivotBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        adj = batch.adj
        adj = adj / adj.sum(dim=-1, keepdim=True).clamp(min=1)
        # Padding has no share in the statistics.
        x = torch.zeros_like(batch.x)
        x[batch.mask] = self.norm(batch.x[batch.mask])
        for conv in self.convs:
            x = conv(x, adj, batch.mask).relu()
        x = x[:, :batch.k]
        return self.mlp(x.flatten(0, 1)).view(x.shape[:2])

    def loss(self, batch: PivotBatch) -> Tensor:
        r"""Binary cross entropy of the pivots' neighbours."""
        if batch.same is None:
            raise ValueError("The batch has no targets to train on: give the "
                             "loader the identities 'y'")
        return pair_loss(self(batch), batch.same)
