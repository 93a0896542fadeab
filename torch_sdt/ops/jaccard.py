r"""Top-K Jaccard on neighbour tables and on graphs."""
from __future__ import annotations

from math import inf
from numbers import Integral
from typing import Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors, check_ids
from torch_sdt.ops.edge_probability import edge_probability


def topk_jaccard(
    neighbors: Neighbors,
    k: Optional[Union[int, Tensor]] = None,
    probability: Optional[Tensor] = None,
) -> Tensor:
    r"""Top-K Jaccard edge probability of a neighbour table.

    Every sample :math:`i` trusts the first :math:`k_i` entries
    :math:`\mathcal{N}_i` of its row. With
    :math:`\hat p_{ih} = p_{ih} / \sum_{h' \in \mathcal{N}_i} p_{ih'}`,

    .. math::
        \tilde p_{ij} = \frac{
        \sum_{h \in \mathcal{N}_i \cap \mathcal{N}_j}
        (\hat p_{ih} + \hat p_{jh})}{
        \sum_{h \in \mathcal{N}_i} \hat p_{ih} +
        \sum_{h \in \mathcal{N}_j} \hat p_{jh}},

    the weighted overlap of the two neighbourhoods: symmetric, in [0, 1], and
    1 for equal neighbourhoods with equal weights' support. From `"Enhancing
    Noise Resilience in Face Clustering via Sparse Differential Transformer"
    <https://arxiv.org/abs/2512.22612>`_. With :math:`k_i = K` and the
    exponential transform it is the neighbour-based edge probability of
    `FC-ESER <https://arxiv.org/abs/2408.13431>`_.

    How it differs from the paper's text: each list is cut at its **own**
    :math:`k`, and :math:`\hat p` of :math:`j` is read from :math:`j`'s own
    row; both keep the measure symmetric.

    Without gradients a numba kernel does :math:`\sum_{i,j} k_j` look-ups on a
    CPU, and a triton kernel as many in rows sorted by id on a GPU; else it
    is differentiable torch, on any device.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        k (int or torch.Tensor, optional): Trusted neighbours of each sample,
            itself included: one integer, or integers of shape ``[N]``, each
            in 1..K. (default: :math:`K`)
        probability (torch.Tensor, optional): Edge probabilities
            :math:`p_{ij} \geq 0`, shape ``[N, K]``; gradients flow through
            them. (default: :meth:`~torch_sdt.ops.edge_probability` of the
            similarities)

    Returns:
        torch.Tensor: :math:`\tilde p`, shape ``[N, K]``: at each of a row's
        first :math:`k_i` ranks, 0 beyond, 1 at rank 0.

    Raises:
        ValueError: If a shape is wrong, a :math:`k_i` lies outside 1..K, or
            a probability is negative or not finite.
    """
    index = neighbors.index
    n, width = index.shape
    spare = probability is None  # Nobody else's, free to be changed.
    if probability is None:
        probability = edge_probability(neighbors.similarity)
    if probability.shape != index.shape:
        raise ValueError(f"'probability' must have the table's shape "
                         f"{list(index.shape)} (got "
                         f"{list(probability.shape)})")
    check_ids(index)
    length = _check_k(k, n, width, index.device)
    rowptr = torch.arange(0, n * width + 1, width, device=index.device)
    if (torch_sdt.typing.WITH_TRITON and index.is_cuda
            and not _needs_torch(probability)):
        from torch_sdt.ops._jaccard_triton import jaccard_triton

        _check_probability(probability, rowptr)
        out = jaccard_triton(index, length, probability.detach())
        return out.to(probability.dtype)
    return _jaccard(rowptr, index.reshape(-1), length,
                    probability.reshape(-1), spare).view(n, width)


