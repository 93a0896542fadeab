import subprocess
import sys
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
import torch
from torch_geometric.datasets import KarateClub
from torch_geometric.testing import withCUDA
from torch_geometric.utils import stochastic_blockmodel_graph, to_undirected

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    map_equation,
    map_equation_communities,
    map_equation_ladder,
    naive,
    topk_jaccard,
)
from torch_sdt.ops.map_equation import (
    ladder_csr,
    number_by_appearance,
    symmetric_csr,
    table_communities,
)

BACKENDS = ['networkit', 'infomap', 'numba', 'torch']


@pytest.fixture(params=BACKENDS)
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_graph(n=12, num_edges=30, seed=0):
    r"""Weighted, both directions, self-loops and parallel edges included."""
    edge_index = torch.randint(0, n, (2, num_edges), generator=generator(seed))
    weight = torch.rand(num_edges, dtype=torch.double,
                        generator=generator(seed))
    loop = edge_index[0] == edge_index[1]
    edge_index = torch.cat([edge_index, edge_index[:, ~loop].flip(0)], dim=1)
    return edge_index, torch.cat([weight, weight[~loop]])


def definition(cluster, edge_index, weight, markov_time=1.):
    r"""The naive codelength of a graph that holds both directions."""
    variable = markov_time == 'variable' or isinstance(markov_time, tuple)
    if variable:
        markov_time = 1. if markov_time == 'variable' else markov_time[0]
    edges, loops = {}, {}
    for i, j, w in zip(*edge_index.tolist(), weight.tolist()):
        if i == j:
            loops[i] = loops.get(i, 0.) + w
        elif i < j:
            edges[i, j] = edges.get((i, j), 0.) + w
    return naive.map_equation(cluster.tolist(), edges, cluster.numel(),
                              markov_time, loops, variable)


@lru_cache(maxsize=1)
def planted(seed=0):
    r"""Ten communities of twenty that no method should miss."""
    torch.manual_seed(seed)
    edge_index = stochastic_blockmodel_graph(
        [20] * 10, (torch.eye(10) * .5 + .004).tolist())
    return edge_index, torch.arange(200) // 20


@lru_cache(maxsize=1)
def fuzzy():
    r"""Graphs whose best partition is not obvious."""
    graphs = [(KarateClub()[0].edge_index, None)]
    for seed, inside in enumerate([.2, .3, .4]):
        torch.manual_seed(seed)
        sizes = torch.randint(5, 60, (15, ), generator=generator(seed))
        edge_index = stochastic_blockmodel_graph(
            sizes.tolist(), (torch.eye(15) * inside + .01).tolist())
        weight = torch.rand(edge_index.size(1), generator=generator(seed))
        graphs.append(to_undirected(edge_index, weight, reduce='max'))
    return graphs


def cliques(sizes):
    parts, first = [], 0
    for size in sizes:
        index = torch.arange(first, first + size)
        parts.append(torch.cartesian_prod(index, index).t())
        first += size
    edge_index = torch.cat(parts, dim=1)
    return edge_index[:, edge_index[0] != edge_index[1]]


def bridge(*pairs):
    pairs = torch.tensor(pairs).t()
    return torch.cat([pairs, pairs.flip(0)], dim=1)


# Codelength #################################################################


@withCUDA
@pytest.mark.parametrize('markov_time', [.3, 1., 2., 'variable',
                                         (.3, 'variable')])
def test_map_equation(markov_time, device):
    for seed in range(4):
        edge_index, weight = random_graph(seed=seed)
        cluster = torch.randint(0, 4, (12, ), generator=generator(seed))
        out = map_equation(cluster.to(device), edge_index.to(device),
                           weight.to(device), markov_time=markov_time)
        assert out.shape == () and out.dtype == torch.float64
        assert out.device == device
        expected = definition(cluster, edge_index, weight, markov_time)
        assert float(out) == pytest.approx(expected, abs=1e-12)


def test_map_equation_without_weights():
    edge_index = planted()[0]
    cluster = torch.randint(0, 9, (200, ), generator=generator())
    ones = torch.ones(edge_index.size(1))
    expected = float(map_equation(cluster, edge_index, 3 * ones))
    for weight in [None, ones, ones.long()]:
        out = map_equation(cluster, edge_index, weight)
        assert float(out) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('markov_time', [.5, 1., 2.])
