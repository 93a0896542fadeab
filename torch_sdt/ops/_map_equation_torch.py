r"""Parallel minimisation of the two-level map equation in torch, on any device.

Many nodes move at once, each as if it were alone. What makes that safe: a
sweep goes through the nodes in random parts, so that few neighbours move
together; what clusters are left at is updated exactly after each part; and a
sweep that does not shorten the code is taken back.
"""
from __future__ import annotations

from math import log
from typing import NamedTuple, Tuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torch_sdt.ops.components import connected_components

# Parts of a sweep, most sweeps on one level, most rounds from the nodes up.
_PARTS, _SWEEPS, _ROUNDS = 8, 30, 10
# The share of nodes that must move for another sweep of the same level, and
# the bits that a round must gain for another.
_MOVED, _ROUND_GAIN = .02, 3e-4


class _Graph(NamedTuple):
    # A symmetric graph without self-loops as CSR; flows of edges are times
    # their Markov time, flows of nodes include self-loops.
    indptr: Tensor
    col: Tensor
    flow: Tensor
    node_flow: Tensor


class _Partition:
    # Clusters, and what the map equation needs of each.

    def __init__(self, graph: _Graph, cluster: Tensor) -> None:
        n = cluster.numel()
        self.graph = graph
        self.cluster = cluster.clone()
        self.size = cluster.bincount(minlength=n)
        self.inside = graph.node_flow.new_zeros(n)
        self.inside.index_add_(0, cluster, graph.node_flow)
        row = _expand(graph.indptr)
        self.out = torch.zeros_like(graph.node_flow)
        self.out.index_add_(0, row, graph.flow)
        leaves = cluster[row] != cluster[graph.col]
        self.leave = graph.node_flow.new_zeros(n)
        self.leave.index_add_(0, cluster[row[leaves]], graph.flow[leaves])

    def codelength(self) -> float:
        # But for the term of the nodes, which no partition changes.
        return float(_plogp(self.leave.sum()) - 2 * _plogp(self.leave).sum() +
                     _plogp(self.leave + self.inside).sum())

    def move(self, nodes: Tensor, min_gain: float) -> Tuple[int, Tensor]:
        # Moves all of some nodes that gain by it; returns how many moved, and
        # their neighbours.
        graph, size, inside, leave = (self.graph, self.size, self.inside,
                                      self.leave)
        old, flow = self.cluster[nodes], graph.node_flow[nodes]
        out = self.out[nodes]
        edge, local = _edges(graph.indptr, nodes)
        of, to, into = _flow_into_clusters(
            local, self.cluster[graph.col[edge]], graph.flow[edge],
            nodes.numel(), size.numel())
        # Alone is an option, too, for those that are not: cluster -1.
        lone = (size[old] > 1).nonzero().view(-1)
        of = torch.cat([of, lone])
        to = torch.cat([to, torch.full_like(lone, -1)])
        into = torch.cat([into, into.new_zeros(lone.numel())])

        stays = to == old[of]
        to_old = torch.zeros_like(flow).index_copy_(0, of[stays], into[stays])
        of, to, into = of[~stays], to[~stays], into[~stays]
        # The old cluster without the node, the new one with it.
        old_leave = (leave[old] - out + 2 * to_old).clamp_(min=0)
        old_leave[size[old] == 1] = 0
        old_inside = (inside[old] - flow).clamp_(min=0)
        base = (2 * (_plogp(leave[old]) - _plogp(old_leave)) -
                _plogp(leave[old] + inside[old]) +
                _plogp(old_leave + old_inside))
        is_new = to >= 0
        place = to.clamp(min=0)
        leave_to, inside_to = leave[place] * is_new, inside[place] * is_new
        new_leave = leave_to + out[of] - 2 * into
        total = leave.sum()
        rest = (total - leave[old] + old_leave)[of] - leave_to + new_leave
        delta = (_plogp(rest) - _plogp(total) + base[of] +
                 2 * (_plogp(leave_to) - _plogp(new_leave)) -
                 _plogp(leave_to + inside_to) +
                 _plogp(new_leave + inside_to + flow[of]))

        best = torch.full_like(flow, -min_gain)
        best.scatter_reduce_(0, of, delta, 'amin')
        chosen = delta == best[of]
        target = torch.full_like(old, size.numel())
        target.scatter_reduce_(0, of[chosen], to[chosen], 'amin')
        moves = (target < size.numel()).nonzero().view(-1)
        target = target[moves]
        alone = (target < 0).nonzero().view(-1)
        free = (size == 0).nonzero().view(-1)[:alone.numel()]
        target[alone[:free.numel()]] = free
        moves, target = moves[target >= 0], target[target >= 0]
        return moves.numel(), self._apply(nodes[moves], target)

    def _apply(self, nodes: Tensor, target: Tensor) -> Tensor:
        # Changes the clusters of some nodes, and what follows from it; returns
        # their neighbours.
        graph, cluster = self.graph, self.cluster
        old, flow = cluster[nodes], graph.node_flow[nodes]
        edge, local = _edges(graph.indptr, nodes)
        other, weight = graph.col[edge], graph.flow[edge]
        moving = torch.zeros_like(cluster, dtype=torch.bool)
        moving[nodes] = True
        # The way back of an edge between two that move is in the other's row.
        back = ~moving[other]
        for sign, own in ((-1., old), (1., target)):
            if sign > 0:
                cluster[nodes] = target
            here, there = own[local], cluster[other]
            leaves = here != there
            self.leave.index_add_(0, here[leaves], sign * weight[leaves])
            leaves &= back
            self.leave.index_add_(0, there[leaves], sign * weight[leaves])
            self.inside.index_add_(0, own, sign * flow)
            self.size.index_add_(0, own, torch.full_like(own, int(sign)))
        empty = self.size == 0
        self.leave.clamp_(min=0).masked_fill_(empty, 0)
        self.inside.clamp_(min=0).masked_fill_(empty, 0)
        return other


