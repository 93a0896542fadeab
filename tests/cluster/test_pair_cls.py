from copy import copy
from functools import lru_cache

import numpy as np
import pytest
import torch

import torch_sdt.typing
from torch_sdt.cluster import PairCls
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.trained import Cut
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    connected_components,
    density_peaks,
    ndde,
    neighbor_context,
    normalize_features,
    rank_weighted_density,
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