def test_map_equation_is_infomaps(markov_time):
    infomap = pytest.importorskip('infomap')
    for seed in range(3):
        edge_index, weight = random_graph(40, 120, seed)
        network = infomap.Network()
        network.add_nodes(range(40))
        once = edge_index[0] <= edge_index[1]
        for i, j, w in zip(*edge_index[:, once].tolist(),
                           weight[once].tolist()):
            network.add_link(i, j, w)
        result = infomap.run(network, two_level=True, seed=1, num_trials=2,
                             flow_model='undirected', markov_time=markov_time)
        modules = result.multilevel_modules()
        cluster = torch.tensor([modules[i][0] for i in range(40)])
        out = map_equation(cluster, edge_index, weight,
                           markov_time=markov_time)
        assert float(out) == pytest.approx(result.codelength, abs=1e-9)


def test_map_equation_of_variable_time_is_infomaps():
    # Infomap counts, with each edge of a node, the neighbours before it: with
    # the strongest nodes first that changes nothing.
    infomap = pytest.importorskip('infomap')
    for seed in range(3):
        edge_index, weight = random_graph(40, 120, seed)
        strength = torch.zeros(40, dtype=torch.double)
        strength.index_add_(0, edge_index[0], weight)
        edge_index = strength.argsort(descending=True).argsort()[edge_index]
        network = infomap.Network()
        network.add_nodes(range(40))
        weights = {}
        for i, j, w in zip(*edge_index.tolist(), weight.tolist()):
            if i <= j:
                weights[i, j] = weights.get((i, j), 0.) + w
        for (i, j), w in sorted(weights.items()):
            network.add_link(i, j, w)
        result = infomap.run(network, two_level=True, seed=1, num_trials=2,
                             flow_model='undirected',
                             variable_markov_time=True)
        modules = result.multilevel_modules()
        cluster = torch.tensor([modules[i][0] for i in range(40)])
        out = map_equation(cluster, edge_index, weight,
                           markov_time='variable')
        assert float(out) == pytest.approx(result.codelength, abs=1e-9)
        assert float(map_equation(cluster, edge_index, weight)) != out


def test_map_equation_of_variable_time_on_a_regular_graph():
    # Where all nodes are alike, time is the same everywhere.
    edge_index = torch.cat([cliques([4, 4]), bridge((0, 4), (1, 5), (2, 6),
                                                    (3, 7))], dim=1)
    cluster = torch.arange(8) // 4
    assert float(map_equation(cluster, edge_index, markov_time='variable')
                 ) == pytest.approx(float(map_equation(cluster, edge_index)))


def test_map_equation_renaming_and_permutation():
    edge_index, weight = random_graph()
    cluster = torch.randint(0, 4, (12, ), generator=generator(1))
    expected = float(map_equation(cluster, edge_index, weight))
    for name in [cluster + 5, -3 * cluster, cluster.int(),
                 torch.tensor([90, 2, -7, 40])[cluster]]:
        out = map_equation(name, edge_index, weight)
        assert float(out) == pytest.approx(expected, abs=1e-12)
    perm = torch.randperm(12, generator=generator())
    renamed = torch.empty_like(cluster)
    renamed[perm] = cluster
    shuffle = torch.randperm(weight.numel(), generator=generator())
    out = map_equation(renamed, perm[edge_index][:, shuffle], weight[shuffle])
    assert float(out) == pytest.approx(expected, abs=1e-12)
    # Nor does the unit of weight matter.
    out = map_equation(cluster, edge_index, 1e6 * weight)
    assert float(out) == pytest.approx(expected, abs=1e-12)


def test_map_equation_of_one_cluster_is_the_entropy():
    edge_index, weight = random_graph()
    strength = torch.zeros(12, dtype=torch.double)
    strength = strength.index_add(0, edge_index[0], weight)
    p = strength / strength.sum()
    expected = -(p * p.clamp(min=1e-300).log2()).sum()
    for markov_time in [.1, 1., 10.]:
        out = map_equation(torch.zeros(12).long(), edge_index, weight,
                           markov_time=markov_time)
        assert float(out) == pytest.approx(float(expected))
    # 2^b nodes of a regular graph take b bits.
    out = map_equation(torch.zeros(8).long(), cliques([8]))
    assert float(out) == pytest.approx(3.)


