import os
from functools import lru_cache

import numpy as np
import pytest
import torch

import torch_sdt.cluster.fceser as module
import torch_sdt.typing
from torch_sdt.cluster import FCES
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.fceser import FCESER, RecallRule, behind, listed, nep
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.loader import NeighborPairs
from torch_sdt.ops import normalize_features
from torch_sdt.ops.early_stop import early_stop

SMALL = dict(k=12, epochs=1, batch_size=64, theta=.4, delta=.2, eta=.5)


@lru_cache(maxsize=None)
def world(split='train'):
    data = SyntheticFaces('ms1m', num_identities=20, dim=32,
                          images_per_identity=(3, 9), split=split, seed=0)
    return data.x, data.y


@lru_cache(maxsize=None)
def fitted():
    return FCESER(**SMALL).fit(*world())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


class Oracle(torch.nn.Module):
    # Knows the identities, and how many pairs it was asked for.
    k = 3

    def __init__(self, y):
        super().__init__()
        self.y, self.asked = torch.as_tensor(y), []

    def forward(self, batch):
        self.asked += list(zip(batch.node.tolist(), batch.other.tolist()))
        same = self.y[batch.node] == self.y[batch.other]
        return same.float() * 200 - 100


def with_oracle(y):
    model = FCESER(**SMALL)
    model.k_, model.n_features_in_ = 12, 32
    model.pair_ = Oracle(y)
    return model


def table(model, split='test'):
    return model._table(normalize_features(world(split)[0]))


# Early stopping ##############################################################


@pytest.mark.parametrize('theta', [0., .3, .7, 1.1])
def test_early_stop(theta):
    probability = torch.rand(30, 9, generator=torch.Generator().manual_seed(0))
    out = early_stop(probability, theta)
    for row, linked in zip(probability.tolist(), out.tolist()):
        going = True
        for value, link in zip(row, linked):
            going = going and value >= np.float32(theta)
            assert link == going


@pytest.mark.parametrize('theta', [.3, .45, .6])
def test_with_eta_above_one_it_is_fces(theta):
    model = fitted()
    x, _ = world('test')
    measured = model._measure(table(model))
    labels = model._partition(measured, RecallRule(theta, .05, 1.1)).numpy()
    assert np.array_equal(labels, FCES(theta, k=12).fit_predict(x))
    # At 1 and below, some are recalled.
    weight = model._weight(measured, RecallRule(theta, .05, 1.1))
    recalled = model._weight(measured, RecallRule(theta, .05, 0.))
    assert int((recalled > 0).sum()) > int((weight > 0).sum())


def test_from_the_outside_as_well():
    x, _ = world('test')
    model = FCESER(**{**SMALL, 'eta': 2.}).fit(*world())
    assert model.rule_ == RecallRule(.4, .2, 2.)
    assert np.array_equal(model.predict(x), FCES(.4, k=12).fit_predict(x))


# Edge recall #################################################################


@torch.no_grad()
def test_links_are_those_of_the_definition():
    model, data = fitted(), table(fitted())
    neighbors, measured = data.neighbors, model._measure(data)
    # Half of those behind the stop are recalled.
    rule = RecallRule(.45, .2, 0.)
    model._weight(measured, rule)
    rule = rule._replace(eta=float(measured.verdict.nanmedian()))
    out = model._weight(measured, rule)
    index, jaccard = neighbors.index, nep(neighbors)
    sets = [set(row) for row in index.tolist()]
    p = ((2 * neighbors.similarity.clamp(min=0) - 2) / .5).exp()
    p = p / p.sum(dim=1, keepdim=True)
    dense = torch.zeros(len(sets), len(sets)).scatter_(1, index, p)
    loader = NeighborPairs(neighbors, data.x, torch.zeros(2, 0).long())
    recalled = 0
    for i, row in enumerate(index.tolist()):
        going = True
        for rank, j in enumerate(row):
            both = list(sets[i] & sets[j])
            value = float(dense[i, both].sum() + dense[j, both].sum()) / 2
            assert value == pytest.approx(float(jaccard[i, rank]), abs=1e-5)
            going, wanted = going and value >= rule.theta, 0.
            if going:
                wanted = value
            elif value >= rule.delta:
                loader.pairs = torch.tensor([[i], [j]])
                batch = loader.gather(torch.tensor([0]))
                verdict = float(model.pair_(batch).sigmoid())
                wanted = verdict if verdict >= rule.eta else 0.
                recalled += wanted > 0
            assert float(out[i, rank]) == pytest.approx(wanted, abs=1e-5)
    assert recalled > 10


