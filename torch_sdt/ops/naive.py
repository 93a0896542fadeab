r"""The readable definition of every operation in :mod:`torch_sdt.ops`.

Plain loops over plain numbers: what the tests compare the fast versions with,
and what a newcomer reads first. Nothing here is meant to be fast.
"""
from math import exp, log2
from typing import Dict, List, Optional, Sequence, Tuple

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


def map_equation(cluster: Sequence[int], edges: Dict[Tuple[int, int], float],
                 num_nodes: int, markov_time: float = 1.,
                 self_loops: Optional[Dict[int, float]] = None) -> float:
    r"""Two-level codelength, in bits, of an undirected weighted graph.

    :obj:`edges` holds each unordered pair once. A self-loop counts once in
    its node's strength.
    """
    strength = [0.] * num_nodes
    cut = {m: 0. for m in cluster}
    for (i, j), w in edges.items():
        strength[i] += w
        strength[j] += w
        if cluster[i] != cluster[j]:
            cut[cluster[i]] += w
            cut[cluster[j]] += w
    for i, w in (self_loops or {}).items():
        strength[i] += w
    total = sum(strength)
    if total == 0:
        return 0.

    def plogp(p: float) -> float:
        return p * log2(p) if p > 0 else 0.

    p = [s / total for s in strength]
    q = {m: markov_time * c / total for m, c in cut.items()}
    stay = dict(q)
    for i, m in enumerate(cluster):
        stay[m] += p[i]
    return (plogp(sum(q.values())) - 2 * sum(map(plogp, q.values())) -
            sum(map(plogp, p)) + sum(map(plogp, stay.values())))
