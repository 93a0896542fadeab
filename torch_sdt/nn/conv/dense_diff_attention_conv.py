from math import sqrt
from typing import List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.typing import OptTensor

from torch_sdt.nn.conv._diff_attention import DiffAttention
from torch_sdt.ops.diff_attention import (
    check_k,
    check_score,
    diff_attention,
    diff_softmax,
    topk_mask,
)


class DenseDiffAttentionConv(DiffAttention, torch.nn.Module):
    r"""The dense twin of :class:`~torch_sdt.nn.SparseDiffAttentionConv`, for
    batches of graphs of at most :math:`L` nodes in which everything may
    attend to everything, as tokens do.

    .. math::
        \mathbf{X}^{\prime} = \left(
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_1
        \mathbf{K}_1^{\top}}{\sqrt{d}} \right) \right) - \lambda \,
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_2
        \mathbf{K}_2^{\top}}{\sqrt{d}} \right) \right)
        \right) \mathbf{V} + \mathbf{b},

    where :math:`\mathbf{Q}_m = \mathbf{X} \mathbf{W}^{(m)\top}_Q`,
    :math:`\mathbf{K}_m = \mathbf{X} \mathbf{W}^{(m)\top}_K` and
    :math:`\mathbf{V} = \mathbf{X} \mathbf{W}_V^{\top}` in each head, all of
    width :math:`d`, that is, :obj:`out_channels`, and :math:`M` sets to
    :math:`-\infty` the pairs that :obj:`mask` excludes and those that are not
    among the :math:`k` best of their query. See there for :math:`\lambda`,
    its two forms and edge features.

    Both layers have the same parameters under the same names: each loads the
    other's :meth:`state_dict`, and gives the same output on the same graph,
    where pair :math:`(i, j)` of the dense one is edge :math:`(j, i)`.

    Without edge features, weights to return or dropout, and if :math:`k` best
    are chosen by :obj:`score`, it runs two fused
    :meth:`~torch.nn.functional.scaled_dot_product_attention` and subtracts.
    Elsewhere it forms both maps, of :math:`B \cdot H \cdot L^2` weights each.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive
            the size from the first input to the forward method.
        out_channels (int): Size of each output sample, of each head.
        heads (int, optional): Number of attention heads.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the heads are
            averaged instead of concatenated. (default: :obj:`True`)
        k (int, optional): How many keys each query keeps. (default: all)
        lambda_init (float, optional): :math:`\lambda` before training, or
            :math:`\lambda_{\mathrm{init}}`. (default: :obj:`.8`)
        lambda_form (str, optional): :obj:`"scalar"` or :obj:`"reparam"`.
            (default: :obj:`"scalar"`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). (default: :obj:`None`)
        dropout (float, optional): Dropout probability of the attention
            weights during training, of both maps at once.
            (default: :obj:`0.`)
        bias (bool, optional): If set to :obj:`False`, the layer will not
            learn an additive bias. (default: :obj:`True`)

    Shapes:
        - **input:** node features :math:`(B, L, F_{in})`,
          mask :math:`(B, L)` or :math:`(B, L, L)` *(optional)*,
          edge features :math:`(B, L, L, D)` *(optional)*,
          scores :math:`(B, L)` or :math:`(B, L, L)` *(optional)*
        - **output:** node features :math:`(B, L, H * F_{out})`.
          If :obj:`return_attention_weights=True`, then
          :math:`((B, L, H * F_{out}), (B, H, L, L))`

    Raises:
        ValueError: If :obj:`lambda_form` is unknown, :obj:`k` is no positive
            integer, :obj:`edge_dim` is not positive, or :obj:`dropout` is no
            probability.
    """
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        k: Optional[int] = None,
        lambda_init: float = .8,
        lambda_form: str = 'scalar',
        edge_dim: Optional[int] = None,
        dropout: float = 0.,
        bias: bool = True,
    ) -> None:
        super().__init__()

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.k = k
        self.lambda_init = lambda_init
        self.lambda_form = lambda_form
        self.edge_dim = edge_dim
        self.dropout = dropout
        self._check_arguments()
        if edge_dim is not None and edge_dim < 1:
            raise ValueError(f"'edge_dim' must be positive (got {edge_dim})")

        self._create_parameters((in_channels, in_channels), bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self._reset_parameters()

    def forward(
        self,
        x: Tensor,
        mask: OptTensor = None,
        edge_attr: OptTensor = None,
        score: OptTensor = None,
        k: Optional[Union[int, Tensor]] = None,
        return_attention_weights: Optional[bool] = None,
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        r"""Forward pass.

        Args:
            x (torch.Tensor): The node features, shape ``[B, L, F]``.
            mask (torch.Tensor, optional): Boolean. Of shape ``[B, L]``, the
                nodes that exist: the others are attended to by none, and what
                they attend to themselves is of no use. Of shape ``[B, L, L]``,
                whether query (row) may attend to key (column). A query
                without keys gets the bias. (default: all)
            edge_attr (torch.Tensor, optional): The features of each pair of
                query and key, shape ``[B, L, L, D]``. Needed if and only if
                :obj:`edge_dim` is set. (default: :obj:`None`)
            score (torch.Tensor, optional): By what a query's :math:`k` keys
                are chosen, the highest first, ties by position: of shape
                ``[B, L]``, the same for all queries, or ``[B, L, L]``.
                (default: the logits of the first map, in each head)
            k (int or torch.Tensor, optional): How many keys each query keeps,
                of those that the mask allows: an integer, or integers of
                shape ``[B]`` or ``[B, L]``.
                (default: that of the constructor)
            return_attention_weights (bool, optional): If set to :obj:`True`,
                will additionally return the signed attention weights, 0 where
                a key was not kept, before dropout.
                (default: :obj:`None`)

        Raises:
            ValueError: If a shape is wrong, edge features are missing or are
                not expected, or :obj:`k` is no positive integer.
        """
        if k is None:
            k = self.k
        self._check_inputs(x, mask, edge_attr, score, k)
        (B, L, _), H, C = x.shape, self.heads, self.out_channels

        # Both maps of each, [B, H, L, C].
        query, key = [
            [part.transpose(1, 2)
             for part in lin(x).view(B, L, 2, H, C).unbind(dim=2)]
            for lin in (self.lin_query, self.lin_key)]
        value = self.lin_value(x).view(B, L, H, C).transpose(1, 2)

        # To [B, 1, 1 or L, L], and to [B, 1, 1 or L, 1].
        if mask is not None:
            mask = mask.view(B, 1, L if mask.dim() == 3 else 1, L)
        if score is not None:
            score = score.view(B, 1, L if score.dim() == 3 else 1, L)
        if isinstance(k, Tensor):
            k = k.view(B, 1, L if k.dim() == 2 else 1, 1)
        if k is not None and score is not None:
            mask = topk_mask(score, k, mask)

        lam = self.compute_lambda()
        if not (return_attention_weights or edge_attr is not None
                or k is not None and score is None
                or self.training and self.dropout > 0):
            out = diff_attention((query[0], query[1]), (key[0], key[1]),
                                 value, lam, mask)
            return self._merge_heads(out.transpose(1, 2))

        weight: OptTensor = None
        if self.lin_edge is not None:
            weight = self.lin_edge.weight.view(H, C, -1)
        first, second = [self._logits(query[m], key[m], edge_attr, weight)
                         for m in range(2)]
        if k is not None and score is None:
            mask = topk_mask(first.detach(), k, mask)
        alpha = diff_softmax(first, second, lam, mask)
        kept = F.dropout(alpha, p=self.dropout, training=self.training)
        kept = kept.to(value.dtype)
        out = kept @ value
        if weight is not None:
            out = out + torch.einsum('bhij,bijd,hcd->bhic', kept, edge_attr,
                                     weight)
        out = self._merge_heads(out.transpose(1, 2))
        return (out, alpha) if return_attention_weights else out

    def _logits(self, query: Tensor, key: Tensor, edge_attr: OptTensor,
                weight: OptTensor) -> Tensor:
        logits = query @ key.transpose(-1, -2)
        if weight is not None:
            # <q, k + W e> is <q, k> + <W^T q, e>: no need of W e for all
            # pairs. So with values.
            logits = logits + torch.einsum('bhic,hcd,bijd->bhij', query,
                                           weight, edge_attr)
        dtype = torch.promote_types(logits.dtype, torch.float)
        return logits.to(dtype) / sqrt(self.out_channels)

    def _check_inputs(self, x: Tensor, mask: OptTensor, edge_attr: OptTensor,
                      score: OptTensor,
                      k: Optional[Union[int, Tensor]]) -> None:
        if x.dim() != 3:
            raise ValueError(f"'x' must have shape [B, L, F] (got "
                             f"{list(x.shape)})")
        B, L, _ = x.shape
        shapes: List[Tuple[int, ...]] = [(B, L), (B, L, L)]
        if mask is not None and (mask.dtype != torch.bool
                                 or mask.shape not in shapes):
            raise ValueError(f"'mask' must be boolean of shape {[B, L]} or "
                             f"{[B, L, L]} (got {mask.dtype} of shape "
                             f"{list(mask.shape)})")
        if edge_attr is None and self.edge_dim is not None:
            raise ValueError(f"'edge_attr' is missing: the layer was built "
                             f"with 'edge_dim={self.edge_dim}'")
        if edge_attr is not None:
            if self.edge_dim is None:
                raise ValueError("'edge_attr' is not expected: the layer was "
                                 "built without 'edge_dim'")
            if edge_attr.shape != (B, L, L, self.edge_dim):
                raise ValueError(f"'edge_attr' must have shape "
                                 f"{[B, L, L, self.edge_dim]} (got "
                                 f"{list(edge_attr.shape)})")
        if score is not None:
            if score.shape not in shapes:
                raise ValueError(f"'score' must have shape {[B, L]} or "
                                 f"{[B, L, L]} (got {list(score.shape)})")
            check_score('score', score)
        if k is not None:
            check_k(k, [(B, ), (B, L)])

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.in_channels}, '
                f'{self.out_channels}, heads={self.heads})')
