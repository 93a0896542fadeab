import numpy as np
import pytest
import torch
from sklearn.base import clone

import torch_sdt.typing
from torch_sdt.cluster.clusformer import Clusformer
from torch_sdt.cluster.star_fc import Pruning
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import connected_components, normalize_features

SMALL = dict(k=6, epochs=1, batch_size=32)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


class Told(torch.nn.Module):
    # Knows the probability of every ordered pair.
    def __init__(self, probability):
        super().__init__()
        self.logit = torch.logit(probability)

    def forward(self, batch):
        return self.logit[batch.node.view(-1, 1), batch.index]


def told(probability, k):
    # A model without training, and its table.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(probability.size(0), 8, generator=generator)
    model = Clusformer(k=k)
    model.k_, model.transformer_ = k, Told(probability)
    return model, model._table(normalize_features(x))


@pytest.mark.parametrize('tau1', [.3, .6])
@pytest.mark.parametrize('tau2', [0., .3, .5])
def test_naive(tau1, tau2):
    n, k = 24, 8
    generator = torch.Generator().manual_seed(1)
    probability = .1 + .8 * torch.rand(n, n, generator=generator)
    model, table = told(probability, k)
    links = {i: {j for j in row[1:] if probability[i, j] >= tau1}
             for i, row in enumerate(table.neighbors.index.tolist())}
    kept = []
    for i in links:
        for j in links[i]:
            share = sum(j in links[h] for h in links[i])
            least = min(len(links[i]), len(links[j]))
            if (share / least if least > 0 else 0) >= tau2:
                kept.append((i, j))
    edge_index = torch.tensor(kept, dtype=torch.long).view(-1, 2).t()
    wanted = connected_components(edge_index, n)
    measured = model._measure(table)
    cluster = model._partition(measured, Pruning(tau1, tau2))
    assert torch.equal(cluster, wanted)
    # Whichever rule came before.
    model._partition(measured, Pruning(.5, .1))
    assert torch.equal(model._partition(measured, Pruning(tau1, tau2)),
                       wanted)


def test_each_threshold_has_its_part():
    # Two groups of five, all pairs of which are likely, and one likely link
    # between them; the rest is unlikely.
    group = torch.arange(10) // 5
    probability = torch.where(group.view(-1, 1) == group, .95, .1)
    probability[0, 9] = .9
    model, table = told(probability, 10)
    measured = model._measure(table)

    def cluster(tau1, tau2):
        return model._partition(measured, Pruning(tau1, tau2))

    # Nothing in common with the other group: its intimacy is low.
    assert int(cluster(.5, 0.).max()) == 0
    # It is a link, but 0 and 9 share only what 9 links to, all but 9 itself.
    assert torch.equal(cluster(.93, 0.), group)
    assert torch.equal(cluster(.99, 0.), torch.arange(10))
    assert int(cluster(0., .9).max()) >= 0


def test_pairs_stay_together_without_intimacy():
    # Two who only have each other share nothing.
    pair = torch.arange(6) // 2
    probability = torch.where(pair.view(-1, 1) == pair, .9, .1)
    model, table = told(probability, 6)
    measured = model._measure(table)
    assert torch.equal(model._partition(measured, Pruning(.5, 0.)), pair)
    assert torch.equal(model._partition(measured, Pruning(.5, .01)),
                       torch.arange(6))


def test_rules():
    model = Clusformer()
    rules = model._rules(None)
    assert Pruning(.9, .65) in rules
    given = model.set_params(tau1=.55, tau2=.45)._rules(None)
    assert given == [Pruning(.55, .45)]
    model.set_params(tau2=None)
    assert {rule.tau1 for rule in model._rules(None)} == {.55}
    assert len(model._rules(None)) > 1


def world(dim=16):
    data = SyntheticFaces('ms1m', num_identities=20, dim=dim,
                          images_per_identity=(2, 5))
    return data.x, data.y


def test_thresholds_do_not_change_the_weights(tmp_path):
    x, y = world()
    first = Clusformer(**SMALL, workdir=tmp_path).fit(x, y)
    second = clone(first).set_params(tau1=.4, tau2=0.).fit(x, y)
    assert second.rule_ == Pruning(.4, 0.)
    for name, value in first.transformer_.state_dict().items():
        assert torch.equal(value, second.transformer_.state_dict()[name])


def test_order_of_samples_makes_no_difference():
    x, y = world()
    model = Clusformer(**SMALL, tau1=.5).fit(x, y)
    order = np.random.default_rng(0).permutation(y.size)
    labels, other = model.predict(x).copy(), model.predict(x[order])
    pairs = set(zip(labels[order].tolist(), other.tolist()))
    assert len(pairs) == labels.max() + 1 == other.max() + 1


@pytest.mark.parametrize('dim', [5, 32])
def test_sizes(dim):
    # Whatever the features' dimension, the width is that of the size.
    for size, width in (('small', 128), ('base', 336)):
        model = Clusformer(size=size)
        model.k_, model.n_features_in_ = 6, dim
        model._build_networks()
        assert model.transformer_.query.embedding_dim == width
    assert len(model.transformer_.transformer.encoder.layers) == 6
    assert len(model.transformer_.transformer.decoder.layers) == 6


def test_bad_arguments():
    x, y = world()
    for name in ('tau1', 'tau2'):
        for value in (-.1, 1.1):
            with pytest.raises(ValueError, match=f"'{name}'"):
                Clusformer(**SMALL, **{name: value}).fit(x, y)
