r"""The two-level map equation: its value, and communities that minimise it."""
from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric.utils import coalesce
from torch_geometric.utils.num_nodes import maybe_num_nodes

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors, check_ids
from torch_sdt.ops.reverse import check_values
from torch_sdt.typing import check_seed, require

MarkovTime = Union[float, str, Tuple[float, str]]
BACKENDS = ('networkit', 'infomap', 'numba', 'torch')


def map_equation(
    cluster: Tensor,
    edge_index: Tensor,
    edge_weight: Optional[Tensor] = None,
    num_nodes: Optional[int] = None,
    markov_time: MarkovTime = 1.,
) -> Tensor:
    r"""Codelength, in bits, of a partition of an undirected graph.

    The expected number of bits a step of a random walk costs when it is
    written with one code book for the clusters and one for the nodes of each
    (`Rosvall and Bergstrom, 2008 <https://arxiv.org/abs/0707.0609>`_). With
    :math:`p_i` node :math:`i`'s share of the total strength,
    :math:`q_m = t \, \mathrm{cut}_m / 2W` the rate at which cluster
    :math:`m` is left, :math:`q = \sum_m q_m` and
    :math:`\mathcal{P}(x) = x \log_2 x`,

    .. math::
        L = \mathcal{P}(q) - 2 \sum_m \mathcal{P}(q_m)
        - \sum_i \mathcal{P}(p_i)
        + \sum_m \mathcal{P} \Big( q_m + \sum_{i \in m} p_i \Big).

    Markov time :math:`t` is the resolution: below 1 it favours more clusters,
    above 1 fewer. Differentiable in :obj:`edge_weight`.

    *Variable* Markov time is longer where the graph is sparse (`Edler et al.,
    2022 <https://arxiv.org/abs/2211.04287>`_). With
    :math:`d_i = \max(2, p_i E)`, where :math:`E` counts each edge of positive
    weight in both directions, each edge between clusters counts in
    :math:`q_m` with a time of its own,

    .. math::
        t_{ij} = t \, \frac{\max_h \log_2 d_h}
        {\max(\log_2 d_i, \log_2 d_j)}.

    Args:
        cluster (torch.Tensor): The cluster of each node, integers of any
            values, shape ``[N]``.
        edge_index (torch.Tensor): Edges, int64, shape ``[2, E]``. An
            undirected edge stands in both directions, as everywhere in PyG;
            a graph that is not symmetric is made so by the larger of the two
            weights. A self-loop counts once in its node's strength. Parallel
            edges add up.
        edge_weight (torch.Tensor, optional): Non-negative weights, shape
            ``[E]``. (default: all 1)
        num_nodes (int, optional): The number of nodes :math:`N`.
            (default: :obj:`cluster.numel()`)
        markov_time (float, str or tuple, optional): Markov time :math:`t`,
            :obj:`"variable"`, or the pair ``(t, "variable")``.
            (default: :obj:`1.`)

    Returns:
        torch.Tensor: The codelength, a float64 scalar; 0 without edges.

    Raises:
        ValueError: If a shape is wrong, a node id is out of range, a weight
            is negative or not finite, or Markov time is not positive.
    """
    num_nodes = cluster.numel() if num_nodes is None else num_nodes
    if cluster.dim() != 1 or cluster.numel() != num_nodes:
        raise ValueError(f"'cluster' must have shape [{num_nodes}] (got "
                         f"{list(cluster.shape)})")
    _check_time(markov_time)
    weight = check_graph(edge_index, edge_weight, num_nodes).double()
    (row, col), weight = undirected(edge_index, weight, num_nodes)
    cluster = cluster.unique(return_inverse=True)[1]
    num_clusters = int(cluster.max()) + 1 if num_nodes > 0 else 0

    total = weight.sum()
    if float(total.detach()) == 0:
        return total
    p, flow = _flows(row, col, weight, num_nodes, markov_time)
    leaves = cluster[row] != cluster[col]
    q = p.new_zeros(num_clusters).index_add(
        0, cluster[row[leaves]], flow[leaves])
    inside = p.new_zeros(num_clusters).index_add(0, cluster, p)
    return (_plogp(q.sum()) - 2 * _plogp(q).sum() - _plogp(p).sum() +
            _plogp(q + inside).sum())


