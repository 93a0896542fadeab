import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import KarateClub
from torch_geometric.nn.pool.select import Select, SelectOutput
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.nn import SelectMapEquation
from torch_sdt.ops import map_equation


def cliques(sizes, bridges=()):
    r"""Cliques side by side, joined by the edges :obj:`bridges`."""
    parts, first = [torch.empty(2, 0, dtype=torch.long)], 0
    for size in sizes:
        index = torch.arange(first, first + size)
        pair = torch.cartesian_prod(index, index).t()
        parts.append(pair[:, pair[0] != pair[1]])
        first += size
    for row, col in bridges:
        parts.append(torch.tensor([[row, col], [col, row]]))
    return torch.cat(parts, dim=1)


@pytest.fixture(params=['networkit', 'infomap', 'numba'])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


def test_select_map_equation_repr():
    pytest.importorskip('networkit')
    select = SelectMapEquation()
    assert isinstance(select, Select)
    assert str(select) == ("SelectMapEquation(backend='networkit', "
                           "markov_time=1.0, seed=0)")


@withCUDA
def test_select_map_equation(device, backend):
    select = SelectMapEquation(backend)
    edge_index = cliques([4, 3, 5], [(3, 4), (6, 7)]).to(device)
    out = select(edge_index)
    assert isinstance(out, SelectOutput)
    assert out.cluster_index.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert out.node_index.tolist() == list(range(12))
    assert (out.num_nodes, out.num_clusters) == (12, 3)
    assert out.node_index.device == out.cluster_index.device == device
    assert out.weight is None


def test_select_map_equation_uses_weights(backend):
    # A ring of four, strong on two opposite sides.
    edge_index = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 0],
                               [1, 2, 3, 0, 0, 1, 2, 3]])
    weight = torch.tensor([9., .1, 9., .1]).repeat(2)
    select = SelectMapEquation(backend)
    assert select(edge_index, weight).cluster_index.tolist() == [0, 0, 1, 1]
    weight = weight.view(2, 2, 2).flip(2).reshape(-1)
    assert select(edge_index, weight).cluster_index.tolist() == [0, 1, 1, 0]


def test_select_map_equation_shortens_the_code(backend):
    data = KarateClub()[0]
    out = SelectMapEquation(backend)(data.edge_index)
    together = torch.zeros(34, dtype=torch.long)
    length = map_equation(out.cluster_index, data.edge_index)
    for other in [together, torch.arange(34)]:
        assert length < map_equation(other, data.edge_index)


def test_select_map_equation_of_a_batch(backend):
    # Each graph as if it were alone, whatever shares its batch.
    graphs = [
        KarateClub()[0],
        Data(edge_index=cliques([3, 3], [(0, 3)]), num_nodes=6),
        Data(edge_index=torch.empty(2, 0, dtype=torch.long), num_nodes=2),
        Data(edge_index=cliques([2]), num_nodes=2),
    ]
    select = SelectMapEquation(backend)
    expected, first = [], 0
    for data in graphs:
        out = select(data.edge_index, num_nodes=data.num_nodes)
        expected.append(out.cluster_index + first)
        first += out.num_clusters
    expected = torch.cat(expected)

    graphs = [Data(edge_index=data.edge_index, num_nodes=data.num_nodes)
              for data in graphs]
    batch = Batch.from_data_list(graphs)
    out = select(batch.edge_index, batch=batch.batch)
    assert torch.equal(out.cluster_index, expected)
    assert out.num_clusters == first

    # Neither the order of edges nor gaps between the graphs' ids matter.
    perm = torch.randperm(batch.num_edges)
    out = select(batch.edge_index[:, perm], batch=3 * batch.batch)
    assert torch.equal(out.cluster_index, expected)


def test_select_map_equation_of_an_unsorted_batch(backend):
    edge_index = cliques([3, 4])
    batch = torch.tensor([0] * 3 + [1] * 4)
    perm = torch.tensor([5, 0, 3, 1, 6, 2, 4])
    position = torch.empty_like(perm)
    position[perm] = torch.arange(7)
    out = SelectMapEquation(backend)(position[edge_index], batch=batch[perm])
    assert torch.equal(out.cluster_index, batch[perm])


