import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import SubgraphBatch


class HingeGCN(torch.nn.Module):
    r"""The graph convolutional network of `"Adaptive Neighbour Discovery for
    Face Clustering" <https://arxiv.org/abs/2202.03800>`_ (Ada-NETS): features
    of which the cosine tells whether two samples are of one identity.

    Two convolutions with an L2 norm in between, one more layer, and unit
    outputs,

    .. math::
        \mathbf{H} &= \mathrm{ReLU}( \mathbf{\hat A} \mathbf{X} \,
        \mathbf{W}_1 + \mathbf{b}_1 ), \\
        \mathbf{H}' &= \mathrm{ReLU}( \mathbf{\hat A} \, \mathrm{norm}
        (\mathbf{H}) \, \mathbf{W}_2 + \mathbf{b}_2 ), \\
        \mathbf{Z} &= \mathrm{norm}( \mathrm{PReLU}( \mathbf{H}' \mathbf{W}_3
        + \mathbf{b}_3 )),

    where :math:`\mathbf{\hat A}` is the row-normalised adjacency matrix with
    self-loops. It is trained by :meth:`hinge_loss`.

    How it differs from the released code: there edge weights are lost on the
    way to the convolutions, which average over neighbours as equals and count
    the node itself twice; in training, neighbours of neighbours may be
    anybody, here they are those of the subgraph.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width :math:`C`.
            (default: :obj:`512`, as published)
        margin (float, optional): Cosine that pairs of one identity should
            reach. (default: :obj:`.9`, as published)
        negative_margin (float, optional): Cosine below 0 that the most alike
            of two identities should reach. (default: :obj:`1.`, as published)
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512,
                 margin: float = .9, negative_margin: float = 1.) -> None:
        super().__init__()
        self.margin = margin
        self.negative_margin = negative_margin
        self.lin1 = torch.nn.Linear(in_channels, hidden_channels)
        self.lin2 = torch.nn.Linear(hidden_channels, hidden_channels)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(hidden_channels, hidden_channels),
            torch.nn.PReLU(hidden_channels))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor): Features, shape ``[N, D]``, or ``[B, N, D]`` for
                :math:`B` graphs.
            adj (torch.Tensor): The matrix :math:`\mathbf{\hat A}`, rows the
                targets: dense of shape ``[N, N]`` or ``[B, N, N]``, or sparse
                of shape ``[N, N]``.

        Returns:
            torch.Tensor: The unit features :math:`\mathbf{Z}`, shape
            ``[N, C]`` or ``[B, N, C]``.
        """
        h = F.normalize(self.lin1(adj @ x).relu(), dim=-1)
        h = self.lin2(adj @ h).relu()
        return F.normalize(self.mlp(h.flatten(0, -2)).view(h.shape), dim=-1)

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""The hinge loss of all pairs within each subgraph.

        Args:
            batch (SubgraphBatch): A batch with two relations: weights of the
                edges, self-loops included, of which the larger of both
                directions counts and negative ones count 0; and the identity
                of each entry, as a whole number below :math:`2^{24}`.

        Raises:
            ValueError: If the batch has other relations.
        """
        if batch.relation is None or batch.relation.size(1) != 4:
            raise ValueError("The batch must have two relations, the weights "
                             "of edges and identities")
        adj = torch.maximum(batch.relation[:, 0], batch.relation[:, 1])
        adj = adj.clamp(min=0)
        adj = adj / adj.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        # The row of the node in the middle lists everybody.
        return hinge_loss(self(batch.x, adj), batch.relation[:, 2, 0],
                          self.margin, self.negative_margin)


def hinge_loss(z: Tensor, y: Tensor, margin: float = .9,
               negative_margin: float = 1.) -> Tensor:
    r"""The hinge loss of all pairs of one identity and of the hardest of two.

    With the cosines :math:`c_{rs}` of a set of samples,

    .. math::
        \mathcal{L} = \frac{1}{|\mathcal{P}|} \sum_{(r, s) \in \mathcal{P}}
        \max(0, m - c_{rs}) + \max \left( 0, m' +
        \max_{y_r \neq y_s} c_{rs} \right), \qquad
        \mathcal{P} = \{ r \neq s : y_r = y_s \},

    the mean over all sets. Where there are no pairs of a kind, their part
    is 0.

    Args:
        z (torch.Tensor): Unit features, shape ``[B, K, C]``.
        y (torch.Tensor): Identities, shape ``[B, K]``.
        margin (float, optional): The :math:`m`. (default: :obj:`.9`)
        negative_margin (float, optional): The :math:`m'`.
            (default: :obj:`1.`)
    """
    cosine = z @ z.transpose(1, 2)
    same = y.unsqueeze(1) == y.unsqueeze(2)
    positive = same & ~torch.eye(y.size(1), dtype=torch.bool, device=y.device)
    short = (margin - cosine).relu() * positive
    number = positive.sum(dim=(1, 2)).clamp(min=1)
    # What is not to be counted lies just where the loss begins.
    hardest = cosine.masked_fill(same, -negative_margin).amax(dim=(1, 2))
    return (short.sum(dim=(1, 2)) / number
            + (negative_margin + hardest).relu()).mean()