def topk_jaccard_csr(
    rowptr: Tensor,
    col: Tensor,
    length: Tensor,
    probability: Tensor,
) -> Tensor:
    r"""Top-K Jaccard on any graph in CSR form, rows of different lengths.

    Row :math:`i` is ``col[rowptr[i]:rowptr[i + 1]]``, best neighbour first,
    of which the first ``length[i]`` are trusted; no neighbour stands in a
    row twice. See :meth:`topk_jaccard` for the formula. An edge from a node
    to itself gets 1 if it is trusted.

    Args:
        rowptr (torch.Tensor): Row starts, int64, shape ``[N + 1]``.
        col (torch.Tensor): Neighbours, int64, shape ``[E]``.
        length (torch.Tensor): Trusted entries of each row, int64, shape
            ``[N]``.
        probability (torch.Tensor): :math:`p_{ij} \geq 0`, floating point,
            shape ``[E]``.

    Returns:
        torch.Tensor: :math:`\tilde p`, shape ``[E]``.

    Raises:
        ValueError: If a shape is wrong, a node id or a length is out of
            range, or a probability is negative or not finite.
    """
    _check_csr(rowptr, col, length, probability)
    return _jaccard(rowptr, col, length, probability)


def _jaccard(rowptr: Tensor, col: Tensor, length: Tensor, probability: Tensor,
             spare: bool = False) -> Tensor:
    _check_probability(probability, rowptr)
    if (torch_sdt.typing.WITH_NUMBA and not col.is_cuda
            and not _needs_torch(probability)):
        return _jaccard_numba(rowptr, col, length, probability, spare)
    return _jaccard_torch(rowptr, col, length, probability)


def _needs_torch(probability: Tensor) -> bool:
    # Kernels have no gradients and stop a compiler.
    grad = torch.is_grad_enabled() and probability.requires_grad
    return grad or torch.compiler.is_compiling()


def _check_csr(rowptr: Tensor, col: Tensor, length: Tensor,
               probability: Tensor) -> None:
    # The kernels check nothing.
    n, num_edges = length.numel(), col.numel()
    if col.dim() != 1 or probability.shape != col.shape:
        raise ValueError(f"'col' and 'probability' must both have shape [E] "
                         f"(got {list(col.shape)} and "
                         f"{list(probability.shape)})")
    if rowptr.shape != (n + 1, ) or length.shape != (n, ):
        raise ValueError(f"'rowptr' must have shape [N + 1] and 'length' [N] "
                         f"(got {list(rowptr.shape)} and "
                         f"{list(length.shape)})")
    if int(rowptr[0]) != 0 or int(rowptr[-1]) != num_edges:
        raise ValueError(f"'rowptr' must lead from 0 to the number of edges "
                         f"{num_edges} (got {int(rowptr[0])} and "
                         f"{int(rowptr[-1])})")
    bad = (length < 0) | (length > rowptr.diff())
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"'length' must be between 0 and the entries of the "
                         f"row (got {int(length[row])} in row {row} of "
                         f"{int(rowptr[row + 1] - rowptr[row])})")
    if num_edges == 0:
        return
    low, high = col.aminmax()
    if int(low) < 0 or int(high) >= n:
        entry = int(((col < 0) | (col >= n)).nonzero()[0])
        raise ValueError(f"'col' must be in 0..{n - 1} (got "
                         f"{int(col[entry])} at {entry})")


def _check_probability(probability: Tensor, rowptr: Tensor) -> None:
    if not probability.is_floating_point():
        raise ValueError(f"'probability' must be floating point (got "
                         f"{probability.dtype})")
    if probability.numel() == 0:
        return
    # Ten times faster than to look at every entry; NaN passes through.
    low, high = probability.detach().aminmax()
    if float(low) >= 0 and float(high) < inf:
        return
    entry = int((~(probability >= 0) | (probability == inf)).nonzero()[0])
    row = int(torch.searchsorted(rowptr, entry, right=True)) - 1
    raise ValueError(f"Row {row} has an edge probability that is negative or "
                     f"not finite ({float(probability[entry])})")


def _check_k(k: Optional[Union[int, Tensor]], n: int, width: int,
             device: torch.device) -> Tensor:
    if k is None:
        k = width
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise ValueError(f"'k' must be an integer or a tensor (got {k!r})")
        k = torch.full((n, ), int(k), device=device)
    if k.shape != (n, ) or k.is_floating_point() or k.dtype == torch.bool:
        raise ValueError(f"'k' must be integers of shape [{n}] (got "
                         f"{k.dtype} of shape {list(k.shape)})")
    bad = (k < 1) | (k > width)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"'k' must be between 1 and the table's width "
                         f"{width} (got {int(k[row])} in row {row})")
    return k.to(device=device, dtype=torch.long)


