r"""How verdicts on pairs become the edges that are clustered."""
from __future__ import annotations

from operator import itemgetter
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.cluster._arguments import check_known
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.edge_probability import edge_probability
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.map_equation import table_communities
from torch_sdt.ops.reverse import symmetric_values
from torch_sdt.ops.topk import expected_topk
from torch_sdt.progress import progress

MERGES = ('jaccard', 'verdict', 'mean', 'boundary')


class EdgeRule(NamedTuple):
    r"""How edges are weighed and cut.

    Args:
        merge (str): With the Top-K Jaccard :math:`\tilde p_{ij}` and the
            verdict :math:`v_{ij}`, averaged over the directions that the
            table holds (:meth:`~torch_sdt.ops.symmetric_values`):
            :obj:`"jaccard"`, :math:`\tilde p`; :obj:`"verdict"`,
            :math:`v`; :obj:`"mean"`,
            :math:`(\tilde p + v) / 2`; or :obj:`"boundary"`, the paper's:
            :math:`\tilde p`, but of ranks within :obj:`margin` of
            :math:`k_i` those with :math:`v \geq \eta` get
            :math:`\max(\tilde p, v)` and those with :math:`v < 1 - \eta` are
            dropped.
        beta (float): The :math:`\beta` of the :math:`F_\beta` whose expected
            maximum is :math:`k_i`.
        threshold (float): Smaller weights are cut.
        markov_time (float): The resolution of the map equation.
        eta (float): The :math:`\eta` of :obj:`"boundary"`.
        margin (int): Its margin.
    """
    merge: str = 'verdict'
    beta: float = .7
    threshold: float = .5
    markov_time: float = 1.
    eta: float = .6
    margin: int = 10


class Edges:
    r"""The edge weights of one neighbour table, by rule; what several rules
    share is computed once.

    Args:
        neighbors (Neighbors): The table.
        trust (torch.Tensor): What :math:`k_i` is derived from: the first
            model's probabilities, float32, shape ``[N, K]``, or :math:`k_i`
            themselves, int64, shape ``[N]``.
        verdict (torch.Tensor, optional): The verdict on each entry, float32,
            shape ``[N, K]``. (default: :obj:`None`)
        transform (str, optional): The distance transform of the Jaccard, see
            :meth:`~torch_sdt.ops.edge_probability`.
            (default: :obj:`"sigmoid"`)
    """

    def __init__(self, neighbors: Neighbors, trust: Tensor,
                 verdict: Optional[Tensor] = None,
                 transform: str = 'sigmoid') -> None:
        self.neighbors = neighbors
        self.trust = trust
        self.transform = transform
        self.verdict: Optional[Tensor] = None
        if verdict is not None:
            self.verdict = symmetric_values(neighbors.index, verdict)
            self.verdict[:, 0] = 1.
        self._jaccard: Dict[float, Tensor] = {}

    def k(self, beta: float) -> Tensor:
        r"""Trusted neighbours of each sample, int64, shape ``[N]``."""
        if self.trust.dim() == 1:
            return self.trust
        return expected_topk(self.trust, beta)

    def jaccard(self, beta: float) -> Tensor:
        r"""Their Top-K Jaccard, shape ``[N, K]``."""
        if beta not in self._jaccard:
            self._jaccard[beta] = topk_jaccard(
                self.neighbors, self.k(beta),
                edge_probability(self.neighbors.similarity, self.transform))
        return self._jaccard[beta]

    def weight(self, rule: EdgeRule) -> Tensor:
        r"""The weights of a rule, 0 where there is no edge, float32, shape
        ``[N, K]``.

        Raises:
            ValueError: If its merge is unknown, or needs a verdict and there
                is none.
        """
        if rule.merge == 'verdict':
            weight = self._verdict()
        elif rule.merge == 'jaccard':
            weight = self.jaccard(rule.beta)
        elif rule.merge == 'mean':
            weight = (self.jaccard(rule.beta) + self._verdict()) / 2
        elif rule.merge == 'boundary':
            weight = self._boundary(rule)
        else:
            raise ValueError(f"'merge' must be one of {list(MERGES)} (got "
                             f"'{rule.merge}')")
        return weight.masked_fill(weight < rule.threshold, 0.)

    def cluster(self, rule: EdgeRule, backend: Optional[str] = None,
                seed: int = 0) -> Tensor:
        r"""The clusters of the map equation on the edges of a rule, int64,
        shape ``[N]``; by :obj:`"numba"` on a CPU and by :obj:`"torch"`
        elsewhere, or where there is no numba, unless another :obj:`backend`
        is named.
        """
        if backend is None:
            on_cpu = not self.neighbors.index.is_cuda
            on_numba = on_cpu and torch_sdt.typing.WITH_NUMBA
            backend = 'numba' if on_numba else 'torch'
        return table_communities(self.neighbors, self.weight(rule), backend,
                                 rule.markov_time, seed)

    def average_precision(self, y: np.ndarray) -> float:
        r"""The average precision of the verdict on all pairs of the table but
        a sample and itself; 0 if no two of one identity are among them.

        Args:
            y (numpy.ndarray): Identities, shape ``[N]``.
        """
        return average_precision(self.neighbors, y, self._verdict())

    def _verdict(self) -> Tensor:
        if self.verdict is None:
            raise ValueError("There is no verdict to merge: only 'jaccard' "
                             "does without")
        return self.verdict

    def _boundary(self, rule: EdgeRule) -> Tensor:
        jaccard, verdict = self.jaccard(rule.beta), self._verdict()
        rank = torch.arange(verdict.size(1), device=verdict.device)
        k = self.k(rule.beta).view(-1, 1)
        near = (rank - k).abs() <= rule.margin
        weight = torch.where(near & (verdict >= rule.eta),
                             torch.maximum(jaccard, verdict), jaccard)
        return weight.masked_fill(near & (verdict < 1 - rule.eta), 0.)


