from functools import lru_cache

import numpy as np
import pytest
import torch
from sklearn.base import clone

import torch_sdt.typing
from torch_sdt.cluster.ada_nets import AdaNETS, _adjacency, _spanning_links
from torch_sdt.cluster.trained import Cut
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    connected_components,
    knn,
    normalize_features,
    structure_space,
)

SMALL = dict(k=8, epochs=6, lr=5e-3, batch_size=8)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


@lru_cache(maxsize=None)
def world(split='train'):
    data = SyntheticFaces('ms1m', num_identities=30, dim=32,
                          images_per_identity=(2, 5), split=split)
    return data.x, data.y


@lru_cache(maxsize=None)
def fitted(**kwargs):
    return AdaNETS(**{**SMALL, **kwargs}).fit(*world())


def table_of(model, x=None):
    x = world('test')[0] if x is None else x
    return model._table(normalize_features(x))


def same_weights(first, second, name):
    first, second = (getattr(m, f'{name}_').state_dict()
                     for m in (first, second))
    return all(torch.equal(value, second[key])
               for key, value in first.items())


def refines(fine, coarse):
    return len(set(zip(fine.tolist(), coarse.tolist()))) == len(set(
        fine.tolist()))


# Graph ######################################################################


def test_adjacency():
    x = normalize_features(torch.randn(
        30, 6, generator=torch.Generator().manual_seed(0)))
    space = structure_space(knn(x, 25), weight=.1)
    k = torch.arange(30) % 25 + 1
    weight = space.similarity * (torch.arange(25) < k.view(-1, 1))
    assert bool((weight < 0).any())  # Which are no edges.
    expected = torch.zeros(30, 30)
    for i in range(30):
        for r in range(int(k[i])):
            j, value = int(space.index[i, r]), float(space.similarity[i, r])
            for a, b in ((i, j), (j, i)):
                expected[a, b] = max(float(expected[a, b]), value)
    assert torch.equal(expected, expected.t())
    assert bool((expected.diag() == 1).all())
    out = _adjacency(space, weight)
    expected = expected / expected.sum(dim=1, keepdim=True)
    assert torch.allclose(out.to_dense(), expected, atol=1e-6)


def test_the_gcn_learns_on_the_graph_that_it_is_applied_to():
    # Where everybody is a neighbour of all, a subgraph is the whole graph.
    model, x = fitted(), normalize_features(world('test')[0][:8])
    table = model._table(x)
    z = model._embed(table)
    space = structure_space(table.neighbors)
    trusted = model._trusted(space, x)
    assert 8 < int((trusted > 0).sum()) < 64
    loader = NeighborSubgraphs(
        space, x, 8, relations=[trusted, torch.zeros(8, 8)], pairs=False)
    seen, gcn = [], model.gcn_

    class Spy(torch.nn.Module):
        def forward(self, x, adj):
            seen.append(gcn(x, adj))
            return seen[-1]

    spy = Spy()
    spy.margin, spy.negative_margin = gcn.margin, gcn.negative_margin
    batch = next(iter(loader))
    type(gcn).loss(spy, batch)
    assert torch.allclose(seen[0], z[batch.index], atol=1e-5)


def test_whoever_trusts_nobody_speaks_for_oneself(monkeypatch):
    model = fitted()
    table = table_of(model)
    whole = model._embed(table)

    def nobody(batch, beta=.5):
        return torch.ones_like(batch.node)

    monkeypatch.setattr(model.filter_, 'predict', nobody)
    alone = model._embed(table)
    assert not torch.allclose(alone, whole, atol=1e-3)
    # Nobody else is heard: each output depends on its own features alone.
    n = table.x.size(0)
    with torch.no_grad():
        expected = model.gcn_(table.x, torch.eye(n))
    assert torch.allclose(alone, expected, atol=1e-5)


def test_trust_is_a_prefix_of_the_row():
    model = fitted()
    table = table_of(model)
    space = structure_space(table.neighbors)
    trusted = model._trusted(space, table.x)
    kept = trusted != 0
    assert torch.equal(trusted[kept], space.similarity[kept])
    assert bool(kept[:, 0].all())
    assert bool((kept[:, 1:] <= kept[:, :-1]).all())


# Links ######################################################################


@pytest.mark.parametrize('duplicates', [False, True])
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (50, 1), (50, 2), (50, 6),
                                 (20, 20)])