def ring(num_nodes):
    index = torch.arange(num_nodes)
    half = torch.stack([index, (index + 1) % num_nodes])
    return torch.cat([half, half.flip(0)], dim=1)


def test_select_map_equation_is_not_that_of_the_union(backend):
    # Why each graph is partitioned by itself: all graphs of a union share
    # one code book of module names, and its length decides what pays.
    small, union = ring(12), torch.cat([ring(12), ring(60) + 12], dim=1)
    batch = torch.tensor([0] * 12 + [1] * 60)
    select = SelectMapEquation(backend)
    alone = select(small).cluster_index
    assert torch.equal(select(union, batch=batch).cluster_index[:12], alone)
    together = select(union).cluster_index[:12]
    assert int(together.max()) < int(alone.max())


def test_select_map_equation_of_isolated_nodes(backend):
    edge_index = cliques([3, 3], [(0, 3)])
    for seed in range(4):
        select = SelectMapEquation(backend, seed=seed)
        out = select(edge_index, num_nodes=9).cluster_index
        assert out.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 4]


@pytest.mark.parametrize('num_nodes', [0, 1, 3])
def test_select_map_equation_without_edges(num_nodes, backend):
    edge_index = torch.empty(2, 0, dtype=torch.long)
    batch = torch.arange(num_nodes) // 2
    select = SelectMapEquation(backend)
    for kwargs in [{}, {'batch': batch}]:
        out = select(edge_index, num_nodes=num_nodes, **kwargs)
        assert out.cluster_index.tolist() == list(range(num_nodes))
        assert out.num_clusters == num_nodes


def test_select_map_equation_is_deterministic(backend):
    edge_index = KarateClub()[0].edge_index
    state = torch.get_rng_state()
    first = SelectMapEquation(backend, seed=7)(edge_index).cluster_index
    for _ in range(3):
        again = SelectMapEquation(backend, seed=7)(edge_index)
        assert torch.equal(again.cluster_index, first)
    # Nobody else's random numbers change.
    assert torch.equal(torch.get_rng_state(), state)


def test_select_map_equation_markov_time():
    pytest.importorskip('infomap')
    edge_index = cliques([4, 4, 4], [(0, 4), (4, 8), (8, 0)])
    count = [SelectMapEquation('infomap', time)(edge_index).num_clusters
             for time in [.3, 1., 8.]]
    assert count == sorted(count, reverse=True)
    assert count[1] == 3 and count[2] == 1


def test_select_map_equation_errors(monkeypatch):
    pytest.importorskip('networkit')
    with pytest.raises(ValueError, match="'backend' must be one of"):
        SelectMapEquation('louvain')
    with pytest.raises(ValueError, match='no Markov time other than 1'):
        SelectMapEquation('networkit', markov_time=2.)
    select = SelectMapEquation()
    edge_index = torch.tensor([[0, 1, 2], [1, 0, 4]])
    batch = torch.tensor([3, 3, 3, 5, 5])
    with pytest.raises(ValueError, match=r'Edge 2 \(2, 4\) joins the graphs 3 '
                       r'and 5'):
        select(edge_index, batch=batch)
    with pytest.raises(ValueError, match='names node 4'):
        select(edge_index, batch=batch[:3])
    with pytest.raises(ValueError, match=r"'batch' must have shape \[6\]"):
        select(edge_index, num_nodes=6, batch=batch)
    # Edges are counted in the whole graph, not in a part.
    edge_index = torch.tensor([[0, 1, 3, 4], [1, 0, 4, 3]])
    weight = torch.tensor([1., 1., 1., -1.])
    with pytest.raises(ValueError, match=r'Edge 3 \(4, 3\)'):
        select(edge_index, weight, batch=batch)
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NETWORKIT', False)
    with pytest.raises(ImportError, match="requires 'networkit'"):
        SelectMapEquation()
