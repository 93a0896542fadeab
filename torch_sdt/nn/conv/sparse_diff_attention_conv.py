from math import inf
from typing import Any, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor, PairTensor, SparseTensor
from torch_geometric.utils import (
    is_sparse,
    is_torch_sparse_tensor,
    softmax,
    to_edge_index,
)
from torch_geometric.utils.sparse import set_sparse_value

from torch_sdt.nn.conv._diff_attention import DiffAttention
from torch_sdt.ops.diff_attention import (
    check_k,
    check_score,
    edge_logits,
    edge_sum,
    topk_edge_mask,
)


class SparseDiffAttentionConv(DiffAttention, MessagePassing):
    r"""The differential attention operator on graphs, in which every target
    attends to its :math:`k` best neighbours, from `"Enhancing Noise
    Resilience in Face Clustering via Sparse Differential Transformer"
    <https://arxiv.org/abs/2512.22612>`_ and `"Differential Transformer"
    <https://arxiv.org/abs/2410.05258>`_.

    Two attention maps are subtracted, which cancels what both attend to,
    noise among it:

    .. math::
        \mathbf{x}^{\prime}_i = \mathbf{b} + \sum_{j \in \mathcal{N}_k(i)}
        \left( \alpha^{(1)}_{i,j} - \lambda \, \alpha^{(2)}_{i,j} \right)
        \mathbf{W}_V \mathbf{x}_j, \qquad
        \alpha^{(m)}_{i,j} = \underset{j \in \mathcal{N}_k(i)}
        {\mathrm{softmax}} \left( \frac{
        (\mathbf{W}^{(m)}_Q \mathbf{x}_i)^{\top}
        \mathbf{W}^{(m)}_K \mathbf{x}_j}{\sqrt{d}} \right),

    in each of the heads, which are then concatenated or averaged. There,
    :math:`\mathcal{N}_k(i)` are the sources of the :math:`k` incoming edges
    of :math:`i` that are kept, the same in both maps, :math:`\lambda` a
    learnable scalar that all heads of the layer share, :math:`\mathbf{b}` the
    bias, and :math:`d` the width of a query. Both maps have the **full
    width**: :math:`d` is :obj:`out_channels`, as that of the values is, which
    is what fused kernels ask for (the Differential Transformer gives each map
    half the width of its values). Projections have no bias.

    Edge features enter as in :class:`~torch_geometric.nn.TransformerConv`:
    :math:`\mathbf{W}_E \mathbf{e}_{i,j}`, with one :math:`\mathbf{W}_E` for
    all three, is added to both keys and to the value. With
    :math:`\lambda = 0` the layer *is* that one with
    :obj:`root_weight=False`, both without :obj:`bias`.

    Which edges are kept: those of highest :obj:`edge_score`, or, if none is
    given, of the highest logits of the first map, in each head for itself.
    Equal ones go by the smaller source. No gradient flows through the choice.

    With :obj:`lambda_form="reparam"`, :math:`\lambda` and what follows the
    heads are as in the Differential Transformer,

    .. math::
        \lambda = \exp(\langle \boldsymbol{\lambda}_{q_1},
        \boldsymbol{\lambda}_{k_1} \rangle) -
        \exp(\langle \boldsymbol{\lambda}_{q_2},
        \boldsymbol{\lambda}_{k_2} \rangle) + \lambda_{\mathrm{init}}, \qquad
        \mathbf{h} \mapsto (1 - \lambda_{\mathrm{init}}) \,
        \mathrm{RMSNorm}(\mathbf{h}),

    with vectors :math:`\boldsymbol{\lambda} \in \mathbb{R}^d` drawn from
    :math:`\mathcal{N}(0, 0.1^2)`, and a norm of each head :math:`\mathbf{h}`
    whose gain the heads share.

    .. note::
        Weights are signed, and sum to :math:`1 - \lambda` over the edges of a
        target. Explanations that look for positive ones
        (:meth:`~torch_geometric.explain.Explanation.\
get_explanation_subgraph`) leave out edges that count against.

    .. note::
        Rows of queries, keys and messages are never held for all edges at
        once, but computed by parts, and again in the backward pass: memory is
        :math:`\mathcal{O}(|\mathcal{E}| \cdot H)`, beside that of nodes and
        of edge features.
        Messages are formed where somebody wants to see them, an explainer or
        a hook, and for other aggregations than the sum.

    .. note::
        A mask by :obj:`edge_score` does not change while a network learns.
        :meth:`torch_sdt.ops.topk_edge_mask` computes it once, and the layer
        without :obj:`k` on the edges that are left gives the same output in
        less time and memory.

    .. note::
        There are derivatives of any order in reverse mode, but no forward
        mode (:obj:`torch.func.jvp`) and no vectorised Jacobian.

    Args:
        in_channels (int or tuple): Size of each input sample, or :obj:`-1` to
            derive the size from the first input(s) to the forward method.
            A tuple corresponds to the sizes of source and target
            dimensionalities.
        out_channels (int): Size of each output sample, of each head.
        heads (int, optional): Number of attention heads.
            (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, the heads are
            averaged instead of concatenated. (default: :obj:`True`)
        k (int, optional): How many of its incoming edges each target keeps.
            (default: all)
        lambda_init (float, optional): :math:`\lambda` before training, or
            :math:`\lambda_{\mathrm{init}}`. (default: :obj:`.8`)
        lambda_form (str, optional): :obj:`"scalar"` learns :math:`\lambda`
            itself, :obj:`"reparam"` as written above.
            (default: :obj:`"scalar"`)
        edge_dim (int, optional): Edge feature dimensionality (in case
            there are any). (default: :obj:`None`)
        dropout (float, optional): Dropout probability of the attention
            weights during training, of both maps at once.
            (default: :obj:`0.`)
        bias (bool, optional): If set to :obj:`False`, the layer will not
            learn an additive bias. (default: :obj:`True`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})` or
          :math:`((|\mathcal{V_s}|, F_{s}), (|\mathcal{V_t}|, F_{t}))`
          if bipartite,
          edge indices :math:`(2, |\mathcal{E}|)`,
          edge features :math:`(|\mathcal{E}|, D)` *(optional)*,
          edge scores :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, H * F_{out})` or
          :math:`(|\mathcal{V}_t|, H * F_{out})` if bipartite.
          If :obj:`return_attention_weights=True`, then
          :math:`((|\mathcal{V}|, H * F_{out}),
          ((2, |\mathcal{E}|), (|\mathcal{E}|, H)))`
          or :math:`((|\mathcal{V_t}|, H * F_{out}), ((2, |\mathcal{E}|),
          (|\mathcal{E}|, H)))` if bipartite

    Raises:
        ValueError: If :obj:`lambda_form` is unknown, :obj:`k` is no positive
            integer, or :obj:`dropout` is no probability.
    """
    def __init__(
        self,
        in_channels: Union[int, Tuple[int, int]],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        k: Optional[int] = None,
        lambda_init: float = .8,
        lambda_form: str = 'scalar',
        edge_dim: Optional[int] = None,
        dropout: float = 0.,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault('aggr', 'add')
        super().__init__(node_dim=0, **kwargs)

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

        if isinstance(in_channels, int):
            in_channels = (in_channels, in_channels)
        self._create_parameters(in_channels, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        super().reset_parameters()
        self._reset_parameters()

    def forward(
        self,
        x: Union[Tensor, PairTensor],
        edge_index: Adj,
        edge_attr: OptTensor = None,
        edge_score: OptTensor = None,
        k: Optional[Union[int, Tensor]] = None,
        return_attention_weights: Optional[bool] = None,
    ) -> Union[
            Tensor,
            Tuple[Tensor, Tuple[Tensor, Tensor]],
            Tuple[Tensor, SparseTensor],
    ]:
        r"""Runs the forward pass of the module.

        Args:
            x (torch.Tensor or (torch.Tensor, torch.Tensor)): The input node
                features.
            edge_index (torch.Tensor or SparseTensor): The edge indices.
            edge_attr (torch.Tensor, optional): The edge features. Needed if
                and only if :obj:`edge_dim` is set.
                (default: :obj:`None`)
            edge_score (torch.Tensor, optional): By what the :obj:`k` edges of
                a target are chosen, one number an edge, the highest first.
                (default: the logits of the first map)
            k (int or torch.Tensor, optional): How many of its incoming edges
                each target keeps, an integer or one a target.
                (default: that of the constructor)
            return_attention_weights (bool, optional): If set to :obj:`True`,
                will additionally return the tuple
                :obj:`(edge_index, attention_weights)`, holding the signed
                attention weights of each edge, 0 where it was not kept,
                before dropout. (default: :obj:`None`)

        Raises:
            ValueError: If a shape is wrong, edge features are missing or are
                not expected, or :obj:`k` is no positive integer.
        """
        if isinstance(x, Tensor):
            x = (x, x)
        if k is None:
            k = self.k
        if edge_attr is None and self.edge_dim is not None:
            edge_attr = _edge_features(edge_index)
        size = (x[0].size(0), x[1].size(0))
        edges = self._to_edges(edge_index, size)
        self._check_inputs(size, edges, edge_attr, edge_score, k)

        H, C = self.heads, self.out_channels
        query = self.lin_query(x[1]).view(-1, 2, H, C)
        key = self.lin_key(x[0]).view(-1, 2, H, C)
        value = self.lin_value(x[0]).view(-1, H, C)
        edge: Optional[Tensor] = None
        if edge_attr is not None:
            assert self.lin_edge is not None
            if edge_attr.dim() == 1:
                edge_attr = edge_attr.view(-1, 1)
            edge = self.lin_edge(edge_attr).view(-1, H, C)

        # edge_updater_type: (query: Tensor, key: Tensor, edge: OptTensor,
        #                     edge_score: OptTensor,
        #                     k: Optional[Union[int, Tensor]])
        alpha = self.edge_updater(edges, query=query, key=key, edge=edge,
                                  edge_score=edge_score, k=k)
        kept = F.dropout(alpha, p=self.dropout, training=self.training)

        if self._needs_messages():
            # In the order of the rows of `edges`.
            if self.flow == 'target_to_source':
                size = (size[1], size[0])
            # propagate_type: (value: Tensor, alpha: Tensor, edge: OptTensor)
            out = self.propagate(edges, value=value, alpha=kept, edge=edge,
                                 size=size)
        else:
            source, target = edges[0], edges[1]
            if self.flow == 'target_to_source':
                source, target = target, source
            out = edge_sum(value, kept, source, target, size[1], edge)
        out = self._merge_heads(out)

        if return_attention_weights:
            if isinstance(edge_index, Tensor):
                if is_torch_sparse_tensor(edge_index):
                    return out, (set_sparse_value(edge_index, alpha), alpha)
                return out, (edge_index, alpha)
            return out, edge_index.set_value(alpha, layout='coo')
        return out

    def edge_update(self, query: Tensor, key: Tensor, edge: OptTensor,
                    edge_score: OptTensor, k: Optional[Union[int, Tensor]],
                    edge_index_i: Tensor, edge_index_j: Tensor) -> Tensor:
        r"""Computes the attention weights of all edges, ``[E, H]``."""
        num_targets = query.size(0)
        logits = edge_logits(query, key, edge_index_j, edge_index_i, edge)
        if k is not None:
            pairs = torch.stack([edge_index_j, edge_index_i])
            if edge_score is None:
                # What is not a number comes out so: no mask may hide it.
                score = logits[:, 0].detach().nan_to_num(inf, inf, -inf)
                keep = topk_edge_mask(score, pairs, k,
                                      num_targets).unsqueeze(1)
            else:
                keep = topk_edge_mask(edge_score, pairs, k,
                                      num_targets).view(-1, 1, 1)
            logits = logits.masked_fill(~keep, float('-inf'))
        alpha = softmax(logits.flatten(1), edge_index_i,
                        num_nodes=num_targets)
        first, second = alpha.chunk(2, dim=1)
        return first - self.compute_lambda() * second

    def message(self, value_j: Tensor, alpha: Tensor,
                edge: OptTensor) -> Tensor:
        r"""Computes the messages along all edges, ``[E, H, C]``."""
        if edge is not None:
            value_j = value_j + edge
        return value_j * alpha.to(value_j.dtype).unsqueeze(-1)

    def _needs_messages(self) -> bool:
        # Somebody explains, looks at or has redefined them, or they are not
        # summed; a compiler does without their memory anyway. Else, the sum
        # over the edges is had without.
        hooks = [self._propagate_forward_pre_hooks,
                 self._propagate_forward_hooks,
                 self._message_forward_pre_hooks,
                 self._message_forward_hooks,
                 self._aggregate_forward_pre_hooks,
                 self._aggregate_forward_hooks]
        return (torch.compiler.is_compiling() or self.explain is True
                or any(len(hook) > 0 for hook in hooks)
                or not isinstance(self.aggr_module, SumAggregation)
                or any(getattr(getattr(self, name), '__func__', None)
                       is not getattr(SparseDiffAttentionConv, name)
                       for name in ('message', 'aggregate', 'update')))

    def _to_edges(self, edge_index: Adj, size: Tuple[int, int]) -> Tensor:
        # To plain `[2, E]`, whatever holds the edges.
        given: Tuple[Optional[int], Optional[int]] = (None, None)
        if isinstance(edge_index, EdgeIndex):
            given = edge_index.sparse_size()
            if self.flow == 'target_to_source':
                given = (given[1], given[0])
            edge_index = edge_index.as_tensor()
        elif is_sparse(edge_index):
            # The transposed adjacency matrix.
            given = (edge_index.size(1), edge_index.size(0))
            if self.flow == 'target_to_source':
                raise ValueError("A sparse matrix fixes the direction of its "
                                 "edges: pass it transposed, and leave 'flow' "
                                 "at 'source_to_target'")
            edge_index = to_edge_index(edge_index)[0].flip(0)
        for name, number, wanted in zip(('sources', 'targets'), given, size):
            if number is not None and number != wanted:
                raise ValueError(f"'edge_index' is of {number} {name}, 'x' of "
                                 f"{wanted}")
        return edge_index

    def _check_inputs(self, size: Tuple[int, int], edges: Tensor,
                      edge_attr: OptTensor, edge_score: OptTensor,
                      k: Optional[Union[int, Tensor]]) -> None:
        num_edges = edges.size(1)
        if edge_attr is None and self.edge_dim is not None:
            raise ValueError(f"'edge_attr' is missing: the layer was built "
                             f"with 'edge_dim={self.edge_dim}'")
        if edge_attr is not None:
            if self.edge_dim is None:
                raise ValueError("'edge_attr' is not expected: the layer was "
                                 "built without 'edge_dim'")
            if edge_attr.dim() not in {1, 2} or edge_attr.size(
                    0) != num_edges:
                raise ValueError(f"'edge_attr' must have {num_edges} rows, "
                                 f"one an edge (got shape "
                                 f"{list(edge_attr.shape)})")
        if edge_score is not None:
            if edge_score.dim() != 1 or edge_score.size(0) != num_edges:
                raise ValueError(f"'edge_score' must have shape "
                                 f"[{num_edges}], a number an edge (got "
                                 f"{list(edge_score.shape)})")
            check_score('edge_score', edge_score)
        if k is not None:
            check_k(k, [(size[1], )])

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.in_channels}, '
                f'{self.out_channels}, heads={self.heads})')


def _edge_features(edge_index: Adj) -> OptTensor:
    # A sparse matrix may hold them as its values.
    value: OptTensor = None
    if not isinstance(edge_index, Tensor):
        value = edge_index.storage.value()
    elif is_torch_sparse_tensor(edge_index):
        value = edge_index.values()
    return value if value is not None and value.dim() > 1 else None
