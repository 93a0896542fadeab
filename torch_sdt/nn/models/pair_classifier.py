import torch
import torch.nn.functional as F
from torch import Tensor

from torch_sdt.loader import PairBatch

PAIRS = ('concat', 'product')


def check_pair(pair: str) -> None:
    r"""Raises a :class:`ValueError` unless :meth:`join_pair` knows it."""
    if pair not in PAIRS:
        raise ValueError(f"'pair' must be one of {list(PAIRS)} (got "
                         f"{pair!r})")


def join_pair(first: Tensor, second: Tensor, pair: str = 'concat') -> Tensor:
    r"""What a perceptron sees of two samples.

    Args:
        first (torch.Tensor): Shape ``[..., C]``.
        second (torch.Tensor): Of the same shape.
        pair (str, optional): :obj:`"concat"`, one after the other; or
            :obj:`"product"`, the size of their difference and their product,
            both elementwise, for which their order makes no difference.
            (default: :obj:`"concat"`)

    Returns:
        torch.Tensor: Shape ``[..., 2 * C]``.
    """
    if pair == 'concat':
        return torch.cat([first, second], dim=-1)
    return torch.cat([(first - second).abs(), first * second], dim=-1)


def pair_cross_entropy(logits: Tensor, batch: PairBatch) -> Tensor:
    r"""The mean binary cross entropy of a batch's pairs.

    Raises:
        ValueError: If the loader was not given any identities.
    """
    if batch.same is None:
        raise ValueError("The batch has no targets to train on: give the "
                         "loader the identities 'y'")
    return F.binary_cross_entropy_with_logits(logits.float(),
                                              batch.same.float())


class PairClassifier(torch.nn.Module):
    r"""Are two samples of one identity? A multilayer perceptron in the way of
    `"Learn to Cluster Faces via Pairwise Classification"
    <https://arxiv.org/abs/2205.13117>`_ (Pair-Cls).

    A sample is what stands for it, :math:`\mathbf{z}_i`: in
    :class:`~torch_sdt.cluster.PairCls` its features and its context. The
    perceptron gives one logit of :math:`[\mathbf{z}_i \, \Vert \,
    \mathbf{z}_j]`, from which it has to learn by example how to compare two
    vectors: of a few hundred identities it learns who they are instead. With
    ``pair='product'`` it is given :math:`[\, |\mathbf{z}_i - \mathbf{z}_j|
    \, \Vert \, \mathbf{z}_i \odot \mathbf{z}_j]`, for which dozens are
    enough.

    How it differs from the paper: of that no code is public, and this is a
    reconstruction. That pairs are classified, with contexts, is the paper's;
    the layers are ours.

    Args:
        in_channels (int): The dimension of :math:`\mathbf{z}`.
        hidden_channels (int, optional): Width; the second hidden layer has
            half of it. (default: :obj:`512`)
        pair (str, optional): :obj:`"concat"` or :obj:`"product"`.
            (default: :obj:`"concat"`)
        dropout (float, optional): Dropout before the last layer.
            (default: :obj:`.1`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.PairBatch` of :math:`B`
          pairs, of whose features those at rank 0 are read
        - **output:** logits :math:`(B)`

    Raises:
        ValueError: If :obj:`pair` is not known.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 512,
                 pair: str = 'concat', dropout: float = .1) -> None:
        super().__init__()
        check_pair(pair)
        half = max(hidden_channels // 2, 1)
        self.pair = pair
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(2 * in_channels, hidden_channels),
            torch.nn.PReLU(hidden_channels),
            torch.nn.Linear(hidden_channels, half), torch.nn.PReLU(half),
            torch.nn.Dropout(dropout), torch.nn.Linear(half, 1))

    def forward(self, batch: PairBatch) -> Tensor:
        r"""Runs the forward pass of the module."""
        first, second = batch.x[:, 0, 0], batch.x[:, 1, 0]
        return self.mlp(join_pair(first, second, self.pair)).squeeze(-1)

    def loss(self, batch: PairBatch) -> Tensor:
        r"""The binary cross entropy of a batch's pairs."""
        return pair_cross_entropy(self(batch), batch)
