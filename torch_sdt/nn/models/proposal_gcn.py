from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import global_mean_pool
from torch_geometric.nn.aggr import MaxAggregation
from torch_geometric.utils import to_dense_batch

from torch_sdt.loader.proposal_graphs import ProposalBatch


class ProposalGCN(torch.nn.Module):
    r"""The trunk of :class:`GCND` and :class:`GCNS`: two convolutions.

    .. math::
        \mathbf{H} = \mathrm{ReLU} \left( \mathbf{D}^{-1}
        (\mathbf{A} + \mathbf{I}) \, \mathbf{X} \, \mathbf{W} \right),

    over the members of cluster proposals, the second an eighth as wide.

    Args:
        in_channels (int): The dimension of the members' features.
        out_channels (int): The outputs of the linear layer behind them.
        hidden_channels (int, optional): Width. (default: :obj:`512`)
        dropout (float, optional): Dropout between the two.
            (default: :obj:`.5`)
    """

    def __init__(self, in_channels: int, out_channels: int,
                 hidden_channels: int = 512, dropout: float = .5) -> None:
        super().__init__()
        narrow = max(hidden_channels // 8, 1)
        self.lin1 = torch.nn.Linear(in_channels, hidden_channels, bias=False)
        self.lin2 = torch.nn.Linear(hidden_channels, narrow, bias=False)
        self.lin_out = torch.nn.Linear(narrow, out_channels)
        self.dropout = dropout

    def embed(self, batch: ProposalBatch, x: Tensor) -> Tensor:
        r"""The members' hidden features.

        Args:
            batch (ProposalBatch): The proposals.
            x (torch.Tensor): Features, shape ``[n, C_in]``.

        Returns:
            torch.Tensor: Shape ``[n, C / 8]``.
        """
        # A GCNConv without its own normalisation; the product with a sparse
        # matrix is many times as fast on a CPU as gathering for each edge.
        adj = torch.sparse_coo_tensor(
            batch.edge_index.flip(0), batch.edge_weight,
            (x.size(0), x.size(0)), is_coalesced=True, check_invariants=False)
        x = torch.sparse.mm(adj, self.lin1(x)).relu()
        x = F.dropout(x, self.dropout, self.training)
        return torch.sparse.mm(adj, self.lin2(x)).relu()


class GCND(ProposalGCN):
    r"""The detector of `"Learning to Cluster Faces on an Affinity Graph"
    <https://arxiv.org/abs/1904.02749>`_ (GCN-D): how good are cluster
    proposals?

    Two graph convolutions (:class:`ProposalGCN`), the maximum over the
    members of a proposal, and a linear layer, which estimates the IoU and the
    IoP of the proposal with its majority identity
    (:meth:`~torch_sdt.ops.proposal_overlap`).

    How it differs from the released code: that trains a network for each of
    the two.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width. (default: :obj:`512`)
        dropout (float, optional): Dropout. (default: :obj:`.5`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.ProposalBatch`
        - **output:** IoU and IoP :math:`(B, 2)`
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512,
                 dropout: float = .5) -> None:
        super().__init__(in_channels, 2, hidden_channels, dropout)
        self.pool = MaxAggregation()

    def forward(self, batch: ProposalBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        x = self.embed(batch, batch.x)
        x = self.pool(x, batch.batch, dim_size=batch.node.numel())
        return self.lin_out(x)

    def loss(self, batch: ProposalBatch) -> Tensor:
        r"""The mean squared error of both."""
        if batch.iou is None or batch.iop is None:
            raise ValueError("The batch has no targets to train on: give the "
                             "loader the identities 'y'")
        wanted = torch.stack([batch.iou, batch.iop], dim=1)
        return F.mse_loss(self(batch), wanted)


class GCNS(ProposalGCN):
    r"""The segmentation network of `"Learning to Cluster Faces on an Affinity
    Graph" <https://arxiv.org/abs/1904.02749>`_ (GCN-S): which members of a
    cluster proposal are of one identity?

    Two graph convolutions (:class:`ProposalGCN`) of the features and one more
    channel, 1 at a seed and 0 elsewhere, and a linear layer, which gives each
    member a logit of being of the seed's identity. In training the seed is a
    random member.

    How it differs from the released code: one logit with binary cross entropy
    instead of two with a softmax, which is the same model; in clustering the
    seed is no random member, but that whose cosine with the mean of all is
    largest.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width. (default: :obj:`512`)
        dropout (float, optional): Dropout. (default: :obj:`.5`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.ProposalBatch` with
          :math:`n` members in all, and the seed of each proposal :math:`(B)`
        - **output:** logits :math:`(n)`
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512,
                 dropout: float = .5) -> None:
        super().__init__(in_channels + 1, 1, hidden_channels, dropout)

    def forward(self, batch: ProposalBatch, seed: Optional[Tensor] = None
                ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            batch (ProposalBatch): The proposals.
            seed (torch.Tensor, optional): The seeds, as places among the
                members, int64, shape ``[B]``.
                (default: the members in the middle)
        """
        if seed is None:
            mean = global_mean_pool(batch.x, batch.batch, batch.node.numel())
            seed = _first_best(batch, (batch.x * mean[batch.batch]).sum(-1))
        mask = torch.zeros_like(batch.x[:, :1])
        mask[seed] = 1
        hidden = self.embed(batch, torch.cat([batch.x, mask], dim=1))
        return self.lin_out(hidden).squeeze(-1)

    def loss(self, batch: ProposalBatch) -> Tensor:
        r"""Binary cross entropy of the members, with random seeds."""
        if batch.y is None:
            raise ValueError("The batch has no targets to train on: give the "
                             "loader the identities 'y'")
        seed = _first_best(batch, torch.rand_like(batch.x[:, 0]))
        same = batch.y == batch.y[seed][batch.batch]
        logits = self(batch, seed)
        return F.binary_cross_entropy_with_logits(logits,
                                                  same.to(logits.dtype))


def _first_best(batch: ProposalBatch, value: Tensor) -> Tensor:
    # The place of each proposal's largest value, the first of equals.
    count = batch.node.numel()
    dense, _ = to_dense_batch(value, batch.batch, fill_value=-torch.inf,
                              batch_size=count)
    size = batch.batch.bincount(minlength=count)
    return size.cumsum(0) - size + dense.argmax(dim=1)
