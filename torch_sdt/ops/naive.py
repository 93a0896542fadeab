r"""The readable definition of the operations at the heart of
:mod:`torch_sdt.ops`.

Plain loops over plain numbers: what the tests compare the fast versions with,
and what a newcomer reads first. Nothing here is meant to be fast.
"""
from fractions import Fraction
from math import exp, log2, sqrt
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor


def knn(x: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    r"""Cosine nearest neighbours: itself first, then descending similarity,
    ties by index.
    """
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True)
    index, similarity = [], []
    for i in range(x.size(0)):
        row = [(1. if j == i else float(x[i] @ x[j]), j)
               for j in range(x.size(0))]
        row.sort(key=lambda pair: (pair[1] != i, -pair[0], pair[1]))
        index.append([j for _, j in row[:k]])
        similarity.append([s for s, _ in row[:k]])
    return torch.tensor(index), torch.tensor(similarity)


def edge_probability(similarity: float, transform: str = 'sigmoid',
                     delta: float = 7.5, epsilon: float = -5.,
                     tau: float = .5) -> float:
    r"""Probability that two unit vectors of this cosine belong together."""
    distance = 2 - 2 * max(similarity, 0.)
    if transform == 'sigmoid':
        return 1 / (1 + exp(delta * distance + epsilon))
    return exp(-distance / tau)


def local_scaling(neighbors: Sequence[Sequence[int]],
                  similarity: Sequence[Sequence[float]],
                  strength: float = .5, first: int = 2, last: int = 4
                  ) -> Tuple[List[List[int]], List[List[float]]]:
    r"""Neighbours re-ranked by similarities relative to the local density."""
    density = []
    for row in similarity:
        end = min(last, len(row) - 1)
        part = row[min(first, end):end + 1]
        density.append(sum(part) / len(part))
    mean = sum(density) / len(density)
    index, out = [], []
    for i, (ids, row) in enumerate(zip(neighbors, similarity)):
        pairs = []
        for j, a in list(zip(ids, row))[1:]:
            a -= strength / 2 * (density[i] - mean + density[j] - mean)
            pairs.append((max(-1., min(1., a)), j))
        pairs.sort(key=lambda pair: -pair[0])
        index.append([i] + [j for _, j in pairs])
        out.append([1.] + [a for a, _ in pairs])
    return index, out


def topk_jaccard(neighbors: Sequence[Sequence[int]],
                 probability: Sequence[Sequence[float]],
                 k: Sequence[int]) -> List[List[float]]:
    r"""Top-K Jaccard of each row's first :math:`k_i` entries, 0 beyond.

    Rows may have different lengths. An entry of node :math:`i` itself is 1.
    """
    rows: List[Dict[int, float]] = []
    for ids, values, k_i in zip(neighbors, probability, k):
        total = sum(values[:k_i])
        rows.append({
            h: (p / total if total > 0 else 0.)
            for h, p in zip(ids[:k_i], values[:k_i])
        })
    out = []
    for i, ids in enumerate(neighbors):
        values = []
        for rank, j in enumerate(ids):
            if rank >= k[i]:
                values.append(0.)
                continue
            if j == i:
                values.append(1.)
                continue
            common = rows[i].keys() & rows[j].keys()
            over = sum(rows[i].values()) + sum(rows[j].values())
            both = sum(rows[i][h] + rows[j][h] for h in common)
            values.append(both / over if over > 0 else 0.)
        out.append(values)
    return out


