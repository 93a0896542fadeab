r"""Differential attention: on edges, on dense batches, and its Top-K mask."""
from __future__ import annotations

from math import sqrt
from typing import Any, List, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import degree


def diff_attention(
    query: Union[Tensor, Tuple[Tensor, Tensor]],
    key: Union[Tensor, Tuple[Tensor, Tensor]],
    value: Tensor,
    lam: Union[float, Tensor],
    mask: Optional[Tensor] = None,
) -> Tensor:
    r"""Differential attention between the rows of dense batches.

    With queries :math:`\mathbf{Q}_m`, keys :math:`\mathbf{K}_m` of the two
    maps :math:`m \in \{ 1, 2 \}`, values :math:`\mathbf{V}` and the keys'
    width :math:`d`,

    .. math::
        \mathbf{F} = \left(
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_1
        \mathbf{K}_1^{\top}}{\sqrt{d}} \right) \right) - \lambda \,
        \mathrm{softmax} \left( M \left( \frac{\mathbf{Q}_2
        \mathbf{K}_2^{\top}}{\sqrt{d}} \right) \right)
        \right) \mathbf{V},

    where :math:`M` sets what the mask excludes to :math:`-\infty`. From
    `"Differential Transformer" <https://arxiv.org/abs/2410.05258>`_; with the
    mask as in `"Enhancing Noise Resilience in Face Clustering via Sparse
    Differential Transformer" <https://arxiv.org/abs/2512.22612>`_.

    It runs two fused
    :meth:`~torch.nn.functional.scaled_dot_product_attention` and subtracts,
    so that no matrix of weights is formed where a fused kernel takes the
    widths (on a CPU only if values are as wide as keys).

    Args:
        query (torch.Tensor or (torch.Tensor, torch.Tensor)): The queries of
            both maps, shape ``[2, *, L, d]``, or a pair of ``[*, L, d]``.
        key (torch.Tensor or (torch.Tensor, torch.Tensor)): The keys of both
            maps, shape ``[2, *, S, d]``, or a pair of ``[*, S, d]``.
        value (torch.Tensor): The values, shape ``[*, S, D]``.
        lam (float or torch.Tensor): :math:`\lambda`, a scalar.
        mask (torch.Tensor, optional): Boolean, may be broadcast to
            ``[*, L, S]``: :obj:`True` where a query may attend to a key.
            (default: everywhere)

    Returns:
        torch.Tensor: :math:`\mathbf{F}`, shape ``[*, L, D]``; zero, with a
        gradient of zero, in rows that may attend to nothing.
    """
    empty: Optional[Tensor] = None
    if mask is not None:
        mask = torch.atleast_2d(mask)
        empty = ~mask.any(dim=-1, keepdim=True)
        # What a kernel makes of a row without keys is up to the kernel: such
        # rows attend to all and are then taken out.
        mask = mask | empty
    first, second = [F.scaled_dot_product_attention(q, k, value, mask)
                     for q, k in zip(query, key)]
    # In place: on a CPU fresh memory costs more than what is done with it.
    out = (-lam * second).add_(first)
    return out if empty is None else out.masked_fill_(empty, 0.)


def diff_softmax(first: Tensor, second: Tensor, lam: Union[float, Tensor],
                 mask: Optional[Tensor] = None) -> Tensor:
    r"""The signed weights of differential attention, of both maps' logits in
    shape ``[*, L, S]``: exactly 0 where :obj:`mask` excludes.
    """
    if mask is None:
        return first.softmax(dim=-1) - lam * second.softmax(dim=-1)
    # Finite, so that a row without keys has finite gradients.
    lowest = torch.finfo(first.dtype).min
    first, second = [logits.masked_fill(~mask, lowest).softmax(dim=-1)
                     for logits in (first, second)]
    return (first - lam * second).masked_fill(~mask, 0.)