def test_recall_by_one_who_knows():
    x, y = world('test')
    model = with_oracle(y)
    measured = model._measure(table(model))
    stopped, recalled = (
        model._partition(measured, RecallRule(.6, .1, eta)).numpy()
        for eta in (2., .5))
    assert mean_fscore(y, recalled) > mean_fscore(y, stopped) + .02
    # What is recalled joins one identity only.
    weight = model._weight(measured, RecallRule(.6, .1, .5))
    new = (weight > 0) & ~early_stop(measured.jaccard, .6)
    row, other = listed(measured.table.neighbors, new)
    assert bool(new.any()) and np.array_equal(y[row], y[other])
    assert bool((weight[new] > .99).all())


def test_no_pair_is_judged_twice_and_none_in_vain():
    model = with_oracle(world('test')[1])
    measured = model._measure(table(model))
    asked, neighbors = model.pair_.asked, measured.table.neighbors
    assert asked == []
    wanted = set()
    for rule in (RecallRule(.3, .2, 1.01), RecallRule(.3, .2, .5),
                 RecallRule(.3, .2, .9), RecallRule(.5, .3, .5),
                 RecallRule(.3, .1, .5)):
        model._weight(measured, rule)
        if rule.eta <= 1:
            wanted |= set(zip(*listed(neighbors, behind(
                measured.jaccard, *rule[:2])).tolist()))
        assert len(asked) == len(set(asked)) and set(asked) == wanted


def test_order_of_questions_does_not_count():
    model, x = fitted(), table(fitted())
    rules = [RecallRule(.5, .1, .6), RecallRule(.2, .2, .5)]
    first, second = model._measure(x), model._measure(x)
    forth = [model._weight(first, rule) for rule in rules]
    back = [model._weight(second, rule) for rule in reversed(rules)]
    for one, two in zip(forth, reversed(back)):
        assert torch.allclose(one, two, atol=1e-5)


# Training ####################################################################


def captured(monkeypatch, **kwargs):
    seen = []
    monkeypatch.setattr(FCESER, '_train', lambda self, name, loader, _:
                        seen.append(loader))
    monkeypatch.setattr(FCESER, '_choose', lambda *args: None)
    FCESER(**{**SMALL, **kwargs}).fit(*world())
    return seen[0]


def test_pairs_of_training(monkeypatch):
    loader = captured(monkeypatch, theta=None, delta=None)
    neighbors = loader.neighbors
    assert loader.shuffle and loader.y is not None and neighbors.k == 12
    region = behind(nep(neighbors), max(module.THETAS), min(module.DELTAS))
    everything = set(zip(*listed(neighbors, region).tolist()))
    pairs = list(zip(*loader.pairs.tolist()))
    assert len(pairs) == len(everything) and set(pairs) == everything
    # Of given thresholds, fewer; and a sample where there are many.
    few = captured(monkeypatch, theta=.2, delta=.2)
    assert 0 < few.pairs.size(1) < len(pairs)
    monkeypatch.setattr(module, '_PAIRS', 50)
    sample = list(zip(*captured(monkeypatch, theta=None, delta=None)
                      .pairs.tolist()))
    assert len(set(sample)) == 50 and set(sample) <= everything


def test_neighbors_per_side(monkeypatch):
    assert captured(monkeypatch, neighbors_per_side=4).neighbors.k == 4
    monkeypatch.setattr('torch_sdt.cluster.lcepce._SIDE', 5)
    assert captured(monkeypatch).neighbors.k == 5
    assert captured(monkeypatch, size='base').neighbors.k == 12


def test_rules():
    model = FCESER()
    rules = model._rules(None)
    assert rules[0] == RecallRule(.22, .12, .6)  # As published.
    assert len(set(rules)) == len(rules) == 56
    assert any(rule.eta > 1 for rule in rules)  # FC-ES.
    model = FCESER(theta=.3, eta=.7)
    assert {rule[::2] for rule in model._rules(None)} == {(.3, .7)}
    assert len(model._rules(None)) == len(module.DELTAS)
    assert fitted().rule_ == RecallRule(.4, .2, .5)


def test_what_weights_depend_on(tmp_path):
    kwargs = {**SMALL, 'workdir': os.fspath(tmp_path)}
    FCESER(**kwargs).fit(*world())
    FCESER(**{**kwargs, 'eta': .9, 'backend': 'numba'}).fit(*world())
    with pytest.raises(ValueError, match='another training'):
        FCESER(**{**kwargs, 'delta': .3}).fit(*world())


@pytest.mark.parametrize('kwargs', [
    {'theta': 1.1}, {'theta': -.1}, {'delta': 2.}, {'delta': float('nan')},
    {'eta': -.1}, {'eta': float('nan')}, {'neighbors_per_side': 0},
    {'backend': 'louvain'}, {'size': 'large'},
], ids=str)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"'{next(iter(kwargs))}'"):
        FCESER(**kwargs).fit(*world())