# CPU ########################################################################


def _jaccard_numba(rowptr: Tensor, col: Tensor, length: Tensor,
                   probability: Tensor, spare: bool) -> Tensor:
    from torch_sdt.ops._jaccard_kernel import jaccard_kernel, row_key

    probability = probability.detach()
    if probability.dtype == torch.float64:  # The kernel knows single only.
        probability = _relative(rowptr, probability)
    # The kernel normalises in place: what is not spare is copied.
    p = probability.to(torch.float32, copy=not spare).contiguous()
    out = torch.zeros_like(p)
    # Unsigned: no index counts from the end, and asking whether one does
    # costs a fifth of the time.
    ids = col.to(torch.int32).numpy().view(np.uint32)
    graph = (rowptr.numpy(), ids, length.numpy())
    order = np.argsort(row_key(*graph), kind='stable')
    rest = out.numpy(), order, torch.get_num_threads()
    if not jaccard_kernel(*graph, p.numpy(), *rest):
        p = _relative(rowptr, probability.double()).float()
        jaccard_kernel(*graph, p.numpy(), *rest)
    return out.to(probability.dtype)


def _relative(rowptr: Tensor, probability: Tensor) -> Tensor:
    # To the largest of each row, which changes nothing but the scale.
    row, _ = _rows(rowptr, probability.numel())
    most = probability.new_zeros(rowptr.numel() - 1)
    most = most.scatter_reduce(0, row, probability, 'amax')
    return probability / torch.where(most > 0, most, 1.)[row]


# Anywhere, with gradients ###################################################

_WEDGES = 1 << 22


def _jaccard_torch(rowptr: Tensor, col: Tensor, length: Tensor,
                   probability: Tensor) -> Tensor:
    n, device = length.numel(), col.device
    row, rank = _rows(rowptr, col.numel())
    trusted = (rank < length[row]).nonzero().view(-1)
    i, j, p = row[trusted], col[trusted], probability[trusted]
    total = p.new_zeros(n).index_add(0, i, p)
    # A row without any weight: a gradient of 1 rather than one without end.
    p = p / torch.where(total > 0, total, torch.ones_like(total))[i]
    ptr = torch.zeros(n + 1, dtype=torch.long, device=device)
    ptr[1:] = length.cumsum(0)

    # Both neighbourhoods hold h where j's entry (j, h) has a twin (i, h).
    key, order = (i * n + j).sort()
    wedges = length[j]
    value = torch.zeros_like(probability)
    parts = []
    # Edges in chunks of a bounded number of look-ups.
    chunk = wedges.cumsum(0).div(_WEDGES, rounding_mode='floor')
    for edges in torch.arange(i.numel(), device=device).split(
            torch.unique_consecutive(chunk, return_counts=True)[1].tolist()):
        of = torch.arange(edges.numel(), device=device)
        of = of.repeat_interleave(wedges[edges])
        within = torch.arange(of.numel(), device=device)
        start = wedges[edges].cumsum(0) - wedges[edges]
        theirs = ptr[j[edges]][of] + within - start[of]
        wanted = i[edges][of] * n + j[theirs]
        found = torch.searchsorted(key, wanted).clamp(max=key.numel() - 1)
        hit = key[found] == wanted
        of, theirs, mine = of[hit], theirs[hit], order[found[hit]]
        parts.append(p.new_zeros(edges.numel()).index_add(
            0, of, p[mine] + p[theirs]))
    if len(parts) == 0:
        return value
    both = torch.cat(parts)
    rows = (total[i] > 0).to(p.dtype) + (total[j] > 0).to(p.dtype)
    both = torch.where(i == j, torch.ones_like(both),
                       both / rows.clamp(min=1))
    return value.index_put((trusted, ), both)


def _rows(rowptr: Tensor, num_entries: int) -> Tuple[Tensor, Tensor]:
    degree = rowptr[1:] - rowptr[:-1]
    row = torch.arange(degree.numel(), device=rowptr.device)
    row = row.repeat_interleave(degree)
    rank = torch.arange(num_entries, device=rowptr.device) - rowptr[row]
    return row, rank