def map_equation_communities(
    edge_index: Tensor,
    edge_weight: Optional[Tensor] = None,
    num_nodes: Optional[int] = None,
    backend: str = 'networkit',
    markov_time: MarkovTime = 1.,
    seed: int = 0,
    directed: bool = False,
) -> Tensor:
    r"""Communities that minimise the two-level map equation.

    Args:
        edge_index (torch.Tensor): Edges, int64, shape ``[2, E]``, read as in
            :meth:`map_equation`. Edges of weight 0 are as good as absent.
        edge_weight (torch.Tensor, optional): Non-negative weights, shape
            ``[E]``. (default: all 1)
        num_nodes (int, optional): The number of nodes :math:`N`; nodes
            without edges become their own clusters.
            (default: :obj:`max(edge_index) + 1`)
        backend (str, optional): :obj:`"networkit"` (its
            ``LouvainMapEquation``: fast, undirected, Markov time 1),
            :obj:`"infomap"` (the reference, also for directed flow),
            :obj:`"numba"` or :obj:`"torch"` (our own, undirected; the first
            on one core, the second moves many nodes at once and stays on a
            GPU). (default: :obj:`"networkit"`)
        markov_time (float, str or tuple, optional): The resolution, see
            :meth:`map_equation`. Infomap's variable time differs from ours
            in that, of a node's edges in the order of the input, each also
            counts the neighbours before it in its maximum.
            (default: :obj:`1.`)
        seed (int, optional): Same seed, same communities.
            (default: :obj:`0`)
        directed (bool, optional): If :obj:`True`, edges carry flow one way,
            from ``edge_index[0]`` to ``edge_index[1]``; infomap only.
            (default: :obj:`False`)

    Returns:
        torch.Tensor: The cluster of each node, int64, shape ``[N]``,
        numbered by first appearance.

    Raises:
        ValueError: If the graph is bad (see :meth:`map_equation`), the
            seed is, or the backend cannot do what is asked.
        ImportError: If the backend's package is absent.
    """
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    check_seed(seed)
    check_backend(backend, markov_time, directed)
    weight = check_graph(edge_index, edge_weight, num_nodes).detach()
    device = edge_index.device
    positive = weight > 0
    if not bool(positive.all()):
        edge_index, weight = edge_index[:, positive], weight[positive]
    if edge_index.numel() == 0:
        return torch.arange(num_nodes, device=device)
    if backend != 'torch':
        edge_index, weight = edge_index.cpu(), weight.cpu()
    if backend == 'torch':
        cluster = _torch(edge_index, weight, num_nodes, markov_time, seed)
    elif backend == 'infomap':
        cluster = _infomap(edge_index, weight, num_nodes, markov_time, seed,
                           directed)
    else:
        graph = _symmetric(edge_index, weight.double(), num_nodes)
        cluster = _on_matrix(graph, backend, markov_time, seed)
    # Infomap puts a node without flow into any module.
    alone = torch.ones(num_nodes, dtype=torch.bool, device=cluster.device)
    alone[edge_index.reshape(-1)] = False
    cluster[alone] = int(cluster.max()) + 1 + alone.nonzero().view(-1)
    return number_by_appearance(cluster).to(device)


