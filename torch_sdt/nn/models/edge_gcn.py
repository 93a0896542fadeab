import torch
from torch import Tensor
from torch_geometric.nn import GraphConv

from torch_sdt.loader import PairBatch
from torch_sdt.nn.models.pair_classifier import (
    check_pair,
    join_pair,
    pair_cross_entropy,
)


class EdgeGCN(torch.nn.Module):
    r"""The edge classifier of `"Structure-Aware Face Clustering on a
    Large-Scale Graph with 10^7 Nodes" <https://arxiv.org/abs/2103.13225>`_
    (STAR-FC).

    One graph convolution of the mean aggregator (see :class:`GCNV`) over a
    sample's neighbours :math:`\mathcal{N}_i`, itself included,

    .. math::
        \mathbf{h}_i = \mathrm{ReLU} \Big( \mathbf{W} \Big[ \mathbf{x}_i \,
        \Vert \, \frac{\sum_{j \in \mathcal{N}_i} a_{ij} \mathbf{x}_j}
        {\sum_{j \in \mathcal{N}_i} a_{ij}} \Big] + \mathbf{b} \Big)

    with cosines :math:`a` (negative ones count 0), and a multilayer
    perceptron on :math:`[\mathbf{h}_i \, \Vert \, \mathbf{h}_j]` gives the
    logit that samples :math:`i` and :math:`j` are of one identity. With
    ``pair='product'`` it is given :math:`[\, |\mathbf{h}_i - \mathbf{h}_j| \,
    \Vert \, \mathbf{h}_i \odot \mathbf{h}_j]`, which needs far fewer
    identities to learn from, see :class:`PairClassifier`.

    How it differs from the released code: a sample hears the neighbours in
    its own row, not also those that list it; features are scaled by
    :math:`\sqrt{D}`; one logit in place of two.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        hidden_channels (int, optional): Width :math:`C`.
            (default: :obj:`512`)
        pair (str, optional): :obj:`"concat"` or :obj:`"product"`.
            (default: :obj:`"concat"`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.PairBatch` of :math:`B` pairs
        - **output:** logits :math:`(B)`

    Raises:
        ValueError: If :obj:`pair` is not known.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512,
                 pair: str = 'concat') -> None:
        super().__init__()
        check_pair(pair)
        self.pair = pair
        self.conv = GraphConv(in_channels, hidden_channels, aggr='add')
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(2 * hidden_channels, hidden_channels),
            torch.nn.PReLU(hidden_channels),
            torch.nn.Linear(hidden_channels, 1))

    def embed(self, x: Tensor) -> Tensor:
        r"""The hidden features :math:`\mathbf{h}` of samples.

        Args:
            x (torch.Tensor): The unit features of each one's neighbours,
                itself at rank 0, shape ``[N, K, D]``.

        Returns:
            torch.Tensor: Shape ``[N, C]``.
        """
        size, k, dim = x.shape
        weight = (x[:, :1] @ x.transpose(1, 2)).squeeze(1).clamp(min=0)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
        source = torch.arange(size * k, device=x.device)
        edge_index = torch.stack([source, source // k])
        # Entries of unit variance rather than rows of unit length.
        scale = dim**.5
        return self.conv((x.flatten(0, 1), scale * x[:, 0]), edge_index,
                         scale * weight.reshape(-1)).relu()

    def score(self, first: Tensor, second: Tensor) -> Tensor:
        r"""The logits of pairs of hidden features.

        Args:
            first (torch.Tensor): :math:`\mathbf{h}_i`, shape ``[..., C]``.
            second (torch.Tensor): :math:`\mathbf{h}_j`, of the same shape.

        Returns:
            torch.Tensor: Shape ``[...]``.
        """
        # PReLU looks for its channels in the second dimension.
        pair = join_pair(first, second, self.pair).view(-1, 2 * first.size(-1))
        return self.mlp(pair).view(first.shape[:-1])

    def forward(self, batch: PairBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        hidden = self.embed(batch.x.flatten(0, 1))
        hidden = hidden.view(batch.node.numel(), 2, -1)
        return self.score(hidden[:, 0], hidden[:, 1])

    def loss(self, batch: PairBatch) -> Tensor:
        r"""The binary cross entropy of a batch's pairs."""
        return pair_cross_entropy(self(batch), batch)
