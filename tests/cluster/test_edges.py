from importlib import import_module

import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.cluster import EdgeRule, Edges, choose_rule
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    edge_probability,
    expected_topk,
    knn,
    map_equation_communities,
    topk_jaccard,
)

module = import_module('torch_sdt.cluster.edges')
N, K = 40, 8
MERGES = ('jaccard', 'verdict', 'mean', 'boundary')


def world(seed=0, device='cpu'):
    generator = torch.Generator().manual_seed(seed)
    neighbors = knn(torch.randn(N, 5, generator=generator), K)
    trust = torch.rand(N, K, generator=generator)
    verdict = torch.rand(N, K, generator=generator)
    neighbors = Neighbors(*(part.to(device) for part in neighbors))
    return neighbors, trust.to(device), verdict.to(device)


def definition(neighbors, trust, verdict, rule):
    # Entry by entry.
    index = neighbors.index.tolist()
    k = expected_topk(trust, rule.beta)
    jaccard = topk_jaccard(neighbors, k)
    out = torch.zeros(N, K)
    for i in range(N):
        for r, j in enumerate(index[i]):
            p = float(jaccard[i, r])
            said = [float(verdict[i, r])]
            if i in index[j]:
                said.append(float(verdict[j, index[j].index(i)]))
            v = 1. if r == 0 else sum(said) / len(said)
            if rule.merge == 'jaccard':
                w = p
            elif rule.merge == 'verdict':
                w = v
            elif rule.merge == 'mean':
                w = (p + v) / 2
            else:
                w = p
                if abs(r - int(k[i])) <= rule.margin:
                    if v >= rule.eta:
                        w = max(p, v)
                    elif v < 1 - rule.eta:
                        w = 0.
            out[i, r] = w if w >= rule.threshold else 0.
    return out


@withCUDA
@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('kwargs', [
    {}, {'threshold': 0.}, {'threshold': .3, 'beta': 2.},
    {'threshold': .1, 'eta': .7, 'margin': 1},
    {'threshold': 0., 'eta': .9, 'margin': 0}])
def test_weights(merge, kwargs, device):
    neighbors, trust, verdict = world(device=device)
    rule = EdgeRule(merge, **kwargs)
    before = verdict.clone()
    out = Edges(neighbors, trust, verdict).weight(rule)
    assert out.device == device and torch.equal(verdict, before)
    expected = definition(
        Neighbors(*(part.cpu() for part in neighbors)), trust.cpu(),
        verdict.cpu(), rule)
    assert torch.allclose(out.cpu(), expected, atol=1e-6)
    # A rule that leaves some edges, and cuts others if it may.
    left = int((expected[:, 1:] > 0).sum())
    if rule.threshold == 0. and merge in {'verdict', 'mean'}:
        assert left == N * (K - 1)
    else:
        assert 0 < left < N * (K - 1)


@pytest.mark.parametrize('merge', MERGES[:3])
def test_symmetric_where_both_list_each_other(merge):
    neighbors, _, verdict = world()
    edges = Edges(neighbors, torch.full((N, ), K), verdict)
    dense = torch.full((N, N), torch.nan).scatter_(
        1, neighbors.index, edges.weight(EdgeRule(merge, threshold=.2)))
    mutual = ~(dense + dense.t()).isnan()
    assert int(mutual.sum()) > N + 40
    assert torch.allclose(dense[mutual], dense.t()[mutual], atol=1e-6)


def test_verdicts_of_one_direction_stand_alone():
    # 0 lists 1, 1 does not list 0: it says nothing about it.
    index = torch.tensor([[0, 1], [1, 2], [2, 1]])
    verdict = torch.tensor([[.1, .8], [.1, .6], [.1, .2]])
    edges = Edges(Neighbors(index, torch.ones(3, 2)), torch.ones(3, 2),
                  verdict)
    weight = edges.weight(EdgeRule('verdict', threshold=0.))
    assert torch.allclose(weight, torch.tensor([[1., .8], [1., .4],
                                                [1., .4]]))