def communities_torch(
    row: Tensor,
    col: Tensor,
    flow: Tensor,
    node_flow: Tensor,
    seed: int,
) -> Tensor:
    r"""Clusters a symmetric graph, its edges in the order of their rows, by
    the flows of its edges, times their Markov time, and those of its nodes,
    which sum to one.
    """
    generator = torch.Generator().manual_seed(int(seed))
    graph = _graph(row, col, flow, node_flow)
    cluster = torch.arange(node_flow.numel(), device=col.device)
    for _ in range(_ROUNDS):
        cluster, gain = _move_nodes(graph, cluster, generator)
        while True:
            # Whole clusters, level by level.
            cluster = cluster.unique(return_inverse=True)[1]
            level = _aggregate(graph, cluster)
            merged, more = _move_nodes(
                level, torch.arange(level.node_flow.numel(),
                                    device=col.device), generator)
            gain += more
            if more <= 0:
                break
            cluster = merged[cluster]
        if gain < _ROUND_GAIN:
            break
    # A cluster whose bridge moved away is no community any more.
    inside = cluster[row] == cluster[col]
    return connected_components(torch.stack([row[inside], col[inside]]),
                                cluster.numel())


def _move_nodes(graph: _Graph, cluster: Tensor, generator: torch.Generator
                ) -> Tuple[Tensor, float]:
    state = _Partition(graph, cluster)
    start = length = state.codelength()
    n = cluster.numel()
    queued = torch.ones(n, dtype=torch.bool, device=cluster.device)
    for _ in range(_SWEEPS):
        nodes = queued.nonzero().view(-1)
        order = torch.randperm(nodes.numel(), generator=generator)
        before, count = state.cluster.clone(), 0
        for part in nodes[order.to(nodes.device)].chunk(_PARTS):
            queued[part] = False
            moved, neighbors = state.move(part, 1e-12)
            count += moved
            queued[neighbors] = True
        now = state.codelength()
        if now >= length:
            return before, start - length
        length = now
        if count <= _MOVED * n:
            break
    return state.cluster, start - length