def diff_attention(query: Tensor, key: Tensor, value: Tensor,
                   edges: Sequence[Tuple[int, int]],
                   lam: Union[float, Tensor],
                   k: Optional[Sequence[int]] = None,
                   score: Optional[Sequence[float]] = None,
                   edge: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
    r"""Differential attention of each target to the sources of its edges,
    which are pairs (source, target).

    Queries ``[N, 2, H, C]`` and keys ``[M, 2, H, C]`` of both maps, values
    ``[M, H, C]``, and edge features ``[E, H, C]``, which add to keys and
    values. A target keeps the :obj:`k` edges of the highest score or, without
    one, of the highest logits of the first map, ties by source.

    Returns the output ``[N, H, C]`` and the weights ``[E, H]``.
    """
    num_targets, _, heads, channels = query.shape
    out = [[value.new_zeros(channels) for _ in range(heads)]
           for _ in range(num_targets)]
    weight = [[value.new_zeros(()) for _ in range(heads)] for _ in edges]
    for i in range(num_targets):
        incoming = [e for e, (_, target) in enumerate(edges) if target == i]
        for h in range(heads):
            logits: List[Dict[int, Tensor]] = [{}, {}]
            message: Dict[int, Tensor] = {}
            for e in incoming:
                source = edges[e][0]
                extra = 0. if edge is None else edge[e, h]
                message[e] = value[source, h] + extra
                for m in range(2):
                    row = key[source, m, h] + extra
                    logits[m][e] = query[i, m, h] @ row / sqrt(channels)
            rank = {e: logits[0][e].item() if score is None else score[e]
                    for e in incoming}
            kept = sorted(incoming, key=lambda e: (-rank[e], edges[e][0]))
            if k is not None:
                kept = kept[:k[i]]
            if len(kept) == 0:
                continue
            first, second = [torch.stack([logits[m][e] for e in kept])
                             .softmax(dim=0) for m in range(2)]
            for e, alpha in zip(kept, first - lam * second):
                weight[e][h] = alpha
                out[i][h] = out[i][h] + alpha * message[e]
    return (torch.stack([torch.stack(row) for row in out]),
            torch.stack([torch.stack(row) for row in weight])
            if len(weight) > 0 else value.new_zeros(0, heads))


def map_equation(cluster: Sequence[int], edges: Dict[Tuple[int, int], float],
                 num_nodes: int, markov_time: float = 1.,
                 self_loops: Optional[Dict[int, float]] = None,
                 variable: bool = False) -> float:
    r"""Two-level codelength, in bits, of an undirected weighted graph.

    :obj:`edges` holds each unordered pair once. A self-loop counts once in
    its node's strength. :obj:`variable` Markov time is longer for edges among
    nodes of low degree.
    """
    self_loops = self_loops or {}
    strength = [0.] * num_nodes
    for (i, j), w in edges.items():
        strength[i] += w
        strength[j] += w
    for i, w in self_loops.items():
        strength[i] += w
    total = sum(strength)
    if total == 0:
        return 0.
    count = sum(2 for w in edges.values() if w > 0) + sum(
        1 for w in self_loops.values() if w > 0)
    scale = [log2(max(s / total * count, 2.)) for s in strength]
    cut = {m: 0. for m in cluster}
    for (i, j), w in edges.items():
        if cluster[i] != cluster[j]:
            if variable:
                w *= max(scale) / max(scale[i], scale[j])
            cut[cluster[i]] += w
            cut[cluster[j]] += w

    def plogp(p: float) -> float:
        return p * log2(p) if p > 0 else 0.

    p = [s / total for s in strength]
    q = {m: markov_time * c / total for m, c in cut.items()}
    stay = dict(q)
    for i, m in enumerate(cluster):
        stay[m] += p[i]
    return (plogp(sum(q.values())) - 2 * sum(map(plogp, q.values())) -
            sum(map(plogp, p)) + sum(map(plogp, stay.values())))


def topk_target(neighbors: Sequence[Sequence[int]], y: Sequence[int],
                beta: float = .5) -> List[int]:
    r"""How many entries of each row to trust: where the :math:`F_\beta` of
    the row's first entries against its own identity is largest first.

    Fractions, so that equals are equal.
    """
    out = []
    for i, ids in enumerate(neighbors):
        same = [int(y[h] == y[i]) for h in ids]
        size = sum(label == y[i] for label in y)
        out.append(_best_prefix([Fraction(s) for s in same],
                                Fraction(min(size, len(ids))), beta))
    return out


def expected_topk(probability: Sequence[Sequence[float]],
                  beta: float = .5) -> List[int]:
    r"""The same with probabilities in place of counts; the first entry is
    certain.
    """
    out = []
    for row in probability:
        same = [Fraction(1)] + [Fraction(p) for p in row[1:]]
        out.append(_best_prefix(same, sum(same, Fraction(0)), beta))
    return out


def _best_prefix(same: Sequence[Fraction], positives: Fraction,
                 beta: float) -> int:
    weight = Fraction(beta)**2
    best, best_score = 1, Fraction(-1)
    for j in range(1, len(same) + 1):
        found = sum(same[:j], Fraction(0))
        precision, recall = found / j, found / positives
        score = ((1 + weight) * precision * recall /
                 (weight * precision + recall))
        if score > best_score:
            best, best_score = j, score
    return best


def subgraph_values(neighbors: Sequence[Sequence[int]],
                    value: Sequence[Sequence[float]],
                    nodes: Sequence[int]) -> List[List[List[float]]]:
    r"""For each of some nodes, what each of its neighbours' rows says about
    each of its neighbours; 0 where it says nothing.
    """
    rows = [dict(zip(ids, values)) for ids, values in zip(neighbors, value)]
    return [[[rows[h].get(j, 0.) for j in neighbors[b]]
             for h in neighbors[b]] for b in nodes]


def reverse_values(neighbors: Sequence[Sequence[int]],
                   value: Sequence[Sequence[float]]) -> List[List[float]]:
    r"""At each entry of :math:`j` in row :math:`i`, what row :math:`j` says
    about :math:`i`; 0 where it says nothing.
    """
    rows = [dict(zip(ids, values)) for ids, values in zip(neighbors, value)]
    return [[rows[j].get(i, 0.) for j in ids]
            for i, ids in enumerate(neighbors)]
