import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.ops import connected_components, size_constrained_components
from torch_sdt.ops.components import _by_least_node
from torch_sdt.ops.map_equation import number_by_appearance


def random_graph(n=60, edges=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n, (2, edges), generator=generator)
    return edge_index, torch.rand(edges, generator=generator)


def as_sets(cluster):
    return {frozenset(np.flatnonzero(cluster == c))
            for c in np.unique(cluster)}


@pytest.mark.parametrize('seed', range(3))
def test_components_are_networkx_ones(seed):
    edge_index, _ = random_graph(seed=seed)
    graph = nx.Graph()
    graph.add_nodes_from(range(60))
    graph.add_edges_from(edge_index.t().tolist())
    cluster = connected_components(edge_index, 60)
    assert cluster.dtype == torch.long
    assert as_sets(cluster.numpy()) == set(
        map(frozenset, nx.connected_components(graph)))
    first = np.unique(cluster, return_index=True)[1]
    assert np.all(np.diff(first) > 0)


@pytest.mark.parametrize('n,edges', [(1, 0), (5, 0), (60, 50), (300, 320),
                                     (300, 2000)])
def test_both_ways_to_components_agree(n, edges):
    # The one for GPUs works on any device.
    for seed in range(5):
        edge_index, _ = random_graph(n, edges, seed)
        assert torch.equal(
            number_by_appearance(_by_least_node(edge_index, n)),
            connected_components(edge_index, n))


def test_components_of_a_long_path():
    # A path whose nodes are numbered at random, and one in two pieces.
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    path = torch.stack([order[:-1], order[1:]])
    assert _by_least_node(path, 1000).unique().tolist() == [0]
    path = torch.cat([path[:, :400], path[:, 401:]], dim=1)
    assert as_sets(_by_least_node(path, 1000).numpy()) == {
        frozenset(part.tolist()) for part in (order[:401], order[401:])}


@withCUDA
def test_components_on_any_device(device):
    edge_index, _ = random_graph()
    out = connected_components(edge_index.to(device), 60)
    assert out.device == device
    assert torch.equal(out.cpu(), connected_components(edge_index, 60))


def test_components_of_little():
    empty = torch.empty(2, 0, dtype=torch.long)
    assert connected_components(empty, 0).shape == (0, )
    assert connected_components(empty, 3).tolist() == [0, 1, 2]
    assert connected_components(torch.tensor([[2], [2]])).tolist() == [0, 1, 2]


def naive(edge_index, weight, n, max_size, step, max_rounds):
    out, todo, threshold = [], set(range(n)), float(weight.min())
    edges = [(a, b, w) for (a, b), w in zip(edge_index.t().tolist(),
                                            weight.tolist())]
    for _ in range(max_rounds):
        graph = nx.Graph()
        graph.add_nodes_from(todo)
        graph.add_edges_from((a, b) for a, b, w in edges
                             if a in todo and b in todo and w >= threshold)
        parts = list(map(frozenset, nx.connected_components(graph)))
        large = [p for p in parts if len(p) > max_size]
        out += [p for p in parts if len(p) <= max_size]
        todo = set().union(*large)
        if not todo:
            break
        threshold += (1 - threshold) * step
    return set(out + (large if todo else []))


@pytest.mark.parametrize('max_size', [1, 3, 10, 60])
@pytest.mark.parametrize('max_rounds', [1, 3, 100])
def test_size_constrained(max_size, max_rounds):
    edge_index, weight = random_graph(edges=120)
    cluster = size_constrained_components(edge_index, weight, 60, max_size,
                                          .1, max_rounds)
    assert as_sets(cluster.numpy()) == naive(edge_index, weight, 60, max_size,
                                             .1, max_rounds)
    if max_rounds == 100:
        assert torch.bincount(cluster).max() <= max_size


def test_weak_edges_are_cut_first():
    # Two triangles and a weak bridge.
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3]])
    weight = torch.tensor([.9, .9, .9, .9, .9, .9, .5])
    cluster = size_constrained_components(edge_index, weight, max_size=3)
    assert cluster.tolist() == [0, 0, 0, 1, 1, 1]
    assert size_constrained_components(edge_index, weight,
                                       max_size=6).max() == 0


def test_bad_arguments():
    edge_index, weight = random_graph()
    with pytest.raises(ValueError, match="'edge_weight'"):
        size_constrained_components(edge_index, weight[1:])
    with pytest.raises(ValueError, match="'max_size'"):
        size_constrained_components(edge_index, weight, max_size=0)
    with pytest.raises(ValueError, match="'step'"):
        size_constrained_components(edge_index, weight, step=0)


def test_no_edges():
    empty = torch.empty(2, 0, dtype=torch.long)
    cluster = size_constrained_components(empty, torch.empty(0), 3)
    assert cluster.tolist() == [0, 1, 2]


@pytest.mark.parametrize('weight', [torch.nan, 10., torch.inf])
def test_size_constrained_components_of_bad_weights(weight):
    edge_index, edge_weight = random_graph()
    edge_weight[7] = weight
    with pytest.raises(ValueError, match='Edge 7 has a weight'):
        size_constrained_components(edge_index, edge_weight, 60)


def test_size_constrained_components_without_a_round():
    with pytest.raises(ValueError, match="'max_rounds' must be at least 1"):
        size_constrained_components(*random_graph(), 60, max_rounds=0)
