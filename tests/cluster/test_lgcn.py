import numpy as np
import pytest
import torch
from sklearn.base import clone

import torch_sdt.typing
from torch_sdt.cluster.lgcn import LGCN, SizeRule
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import normalize_features

SMALL = dict(k=6, k2=3, u=3, epochs=1, batch_size=16)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


def world():
    data = SyntheticFaces('ms1m', num_identities=20, dim=16,
                          images_per_identity=(2, 5))
    return data.x, data.y


class Told(torch.nn.Module):
    # Knows the probability of every ordered pair.
    def __init__(self, probability):
        super().__init__()
        self.logit = torch.logit(probability)

    def forward(self, batch):
        return self.logit[batch.node.view(-1, 1), batch.index[:, :batch.k]]


def told(probability, **kwargs):
    # A model without training, and its table.
    generator = torch.Generator().manual_seed(0)
    n = probability.size(0)
    model = LGCN(**{**SMALL, **kwargs})
    model.k_ = kwargs.get('k', SMALL['k'])
    model.link_ = Told(probability)
    x = normalize_features(torch.randn(n, 8, generator=generator))
    return model, model._table(x)


def test_mean_of_both_directions():
    generator = torch.Generator().manual_seed(1)
    probability = .1 + .8 * torch.rand(24, 24, generator=generator)
    model, table = told(probability)
    links = model._measure(table)
    rows = table.neighbors.index.tolist()
    one_way = 0
    for (j, i), weight in zip(links.edge_index.t().tolist(),
                              links.weight.tolist()):
        assert j in rows[i]
        wanted = float(probability[i, j])
        if i in rows[j]:
            wanted = (wanted + float(probability[j, i])) / 2
        else:
            one_way += 1
        assert weight == pytest.approx(wanted, abs=1e-5)
    assert links.edge_index.size(1) == 24 * 5 and one_way > 0


def test_large_components_fall_apart():
    # Two groups of 8 that a weaker link joins, on a complete graph.
    same = torch.arange(16).div(8, rounding_mode='floor')
    same = same.view(-1, 1) == same
    probability = torch.where(same, .95, .3)
    model, table = told(probability, k=16)
    links = model._measure(table)
    whole = model._partition(links, SizeRule(16))
    assert int(whole.max()) == 0
    for step in (.05, .1, .6):
        model.step = step
        halves = model._partition(links, SizeRule(15))
        assert torch.equal(halves, torch.arange(16) // 8)
        # Too large whatever the bar, until it lets nothing pass.
        alone = model._partition(links, SizeRule(7))
        assert torch.equal(alone, torch.arange(16))
    # The first bar above all weights is one too many.
    model.step = 1.
    alone = model._partition(links, SizeRule(15))
    assert torch.equal(alone, torch.arange(16))


def test_bar_comes_close_to_one():
    # Weights that differ in their last digits only.
    same = torch.arange(16).div(8, rounding_mode='floor')
    same = same.view(-1, 1) == same
    model, table = told(torch.where(same, .99999, .999), k=16)
    halves = model._partition(model._measure(table), SizeRule(8))
    assert torch.equal(halves, torch.arange(16) // 8)


def test_rules():
    x, y = world()
    model = clone(LGCN(**SMALL)).fit(x, y)
    rules = model._rules(None)
    size = np.bincount(y)
    largest = model._sizes.max()
    assert largest <= size.max()
    assert {largest, 2 * largest} <= {rule.max_size for rule in rules}
    assert max(rule.max_size for rule in rules) == 2 * largest
    assert model.rule_ in rules
    # What is given is what is taken.
    model.set_params(max_size=7)
    assert model._rules(None) == [SizeRule(7)]
    assert clone(model).fit(x, y).rule_ == SizeRule(7)


def test_rules_do_not_change_the_weights(tmp_path):
    x, y = world()
    LGCN(**SMALL, workdir=tmp_path).fit(x, y)
    LGCN(**SMALL, workdir=tmp_path, max_size=3, step=.1).fit(x, y)
    with pytest.raises(ValueError, match='another training'):
        LGCN(**{**SMALL, 'u': 2}, workdir=tmp_path).fit(x, y)


def test_hops_change_the_result():
    # More of them are other subgraphs.
    x, y = world()
    model = LGCN(**SMALL).fit(x, y)
    table = model._table(normalize_features(x))
    weight = model._measure(table).weight
    for name in ('k2', 'u'):
        other = clone(model).set_params(**{name: 1})
        other.k_, other.link_ = model.k_, model.link_
        assert not torch.allclose(other._measure(table).weight, weight,
                                  atol=1e-4)


def test_order_of_samples_makes_no_difference():
    x, y = world()
    model = LGCN(**SMALL).fit(x, y)
    order = np.random.default_rng(0).permutation(y.size)
    labels, other = model.predict(x).copy(), model.predict(x[order])
    pairs = set(zip(labels[order].tolist(), other.tolist()))
    assert len(pairs) == labels.max() + 1 == other.max() + 1


def test_bad_arguments():
    x, y = world()
    for name, values in (('k2', [0]), ('u', [0]), ('max_size', [0]),
                         ('step', [0., 1.1, -1.])):
        for value in values:
            with pytest.raises(ValueError, match=f"'{name}'"):
                LGCN(**{**SMALL, name: value}).fit(x, y)
