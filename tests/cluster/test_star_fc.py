from copy import copy
from functools import lru_cache

import numpy as np
import pytest
import torch

import torch_sdt.cluster.star_fc as module
import torch_sdt.typing
from torch_sdt.cluster.star_fc import STARFC, Pruning
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.loader import NeighborPairs
from torch_sdt.loader.structure_preserved_subgraphs import (
    StructurePreservedSubgraphs,
)
from torch_sdt.ops import connected_components, density_peaks, ndde, tpdi

SMALL = dict(k=8, epochs=4, batch_size=32, lr=.01)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


@lru_cache(maxsize=None)
def world(split='train'):
    data = SyntheticFaces('ms1m', num_identities=30, dim=32, seed=0,
                          images_per_identity=(4, 10), split=split)
    return data.x, data.y


@lru_cache(maxsize=None)
def fitted():
    return STARFC(**SMALL).fit(*world())


def variant(**kwargs):
    # The same network, used in another way.
    return copy(fitted()).set_params(**kwargs)


@lru_cache(maxsize=None)
def measured(**kwargs):
    model = variant(**kwargs)
    table = model._table(model._features(world('test')[0]))
    return table, model._measure(table), model._probability(table)


def weights(model):
    return list(model.edge_.state_dict().values())


def renumbered(labels):
    # By first appearance.
    _, first, inverse = np.unique(labels, return_index=True,
                                  return_inverse=True)
    return first.argsort().argsort()[inverse]


def finer(cluster, other):
    # Does each cluster lie within one of the others?
    both = torch.stack([cluster, other]).unique(dim=1)
    return both.size(1) == int(cluster.max()) + 1


# Edges ######################################################################


def test_every_neighbor_has_a_probability():
    table, _, p = measured()
    index = table.neighbors.index
    n, k = index.shape
    node = torch.arange(n).repeat_interleave(k)
    pairs = torch.stack([node, index.reshape(-1)])
    batch = next(iter(NeighborPairs(table.neighbors, table.x, pairs, n * k)))
    with torch.no_grad():
        expected = fitted().edge_(batch).sigmoid().view(n, k)
    assert torch.allclose(p, expected, atol=1e-5)
    # One tells more than another: there is something to choose from.
    assert float(p.std()) > .05


# Node intimacy ##############################################################


@pytest.mark.parametrize('tau1', [.1, .4, .7])
@pytest.mark.parametrize('tau2', [0., .3, .6, .72])
def test_partition(tau1, tau2):
    table, out, p = measured()
    index = table.neighbors.index
    n = index.size(0)
    # From the definition, on the dense graph.
    adj = torch.zeros(n, n).scatter_(1, index, (p >= tau1).float())
    adj.fill_diagonal_(0)
    deg, share = adj.sum(dim=1), adj @ adj
    edges = []
    for i, j in adj.nonzero().tolist():
        intimacy = 0.
        if deg[j] > 0:
            intimacy = max(share[i, j] / deg[i], share[i, j] / deg[j])
        if intimacy >= tau2:
            edges.append((i, j))
    edge_index = torch.tensor(edges, dtype=torch.long).view(-1, 2).t()
    expected = connected_components(edge_index, n)
    cluster = fitted()._partition(out, Pruning(tau1, tau2))
    assert torch.equal(cluster, expected)


def test_thresholds_prune():
    _, out, _ = measured()
    part = {(a, b): fitted()._partition(out, Pruning(a, b))
            for a in (.1, .5) for b in (0., .5, .9)}
    for a in (.1, .5):
        assert finer(part[a, .5], part[a, 0.])
        assert finer(part[a, .9], part[a, .5])
        assert len({int(part[a, b].max()) for b in (0., .5, .9)}) == 3
    assert finer(part[.5, 0.], part[.1, 0.])
    # Nothing is as likely as that.
    alone = fitted()._partition(out, Pruning(1.01, 0.))
    assert torch.equal(alone, torch.arange(alone.numel()))


def test_two_images_share_nothing():
    # Of identities of two, node intimacy finds none; without it, some.
    x, _ = world('test')
    x = np.concatenate([x[:1], 1.001 * x[:1]])
    model = fitted()
    table = model._table(model._features(x))
    out = model._measure(table)
    p = model._probability(table)[0, 1]
    assert model._partition(out, Pruning(float(p) / 2, 0.)).tolist() == [0, 0]
    assert model._partition(out, Pruning(float(p) / 2, .1)).tolist() == [0, 1]


