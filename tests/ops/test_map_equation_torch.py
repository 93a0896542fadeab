r"""What is particular to the parallel backend; what all backends must do is in
test_map_equation.py.
"""
from functools import lru_cache

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.metrics import pairwise_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import _map_equation_torch as module
from torch_sdt.ops import (
    connected_components,
    map_equation,
    map_equation_communities,
    topk_jaccard,
)
from torch_sdt.ops.map_equation import undirected


@lru_cache(maxsize=None)
def faces(n=1500):
    data = SyntheticFaces('ms1m', num_images=n, dim=64)
    table = Neighbors.build(data.x, 40)
    weight = topk_jaccard(table)
    return (*table.to_edge_index(weight, weight > 0), data.y)


def graph_of(edge_index, weight, n, markov_time=1.):
    (row, col), weight = undirected(edge_index, weight.double(), n)
    flow = weight / weight.sum()
    node_flow = torch.zeros(n, dtype=torch.double).index_add_(0, row, flow)
    return module._graph(row, col, flow * markov_time, node_flow)


def test_moves_keep_the_books():
    edge_index, weight, y = faces()
    graph = graph_of(edge_index, weight, y.size, 1.3)
    state = module._Partition(graph, torch.arange(y.size))
    before = state.codelength()
    generator = torch.Generator().manual_seed(0)
    for part in torch.randperm(y.size, generator=generator).chunk(5):
        stood = state.cluster.clone()
        count, neighbors = state.move(part, 1e-12)
        moved = (state.cluster != stood).nonzero().view(-1)
        assert bool(torch.isin(moved, part).all())
        assert moved.numel() == count > 0
        edge, _ = module._edges(graph.indptr, moved)
        assert torch.equal(neighbors.sort()[0], graph.col[edge].sort()[0])
        fresh = module._Partition(graph, state.cluster)
        assert torch.equal(state.size, fresh.size)
        assert torch.allclose(state.inside, fresh.inside, atol=1e-12)
        assert torch.allclose(state.leave, fresh.leave, atol=1e-12)
    assert state.codelength() < before


def test_a_node_moves_for_what_it_says():
    # One node alone: the gain is exact, and no other move is better.
    edge_index, weight, y = faces()
    graph = graph_of(edge_index, weight, y.size)
    start = torch.from_numpy(y) % 40
    state = module._Partition(graph, start)
    for node in range(0, y.size, 300):
        state = module._Partition(graph, start)
        state.move(torch.tensor([node]), 1e-12)
        best = state.codelength()
        for cluster in [*range(40), 1499]:
            other = start.clone()
            other[node] = cluster
            length = module._Partition(graph, other).codelength()
            assert length >= best - 1e-12


def test_codelength():
    edge_index, weight, y = faces()
    graph = graph_of(edge_index, weight, y.size, 2.)
    p = graph.node_flow
    nodes = -float((p * p.log2()).nan_to_num().sum())
    for cluster in (torch.from_numpy(y), torch.arange(y.size) % 50):
        length = module._Partition(graph, cluster).codelength()
        assert length + nodes == pytest.approx(float(map_equation(
            cluster, edge_index, weight, markov_time=2.)), abs=1e-9)


@pytest.mark.parametrize('num', [0, 1, 2000])
def test_sums_by_scattering_and_by_sorting(num):
    generator = torch.Generator().manual_seed(0)
    node = torch.randint(0, 50, (num, ), generator=generator).sort()[0]
    cluster = torch.randint(0, 9, (num, ), generator=generator)
    flow = torch.rand(num, dtype=torch.double, generator=generator)
    expected = torch.zeros(50, 9, dtype=torch.double)
    expected.index_put_((node, cluster), flow, accumulate=True)
    for out in (module._flow_into_clusters(node, cluster, flow, 50, 9),
                module._sum_by_sorting(node, cluster, flow, 9)):
        assert bool((out[0].diff() >= 0).all())
        dense = torch.zeros(50, 9, dtype=torch.double)
        dense[out[0], out[1]] = out[2]
        assert torch.allclose(dense, expected, atol=1e-12)
        assert out[0].numel() == int((expected > 0).sum())


def test_aggregate_keeps_the_codelength():
    edge_index, weight, y = faces()
    graph = graph_of(edge_index, weight, y.size)
    cluster = torch.from_numpy(y)
    level = module._aggregate(graph, cluster)
    count = int(cluster.max()) + 1
    coarse = torch.arange(count) // 3
    assert module._Partition(level, coarse).codelength() == pytest.approx(
        module._Partition(graph, coarse[cluster]).codelength())


@withCUDA
def test_as_short_as_networkit(device):
    pytest.importorskip('networkit')
    edge_index, weight, y = faces()
    out = map_equation_communities(edge_index.to(device), weight.to(device),
                                   backend='torch').cpu()
    other = map_equation_communities(edge_index, weight)
    length, expected = (float(map_equation(c, edge_index, weight))
                        for c in (out, other))
    assert length < 1.003 * expected
    score, reference = (pairwise_scores(y, c.numpy()).fscore
                        for c in (out, other))
    assert score > reference - .01


def test_communities_are_connected():
    edge_index, weight, y = faces()
    for seed in range(3):
        cluster = map_equation_communities(edge_index, weight,
                                           backend='torch', seed=seed)
        inside = cluster[edge_index[0]] == cluster[edge_index[1]]
        parts = connected_components(edge_index[:, inside], y.size)
        assert torch.equal(parts, cluster)


def test_a_last_merge_is_not_lost_to_rounding():
    # What is left of a rate when a merge uses up all edges is a rounding
    # error, here below 0.
    edge_index = torch.tensor([[4, 1, 2, 0, 3, 0], [0, 3, 0, 3, 4, 1]])
    weight = torch.tensor([
        0.8908902406692505, 0.9853591322898865, 0.4772941470146179,
        0.5822895765304565, 0.3826752305030823, 0.1834735870361328])
    for seed in range(4):
        cluster = map_equation_communities(edge_index, weight, 5, 'torch', 2.,
                                           seed)
        assert cluster.tolist() == [0, 0, 0, 0, 0]


def test_small_graphs_are_clustered_as_well_as_by_numba():
    pytest.importorskip('numba')
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        edge_index = torch.randint(8, (2, 14), generator=generator)
        weight = torch.rand(14, generator=generator)
        length = [float(map_equation(
            map_equation_communities(edge_index, weight, 8, backend, 2.),
            edge_index, weight, 8, 2.)) for backend in ['numba', 'torch']]
        assert length[1] <= length[0] + .1
