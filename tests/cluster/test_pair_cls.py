from copy import copy
from functools import lru_cache

import numpy as np
import pytest
import torch

import torch_sdt.typing
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.pair_cls import (
    PairCls,
    neighbor_context,
    rank_weighted_density,
)
from torch_sdt.cluster.trained import Cut
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    connected_components,
    density_peaks,
    ndde,
    normalize_features,
    tpdi,
)

SMALL = dict(k=8, epochs=2, batch_size=32, lr=.01)


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
    return PairCls(**SMALL).fit(*world())


def variant(**kwargs):
    # The same network, used in another way.
    return copy(fitted()).set_params(**kwargs)


def measured(model):
    table = model._table(model._features(world('test')[0]))
    return table, model._measure(table)


def weights(model):
    return list(model.classifier_.state_dict().values())


def renumbered(labels):
    # By first appearance.
    _, first, inverse = np.unique(labels, return_index=True,
                                  return_inverse=True)
    return first.argsort().argsort()[inverse]


# Density ####################################################################


def test_rank_weighted_density():
    similarity = torch.tensor([[1., .9, .5, .1], [1., .6, .6, .6],
                               [1., .4, 0., -.2], [1., .8, .8, .8]])
    index = (torch.arange(4).view(-1, 1) + torch.arange(4)) % 4
    density = rank_weighted_density(Neighbors(index, similarity))
    # Weights 3, 2, 1 of 6.
    expected = [(2.7 + 1. + .1) / 6, .6, (1.2 - .2) / 6, .8]
    assert torch.allclose(density, torch.tensor(expected))
    # The mean cosine of all would have the first below the second.
    assert float(density[0]) > float(density[1])


def test_rank_weighted_density_of_nobody():
    table = Neighbors(torch.arange(3).view(-1, 1), torch.ones(3, 1))
    assert rank_weighted_density(table).tolist() == [0, 0, 0]


# Context ####################################################################


def features(k=6):
    x = normalize_features(torch.randn(
        300, 5, generator=torch.Generator().manual_seed(0)))
    return Neighbors.search(x, k), x


@pytest.mark.parametrize('sharpness', [0., 3., 10.])
def test_neighbor_context(sharpness):
    table, x = features()
    context = neighbor_context(table, x, sharpness)
    # Of the first block and of the second.
    for i in (0, 100, 299):
        near = table.index[i, 1:].tolist()
        weight = [float(torch.exp(sharpness * x[i] @ x[h])) for h in near]
        expected = sum(w * x[h] for w, h in zip(weight, near)) / sum(weight)
        assert torch.allclose(context[i], expected, atol=1e-5)


def test_neighbor_context_at_its_limits():
    table, x = features()
    # From the mean of all to the nearest.
    assert torch.allclose(neighbor_context(table, x, 0.),
                          x[table.index[:, 1:]].mean(dim=1), atol=1e-5)
    assert torch.allclose(neighbor_context(table, x, 1e6),
                          x[table.index[:, 1]], atol=1e-2)
    # Nobody around leaves nothing.
    alone = neighbor_context(table.truncate(1), x)
    assert alone.shape == x.shape and bool((alone == 0).all())


# Pairs ######################################################################


@pytest.mark.parametrize('density', ['rank', 'ndde'])
@pytest.mark.parametrize('distance', ['cosine', 'tpdi'])
def test_one_pair_a_sample(density, distance):
    model = variant(density=density, distance=distance)
    table, out = measured(model)
    neighbors = table.neighbors
    rho = (ndde(neighbors) if density == 'ndde'
           else rank_weighted_density(neighbors))
    far = tpdi(neighbors) if distance == 'tpdi' else None
    assert rho.unique().numel() == rho.numel()
    peaks = density_peaks(neighbors, rho, far)
    node, other = out.pairs
    # All but those that are denser than all their neighbours.
    assert torch.equal(node, peaks.distance.isfinite().nonzero().view(-1))
    assert torch.equal(other, peaks.parent[node])
    assert 0 < node.numel() < neighbors.num_nodes
    # Exactly these are what the network is asked about, by features and
    # contexts.
    z = torch.cat([table.x, neighbor_context(neighbors, table.x)], dim=1)
    z = table.x.size(1)**.5 * z
    i, j = z[node], z[other]
    with torch.no_grad():
        logits = model.classifier_.mlp(
            torch.cat([(i - j).abs(), i * j], dim=1)).view(-1)
    assert torch.allclose(out.probability, logits.sigmoid(), atol=1e-5)


def test_options_choose_other_pairs():
    pairs = {tuple(measured(variant(density=density, distance=distance))[1]
                   .pairs[1].tolist())
             for density in ('rank', 'ndde')
             for distance in ('cosine', 'tpdi')}
    assert len(pairs) == 4


