from functools import lru_cache

import numpy as np
import pytest
import torch

import torch_sdt.typing
from torch_sdt.cluster.lcepce import LCEPCE, linked
from torch_sdt.cluster.trained import Cut
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import normalize_features
from torch_sdt.ops.density_peaks import DensityPeaks, density_peaks

SMALL = dict(k=10, epochs=1, batch_size=32)


@lru_cache(maxsize=None)
def world(split='train'):
    data = SyntheticFaces('ms1m', num_identities=20, dim=32,
                          images_per_identity=(3, 9), split=split, seed=0)
    return data.x, data.y


@lru_cache(maxsize=None)
def fitted():
    return LCEPCE(**SMALL).fit(*world())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


class Local(torch.nn.Module):
    # Says of i and j what stands in a matrix.

    def __init__(self, probability):
        super().__init__()
        self.logit = probability.logit()

    def forward(self, batch):
        return self.logit[batch.node.view(-1, 1), batch.index]


class Pair(Local):
    k = 4

    def forward(self, batch):
        return self.logit[batch.node, batch.other]


def telling(local, pair, **kwargs):
    model = LCEPCE(**{**SMALL, **kwargs})
    model.k_, model.n_features_in_ = 10, 32
    model.local_, model.pair_ = Local(local), Pair(pair)
    return model


def draw(seed=0):
    n = world('test')[1].size
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed))


def identities():
    y = torch.as_tensor(world('test')[1])
    return (y == y.view(-1, 1)).float().clamp(1e-6, 1 - 1e-6)


def table(model):
    return model._table(normalize_features(world('test')[0]))


# Clustering ##################################################################


@pytest.mark.parametrize('theta', [None, .2])
def test_links_are_those_of_the_definition(theta):
    s, q = draw(0)**.02, draw(1)
    model = telling(s, q, theta=theta)
    data = table(model)
    measured = model._measure(data)
    index = data.neighbors.index.tolist()
    cosine = data.x @ data.x.t()
    n = len(index)

    def weight(i, j):
        back = float(s[j, i]) if i in index[j] else 0.
        return (float(s[i, j]) + back) / 2 * float(cosine[i, j])

    density = [sum(weight(i, j) for j in index[i][1:]) for i in range(n)]
    if theta is None:
        theta = np.mean([float(cosine[i, j]) for i in range(n)
                         for j in index[i][1:4]])
    pairs, strong = [], set()
    for i in range(n):
        denser = [j for j in index[i] if density[j] > density[i]]
        if denser:
            first = max(denser, key=lambda j: weight(i, j))
            pairs.append((i, first))
            strong |= {(i, j) for j in denser
                       if j != first and weight(i, j) >= theta}
    assert 0 < len(pairs) < n and len(strong) > 5
    assert list(zip(*measured.pairs.tolist())) == pairs
    assert set(zip(*measured.strong.tolist())) == strong
    expected = [float(q[i, j]) for i, j in pairs]
    assert measured.probability.tolist() == pytest.approx(expected, abs=1e-4)

    # Components, by hand.
    label = list(range(n))
    for i, j in [*strong, *(pair for pair, p in zip(pairs, expected)
                            if p > .6)]:
        old, new = label[i], label[j]
        label = [new if value == old else value for value in label]
    found = model._partition(measured, Cut(.6)).numpy()
    assert np.array_equal(found[:, None] == found[None],
                          np.equal.outer(label, label))


def test_by_those_who_know():
    _, y = world('test')
    model = telling(identities(), identities())
    measured = model._measure(table(model))
    found = model._partition(measured, Cut(.5)).numpy()
    same, truth = found[:, None] == found[None], y[:, None] == y[None]
    # No identities are joined, and hardly one is left in pieces.
    assert truth[same].all()
    assert same[truth].mean() > .9