def diff_lambda(lam_query: Tensor, lam_key: Tensor,
                lambda_init: float) -> Tensor:
    r""":math:`\lambda = \exp(\langle \lambda_{q_1}, \lambda_{k_1} \rangle) -
    \exp(\langle \lambda_{q_2}, \lambda_{k_2} \rangle) +
    \lambda_{\mathrm{init}}` of vectors in shape ``[2, d]``, in at least
    single precision.
    """
    dtype = torch.promote_types(lam_query.dtype, torch.float)
    dot = (lam_query.to(dtype) * lam_key.to(dtype)).sum(dim=-1)
    first, second = dot.exp()
    return first - second + lambda_init


# Top-K masks #################################################################


def topk_edge_mask(
    score: Tensor,
    edge_index: Tensor,
    k: Union[int, Tensor],
    num_nodes: Optional[int] = None,
) -> Tensor:
    r"""Which edges are among the :math:`k` best of their target.

    Edges of equal score go by the smaller source, so that the order of edges
    plays no part; where two edges also share their source, the one that
    stands first goes first.

    .. code-block:: python

        mask = topk_edge_mask(edge_score, edge_index, k=10)
        edge_index, edge_attr = edge_index[:, mask], edge_attr[mask]

    Args:
        score (torch.Tensor): The score of each edge, shape ``[E]``, or
            several of them, shape ``[E, H]``, each of which chooses for
            itself.
        edge_index (torch.Tensor): The edges, row 0 the sources, row 1 the
            targets, shape ``[2, E]``.
        k (int or torch.Tensor): How many incoming edges a target keeps: one
            integer, or integers of shape ``[N]``.
        num_nodes (int, optional): The number :math:`N` of targets.
            (default: the highest index plus one)

    Returns:
        torch.Tensor: Boolean, in the shape of :obj:`score`. A target with at
        most :math:`k` incoming edges keeps them all.

    Raises:
        ValueError: If a shape is wrong, :math:`k` is no integer or below 1,
            or a score is not a number.
    """
    num_edges = edge_index.size(1)
    if score.dim() not in {1, 2} or score.size(0) != num_edges:
        raise ValueError(f"'score' must have {num_edges} rows, one an edge "
                         f"(got shape {list(score.shape)})")
    source, target = edge_index[0], edge_index[1]
    if num_nodes is None:
        num_nodes = int(target.max()) + 1 if num_edges > 0 else 0
    check_k(k, [(num_nodes, )])
    check_score('score', score)

    # From the least to the most important key, as sorting is stable.
    order = source.argsort(stable=True)
    column = score if score.dim() == 2 else score.unsqueeze(1)
    column = column[order].t()
    order = order[column.argsort(dim=-1, descending=True, stable=True)]
    target_sorted, step = target[order].sort(dim=-1, stable=True)
    order = order.gather(-1, step)

    # The same in every column from here on.
    target = target_sorted[0]
    count = degree(target, num_nodes, dtype=torch.long)
    start = count.cumsum(0) - count
    rank = torch.arange(num_edges, device=score.device) - start[target]
    keep = rank < (k[target] if isinstance(k, Tensor) else k)
    mask = torch.zeros_like(order, dtype=torch.bool)
    mask = mask.scatter(-1, order, keep.expand_as(order))
    return mask.t().reshape(score.shape)