def test_trust_is_probabilities_or_numbers():
    neighbors, trust, _ = world()
    edges = Edges(neighbors, trust)
    for beta in (.5, 2.):
        assert torch.equal(edges.k(beta), expected_topk(trust, beta))
    assert not torch.equal(edges.k(.5), edges.k(2.))
    k = torch.randint(1, K + 1, (N, ))
    fixed = Edges(neighbors, k)
    assert torch.equal(fixed.k(.5), k) and torch.equal(fixed.k(2.), k)
    assert torch.equal(fixed.jaccard(1.), topk_jaccard(neighbors, k))


def test_the_transform_is_that_of_the_jaccard():
    neighbors, trust, verdict = world()
    edges = Edges(neighbors, trust, verdict, 'exponential')
    expected = topk_jaccard(
        neighbors, expected_topk(trust, .7),
        edge_probability(neighbors.similarity, 'exponential'))
    assert torch.equal(edges.jaccard(.7), expected)
    assert not torch.allclose(Edges(neighbors, trust).jaccard(.7), expected)


def test_what_rules_share_is_computed_once(monkeypatch):
    count = []

    def counted(*args, **kwargs):
        count.append(args)
        return topk_jaccard(*args, **kwargs)

    monkeypatch.setattr(module, 'topk_jaccard', counted)
    edges = Edges(*world())
    first = edges.weight(EdgeRule('mean', .5, .2))
    edges.weight(EdgeRule('jaccard', .5, .4))
    edges.weight(EdgeRule('boundary', .5, .1))
    assert len(count) == 1
    edges.weight(EdgeRule('mean', .7, .2))
    assert len(count) == 2
    # Nor has cutting changed what is kept.
    assert torch.equal(edges.weight(EdgeRule('mean', .5, .2)), first)


@pytest.mark.parametrize('markov_time', [.7, 1., 2.])
def test_cluster_is_the_map_equation_on_the_weights(markov_time):
    pytest.importorskip('numba')
    edges = Edges(*world())
    rule = EdgeRule('mean', threshold=.4, markov_time=markov_time)
    weight = edges.weight(rule)
    mask = weight > 0
    mask[:, 0] = False
    target, rank = mask.nonzero(as_tuple=True)
    edge_index = torch.stack([edges.neighbors.index[mask], target])
    expected = map_equation_communities(
        edge_index, weight[mask], N, 'numba', markov_time, seed=3)
    out = edges.cluster(rule, seed=3)
    assert torch.equal(out, expected) and out.dtype == torch.long
    # All cut is all alone.
    alone = edges.cluster(rule._replace(threshold=1.1))
    assert alone.unique().numel() == N


def test_bad_rules():
    neighbors, trust, verdict = world()
    with pytest.raises(ValueError, match="'merge' must be .*'boundary'.*"
                                         "'median'"):
        Edges(neighbors, trust, verdict).weight(EdgeRule('median'))
    edges = Edges(neighbors, trust)
    assert edges.verdict is None
    edges.weight(EdgeRule('jaccard'))
    for merge in ('verdict', 'mean', 'boundary'):
        with pytest.raises(ValueError, match='verdict'):
            edges.weight(EdgeRule(merge))


# The choice ##################################################################


def planted(low, high, num=6, size=5):
    # Everybody lists everybody. Verdicts within an identity are `high`,
    # across `low`; rows that list all have no Jaccard to speak of.
    n = num * size
    y = np.arange(n) % num
    index = (torch.arange(n).view(-1, 1) + torch.arange(n)) % n
    label = torch.from_numpy(y)
    same = label[index] == label.view(-1, 1)
    verdict = torch.where(same, high, low)
    return Edges(Neighbors(index, torch.ones(n, n)), torch.ones(n, n),
                 verdict), y


@pytest.mark.parametrize('low,high,threshold', [(.15, .25, .2),
                                                (.55, .65, .6),
                                                (.72, .95, .8)])
def test_choose_rule_finds_the_threshold(low, high, threshold):
    pytest.importorskip('numba')
    edges, y = planted(low, high)
    rule, score = choose_rule(edges, y)
    assert score == 1.
    assert (rule.merge, rule.threshold) == ('verdict', threshold)
    assert rule.markov_time == 1.  # nothing is better than perfect
    assert np.array_equal(edges.cluster(rule).numpy(), y)