def table_communities(
    neighbors: Neighbors,
    weight: Tensor,
    backend: str = 'networkit',
    markov_time: MarkovTime = 1.,
    seed: int = 0,
    directed: bool = False,
) -> Tensor:
    r"""As :meth:`map_equation_communities`, on the entries of positive weight
    of a table; backends that read a matrix get it without a list of edges.

    Args:
        neighbors (Neighbors): The table.
        weight (torch.Tensor): One an entry, shape ``[N, K]``.
        backend (str, optional): See there.
        markov_time (float, str or tuple, optional): See there.
        seed (int, optional): See there.
        directed (bool, optional): If :obj:`True`, flow goes out of a sample
            towards its neighbours.
    """
    check_backend(backend, markov_time, directed)
    if backend in {'networkit', 'numba'}:
        graph = symmetric_csr(neighbors, weight)
        cluster = _on_matrix(graph, backend, markov_time, seed)
        return number_by_appearance(cluster).to(neighbors.index.device)
    edge_index, edge_weight = neighbors.to_edge_index(weight, weight > 0)
    if directed:
        edge_index = edge_index.flip(0)
    return map_equation_communities(edge_index, edge_weight,
                                    neighbors.num_nodes, backend, markov_time,
                                    seed, directed)


def check_backend(backend: str, markov_time: MarkovTime = 1.,
                  directed: bool = False) -> None:
    r"""Raises if a backend is unknown, absent, or cannot do what is asked."""
    if backend not in BACKENDS:
        raise ValueError(f"'backend' must be one of {list(BACKENDS)} (got "
                         f"'{backend}')")
    _check_time(markov_time)
    if backend == 'networkit':
        require(torch_sdt.typing.WITH_NETWORKIT, 'map_equation_communities',
                'networkit')
        if directed:
            raise ValueError("The networkit backend is undirected; use "
                             "backend='infomap' for directed flow")
        if markov_time != 1:
            raise ValueError(f"The networkit backend knows no Markov time "
                             f"other than 1 (got {markov_time!r}); use "
                             f"backend='infomap'")
    elif backend == 'infomap':
        require(torch_sdt.typing.WITH_INFOMAP, 'map_equation_communities',
                'infomap')
    else:
        if backend == 'numba':
            require(torch_sdt.typing.WITH_NUMBA, 'map_equation_communities',
                    'numba')
        if directed:
            raise ValueError(f"The {backend} backend is undirected; use "
                             f"backend='infomap' for directed flow")


def map_equation_ladder(
    edge_index: Tensor,
    edge_weight: Optional[Tensor] = None,
    num_nodes: Optional[int] = None,
    markov_times: Sequence[float] = (1., 1.5, 2., 3.),
    seed: int = 0,
) -> List[Tensor]:
    r"""Communities at one Markov time, and what they merge into at longer
    ones.

    The first partition is that of :meth:`map_equation_communities` with
    ``backend='numba'``; each further one clusters the communities of the one
    before at the next Markov time, on the graph of communities, which costs
    next to nothing. A cluster much larger than the number of neighbours in a
    kNN graph is sparse and gets split; longer Markov times mend that.

    Args:
        edge_index (torch.Tensor): See :meth:`map_equation_communities`.
        edge_weight (torch.Tensor, optional): See there.
        num_nodes (int, optional): See there.
        markov_times (sequence of float, optional): Ascending Markov times.
            (default: :obj:`(1., 1.5, 2., 3.)`)
        seed (int, optional): Same seed, same communities.
            (default: :obj:`0`)

    Returns:
        list of torch.Tensor: One partition a Markov time, int64, shape
        ``[N]``, each a coarsening of the one before.
    """
    num_nodes = maybe_num_nodes(edge_index, num_nodes)
    check_seed(seed)
    for markov_time in markov_times:
        check_backend('numba', markov_time)
        if not isinstance(markov_time, Real):
            raise ValueError(f"A ladder takes numbers as Markov times (got "
                             f"{markov_time!r})")
    weight = check_graph(edge_index, edge_weight, num_nodes).detach()
    graph = _symmetric(edge_index.cpu(), weight.double().cpu(), num_nodes)
    graph.eliminate_zeros()
    return [cluster.to(edge_index.device)
            for cluster in ladder_csr(graph, markov_times, seed)]