def test_each_part_counts():
    n = world('test')[1].size
    s, q = draw(0), draw(1)
    model = telling(s, q, theta=2.)
    measured = model._measure(table(model))
    # Nothing strong: trees, of which a cut takes one link after another.
    assert measured.strong.size(1) == 0
    for tau in (0., .3, .8, 1.):
        kept = int((measured.probability > tau).sum())
        found = model._partition(measured, Cut(tau))
        assert int(found.max()) + 1 == n - kept
    assert torch.equal(found, torch.arange(n))
    # Strong links stay whatever is cut.
    strong = telling(s, q, theta=.1)
    joined = strong._partition(strong._measure(table(strong)), Cut(1.))
    assert int(joined.max()) + 1 < n
    # The densities decide which links there are.
    other = telling(draw(2), q, theta=2.)
    pairs = other._measure(table(other)).pairs
    assert pairs.tolist() != measured.pairs.tolist()


def test_rules():
    measured = fitted()._measure(table(fitted()))
    rules = fitted()._rules(measured)
    assert rules[0] == Cut(.5) and len(rules) > 10
    # From nearly all to none.
    kept = {int((measured.probability > rule.tau).sum()) for rule in rules}
    assert min(kept) == 0 and max(kept) >= measured.probability.numel() - 1
    assert LCEPCE(tau=.3)._rules(measured) == [Cut(.3)]


def test_linked():
    peaks = DensityPeaks(torch.tensor([2, 1, 2, 0]),
                         torch.tensor([.1, torch.inf, torch.inf, -.3]))
    assert linked(peaks).tolist() == [[0, 3], [2, 0]]


def test_thresholds_choose_no_weights(tmp_path):
    kwargs = {**SMALL, 'workdir': str(tmp_path)}
    LCEPCE(**kwargs).fit(*world())
    model = LCEPCE(**kwargs, tau=.4, theta=.7).fit(*world())
    assert model.rule_ == Cut(.4)
    with pytest.raises(ValueError, match='another training'):
        LCEPCE(**kwargs, neighbors_per_side=3).fit(*world())


# Training ####################################################################


def test_pairs_of_training(monkeypatch):
    loaders, train = {}, LCEPCE._train

    def watch(self, name, loader, validate):
        loaders[name] = loader
        train(self, name, loader, validate)

    monkeypatch.setattr(LCEPCE, '_train', watch)
    model = LCEPCE(**SMALL, neighbors_per_side=6).fit(*world())
    local, pair = loaders['local'], loaders['pair']
    assert local.neighbors.k == 10 and pair.neighbors.k == 6
    data = model._table(local.x, local.neighbors)
    weight, density = model._local_stage(data)
    first = linked(density_peaks(data.neighbors, density, -weight))
    assert torch.equal(pair.pairs[:, :first.size(1)], first)
    others = pair.pairs[:, first.size(1):]
    parent = dict(zip(*first.tolist()))
    rows = [set(row) for row in data.neighbors.index.tolist()]
    seen = set()
    for i, j in zip(*others.tolist()):
        assert density[j] > density[i] and j in rows[i]
        assert j != parent[i] and i not in seen
        seen.add(i)
    # All that have another denser neighbour.
    denser = density[data.neighbors.index] > density.view(-1, 1)
    assert len(seen) == int((denser.sum(dim=1) > 1).sum())


def test_others_are_drawn():
    n = world('test')[1].size
    model = telling(draw(0), draw(1))
    data = table(model)
    _, density = model._local_stage(data)
    peaks = DensityPeaks(torch.arange(n), torch.full((n, ), torch.inf))
    first = model._others(data, density, peaks)
    assert torch.equal(first, model._others(data, density, peaks))
    model.seed = 1
    second = model._others(data, density, peaks)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize('size,widths', [('small', (128, 128)),
                                         ('base', (336, 416))])
def test_sizes(size, widths):
    model = LCEPCE(k=80, size=size)
    model.k_, model.n_features_in_ = 80, 256
    model._build_networks()
    local, pair = model.local_.encoder, model.pair_.encoder
    assert (local.rank.size(1), pair.rank.size(1)) == widths
    layers = 3 if size == 'base' else 2
    assert len(local.layers) == len(pair.layers) == layers
    assert local.k == 80 and pair.k == (160 if size == 'base' else 40)


@pytest.mark.parametrize('kwargs', [
    {'tau': 1.1}, {'tau': -.1}, {'tau': float('nan')}, {'theta': -2.},
    {'theta': float('nan')}, {'neighbors_per_side': 0}, {'size': 'large'},
], ids=str)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=f"'{next(iter(kwargs))}'"):
        LCEPCE(**kwargs).fit(*world())