@pytest.mark.parametrize('merge', MERGES)
def test_choose_rule_returns_the_best_of_all(merge):
    pytest.importorskip('numba')
    edges = Edges(*world())
    y = np.arange(N) % 6

    def scored(rule):
        labels = edges.cluster(rule, seed=1).numpy()
        return rule, module.mean_fscore(y, labels)

    def best(rules):
        return max(map(scored, rules), key=lambda found: found[1])

    # Other betas and etas are tried with the best of all others.
    first = module.strictest_of_the_best(
        [scored(rule) for rule in module.rules(merge)])[0]
    assert (scored(first)[1] >=
            best(module.rules(merge))[1] - module.ALIKE)
    assert choose_rule(edges, y, merge=merge, seed=1) == best(
        [first, *module.variations(first)])


def test_of_equals_the_highest_threshold():
    pytest.importorskip('numba')
    # Every threshold from .3 to .7 parts the identities.
    edges, y = planted(.25, .75)
    rule, score = choose_rule(edges, y)
    assert score == 1. and (rule.threshold, rule.markov_time) == (.7, 1.)


@pytest.mark.parametrize('scores,best', [
    ([.1, .2, .3], 2), ([.3, .2, .1], 0), ([.3, .3, .3], 2), ([.3, .3, .1], 1),
    ([.3, .1, .298], 2), ([.3, .1, .296], 0)])
def test_strictest_of_the_best(scores, best):
    rules = [module.EdgeRule(threshold=t) for t in (.2, .3, .4)]
    found = list(zip(rules, scores))
    slower = [(rule._replace(markov_time=2.), score) for rule, score in found]
    assert module.strictest_of_the_best(found) == found[best]
    # The first Markov time of equals goes first.
    assert module.strictest_of_the_best(found + slower) == found[best]
    less = [(rule, score - .05) for rule, score in found]
    assert module.strictest_of_the_best(less + slower) == slower[best]


@withCUDA
def test_average_precision(device):
    neighbors, trust, verdict = world(device=device)
    y = np.arange(N) % 6
    edges = Edges(neighbors, trust, verdict)
    # By definition: over the pairs of one identity, the share of such pairs
    # among all that are judged at least as high.
    pairs = [(float(edges.verdict[i, r]), y[i] == y[j])
             for i, row in enumerate(neighbors.index.tolist())
             for r, j in enumerate(row) if r > 0]
    shares = []
    for v, same in pairs:
        if same:
            above = [s for w, s in pairs if w >= v]
            shares.append(sum(above) / len(above))
    assert edges.average_precision(y) == pytest.approx(np.mean(shares))
    assert edges.average_precision(np.arange(N)) == 0.
    right, truth = planted(.2, .9)
    assert right.average_precision(truth) == 1.
    with pytest.raises(ValueError, match='no verdict'):
        Edges(neighbors, trust).average_precision(y)


def test_choose_rule_by_the_rows_that_are_scored():
    # Two worlds that do not see each other: what parts the one leaves the
    # other in one piece, and the other way round.
    pytest.importorskip('numba')
    one, y = planted(.25, .35)
    other, _ = planted(.65, .75)
    n = y.size
    index = torch.cat([one.neighbors.index, other.neighbors.index + n])
    edges = Edges(Neighbors(index, torch.ones(2 * n, n)),
                  torch.ones(2 * n, n),
                  torch.cat([one.verdict, other.verdict]))
    both = np.concatenate([y, y + 6])
    for rows, threshold in ((np.arange(2 * n) < n, .3),
                            (np.arange(2 * n) >= n, .7)):
        rule, score = choose_rule(edges, both, rows)
        assert score == 1. and rule.threshold == threshold
    assert choose_rule(edges, both)[1] < 1.


def test_choose_rule_without_verdicts():
    pytest.importorskip('numba')
    neighbors, trust, _ = world()
    rule, _ = choose_rule(Edges(neighbors, trust), np.arange(N) % 6)
    assert rule.merge == 'jaccard'
    with pytest.raises(ValueError, match='verdict'):
        choose_rule(Edges(neighbors, trust), np.arange(N) % 6,
                    merge='mean')