def ladder_csr(graph: sp.csr_matrix, markov_times: Sequence[float],
               seed: int = 0) -> List[Tensor]:
    r"""As :meth:`map_equation_ladder`, on a symmetric matrix without zeros."""
    out: List[Tensor] = []
    member = cluster = torch.arange(graph.shape[0])
    for markov_time in markov_times:
        if len(out) > 0:
            graph = _merged(graph, cluster)
        cluster = _communities_csr(graph, markov_time, seed)
        member = cluster[member]
        out.append(number_by_appearance(member))
    return out


def symmetric_csr(neighbors: Neighbors, weight: Tensor) -> sp.csr_matrix:
    r"""The graph of a table's entries of positive weight, in both directions
    at the larger of the two, without self-loops: what becomes of
    :meth:`Neighbors.to_edge_index`, with less memory: ids take 32 bits, and
    weights keep their precision.
    """
    index, weight = neighbors.index.cpu(), weight.detach().cpu()
    check_ids(index)
    check_values(index, weight)
    n = neighbors.num_nodes
    dtype = np.int32 if n < 2**31 else np.int64
    if torch_sdt.typing.WITH_NUMBA:
        from torch_sdt.ops._symmetric_kernel import symmetric_kernel

        start, ids, data = symmetric_kernel(index.numpy(), weight.numpy(),
                                            np.empty(0, dtype))
        return sp.csr_matrix((data, ids, start), shape=(n, n))
    mask = weight > 0
    mask[:, 0] = False
    start = np.zeros(n + 1, dtype=np.int64)
    start[1:] = mask.sum(dim=1).cumsum(0).numpy()
    matrix = sp.csr_matrix(
        (weight[mask].numpy(), index[mask].numpy().astype(dtype), start),
        shape=(n, n))
    return matrix.maximum(matrix.T)


def undirected(edge_index: Tensor, weight: Tensor, num_nodes: int
               ) -> Tuple[Tensor, Tensor]:
    r"""The graph with each edge in both directions, at the larger of the two
    weights, sorted and without parallel edges (which add up first).
    """
    if not edge_index.is_cuda and not weight.requires_grad:
        # The same, ten times faster than by sorting keys.
        matrix = _symmetric(edge_index, weight, num_nodes).tocoo()
        edge_index = torch.from_numpy(
            np.stack([matrix.row, matrix.col]).astype(np.int64))
        return edge_index, torch.from_numpy(matrix.data)
    edge_index, weight = coalesce(edge_index, weight, num_nodes,
                                  reduce='sum')
    row, col = edge_index
    both = torch.stack([torch.cat([row, col]), torch.cat([col, row])])
    return coalesce(both, torch.cat([weight, weight]), num_nodes,
                    reduce='max')


def _symmetric(edge_index: Tensor, weight: Tensor, num_nodes: int
               ) -> sp.csr_matrix:
    row, col = edge_index.numpy()
    if weight.dtype not in {torch.float32, torch.float64}:
        weight = weight.float()  # scipy knows no other.
    # Half as many bytes to move wherever the ids allow it.
    dtype = np.int32 if num_nodes < 2**31 else np.int64
    matrix = sp.coo_matrix(
        (weight.numpy(), (row.astype(dtype), col.astype(dtype))),
        shape=(num_nodes, num_nodes)).tocsr()
    return matrix.maximum(matrix.T)


def number_by_appearance(cluster: Tensor) -> Tensor:
    r"""Renumbers clusters 0, 1, … in the order in which they first appear."""
    unique, inverse = cluster.unique(return_inverse=True)
    position = torch.arange(cluster.numel(), device=cluster.device)
    first = torch.full_like(unique, cluster.numel())
    first = first.scatter_reduce(0, inverse, position, 'amin')
    return first.argsort().argsort()[inverse]


