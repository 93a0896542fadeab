from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.typing import OptTensor

from torch_sdt.loader import SubgraphBatch
from torch_sdt.nn.conv import DenseDiffAttentionConv
from torch_sdt.nn.models.mixture_of_experts import MixtureOfExperts

ATTENTIONS = ('vanilla', 'diff', 'sparse-diff')
MASKS = ('rank', 'logits')


class NeighborEncoder(torch.nn.Module):
    r"""The Transformer over the neighbours of a node that the Top-K predictor
    and the Sparse Differential Transformer share.

    The :math:`K` neighbours of a node (itself at rank 0) are tokens. What the
    token at rank :math:`r` knows at first is its row of cosines to all of
    them, :math:`\mathbf{S}_{r}` (0 to itself), its rows of other relations
    :math:`\mathbf{V}^{(m)}_{r}` (such as an earlier model's verdicts) and its
    rank:

    .. math::
        \mathbf{t}_r = \mathbf{W}_S \mathbf{S}_{r} +
        \sum_m \mathbf{W}_m \mathbf{V}^{(m)}_{r} + \mathbf{e}_r
        \; [\, + \, \mathbf{W}_x \sqrt{D} \, \mathbf{x}_r \,].

    Without the features in brackets a model does not depend on the
    embedding's dimension or coordinates, and cannot learn training identities
    by heart. Pre-norm layers follow, each attention and a feed-forward block
    (or a mixture of experts), with residuals.

    Args:
        k (int): The width :math:`K` of the table; narrower tables pass as
            well.
        in_channels (int, optional): The features' dimension :math:`D`, if the
            tokens contain them. (default: :obj:`None`)
        relations (int, optional): The number of relations in a batch.
            (default: :obj:`0`)
        hidden_channels (int, optional): Width :math:`C` of tokens.
            (default: :obj:`128`)
        ffn_channels (int, optional): Width of the feed-forward block.
            (default: :obj:`256`)
        num_layers (int, optional): Layers. (default: :obj:`2`)
        heads (int, optional): Attention heads. (default: :obj:`4`)
        attention (str, optional): :obj:`"vanilla"`, one softmax;
            :obj:`"diff"`, the difference of two
            (:class:`~torch_sdt.nn.DenseDiffAttentionConv`); or
            :obj:`"sparse-diff"`, the difference of two on the Top-K keys
            only. (default: :obj:`"diff"`)
        mask (str, optional): Which keys those are: :obj:`"rank"`, the token
            itself and ranks below :math:`k_i` plus :obj:`margin`;
            :obj:`"logits"`, as many, but those of the highest logits of each
            query. (default: :obj:`"rank"`)
        margin (int, optional): See there. (default: :obj:`10`)
        experts (int, optional): Experts of the feed-forward blocks; 1 is a
            dense block, more are :class:`MixtureOfExperts` with two to a
            token. (default: :obj:`1`)
        lambda_init (float, optional): :math:`\lambda` before training.
            (default: :obj:`.8`)
        lambda_form (str, optional): :obj:`"scalar"` or :obj:`"reparam"`, see
            :class:`~torch_sdt.nn.SparseDiffAttentionConv`.
            (default: :obj:`"scalar"`)
        dropout (float, optional): Dropout probability of what each block adds.
            (default: :obj:`.1`)

    Shapes:
        - **input:** a :class:`~torch_sdt.loader.SubgraphBatch`
        - **output:** tokens :math:`(B, K, C)`

    Raises:
        ValueError: If :obj:`attention` or :obj:`mask` is unknown, or
            :obj:`hidden_channels` no multiple of :obj:`heads`.
    """

    def __init__(
        self,
        k: int,
        in_channels: Optional[int] = None,
        relations: int = 0,
        hidden_channels: int = 128,
        ffn_channels: int = 256,
        num_layers: int = 2,
        heads: int = 4,
        attention: str = 'diff',
        mask: str = 'rank',
        margin: int = 10,
        experts: int = 1,
        lambda_init: float = .8,
        lambda_form: str = 'scalar',
        dropout: float = .1,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"'attention' must be one of {list(ATTENTIONS)} "
                             f"(got '{attention}')")
        if mask not in MASKS:
            raise ValueError(f"'mask' must be one of {list(MASKS)} (got "
                             f"'{mask}')")
        if hidden_channels % heads != 0:
            raise ValueError(f"'hidden_channels' must be a multiple of the "
                             f"{heads} heads (got {hidden_channels})")
        self.k = k
        self.in_channels = in_channels
        self.relations = relations
        self.attention = attention
        self.mask = mask
        self.margin = margin
        self.relation_weight = Parameter(
            torch.empty(1 + relations, k, hidden_channels))
        self.rank = Parameter(torch.empty(k, hidden_channels))
        self.lin_feature: Optional[torch.nn.Linear] = None
        if in_channels is not None:
            self.lin_feature = torch.nn.Linear(in_channels, hidden_channels)
        self.layers = torch.nn.ModuleList(
            _Layer(hidden_channels, ffn_channels, heads,
                   attention != 'vanilla', experts, lambda_init, lambda_form,
                   dropout) for _ in range(num_layers))
        self.norm = torch.nn.LayerNorm(hidden_channels)
        bound = ((1 + relations) * k)**-.5
        torch.nn.init.uniform_(self.relation_weight, -bound, bound)
        torch.nn.init.normal_(self.rank, std=.02)

    def forward(self, batch: SubgraphBatch, first: Optional[int] = None
                ) -> Tensor:
        r"""Runs the forward pass of the module.

        Args:
            batch (SubgraphBatch): The subgraphs; sparse attention needs their
                ``k``.
            first (int, optional): How many of the tokens are wanted: the last
                feed-forward block makes no others. (default: all)

        Raises:
            ValueError: If the subgraphs are wider than :math:`K`, have
                another number of relations, or miss the ``k`` that sparse
                attention needs.
        """
        rows, width = self._rows(batch), batch.similarity.size(-1)
        weight = self.relation_weight[:, :width].flatten(0, 1)
        x = rows @ weight + self.rank[:width]
        if self.lin_feature is not None:
            # Unit rows, brought to the scale of a normalised layer.
            x = x + self.lin_feature(batch.x * batch.x.size(-1)**.5)
        allowed, keep = self._allowed(batch.k, width)
        for layer in self.layers:
            wanted = first if layer is self.layers[-1] else None
            x = layer(x, allowed, keep, wanted)
        return self.norm(x[:, :first])

    def balance_loss(self) -> Tensor:
        r"""The mean :attr:`MixtureOfExperts.balance_loss` of the layers in the
        last forward pass; 0 if they are dense.
        """
        losses = [module.balance_loss for module in self.modules()
                  if isinstance(module, MixtureOfExperts)]
        losses = [loss for loss in losses if loss is not None]
        if len(losses) == 0:
            return self.rank.new_zeros(())
        return torch.stack(losses).mean()  # type: ignore[arg-type]

    def _rows(self, batch: SubgraphBatch) -> Tensor:
        width = batch.similarity.size(-1)
        if width > self.k:
            raise ValueError(f"The model was built for tables of at most "
                             f"{self.k} neighbours (got {width})")
        found = 0 if batch.relation is None else batch.relation.size(1)
        if found != self.relations:
            raise ValueError(f"The model was built for {self.relations} "
                             f"relations (got {found})")
        similarity = batch.similarity.clone()
        similarity.diagonal(dim1=1, dim2=2).zero_()
        if batch.relation is None:
            return similarity
        return torch.cat([similarity, *batch.relation.unbind(dim=1)], dim=-1)

    def _allowed(self, k: OptTensor, width: int
                 ) -> Tuple[OptTensor, OptTensor]:
        # The keys that each query may see, and how many it keeps by logits.
        if self.attention != 'sparse-diff':
            return None, None
        if k is None:
            raise ValueError("Sparse attention needs the batch's 'k', how "
                             "many neighbours each node trusts")
        k = (k + self.margin).clamp(max=width)
        if self.mask == 'logits':
            return None, k
        rank = torch.arange(width, device=k.device)
        near = (rank < k.view(-1, 1)).unsqueeze(1)
        return near | (rank == rank.view(-1, 1)), None