def test_spanning_links_connect_what_all_links_connect(n, k, duplicates):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    if duplicates:
        x[n // 2:2 * (n // 2)] = x[:n // 2]
    neighbors = knn(normalize_features(x), k)
    links = _spanning_links(neighbors)
    assert links.num_nodes == n
    assert links.edge_index.dtype == torch.long
    assert links.edge_index.shape == (2, links.cosine.numel())
    edge_index, cosine = neighbors.to_edge_index()
    whole = connected_components(edge_index, n)
    # A forest: one link less than samples in each tree.
    assert links.cosine.numel() == n - int(whole.max()) - 1
    for tau in [-1., *links.cosine.tolist(), .5, 1.1]:
        expected = connected_components(edge_index[:, cosine >= tau], n)
        out = AdaNETS()._partition(links, Cut(tau))
        assert torch.equal(out, expected)


def test_higher_cosines_split():
    model = fitted()
    links = model._measure(table_of(model))
    rules = model._rules(links)
    assert 40 < len(rules) <= 201
    parts = [model._partition(links, rule) for rule in rules]
    assert all(refines(fine, coarse)
               for coarse, fine in zip(parts, parts[1:]))
    assert len({int(part.max()) for part in parts}) > 20


def test_tau():
    x, _ = world('test')
    given = fitted(tau=.5)
    assert given.rule_ == Cut(.5)
    # It is no part of what is learned.
    assert all(same_weights(given, fitted(), name)
               for name in ('filter', 'gcn'))
    assert model_labels(given, 1.) == len(x)
    links = given._measure(table_of(given))
    everything = connected_components(links.edge_index, links.num_nodes)
    assert model_labels(given, -1.) == int(everything.max()) + 1


def model_labels(model, tau):
    other = clone(model)
    for name in ('k_', 'n_features_in_', 'filter_', 'gcn_'):
        setattr(other, name, getattr(model, name))
    other.rule_ = Cut(tau)
    return len(np.unique(other.predict(world('test')[0])))


def test_links_lead_to_as_many_neighbours_as_are_asked_for(monkeypatch):
    model = clone(fitted()).set_params(link_k=2)
    for name in ('k_', 'n_features_in_', 'filter_', 'gcn_'):
        setattr(model, name, getattr(fitted(), name))
    z = model._embed(table_of(model))
    links = model._measure(table_of(model))
    edge_index, _ = Neighbors.search(z, 2).to_edge_index()
    near = {tuple(sorted(pair)) for pair in edge_index.t().tolist()}
    found = {tuple(sorted(pair)) for pair in links.edge_index.t().tolist()}
    assert found <= near and len(found) >= len(z) / 2


# Training ###################################################################


def test_weight_changes_the_order_that_is_learned():
    x, _ = world('test')
    plain = fitted(weight=0.)
    assert not same_weights(plain, fitted(), 'filter')
    assert not same_weights(plain, fitted(), 'gcn')
    # Without the structure space neighbours come by their cosines.
    seen = []
    predict = plain.filter_.predict
    plain.filter_.predict = lambda batch: (
        seen.append(batch.index), predict(batch))[1]
    table = table_of(plain)
    plain._measure(table)
    del plain.filter_.predict
    assert torch.equal(torch.cat(seen), table.neighbors.index)


def test_beta_decides_how_many_are_trusted():
    few, many = fitted(beta=.1), fitted(beta=5.)
    table = table_of(few)
    space = structure_space(table.neighbors)
    assert int((few._trusted(space, table.x) > 0).sum()) < int(
        (many._trusted(space, table.x) > 0).sum())


def test_the_filter_does_not_depend_on_the_gcn(monkeypatch):
    # Trained first, and left alone by what follows.
    model = clone(fitted())
    weights = {}
    train = AdaNETS._train

    def spy(self, name, loader, *args, **kwargs):
        train(self, name, loader, *args, **kwargs)
        weights[name] = {key: value.clone() for key, value in
                         self.filter_.state_dict().items()}

    monkeypatch.setattr(AdaNETS, '_train', spy)
    model.fit(*world())
    assert list(weights) == ['filter', 'gcn']
    assert all(torch.equal(value, weights['filter'][key])
               for key, value in weights['gcn'].items())
    assert same_weights(model, fitted(), 'gcn')


def test_names_of_identities_do_not_matter():
    x, y = world()
    other = AdaNETS(**SMALL).fit(x, 1_000_000_007 + 3 * y)
    assert all(same_weights(other, fitted(), name)
               for name in ('filter', 'gcn'))


def test_order_of_samples_does_not_matter():
    x, _ = world('test')
    order = np.random.default_rng(0).permutation(len(x))
    labels = fitted().predict(x)[order]
    other = fitted().predict(x[order])
    assert len(set(zip(labels, other))) == len(set(labels)) == len(set(other))


@pytest.mark.parametrize('size,lstm,gcn', [('small', 64, 128),
                                           ('base', 256, 512)])
def test_size(size, lstm, gcn):
    model = AdaNETS(size=size)
    model.k_, model.n_features_in_ = 8, 32
    model._build_networks()
    assert model.filter_.lstm.hidden_size == lstm
    assert model.gcn_.lin2.in_features == gcn
    assert model.gcn_.mlp[0].out_features == gcn
    assert (model.gcn_.margin, model.gcn_.negative_margin) == (.9, 1.)


@pytest.mark.parametrize('name,value', [
    ('weight', -.1), ('weight', 1.1), ('beta', 0.), ('beta', float('inf')),
    ('beta', float('nan')), ('link_k', 1), ('tau', 1.5), ('tau', -2.),
    ('size', 'large')])
def test_bad_arguments(name, value, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError('Work has begun')

    monkeypatch.setattr(AdaNETS, '_table', work)
    with pytest.raises(ValueError, match=f"'{name}'"):
        AdaNETS(**{**SMALL, name: value}).fit(*world())