def _plogp(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x) / float(np.log(2))


def check_graph(edge_index: Tensor, edge_weight: Optional[Tensor],
                num_nodes: int) -> Tensor:
    r"""Checks the shapes, node ids and weights of a graph.

    Returns:
        torch.Tensor: The weights, floating point, shape ``[E]``; all 1 where
        there are none.

    Raises:
        ValueError: If a shape or dtype is wrong, a node id is out of range,
            or a weight is negative or not finite; the message names the edge.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"'edge_index' must have shape [2, E] (got "
                         f"{list(edge_index.shape)})")
    if edge_index.dtype != torch.long:
        raise ValueError(f"'edge_index' must be int64 (got "
                         f"{edge_index.dtype})")
    if edge_index.numel() > 0:
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(f"'edge_index' names node "
                             f"{low if low < 0 else high}, but there are "
                             f"nodes 0..{num_nodes - 1}")
    if edge_weight is None:
        return torch.ones(edge_index.size(1), device=edge_index.device)
    if edge_weight.shape != (edge_index.size(1), ):
        raise ValueError(f"'edge_weight' must have shape "
                         f"[{edge_index.size(1)}] (got "
                         f"{list(edge_weight.shape)})")
    bad = ~(edge_weight.isfinite() & (edge_weight >= 0))
    if bool(bad.any()):
        e = int(bad.nonzero()[0])
        raise ValueError(f"Edge {e} ({int(edge_index[0, e])}, "
                         f"{int(edge_index[1, e])}) has a weight that is "
                         f"negative or not finite ({float(edge_weight[e])})")
    return (edge_weight if edge_weight.is_floating_point() else
            edge_weight.float())


def _check_time(markov_time: Any) -> Tuple[float, bool]:
    # The number, and whether time is variable.
    time, variable = markov_time, False
    if isinstance(markov_time, str):
        time, variable = 1., markov_time == 'variable'
    elif isinstance(markov_time, (tuple, list)) and len(markov_time) == 2:
        time, variable = markov_time[0], markov_time[1] == 'variable'
    known = variable or not isinstance(markov_time, (str, tuple, list))
    if not known or not isinstance(time, Real) or not (
            0 < float(time) < inf):
        raise ValueError(f"'markov_time' must be a positive number, "
                         f"'variable' or the pair (number, 'variable') (got "
                         f"{markov_time!r})")
    return float(time), variable


def _flows(row: Tensor, col: Tensor, weight: Tensor, num_nodes: int,
           markov_time: MarkovTime) -> Tuple[Tensor, Tensor]:
    # Of the nodes, p, and of the edges, times their Markov time.
    time, variable = _check_time(markov_time)
    flow = weight / weight.sum()
    node_flow = flow.new_zeros(num_nodes).index_add(0, row, flow)
    flow = flow * time
    if variable:
        count = int((weight > 0).sum())
        flow = flow * _local_times(node_flow, row, col, count)
    return node_flow, flow


def _local_times(node_flow: Tensor, row: Tensor, col: Tensor, count: int
                 ) -> Tensor:
    # The factor t_ij / t of variable Markov time, with `count` edges.
    scale = (node_flow * count).clamp(min=2).log2()
    return scale.max() / torch.maximum(scale[row], scale[col])


# Backends ###################################################################


def _on_matrix(graph: sp.csr_matrix, backend: str, markov_time: MarkovTime,
               seed: int) -> Tensor:
    # The backends that read a symmetric matrix.
    if graph.nnz == 0:
        return torch.arange(graph.shape[0])
    if backend == 'networkit':
        return _networkit(graph, seed)
    return _communities_csr(graph, markov_time, seed)


def _networkit(graph: sp.csr_matrix, seed: int) -> Tensor:
    import networkit as nk

    upper = sp.triu(graph, format='csr').astype(np.float64)
    # One thread: waking several costs a small graph a hundred times its
    # partition, and the deterministic strategy uses one anyway.
    threads = nk.getMaxNumberOfThreads()
    nk.setNumberOfThreads(1)
    try:
        network = nk.GraphFromCsr(upper, directed=False, weighted=True)
        nk.setSeed(seed, False)
        algorithm = nk.community.LouvainMapEquation(
            network, hierarchical=True, parallelizationStrategy='none')
        partition = algorithm.run().getPartition()
    finally:
        nk.setNumberOfThreads(threads)
    return torch.as_tensor(np.asarray(partition.getVector(), dtype=np.int64))


def _infomap(edge_index: Tensor, weight: Tensor, num_nodes: int,
             markov_time: MarkovTime, seed: int, directed: bool) -> Tensor:
    import infomap

    if not directed:
        edge_index, weight = undirected(edge_index, weight, num_nodes)
        once = edge_index[0] <= edge_index[1]
        edge_index, weight = edge_index[:, once], weight[once]
    network = infomap.Network()
    network.add_nodes(range(num_nodes))
    # Parallel links add up.
    links = torch.cat([edge_index.double(), weight.double().view(1, -1)])
    network.add_links(np.ascontiguousarray(links.t().numpy()))
    time, variable = _check_time(markov_time)
    result = infomap.run(
        network, two_level=True, seed=seed + 1,
        # One trial of a small graph is often poor, and five cost nothing.
        num_trials=5 if weight.numel() < 10_000 else 1,
        flow_model='directed' if directed else 'undirected',
        markov_time=time, variable_markov_time=variable)
    # Not `result.modules()`: it crashes where infomap was imported before
    # faiss, since both share SWIG's table of types.
    modules = result.multilevel_modules()
    cluster = np.empty(num_nodes, dtype=np.int64)
    cluster[np.fromiter(modules.keys(), np.int64, num_nodes)] = np.fromiter(
        (path[0] for path in modules.values()), np.int64, num_nodes)
    return torch.from_numpy(cluster)


def _torch(edge_index: Tensor, weight: Tensor, num_nodes: int,
           markov_time: MarkovTime, seed: int) -> Tensor:
    from torch_sdt.ops._map_equation_torch import communities_torch

    (row, col), weight = undirected(edge_index, weight.double(), num_nodes)
    node_flow, flow = _flows(row, col, weight, num_nodes, markov_time)
    return communities_torch(row, col, flow, node_flow, seed)


def _communities_csr(graph: sp.csr_matrix, markov_time: MarkovTime,
                     seed: int) -> Tensor:
    from torch_sdt.ops._map_equation_kernel import (
        communities_kernel,
        strength_kernel,
    )

    time, variable = _check_time(markov_time)
    cluster = np.arange(graph.shape[0], dtype=graph.indices.dtype)
    indptr, weight = graph.indptr.astype(np.int64), graph.data
    strength = strength_kernel(indptr, weight)
    total = strength.sum()
    if total == 0:
        return torch.from_numpy(cluster).long()
    node_flow = strength / total
    if variable:
        row = np.arange(graph.shape[0]).repeat(np.diff(indptr))
        weight = weight * _local_times(torch.from_numpy(node_flow),
                                       torch.from_numpy(row),
                                       torch.from_numpy(graph.indices),
                                       graph.nnz).numpy()
    communities_kernel(indptr, graph.indices, weight, time / total, node_flow,
                       cluster, seed)
    return torch.from_numpy(cluster).long()


def _merged(graph: sp.csr_matrix, cluster: Tensor) -> sp.csr_matrix:
    # The graph of clusters; weight inside becomes a self-loop, at full
    # strength: it stands in both directions here already.
    n, m = graph.shape[0], int(cluster.max()) + 1 if len(cluster) else 0
    assign = sp.csr_matrix(
        (np.ones(n), (np.arange(n), cluster.numpy())), shape=(n, m))
    return (assign.T @ graph @ assign).tocsr()
