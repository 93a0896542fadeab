import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.models.pair_head import pair_loss, targets


class ClusformerModel(torch.nn.Module):
    r"""The Transformer of `"Clusformer: A Transformer Based Clustering
    Approach to Unsupervised Large-Scale Face and Visual Landmark Recognition"
    <https://openaccess.thecvf.com/content/CVPR2021/html/Nguyen_Clusformer_A_Transformer_Based_Clustering_Approach_to_Unsupervised_Large-Scale_Face_CVPR_2021_paper.html>`_:
    which of a node's neighbours are of its identity?

    The token of the neighbour at rank :math:`r` are its feature and its
    cosines with all neighbours in the order of their rank,

    .. math::
        \mathbf{t}_r = \mathbf{W} \, [\mathbf{x}_r \, \Vert \, a_{r0}, \ldots,
        a_{r,K-1}] + \mathbf{b}.

    An encoder reads the tokens; a decoder turns :math:`K` learned queries,
    one a rank, into one logit each. What tells a rank is the place at which a
    token's cosine is 1, its own.

    How it differs from the released code: tokens are projected to a width
    that does not depend on :math:`D` and :math:`K` (there it is their sum,
    336); the node's own logit is not trained.

    Args:
        in_channels (int): The features' dimension :math:`D`.
        k (int): The width :math:`K` of the table; narrower ones are padded
            with cosines of 0.
        hidden_channels (int, optional): Width of tokens.
            (default: :obj:`336`)
        num_layers (int, optional): Layers of the encoder, and of the decoder.
            (default: :obj:`6`)
        heads (int, optional): Attention heads. (default: :obj:`6`)
        ffn_channels (int, optional): Width of the feed-forward networks.
            (default: :obj:`1024`)
        dropout (float, optional): Dropout. (default: :obj:`.1`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** logits :math:`(B, K)`
    """

    def __init__(self, in_channels: int, k: int, hidden_channels: int = 336,
                 num_layers: int = 6, heads: int = 6,
                 ffn_channels: int = 1024, dropout: float = .1) -> None:
        super().__init__()
        self.k = k
        self.lin = torch.nn.Linear(in_channels + k, hidden_channels)
        self.query = torch.nn.Embedding(k, hidden_channels)
        self.transformer = torch.nn.Transformer(
            hidden_channels, heads, num_layers, num_layers, ffn_channels,
            dropout, batch_first=True)
        self.out = torch.nn.Linear(hidden_channels, 1)

    def forward(self, batch: SubgraphBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        size, width = batch.index.shape
        if width > self.k:
            raise ValueError(f"The model reads {self.k} neighbours (got a "
                             f"batch of {width})")
        cosine = F.pad(batch.similarity, (0, self.k - width))
        token = self.lin(torch.cat([batch.x, cosine], dim=-1))
        query = self.query.weight[:width].expand(size, -1, -1)
        return self.out(self.transformer(token, query)).squeeze(-1)

    def loss(self, batch: SubgraphBatch) -> Tensor:
        r"""Binary cross entropy of the neighbours."""
        same, _ = targets(batch)
        return pair_loss(self(batch), same)