def test_map_equation_of_self_loops():
    # Once in the strength: a loop of weight 2 weighs what one edge adds to
    # its two ends together.
    edge_index = torch.tensor([[0, 1, 2], [1, 0, 2]])
    cluster = torch.tensor([0, 0, 1])
    out = map_equation(cluster, edge_index, torch.tensor([1., 1., 2.]))
    # p = 1/4, 1/4, 1/2 and no flow between: H(p) minus that between clusters.
    assert float(out) == pytest.approx(1.5 - 1.)


def test_map_equation_is_no_sum_over_components():
    # A path of six alone is best cut in half; four of them are best whole,
    # since every way out of a cluster is longer to name. So components cannot
    # be clustered apart.
    path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    for copies, cut in [(1, True), (4, False)]:
        edge_index = torch.cat([path + 6 * i for i in range(copies)], dim=1)
        node = torch.arange(6 * copies)
        halves, whole = (float(map_equation(node // size, edge_index))
                         for size in (3, 6))
        assert (halves < whole) == cut


def test_map_equation_symmetrises_by_the_larger_weight():
    edge_index, weight = random_graph(12, 40)
    cluster = torch.randint(0, 4, (12, ), generator=generator())
    matrix = torch.zeros(12, 12, dtype=torch.double)
    matrix.index_put_(tuple(edge_index), torch.rand(
        weight.numel(), dtype=torch.double, generator=generator()))
    both = torch.maximum(matrix, matrix.t())
    expected = map_equation(cluster, both.nonzero().t(), both[both > 0])
    out = map_equation(cluster, matrix.nonzero().t(), matrix[matrix > 0])
    assert float(out) == pytest.approx(float(expected), abs=1e-12)
    # One direction says as much as two.
    once = both.triu()
    out = map_equation(cluster, once.nonzero().t(), once[once > 0])
    assert float(out) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize('grad', [False, True])
def test_map_equation_adds_parallel_edges(grad):
    edge_index, weight = random_graph()
    cluster = torch.randint(0, 4, (12, ), generator=generator())
    expected = map_equation(cluster, edge_index, weight)
    part = torch.cat([.3 * weight, .7 * weight]).requires_grad_(grad)
    out = map_equation(cluster, edge_index.repeat(1, 2), part)
    assert out.requires_grad == grad
    assert float(out.detach()) == pytest.approx(float(expected), abs=1e-12)


def test_map_equation_gradients():
    edge_index, weight = random_graph(8, 16)
    cluster = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    # Ties between the two directions have no derivative; apart they do.
    weight = (weight + .3 * torch.rand(weight.numel())).requires_grad_()
    for markov_time in [1., 2., 'variable']:
        assert torch.autograd.gradcheck(
            lambda w, t=markov_time: map_equation(
                cluster, edge_index, w, markov_time=t), weight)
    # The derivative along the weights themselves is zero: their unit is free.
    out = map_equation(cluster, edge_index, weight)
    grad = torch.autograd.grad(out, weight)[0]
    assert float(grad @ weight.detach()) == pytest.approx(0., abs=1e-9)
    expected = float(map_equation(cluster, edge_index, weight.detach()))
    assert float(out.detach()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('n', [0, 1, 3])
def test_map_equation_without_edges(n):
    edge_index = torch.empty(2, 0, dtype=torch.long)
    out = map_equation(torch.arange(n), edge_index)
    assert out.dtype == torch.float64 and float(out) == 0
    weight = torch.zeros(2, requires_grad=True)
    out = map_equation(torch.arange(2), torch.tensor([[0, 1], [1, 0]]), weight)
    assert float(out.detach()) == 0


def test_map_equation_errors():
    edge_index, weight = random_graph()
    cluster = torch.zeros(12, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'cluster' must have shape \[9\]"):
        map_equation(cluster, edge_index, num_nodes=9)
    with pytest.raises(ValueError, match="'cluster' must have shape"):
        map_equation(cluster.view(3, 4), edge_index)
    for time in [0, -1., float('nan'), 'fast', (0., 'variable'), None]:
        with pytest.raises(ValueError, match="'markov_time' must be a pos"):
            map_equation(cluster, edge_index, markov_time=time)
    check_graph_errors(lambda *graph: map_equation(cluster, *graph))


def check_graph_errors(function):
    edge_index, weight = random_graph()
    for bad in [edge_index[0], edge_index[:1], edge_index.t()]:
        with pytest.raises(ValueError, match=r"must have shape \[2, E\]"):
            function(bad)
    with pytest.raises(ValueError, match="'edge_index' must be int64"):
        function(edge_index.double())
    for node in [-1, 12]:
        bad = edge_index.clone()
        bad[1, 3] = node
        with pytest.raises(ValueError, match=f'names node {node}, but there '
                           f'are nodes 0..11'):
            function(bad, weight, 12)
    with pytest.raises(ValueError, match="'edge_weight' must have shape"):
        function(edge_index, weight[1:])
    for value in [-1e-9, float('nan'), float('inf')]:
        bad = weight.clone()
        bad[[5, 8]] = value
        i, j = edge_index[:, 5].tolist()
        with pytest.raises(ValueError, match=rf'Edge 5 \({i}, {j}\) has a'):
            function(edge_index, bad, 12)


# Communities ################################################################


def test_communities_of_a_planted_graph(backend):
    edge_index, expected = planted()
    for seed in range(3):
        out = map_equation_communities(edge_index, backend=backend, seed=seed)
        assert torch.equal(out, expected)
    # By first appearance, whatever the names of the nodes.
    perm = torch.randperm(200, generator=generator())
    out = map_equation_communities(perm[edge_index], backend=backend)
    expected = number_by_appearance(expected[perm.argsort()])
    assert torch.equal(out, expected)
    assert out.dtype == torch.long


def test_communities_are_as_short_as_infomaps(backend):
    pytest.importorskip('infomap')
    for edge_index, weight in fuzzy():
        length = {}
        for name in {backend, 'infomap'}:
            cluster = map_equation_communities(edge_index, weight,
                                               backend=name)
            length[name] = map_equation(cluster, edge_index, weight)
        assert float(length[backend]) < 1.005 * float(length['infomap'])


def partitions(n):
    r"""Every partition of n nodes, as lists of cluster names."""
    if n == 0:
        yield []
        return
    for part in partitions(n - 1):
        for name in range(max(part, default=-1) + 2):
            yield part + [name]


@pytest.mark.parametrize('markov_time', [.5, 1., 2., 'variable',
                                         (.5, 'variable')])
def test_communities_against_all_partitions(markov_time, backend):
    # Never shorter than the shortest of all, and mostly that one.
    if backend == 'networkit' and markov_time != 1:
        pytest.skip('knows no Markov time')
    every = list(partitions(6))
    assert len(every) == 203  # Bell's sixth number
    hits = 0
    for seed in range(4):
        edge_index, weight = random_graph(6, 9, seed)
        best = min(definition(torch.tensor(part), edge_index, weight,
                              markov_time) for part in every)
        out = map_equation_communities(edge_index, weight, 6, backend,
                                       markov_time)
        length = definition(out, edge_index, weight, markov_time)
        assert length > best - 1e-12
        hits += length < best + 1e-12
    assert hits >= 3


def test_communities_beat_trivial_partitions(backend):
    for edge_index, weight in fuzzy():
        out = map_equation_communities(edge_index, weight, backend=backend)
        length = map_equation(out, edge_index, weight)
        for other in [torch.zeros_like(out), torch.arange(out.numel())]:
            assert length <= map_equation(other, edge_index, weight)
        # No name is left out.
        assert out.unique().numel() == int(out.max()) + 1


def test_communities_of_a_graph_that_no_cache_holds():
    # Its nodes come in another order.
    pytest.importorskip('numba')
    inside = cliques([600] * 12)
    assert inside.size(1) > 2**22
    nodes = torch.arange(7200)
    chain = torch.stack([nodes[:-1], nodes[1:]])
    edge_index = torch.cat([inside, chain, chain.flip(0)], dim=1)
    for seed in range(2):
        out = map_equation_communities(edge_index, backend='numba', seed=seed)
        assert torch.equal(out, nodes // 600)


def test_communities_after_rounds_of_what_merging_touched(monkeypatch):
    # As short as after rounds of all nodes, and shorter than after one.
    pytest.importorskip('numba')
    from torch_sdt.ops import _map_equation_kernel as kernel

    # What draws random numbers must be Python, too, to be seeded.
    for name in ('communities_kernel', '_order'):
        monkeypatch.setattr(kernel, name, getattr(kernel, name).py_func)

    def length(graph, seed):
        out = map_equation_communities(*graph, backend='numba', seed=seed)
        return float(map_equation(out, *graph))

    lengths = []
    for graph in fuzzy():
        for seed in range(3):
            with monkeypatch.context() as context:
                all_nodes = length(graph, seed)
                context.setattr(kernel, '_CACHE', 0)
                touched = length(graph, seed)
                context.setattr(kernel, '_queue_merged', lambda *args: False)
                once = length(graph, seed)
            assert touched <= once
            lengths.append((all_nodes, touched, once))
    all_nodes, touched, once = zip(*lengths)
    assert sum(touched) < 1.005 * sum(all_nodes)
    assert sum(a < b for a, b in zip(touched, once)) >= 6


def test_communities_of_isolated_nodes(backend):
    # At the end, in the middle, and at the start.
    triangles = torch.cat([cliques([3, 3]), bridge((2, 3))], dim=1)
    for first in [0, 2]:
        for seed in range(3):
            out = map_equation_communities(triangles + first, num_nodes=9,
                                           backend=backend, seed=seed)
            alone = [i for i in range(9) if not 0 <= i - first < 6]
            for i in alone:
                assert (out == out[i]).sum() == 1
            inside = out[first:first + 6]
            assert inside.unique_consecutive(return_counts=True)[1].tolist(
            ) == [3, 3]
            assert torch.equal(out, number_by_appearance(out))


def test_communities_of_self_loops(backend):
    # A node with a loop and nothing else is alone as well.
    edge_index = torch.cat([cliques([3, 3]), torch.tensor([[6], [6]])], dim=1)
    out = map_equation_communities(edge_index, num_nodes=8, backend=backend)
    assert out.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize('n', [0, 1, 4])
def test_communities_without_edges(n, backend):
    edge_index = torch.empty(2, 0, dtype=torch.long)
    out = map_equation_communities(edge_index, num_nodes=n, backend=backend)
    assert out.dtype == torch.long and out.tolist() == list(range(n))
    assert map_equation_communities(edge_index, backend=backend).numel() == 0


def test_communities_ignore_edges_of_no_weight(backend):
    edge_index, expected = planted()
    noise = torch.randint(0, 200, (2, 5000), generator=generator())
    weight = torch.cat([torch.ones(edge_index.size(1)), torch.zeros(5000)])
    out = map_equation_communities(torch.cat([edge_index, noise], dim=1),
                                   weight, backend=backend)
    assert torch.equal(out, map_equation_communities(edge_index,
                                                     backend=backend))
    out = map_equation_communities(noise, torch.zeros(5000), 200, backend)
    assert torch.equal(out, torch.arange(200))


def test_communities_of_either_direction(backend):
    # One direction, both, or both with other weights below the larger.
    edge_index, weight = fuzzy()[1]
    expected = map_equation_communities(edge_index, weight, backend=backend)
    once = edge_index[0] < edge_index[1]
    out = map_equation_communities(edge_index[:, once], weight[once],
                                   backend=backend)
    assert torch.equal(out, expected)
    smaller = torch.where(once, weight, weight * .3)
    out = map_equation_communities(edge_index, smaller, backend=backend)
    assert torch.equal(out, expected)


def test_communities_are_deterministic(backend):
    edge_index, weight = fuzzy()[1]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    out = [map_equation_communities(edge_index, weight, backend=backend,
                                    seed=seed) for seed in [3, 3, 3]]
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])
    # Nobody else's random numbers change.
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == np.random.get_state()[1].tolist()
    # The order of the edges is no seed.
    perm = torch.randperm(weight.numel(), generator=generator())
    again = map_equation_communities(edge_index[:, perm], weight[perm],
                                     backend=backend, seed=3)
    assert torch.equal(again, out[0])


@withCUDA
def test_communities_stay_on_the_device(device, backend):
    edge_index, expected = planted()
    out = map_equation_communities(edge_index.to(device), backend=backend)
    assert out.device == device
    assert torch.equal(out.cpu(), expected)


def test_communities_take_no_gradient(backend):
    edge_index, weight = fuzzy()[1]
    out = map_equation_communities(edge_index, weight, backend=backend)
    again = map_equation_communities(
        edge_index, weight.clone().requires_grad_(), backend=backend)
    assert torch.equal(out, again)


@pytest.mark.parametrize('backend', ['infomap', 'numba', 'torch'])
def test_communities_markov_time(backend):
    # The longer, the fewer; each the best of the three at its own time.
    pytest.importorskip(backend)
    edge_index, weight = fuzzy()[2]
    times = [.5, 1., 3.]
    out = [map_equation_communities(edge_index, weight, backend=backend,
                                    markov_time=time) for time in times]
    count = [int(cluster.max()) + 1 for cluster in out]
    assert count[0] > count[1] > count[2]
    for time, own in zip(times, out):
        length = [float(map_equation(cluster, edge_index, weight,
                                     markov_time=time)) for cluster in out]
        assert min(length) == float(map_equation(own, edge_index, weight,
                                                 markov_time=time))


@pytest.mark.parametrize('backend', ['infomap', 'numba', 'torch'])
def test_communities_variable_markov_time(backend):
    pytest.importorskip(backend)
    pytest.importorskip('infomap')
    for edge_index, weight in fuzzy():
        count = {}
        for time in ['variable', (1., 'variable'), (.5, 'variable')]:
            length = {}
            for name in {backend, 'infomap'}:
                cluster = map_equation_communities(
                    edge_index, weight, backend=name, markov_time=time)
                length[name] = float(map_equation(
                    cluster, edge_index, weight, markov_time=time))
                if name == backend:
                    count[time] = int(cluster.max()) + 1
            # Infomap goes by slightly other times.
            assert length[backend] < 1.01 * length['infomap']
        assert count['variable'] == count[1., 'variable']
        assert count[.5, 'variable'] > count['variable']


@pytest.mark.parametrize('backend', ['infomap', 'numba', 'torch'])
def test_variable_markov_time_keeps_a_sparse_community_whole(backend):
    # A ring of forty beside dense cliques: at one time for all it is cut.
    pytest.importorskip(backend)
    ring = torch.arange(40)
    edge_index = torch.cat([
        to_undirected(torch.stack([ring, (ring + 1) % 40])),
        cliques([30] * 4) + 40], dim=1)
    plain, variable = (
        map_equation_communities(edge_index, backend=backend,
                                 markov_time=time)
        for time in [1., 'variable'])
    for out in (plain, variable):
        assert torch.equal(out[40:].unique_consecutive(
            return_counts=True)[1], torch.tensor([30] * 4))
    assert variable[:40].unique().numel() < plain[:40].unique().numel()


def test_communities_directed():
    # Flow that circles in two rings, and two nodes that it never visits.
    pytest.importorskip('infomap')
    ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    edge_index = torch.cat([ring, ring + 4], dim=1)
    out = map_equation_communities(edge_index, num_nodes=10,
                                   backend='infomap', directed=True)
    assert out.tolist() == [0] * 4 + [1] * 4 + [2, 3]
    for backend in ['networkit', 'numba', 'torch']:
        if getattr(torch_sdt.typing, f'WITH_{backend.upper()}', True):
            with pytest.raises(ValueError, match='is undirected'):
                map_equation_communities(edge_index, backend=backend,
                                         directed=True)


@pytest.mark.parametrize('time', [0, -1., float('nan'), 'fast', (1., 'fast'),
                                  ('variable', 1.), (0., 'variable'),
                                  (1., ), None, float('inf')])
def test_communities_bad_markov_time(time, backend):
    with pytest.raises(ValueError, match="'markov_time' must be a positive"):
        map_equation_communities(planted()[0], backend=backend,
                                 markov_time=time)


def test_communities_errors(backend, monkeypatch):
    check_graph_errors(lambda *graph: map_equation_communities(
        *graph, backend=backend))
    if backend == 'torch':
        return  # Without it there is nothing.
    flag = f'WITH_{backend.upper()}'
    monkeypatch.setattr(torch_sdt.typing, flag, False)
    with pytest.raises(ImportError, match=f"requires '{backend}'"):
        map_equation_communities(planted()[0], backend=backend)


def test_communities_of_a_backend_that_cannot():
    edge_index = planted()[0]
    with pytest.raises(ValueError, match="'backend' must be one of"):
        map_equation_communities(edge_index, backend='louvain')
    if torch_sdt.typing.WITH_NETWORKIT:
        for time in [2., 'variable']:
            with pytest.raises(ValueError, match='no Markov time other'):
                map_equation_communities(edge_index, markov_time=time)


def test_networkit_keeps_its_number_of_threads():
    networkit = pytest.importorskip('networkit')
    before = networkit.getMaxNumberOfThreads()
    try:
        networkit.setNumberOfThreads(2)
        map_equation_communities(planted()[0], backend='networkit')
        assert networkit.getMaxNumberOfThreads() == 2
    finally:
        networkit.setNumberOfThreads(before)


IMPORTS = '''
import sys
import numpy as np
if sys.argv[1] == 'infomap':
    import infomap
else:
    import faiss
from torch_sdt.ops import knn, map_equation_communities
x = np.repeat(np.eye(4), 6, axis=0)
x += .1 * np.random.default_rng(0).normal(size=x.shape)
edge_index, weight = knn(x, 6, 'flat').to_edge_index()
out = map_equation_communities(edge_index, weight, backend='infomap')
edge_index, weight = knn(x, 6, 'IVF2,Flat').to_edge_index()
again = map_equation_communities(edge_index, weight, backend='infomap')
assert {'faiss', 'infomap'} <= set(sys.modules)
print(out.tolist() == again.tolist() == [i // 6 for i in range(24)])
'''


@pytest.mark.parametrize('first', ['infomap', 'faiss'])
def test_infomap_and_faiss_in_either_order(first):
    # They share SWIG's table of types: what the second does to the first can
    # crash the process, so it is one of its own.
    pytest.importorskip('infomap')
    pytest.importorskip('faiss')
    out = subprocess.run([sys.executable, '-c', IMPORTS, first], text=True,
                         capture_output=True)
    assert (out.returncode, out.stdout.strip()) == (0, 'True'), out.stderr


# Ladder #####################################################################


def test_ladder():
    pytest.importorskip('numba')
    for edge_index, weight in [planted()[:1] + (None, ), *fuzzy()]:
        times = (1., 1.5, 3., 8.)
        out = map_equation_ladder(edge_index, weight, markov_times=times)
        assert len(out) == 4
        first = map_equation_communities(edge_index, weight, backend='numba')
        assert torch.equal(out[0], first)
        for finer, coarser in zip(out, out[1:]):
            # Each cluster lies in one of the next.
            pairs = torch.stack([finer, coarser]).unique(dim=1)
            assert pairs.size(1) == int(finer.max()) + 1
        for time, cluster in zip(times, out):
            assert torch.equal(cluster, number_by_appearance(cluster))
            # Merging shortened the code at this time.
            assert (map_equation(cluster, edge_index, weight,
                                 markov_time=time) <=
                    map_equation(first, edge_index, weight,
                                 markov_time=time) + 1e-9)


def test_ladder_merges_what_is_much_larger_than_its_degree():
    # A ring of 64 is cut at time 1, less so at longer ones.
    pytest.importorskip('numba')
    node = torch.arange(64)
    edge_index = to_undirected(torch.stack([node, (node + 1) % 64]))
    count = [int(cluster.max()) + 1 for cluster in map_equation_ladder(
        edge_index, markov_times=(1., 2., 4., 100.))]
    assert count == sorted(set(count), reverse=True)
    assert count[0] > 4 and count[-1] == 1


@withCUDA
def test_ladder_edge_cases(device):
    pytest.importorskip('numba')
    empty = torch.empty(2, 0, dtype=torch.long, device=device)
    for n in [0, 1, 3]:
        for cluster in map_equation_ladder(empty, num_nodes=n):
            assert cluster.device == device
            assert cluster.tolist() == list(range(n))
    assert map_equation_ladder(empty, markov_times=()) == []
    # Isolated nodes stay alone, and edges without weight do not count.
    edge_index, weight = random_graph()
    weight[::3] = 0
    out = map_equation_ladder(edge_index, weight, 14, (1., 50.))
    keep = weight > 0
    other = map_equation_ladder(edge_index[:, keep], weight[keep], 14,
                                (1., 50.))
    for cluster, expected in zip(out, other):
        assert torch.equal(cluster, expected)
        for node in [12, 13]:
            assert (cluster == cluster[node]).sum() == 1


def test_ladder_errors(monkeypatch):
    for time in [0., 'variable', (1., 'variable')]:
        with pytest.raises(ValueError, match='Markov|markov'):
            map_equation_ladder(planted()[0], markov_times=(1., time))
    check_graph_errors(map_equation_ladder)
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    with pytest.raises(ImportError, match="requires 'numba'"):
        map_equation_ladder(planted()[0])


def test_number_by_appearance():
    cluster = torch.tensor([7, -2, 7, 30, -2, 0])
    assert number_by_appearance(cluster).tolist() == [0, 1, 0, 2, 1, 3]
    assert number_by_appearance(cluster[:0]).numel() == 0
    # Names differ, pairs do not.
    for i, j in combinations(range(6), 2):
        out = number_by_appearance(cluster)
        assert (out[i] == out[j]) == (cluster[i] == cluster[j])


@pytest.mark.parametrize('with_numba', [False, True])
def test_symmetric_csr_is_the_graph_of_the_table(monkeypatch, with_numba):
    if with_numba:
        pytest.importorskip('numba')
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', with_numba)
    table = Neighbors.build(torch.randn(60, 5, generator=generator()), 9)
    weight = torch.rand(60, 9, generator=generator(1))
    weight[weight < .3] = 0
    edge_index, edge_weight = table.to_edge_index(weight, weight > 0)
    expected = torch.zeros(60, 60)
    expected[edge_index[0], edge_index[1]] = edge_weight
    expected = torch.maximum(expected, expected.t())
    graph = symmetric_csr(table, weight)
    assert graph.nnz == int((expected > 0).sum())
    assert torch.equal(torch.from_numpy(graph.toarray()).float(), expected)
    # Of an empty table, and where no weight is left, too.
    for part in (Neighbors(table.index[:0], table.similarity[:0]), table):
        graph_of_none = symmetric_csr(part, torch.zeros(part.index.shape))
        assert graph_of_none.shape == (part.num_nodes, part.num_nodes)
        assert graph_of_none.nnz == 0
    # A kernel would write where nobody looks.
    for bad in (60, -1):
        index = table.index.clone()
        index[7, 3] = bad
        with pytest.raises(ValueError, match='Row 7 has a neighbour outside'):
            symmetric_csr(Neighbors(index, table.similarity), weight)
    with pytest.raises(ValueError, match="must have the table's shape"):
        symmetric_csr(table, weight[:, :8])
    if not with_numba:
        return
    # The same communities, to the last label.
    times = (1., 2.)
    for a, b in zip(ladder_csr(graph, times), map_equation_ladder(
            edge_index, edge_weight, 60, times)):
        assert torch.equal(a, b)


@pytest.mark.parametrize('share', [0., .05, .6])
def test_table_communities(backend, share):
    # What comes out of the list of edges, with and without isolated nodes.
    table = Neighbors.build(torch.randn(300, 5, generator=generator()), 9)
    weight = torch.rand(300, 9, generator=generator(1)).clamp(min=1e-3)
    weight[torch.rand(300, 9, generator=generator(2)) >= share] = 0
    edge_index, edge_weight = table.to_edge_index(weight, weight > 0)
    cluster = table_communities(table, weight, backend)
    assert torch.equal(cluster, map_equation_communities(
        edge_index, edge_weight, 300, backend))
    assert cluster.dtype == torch.long
    degree = edge_index.reshape(-1).bincount(minlength=300)
    size = cluster.bincount()[cluster]
    assert bool((size[degree == 0] == 1).all())


@pytest.mark.parametrize('extra', [2**31, 2**32])
def test_ids_beyond_32_bits(backend, extra):
    # Cut to 32 bits, the second would be the id that was meant.
    index = torch.tensor([[0, 1], [1, 2], [2, 0]])
    index[1, 1] += extra
    with pytest.raises(ValueError, match=f"names node {extra + 2}, but"):
        map_equation_communities(index.t(), num_nodes=3, backend=backend)
    table = Neighbors(index, torch.ones(3, 2))
    with pytest.raises(ValueError, match='Row 1 has a neighbour outside'):
        topk_jaccard(table)
    with pytest.raises(ValueError, match='outside 0..2|are nodes 0..2'):
        table_communities(table, torch.ones(3, 2), backend)


def test_table_communities_directed():
    pytest.importorskip('infomap')
    table = Neighbors.build(torch.randn(300, 5, generator=generator()), 9)
    edge_index, edge_weight = table.to_edge_index(
        table.similarity, table.similarity > 0)
    assert torch.equal(
        table_communities(table, table.similarity, 'infomap', directed=True),
        map_equation_communities(edge_index.flip(0), edge_weight, 300,
                                 'infomap', directed=True))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_communities_of_weights_in_any_precision(dtype, backend):
    edge_index = cliques([4, 5])
    weight = torch.ones(edge_index.size(1), dtype=dtype)
    cluster = map_equation_communities(edge_index, weight, 9, backend)
    assert cluster.tolist() == [0] * 4 + [1] * 5


@pytest.mark.parametrize('seed', [-1, 2**32, .5, None])
def test_seeds(seed):
    edge_index = cliques([3, 3])
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="'seed' must be an integer"):
            map_equation_communities(edge_index, backend=backend, seed=seed)
    with pytest.raises(ValueError, match="'seed' must be an integer"):
        map_equation_ladder(edge_index, seed=seed)