@pytest.mark.parametrize('merge,betas,etas', [
    ('jaccard', 3, 1), ('verdict', 1, 1), ('mean', 3, 1), ('boundary', 3, 2)])
def test_rules(merge, betas, etas):
    rules = module.rules(merge)
    assert {rule.merge for rule in rules} == {merge}
    thresholds = {rule.threshold for rule in rules}
    times = {rule.markov_time for rule in rules}
    # Each with each, and first of all the map equation as it is.
    assert len(set(rules)) == len(rules) == len(thresholds) * len(times)
    assert len(thresholds) > 2 and len(times) > 2
    assert rules[0].markov_time == 1.
    # Verdicts do not depend on beta, and only the paper's rule on eta.
    others = module.variations(rules[-1])
    assert len(set(others) - {rules[-1]}) == len(others) == betas * etas - 1
    every = [rules[-1], *others]
    assert len({rule.beta for rule in every}) == betas
    assert len({rule.eta for rule in every}) == etas
    assert {rule._replace(beta=.7, eta=.6) for rule in every} == {rules[-1]}


# Scores ######################################################################


@pytest.mark.parametrize('seed', range(3))
def test_mean_fscore_is_that_of_the_metrics(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 9, 60)
    for cluster in (rng.integers(0, 12, 60), y, np.arange(60),
                    np.zeros(60, dtype=int), y // 2,
                    3 * y + rng.integers(0, 2, 60)):
        scores = clustering_scores(y, cluster)
        expected = (scores.pairwise.fscore + scores.bcubed.fscore) / 2
        assert module.mean_fscore(y, cluster) == pytest.approx(expected)
        everybody = np.ones(60, dtype=bool)
        assert module.mean_fscore(y, cluster, everybody) == pytest.approx(
            expected)


def test_scored_rows_lose_by_strangers():
    # Two identities that are scored, and one that is not.
    y = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    scored = y < 2
    assert module.mean_fscore(y, y, scored) == 1.
    # What happens among strangers is not their concern.
    assert module.mean_fscore(y, np.array([0, 0, 0, 1, 1, 1, 2, 3, 4]),
                              scored) == 1.
    # A stranger among them costs precision, and is all that it costs.
    joined = np.array([0, 0, 0, 1, 1, 1, 1, 3, 4])
    precision = (3 + 3 * .75) / 6
    bcubed = 2 * precision / (precision + 1)
    precision = 12 / (6 + 9)  # 2 of 2 neighbours, and 2 of 3
    pairwise = 2 * precision / (precision + 1)
    assert module.mean_fscore(y, joined, scored) == pytest.approx(
        (bcubed + pairwise) / 2)
    # Alone among scored rows, it would look perfect.
    assert module.mean_fscore(y[scored], joined[scored]) == 1.


def test_mean_fscore_of_nothing_in_common():
    assert module.mean_fscore(np.arange(4), np.arange(4)) == .5
    assert module.mean_fscore(np.arange(4), np.zeros(4, dtype=int)
                              ) == pytest.approx(.2)


@pytest.mark.parametrize('convert', [
    lambda y: y.astype(np.uint8), lambda y: y.astype(np.int8),
    lambda y: (y + 2**31 - 200).astype(np.int32), lambda y: y.astype(str),
    torch.from_numpy])
def test_choose_rule_by_labels_of_any_kind(convert):
    edges, y = planted(.3, .6, num=60, size=2)
    assert choose_rule(edges, convert(y)) == choose_rule(edges, y)


@pytest.mark.parametrize('threshold', [.2, .6, .9])
def test_what_is_larger_than_the_table_stays_whole(threshold):
    # Of 60 equal samples in rows of 8 most are listed in one direction.
    neighbors = Neighbors.build(torch.ones(60, 4), 8)
    verdict = torch.ones(60, 8)
    cluster = Edges(neighbors, verdict, verdict).cluster(
        EdgeRule('verdict', threshold=threshold))
    assert int(cluster.max()) == 0