def test_duplicates_find_each_other():
    # Of equal density all of them, without a denser one.
    x, _ = world('test')
    model = fitted()
    for copies in (2, 3, 8):
        twice = np.repeat(x[:2], copies, axis=0)
        twice[copies:] *= -1
        twice[copies:] += twice[0]
        table = model._table(model._features(twice))
        table = table._replace(neighbors=table.neighbors.truncate(copies))
        pairs = model._measure(table).pairs
        assert pairs.size(1) == 2 * (copies - 1)
        cluster = connected_components(pairs, 2 * copies)
        assert cluster.tolist() == [0] * copies + [1] * copies


# Training ###################################################################


def test_training_pairs_are_balanced():
    x, y = world()
    x, y = normalize_features(x), torch.from_numpy(y)
    table = Neighbors.search(x, 20)
    pairs = PairCls()._pairs(table, y)
    same = y[pairs[0]] == y[pairs[1]]
    assert pairs.size(1) == 2 * int(same.sum())
    assert bool((pairs[0] != pairs[1]).all())
    # Among the neighbours, on every rank.
    at = table.index[pairs[0]] == pairs[1].view(-1, 1)
    assert bool(at.any(dim=1).all())
    assert bool(at.any(dim=0)[1:].all())
    assert torch.equal(pairs, PairCls()._pairs(table, y))
    assert not torch.equal(pairs, PairCls(seed=1)._pairs(table, y))


def test_training_pairs_are_of_the_forty_nearest():
    x, y = world()
    x, y = normalize_features(x), torch.from_numpy(y)
    table = Neighbors.search(x, 60)
    pairs = PairCls()._pairs(table, y)
    at = (table.index[pairs[0]] == pairs[1].view(-1, 1)).any(dim=0)
    assert bool(at[1:41].all()) and not bool(at[41:].any())


@pytest.mark.parametrize('y', [[0] * 6, [0, 1, 2, 3, 4, 5]])
def test_training_pairs_of_one_kind(y):
    # Then there is only that kind.
    table = Neighbors.search(normalize_features(torch.randn(6, 4)), 3)
    pairs = PairCls()._pairs(table, torch.tensor(y))
    assert pairs.size(1) == 6


# Rule #######################################################################


def test_higher_thresholds_only_split():
    model = fitted()
    table, out = measured(model)
    everything = model._partition(out, Cut(0.))
    assert torch.equal(everything, connected_components(
        out.pairs, table.x.size(0)))
    count = int(everything.max()) + 1
    for tau in sorted((.2, .5, .8, float(out.probability.max()), 1.1)):
        cluster = model._partition(out, Cut(tau))
        # Each cluster lies within one of before.
        both = torch.stack([everything, cluster]).unique(dim=1)
        assert both.size(1) == int(cluster.max()) + 1
        assert int(cluster.max()) + 1 >= count
        everything, count = cluster, int(cluster.max()) + 1
    assert count == table.x.size(0)


def test_the_threshold():
    _, out = measured(fitted())
    rules = fitted()._rules(out)
    assert rules[0] == Cut(.5) and len(rules) > 10
    assert variant(tau=.7)._rules(out) == [Cut(.7)]


def test_which_pairs_are_cut_is_no_matter_of_training():
    given = PairCls(**SMALL, density='ndde', distance='tpdi', tau=.7)
    given.fit(*world())
    assert given.rule_ == Cut(.7)
    assert all(torch.equal(a, b)
               for a, b in zip(weights(given), weights(fitted())))


def test_labels_do_not_depend_on_the_order_of_samples():
    x, y = world('test')
    order = np.random.default_rng(0).permutation(y.size)
    labels = fitted().predict(x)
    assert np.array_equal(renumbered(fitted().predict(x[order])),
                          renumbered(labels[order]))


def test_the_verdict_beats_bare_density_peaks():
    model = fitted()
    table, out = measured(model)
    y = world('test')[1]
    bare = connected_components(out.pairs, y.size).numpy()
    best = max(mean_fscore(y, model._partition(out, rule).numpy())
               for rule in model._rules(out))
    assert best > mean_fscore(y, bare) + .05


# Arguments ##################################################################


def test_sizes_and_comparisons():
    model = PairCls(size='base', pair='concat')
    model.n_features_in_ = 6
    model._build_networks()
    assert model.classifier_.mlp[0].weight.shape == (512, 24)
    assert model.classifier_.pair == 'concat'
    model = fitted()
    assert model.classifier_.mlp[0].weight.shape == (256, 128)
    assert model.classifier_.pair == 'product'
    x, y = world('test')
    concat = PairCls(**{**SMALL, 'epochs': 1}, pair='concat').fit(x, y)
    assert concat.classifier_.pair == 'concat'


@pytest.mark.parametrize('name,value', [
    ('density', 'confidence'), ('distance', 'euclidean'), ('pair', 'sum'),
    ('size', 'huge'), ('tau', -.1), ('tau', 1.1)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"'{name}'"):
        PairCls(**SMALL, **{name: value}).fit(*world())