# What choose_rule tries of each merge: every threshold at every Markov time,
# then the other betas and etas of the best.
_BETAS = (.7, .5, 1.)
_THRESHOLDS = {
    'jaccard': (0., .1, .2, .3, .4, .5),
    'verdict': (.2, .3, .4, .5, .6, .7, .8),
    'mean': (.1, .2, .3, .4, .5, .6, .7),
    'boundary': (0., .2, .4),
}
_ETAS = (.6, .8)
_MARKOV_TIMES = (1., .7, 1.5, 2.)
# Scores that differ by less do so for no reason.
ALIKE = .003


def rules(merge: str) -> List[EdgeRule]:
    r"""The rules of a merge that :meth:`choose_rule` compares first."""
    return [EdgeRule(merge, _BETAS[0], threshold, time, _ETAS[0])
            for time in _MARKOV_TIMES for threshold in _THRESHOLDS[merge]]


def variations(rule: EdgeRule) -> List[EdgeRule]:
    r"""A rule with the other :math:`\beta` and :math:`\eta` that it knows."""
    betas = _BETAS if rule.merge != 'verdict' else _BETAS[:1]
    etas = _ETAS if rule.merge == 'boundary' else _ETAS[:1]
    every = [rule._replace(beta=beta, eta=eta)
             for beta in betas for eta in etas]
    return [other for other in every if other != rule]


def choose_rule(
    edges: Edges,
    y: np.ndarray,
    scored: Optional[np.ndarray] = None,
    merge: Optional[str] = None,
    seed: int = 0,
    verbose: bool = False,
) -> Tuple[EdgeRule, float]:
    r"""The rule whose clusters score best on labelled samples.

    Args:
        edges (Edges): The edges to merge and cut.
        y (numpy.ndarray): Identities, shape ``[N]``.
        scored (numpy.ndarray, optional): Rows that the score counts, such as
            those of held-out identities among others. (default: all)
        merge (str, optional): The merge of the rule.
            (default: :obj:`"verdict"`, or :obj:`"jaccard"` where there is
            none)
        seed (int, optional): Seed of the map equation. (default: :obj:`0`)
        verbose (bool, optional): If :obj:`True`, shows a progress bar.
            (default: :obj:`False`)

    Returns:
        (EdgeRule, float): The best rule and its score, the mean of pairwise
        F and BCubed F; of thresholds that score alike the highest.

    Raises:
        ValueError: If there is no such merge, or no verdict for it.
    """
    if merge is None:
        merge = 'jaccard' if edges.verdict is None else 'verdict'
    check_known('merge', merge, MERGES)
    first = rules(merge)
    total = len(first) + len(variations(first[0]))
    with progress(total, 'edge rule', verbose, 'rules') as bar:

        def score(rule: EdgeRule) -> Tuple[EdgeRule, float]:
            cluster = edges.cluster(rule, seed=seed).cpu().numpy()
            bar.update()
            return rule, mean_fscore(y, cluster, scored)

        best = strictest_of_the_best(list(map(score, first)))
        return max([best, *map(score, variations(best[0]))],
                   key=itemgetter(1))


def strictest_of_the_best(found: Sequence[Tuple[EdgeRule, float]]
                          ) -> Tuple[EdgeRule, float]:
    r"""Of rules and their scores the best, but with the highest threshold that
    at its Markov time scores as much, within .003: held-out identities that
    lie well apart like many thresholds alike, and where there are more
    strangers than among them the highest is the one that keeps them apart.
    """
    best, most = max(found, key=itemgetter(1))
    return max(((rule, score) for rule, score in found
                if rule.markov_time == best.markov_time
                and score >= most - ALIKE),
               key=lambda alike: alike[0].threshold)


def mean_fscore(y: np.ndarray, cluster: np.ndarray,
                scored: Optional[np.ndarray] = None) -> float:
    r"""The mean of pairwise F and BCubed F.

    With :obj:`scored`, over those rows, but each with all that it shares an
    identity or a cluster with: joined to strangers that are not scored
    themselves, a row still loses precision.
    """
    both, identity, size = _sizes(y, cluster)
    if scored is not None:
        both, identity, size = both[scored], identity[scored], size[scored]
    bcubed = _harmonic((both / size).mean(), (both / identity).mean())
    pairwise = _harmonic((both - 1).sum() / max((size - 1).sum(), 1),
                         (both - 1).sum() / max((identity - 1).sum(), 1))
    return (pairwise + bcubed) / 2


def average_precision(neighbors: Neighbors, y: np.ndarray,
                      probability: Tensor) -> float:
    r"""The average precision of a value of each entry, shape ``[N, K]``, on
    all pairs of the table but a sample and itself; 0 if no two of one identity
    are among them.
    """
    from sklearn.metrics import average_precision_score

    index = neighbors.index[:, 1:].cpu().numpy()
    same = y[index] == y[:, None]
    if not same.any():
        return 0.
    found = probability[:, 1:].cpu().numpy()
    return float(average_precision_score(same.ravel(), found.ravel()))


def _sizes(y: np.ndarray, cluster: np.ndarray
           ) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Of each row: how many share both, the identity, and the cluster.
    y = np.unique(np.asarray(y), return_inverse=True)[1]
    out = []
    for key in (y * (int(cluster.max()) + 1) + cluster, y, cluster):
        _, inverse, count = np.unique(key, return_inverse=True,
                                      return_counts=True)
        out.append(count[inverse])
    return out[0], out[1], out[2]


def _harmonic(precision: float, recall: float) -> float:
    if precision + recall == 0:
        return 0.
    return float(2 * precision * recall / (precision + recall))