def test_each_probability_is_pruned_once(monkeypatch):
    calls = []
    original = module.node_intimacy

    def counted(index, keep):
        calls.append(int(keep.sum()))
        return original(index, keep)

    monkeypatch.setattr(module, 'node_intimacy', counted)
    model, (table, _, _) = fitted(), measured()
    out = model._measure(table)
    y = world('test')[1]
    rules = model._rules(out)
    model._best_rule(out, y, np.ones(y.size, dtype=bool))
    assert len(calls) == len({rule.tau1 for rule in rules}) < len(rules)
    assert calls == sorted(calls, reverse=True) and len(set(calls)) > 3


# Density peaks ##############################################################


def test_density_peaks():
    table, out, p = measured(pruning='density-peaks')
    model = variant(pruning='density-peaks')
    p = p.clone()
    p[:, 0] = 1
    density, far = ndde(table.neighbors, 1 - p), tpdi(table.neighbors, 1 - p)
    for tau1, tau2 in ((0., .7), (0., .3), (.5, .7)):
        kept = far.masked_fill(p < tau1, torch.inf)
        peaks = density_peaks(table.neighbors, density, kept, ties=True)
        cluster = model._partition(out, Pruning(tau1, tau2))
        assert torch.equal(cluster, peaks.cut(tau2))
        assert 1 < int(cluster.max()) + 1 < p.size(0)
    assert finer(model._partition(out, Pruning(0., .3)),
                 model._partition(out, Pruning(0., .7)))


def test_how_it_is_pruned_is_no_matter_of_training():
    given = STARFC(**SMALL, pruning='density-peaks', tau1=.1, tau2=.7)
    given.fit(*world())
    assert given.rule_ == Pruning(.1, .7)
    assert all(torch.equal(a, b)
               for a, b in zip(weights(given), weights(fitted())))


# Rules ######################################################################


def test_thresholds():
    _, out, _ = measured()
    rules = fitted()._rules(out)
    assert Pruning(.7, .72) in rules and len(set(rules)) == len(rules)
    model = STARFC(tau1=.65)
    assert {rule.tau1 for rule in model._rules(out)} == {.65}
    assert {rule.tau2 for rule in model._rules(out)} == {
        rule.tau2 for rule in rules}
    model = STARFC(tau2=.1)
    assert {rule.tau2 for rule in model._rules(out)} == {.1}
    assert len(model._rules(out)) == len({rule.tau1 for rule in rules})
    model = STARFC(tau1=.7, tau2=.72)
    assert model._rules(out) == [Pruning(.7, .72)]


def test_thresholds_of_density_peaks():
    _, out, _ = measured(pruning='density-peaks')
    rules = variant(pruning='density-peaks')._rules(out)
    assert {rule.tau1 for rule in rules} == {0.} and len(rules) > 5
    model = STARFC(pruning='density-peaks', tau2=.7)
    assert model._rules(out) == [Pruning(0., .7)]
    model = STARFC(pruning='density-peaks', tau1=.5, tau2=.7)
    assert model._rules(out) == [Pruning(.5, .7)]


# The rest ###################################################################


def test_it_trains_on_structure_preserved_subgraphs(monkeypatch):
    seen = []

    class Seen(StructurePreservedSubgraphs):
        def set_epoch(self, epoch):
            super().set_epoch(epoch)
            seen.append((epoch, self.x.size(0), self.all_x.size(0)))

    monkeypatch.setattr(module, 'StructurePreservedSubgraphs', Seen)
    x, y = world('test')
    model = STARFC(**{**SMALL, 'epochs': 2}, pair='concat').fit(x, y)
    assert model.edge_.pair == 'concat'
    # Before, and one an epoch; parts of what is not held out.
    assert [epoch for epoch, _, _ in seen] == [0, 1, 2]
    assert all(size < total < y.size for _, size, total in seen)


@pytest.mark.parametrize('pruning', ['intimacy', 'density-peaks'])
def test_labels_do_not_depend_on_the_order_of_samples(pruning):
    x, y = world('test')
    order = np.random.default_rng(0).permutation(y.size)
    model = variant(pruning=pruning)
    # What prunes well differs, but is no matter here.
    model.rule_ = Pruning(.3, .5)
    labels = model.predict(x)
    assert np.array_equal(renumbered(model.predict(x[order])),
                          renumbered(labels[order]))


def test_sizes_and_comparisons():
    model = STARFC(size='base', pair='concat')
    model.n_features_in_ = 6
    model._build_networks()
    assert model.edge_.conv.lin_rel.weight.shape == (512, 6)
    assert model.edge_.pair == 'concat'
    assert fitted().edge_.conv.lin_rel.weight.shape == (256, 32)
    assert fitted().edge_.pair == 'product'


@pytest.mark.parametrize('name,value', [
    ('pruning', 'degree'), ('pair', 'sum'), ('size', 'huge'), ('tau1', -.1),
    ('tau1', 1.1), ('tau2', -.1), ('tau2', 1.1)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"'{name}'"):
        STARFC(**SMALL, **{name: value}).fit(*world())