def _aggregate(graph: _Graph, cluster: Tensor) -> _Graph:
    # The graph whose nodes are the clusters.
    count = int(cluster.max()) + 1
    node_flow = graph.node_flow.new_zeros(count)
    node_flow.index_add_(0, cluster, graph.node_flow)
    # Row by row, then those of one cluster: both sums are of sorted rows.
    row, col, flow = _flow_into_clusters(
        _expand(graph.indptr), cluster[graph.col], graph.flow,
        cluster.numel(), count)
    row, order = cluster[row].sort(stable=True)
    return _graph(*_flow_into_clusters(row, col[order], flow[order], count,
                                       count), node_flow)


def _graph(row: Tensor, col: Tensor, flow: Tensor, node_flow: Tensor
           ) -> _Graph:
    # From edges in the order of their rows, self-loops among them.
    other = row != col
    row, col, flow = row[other], col[other], flow[other]
    indptr = row.new_zeros(node_flow.numel() + 1)
    indptr[1:] = row.bincount(minlength=node_flow.numel()).cumsum(0)
    return _Graph(indptr, col, flow, node_flow)


def _flow_into_clusters(node: Tensor, cluster: Tensor, flow: Tensor,
                        num_nodes: int, num_clusters: int
                        ) -> Tuple[Tensor, Tensor, Tensor]:
    # Sums the flow of each pair of node and cluster; sorted by node, as the
    # result is.
    if node.is_cuda:
        return _sum_by_sorting(node, cluster, flow, num_clusters)
    # The product with the unit matrix sums by scattering, which is linear;
    # `sum_duplicates` sorts.
    start = np.zeros(num_nodes + 1, dtype=np.int64)
    start[1:] = node.bincount(minlength=num_nodes).cumsum(0).numpy()
    matrix = sp.csr_matrix((flow.numpy(), cluster.numpy(), start),
                           shape=(num_nodes, num_clusters))
    matrix = matrix @ sp.identity(num_clusters, format='csr')
    row = torch.from_numpy(np.diff(matrix.indptr)).long()
    return (torch.arange(num_nodes).repeat_interleave(row),
            torch.from_numpy(matrix.indices).long(),
            torch.from_numpy(matrix.data))


def _sum_by_sorting(node: Tensor, cluster: Tensor, flow: Tensor,
                    num_clusters: int) -> Tuple[Tensor, Tensor, Tensor]:
    # What a GPU does well.
    if node.numel() == 0:
        return node, cluster, flow
    key, order = (node * num_clusters + cluster).sort(stable=True)
    key, count = key.unique_consecutive(return_counts=True)
    total = torch.segment_reduce(flow[order], 'sum', lengths=count)
    return key // num_clusters, key % num_clusters, total


def _edges(indptr: Tensor, nodes: Tensor) -> Tuple[Tensor, Tensor]:
    # The edges of some nodes, and the place of each edge's node among them.
    start = indptr[nodes]
    count = indptr[nodes + 1] - start
    local = torch.arange(nodes.numel(), device=nodes.device)
    local = local.repeat_interleave(count)
    offset = start - (count.cumsum(0) - count)
    edge = torch.arange(local.numel(), device=nodes.device)
    return edge + offset[local], local


def _expand(indptr: Tensor) -> Tensor:
    count = indptr.diff()
    node = torch.arange(count.numel(), device=indptr.device)
    return node.repeat_interleave(count)


def _plogp(x: Tensor) -> Tensor:
    # Rates that should be 0 may be a rounding error below it.
    x = x.clamp(min=0)
    return torch.special.xlogy(x, x) / log(2)