class _Layer(torch.nn.Module):
    # Attention and feed-forward block, pre-norm.

    def __init__(self, channels: int, ffn_channels: int, heads: int,
                 diff: bool, experts: int, lambda_init: float,
                 lambda_form: str, dropout: float) -> None:
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(channels)
        self.norm2 = torch.nn.LayerNorm(channels)
        self.attention: torch.nn.Module
        if diff:
            self.attention = DenseDiffAttentionConv(
                channels, channels // heads, heads, lambda_init=lambda_init,
                lambda_form=lambda_form)
            self.lin_out: torch.nn.Module = torch.nn.Linear(channels, channels)
        else:
            self.attention = torch.nn.MultiheadAttention(
                channels, heads, batch_first=True)
            self.lin_out = torch.nn.Identity()  # It has one of its own.
        self.diff = diff
        if experts > 1:
            self.ffn: torch.nn.Module = MixtureOfExperts(
                channels, ffn_channels, experts)
        else:
            self.ffn = torch.nn.Sequential(
                torch.nn.Linear(channels, ffn_channels), torch.nn.GELU(),
                torch.nn.Linear(ffn_channels, channels))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Optional[Tensor],
                keep: Optional[Tensor], first: Optional[int] = None) -> Tensor:
        h = self.norm1(x)
        if self.diff:
            h = self.attention(h, mask=allowed, k=keep)[:, :first]
        else:
            query = h if first is None else h[:, :first]
            h = self.attention(query, h, h, need_weights=False)[0]
        x = x[:, :first] + self.dropout(self.lin_out(h))
        return x + self.dropout(self.ffn(self.norm2(x)))