def topk_mask(score: Tensor, k: Union[int, Tensor],
              mask: Optional[Tensor] = None) -> Tensor:
    r"""Which of the last dimension's allowed entries are among its :math:`k`
    best, ties by position. All arguments may be broadcast.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    if mask is None:
        keep = torch.arange(score.size(-1), device=score.device) < k
    else:
        order, mask = torch.broadcast_tensors(order, mask)
        allowed = mask.gather(-1, order)
        keep = allowed & (allowed.cumsum(dim=-1) <= k)
    order, keep = torch.broadcast_tensors(order, keep)
    out = torch.zeros(keep.shape, dtype=torch.bool, device=keep.device)
    return out.scatter(-1, order, keep)


def check_k(k: Any, shapes: List[Tuple[int, ...]]) -> None:
    r"""Raises a :class:`ValueError` unless :obj:`k` is a positive integer or
    positive integers in one of the shapes.
    """
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not hasattr(k, '__index__'):
            raise ValueError(f"'k' must be an integer (got {k!r})")
        if k < 1:
            raise ValueError(f"'k' must be at least 1 (got {k})")
        return
    if (k.shape not in shapes or k.dtype == torch.bool
            or k.is_floating_point() or k.is_complex()):
        wanted = ' or '.join(str(list(shape)) for shape in shapes)
        raise ValueError(f"'k' must be integers of shape {wanted} (got "
                         f"{k.dtype} of shape {list(k.shape)})")
    # A look at values would break a compiled graph.
    if not torch.compiler.is_compiling() and bool((k < 1).any()):
        place = (k < 1).nonzero()[0].tolist()
        raise ValueError(f"'k' must be at least 1 (got {int(k[tuple(place)])} "
                         f"at {place})")


def check_score(name: str, score: Tensor) -> None:
    r"""Raises a :class:`ValueError` if a score is not a number."""
    if torch.compiler.is_compiling() or not score.is_floating_point():
        return
    if bool(score.isnan().any()):
        place = score.isnan().nonzero()[0].tolist()
        raise ValueError(f"'{name}' is not a number at {place}")


# Along edges #################################################################


def edge_logits(query: Tensor, key: Tensor, source: Tensor, target: Tensor,
                edge: Optional[Tensor] = None) -> Tensor:
    r"""The scaled dot products
    :math:`\langle \mathbf{q}_i, \mathbf{k}_j + \mathbf{e}_{ij} \rangle /
    \sqrt{d}` of edges :math:`(j, i)`, without the memory of a query and a key
    an edge.

    Args:
        query (torch.Tensor): Shape ``[N, 2, H, d]``.
        key (torch.Tensor): Shape ``[M, 2, H, d]``.
        source (torch.Tensor): The :math:`j` of each edge, shape ``[E]``.
        target (torch.Tensor): The :math:`i` of each edge, shape ``[E]``.
        edge (torch.Tensor, optional): :math:`\mathbf{e}_{ij}`, the same for
            both maps, shape ``[E, H, d]``.

    Returns:
        torch.Tensor: In at least single precision, shape ``[E, 2, H]``.
    """
    if torch.compiler.is_compiling():
        # The compiler fuses this into a loop that holds no rows either.
        out = _dot(query.index_select(0, target), key.index_select(0, source),
                   edge)
    else:
        out = _EdgeDot.apply(query, key, source, target, edge)
    return out / sqrt(query.size(-1))


def edge_sum(value: Tensor, alpha: Tensor, source: Tensor, target: Tensor,
             num_targets: int, edge: Optional[Tensor] = None) -> Tensor:
    r"""The sums :math:`\sum_j \alpha_{ij} (\mathbf{v}_j + \mathbf{e}_{ij})`
    over the edges :math:`(j, i)` of each target, without the memory of a
    message an edge.

    Args:
        value (torch.Tensor): Shape ``[M, H, d]``.
        alpha (torch.Tensor): The weights, shape ``[E, H]``.
        source (torch.Tensor): The :math:`j` of each edge, shape ``[E]``.
        target (torch.Tensor): The :math:`i` of each edge, shape ``[E]``.
        num_targets (int): The number :math:`N` of targets.
        edge (torch.Tensor, optional): :math:`\mathbf{e}_{ij}`, shape
            ``[E, H, d]``.

    Returns:
        torch.Tensor: Shape ``[N, H, d]``.
    """
    return _EdgeSum.apply(value, alpha, source, target, num_targets, edge)


def _dot(query: Tensor, key: Tensor, edge: Optional[Tensor]) -> Tensor:
    if edge is not None:
        key = key + edge.unsqueeze(1)
    dtype = torch.promote_types(query.dtype, torch.float)
    return (query.to(dtype) * key).sum(dim=-1)


# Numbers in the rows of a chunk: on a CPU they stay in its cache; elsewhere,
# the fewer kernels, the better.
_CHUNK = 1 << 20
_CHUNK_ACCELERATOR = 1 << 26


def _chunks(edges: Tensor, rows: Tensor) -> List[slice]:
    size = _CHUNK if edges.device.type == 'cpu' else _CHUNK_ACCELERATOR
    size = max(size // max(rows.shape[1:].numel(), 1), 1)
    return [slice(i, i + size) for i in range(0, edges.numel(), size)]


# Both gather rows by chunks, and again in the backward pass. Rows of all edges
# at once would take their memory, and on a CPU most of the time goes into
# fetching that memory.


class _EdgeDot(torch.autograd.Function):
    @staticmethod
    def forward(query: Tensor, key: Tensor, source: Tensor, target: Tensor,
                edge: Optional[Tensor]) -> Tensor:
        out = query.new_empty(
            (source.numel(), *query.shape[1:-1]),
            dtype=torch.promote_types(query.dtype, torch.float))
        for part in _chunks(source, query):
            out[part] = _dot(query.index_select(0, target[part]),
                             key.index_select(0, source[part]),
                             None if edge is None else edge[part])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...],
                      output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tuple[Optional[Tensor], ...]:
        query, key, source, target, edge = ctx.saved_tensors
        grad, = grad_outputs
        to_query = torch.zeros_like(query, dtype=grad.dtype)
        to_key = torch.zeros_like(key, dtype=grad.dtype)
        to_edge = None if edge is None else torch.empty_like(edge)
        for part in _chunks(source, query):
            by = grad[part].unsqueeze(-1)
            if ctx.needs_input_grad[0]:
                row = key.index_select(0, source[part])
                if edge is not None:
                    row = row + edge[part].unsqueeze(1)
                to_query.index_add_(0, target[part], by * row)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[4]:
                row = by * query.index_select(0, target[part])
                to_key.index_add_(0, source[part], row)
                if to_edge is not None:
                    to_edge[part] = row.sum(dim=1)
        return (to_query.to(query.dtype), to_key.to(key.dtype), None, None,
                to_edge)


class _EdgeSum(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, alpha: Tensor, source: Tensor, target: Tensor,
                num_targets: int, edge: Optional[Tensor]) -> Tensor:
        out = alpha.new_zeros((num_targets, *value.shape[1:]))
        for part in _chunks(source, value):
            row = value.index_select(0, source[part])
            if edge is not None:
                row = row + edge[part]
            out.index_add_(0, target[part], alpha[part].unsqueeze(-1) * row)
        return out.to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Tuple[Any, ...],
                      output: Tensor) -> None:
        value, alpha, source, target, _, edge = inputs
        ctx.save_for_backward(value, alpha, source, target, edge)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tuple[Optional[Tensor], ...]:
        value, alpha, source, target, edge = ctx.saved_tensors
        grad, = grad_outputs
        to_value = torch.zeros_like(value, dtype=alpha.dtype)
        to_alpha = torch.empty_like(alpha)
        to_edge = None if edge is None else torch.empty_like(edge)
        for part in _chunks(source, value):
            by = grad.index_select(0, target[part])
            if ctx.needs_input_grad[1]:
                row = value.index_select(0, source[part])
                if edge is not None:
                    row = row + edge[part]
                to_alpha[part] = (by * row).sum(dim=-1, dtype=alpha.dtype)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[5]:
                row = alpha[part].unsqueeze(-1) * by
                to_value.index_add_(0, source[part], row)
                if to_edge is not None:
                    to_edge[part] = row
        return to_value.to(value.dtype), to_alpha, None, None, None, to_edge
