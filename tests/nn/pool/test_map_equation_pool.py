import copy
import inspect

import pytest
import torch
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import KarateClub
from torch_geometric.nn import GCNConv, global_mean_pool
from torch_geometric.testing import withCUDA
from torch_geometric.utils import degree, scatter, stochastic_blockmodel_graph

from torch_sdt.nn import MapEquationPool, MergeEdges, PoolOutput
from torch_sdt.ops import map_equation

pytest.importorskip('networkit')


def two_triangles():
    # Two triangles, a bridge from 2 to 3, and the isolated node 6.
    half = torch.tensor([[0, 0, 1, 2, 3, 3, 4], [1, 2, 2, 3, 4, 5, 5]])
    return torch.cat([half, half.flip(0)], dim=1)


def block_model(seed, sizes=(8, 9, 10), p_in=.8, p_out=.05):
    torch.manual_seed(seed)
    probs = torch.full((len(sizes), len(sizes)), p_out)
    edge_index = stochastic_blockmodel_graph(
        list(sizes), probs.fill_diagonal_(p_in))
    num_nodes = sum(sizes)
    low, high = edge_index.min(dim=0)[0], edge_index.max(dim=0)[0]
    weight = torch.rand(num_nodes, num_nodes)[low, high]
    return Data(x=torch.randn(num_nodes, 4), edge_index=edge_index,
                edge_attr=weight)


def test_map_equation_pool_repr():
    pool = MapEquationPool()
    assert str(pool).startswith(
        "MapEquationPool(backend='networkit', markov_time=1.0, seed=0, "
        "reduce='mean', keep_self_loops=True")
    assert len(list(pool.parameters())) == 0
    pool.reset_parameters()
    names = list(inspect.signature(pool.forward).parameters)
    assert names == ['x', 'edge_index', 'edge_attr', 'batch']


@withCUDA
def test_map_equation_pool_by_hand(device):
    x = torch.arange(14., device=device).view(7, 2)
    edge_index = two_triangles().to(device)
    out = MapEquationPool()(x, edge_index)
    assert isinstance(out, PoolOutput)
    assert out.cluster.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert out.x.tolist() == [[2., 3.], [8., 9.], [12., 13.]]
    assert out.edge_index.tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert out.edge_attr.tolist() == [6., 1., 1., 6.]
    assert out.batch is None
    x, edge_index, edge_attr, batch, cluster = out
    assert x.device == edge_index.device == cluster.device == device


def test_map_equation_pool_options():
    x = torch.arange(14.).view(7, 2)
    out = MapEquationPool(reduce='sum', keep_self_loops=False)(
        x, two_triangles())
    assert out.x.tolist() == [[6., 9.], [24., 27.], [12., 13.]]
    assert out.edge_index.tolist() == [[0, 1], [1, 0]]
    assert out.edge_attr.tolist() == [1., 1.]


def test_map_equation_pool_keeps_the_flow():
    # Strengths add up, and the pooled graph's codelength differs from the
    # graph's by the entropy of the visit rates alone, whatever one merges.
    data = block_model(0)
    out = MapEquationPool()(data.x, data.edge_index, data.edge_attr)
    num_clusters = out.x.size(0)
    assert 1 < num_clusters < data.num_nodes
    strength = scatter(data.edge_attr, data.edge_index[0])
    pooled = scatter(out.edge_attr, out.edge_index[0])
    assert torch.allclose(pooled, scatter(strength, out.cluster), atol=1e-4)

    def entropy(value):
        p = value.double() / value.double().sum()
        return -(p * p.log2()).sum()

    gap = entropy(strength) - entropy(pooled)
    for coarse in [torch.arange(num_clusters),
                   torch.arange(num_clusters) // 2,
                   torch.zeros(num_clusters, dtype=torch.long)]:
        fine = map_equation(coarse[out.cluster], data.edge_index,
                            data.edge_attr)
        length = map_equation(coarse, out.edge_index, out.edge_attr)
        assert abs(float(fine - length - gap)) < 1e-5


def test_map_equation_pool_can_be_pooled_again():
    data = block_model(1)
    pool = MapEquationPool()
    once = pool(data.x, data.edge_index, data.edge_attr)
    twice = pool(once.x, once.edge_index, once.edge_attr)
    assert twice.x.size(0) <= once.x.size(0)
    assert float(twice.edge_attr.sum()) == pytest.approx(
        float(data.edge_attr.sum()), rel=1e-5)


def test_map_equation_pool_of_a_batch_is_that_of_its_graphs():
    graphs = [block_model(0), KarateClub()[0], block_model(1, (5, 6))]
    graphs[1] = Data(x=torch.randn(34, 4), edge_index=graphs[1].edge_index,
                     edge_attr=torch.ones(156))
    alone = Data(x=torch.randn(2, 4), edge_attr=torch.empty(0),
                 edge_index=torch.empty(2, 0, dtype=torch.long))
    graphs.append(alone)
    batch = Batch.from_data_list(graphs)
    pool = MapEquationPool()
    out = pool(batch.x, batch.edge_index, batch.edge_attr, batch.batch)
    assert (out.batch[1:] >= out.batch[:-1]).all()

    parts = [pool(data.x, data.edge_index, data.edge_attr)
             for data in graphs]
    first = torch.tensor([0] + [part.x.size(0) for part in parts]).cumsum(0)
    assert torch.equal(out.batch, torch.arange(4).repeat_interleave(
        first.diff()))
    assert torch.equal(out.cluster, torch.cat(
        [part.cluster + i for part, i in zip(parts, first)]))
    assert torch.allclose(out.x, torch.cat([part.x for part in parts]))
    assert torch.equal(out.edge_index, torch.cat(
        [part.edge_index + i for part, i in zip(parts, first)], dim=1))
    assert torch.allclose(out.edge_attr, torch.cat(
        [part.edge_attr for part in parts]))


def test_map_equation_pool_never_merges_graphs():
    # Pairs and isolated nodes, of which nothing but `batch` tells whose
    # they are.
    edge_index = 3 * torch.arange(20) + torch.tensor([[0], [1]])
    batch = torch.arange(20).repeat_interleave(3)
    out = MapEquationPool()(torch.randn(60, 1), edge_index, batch=batch)
    assert torch.equal(out.batch, torch.arange(20).repeat_interleave(2))
    assert torch.equal(out.batch[out.cluster], batch)


def test_map_equation_pool_is_permutation_equivariant():
    # Planted communities leave no doubt about the optimum.
    data = block_model(2, p_out=.02)
    perm = torch.randperm(data.num_nodes)
    position = torch.empty_like(perm)
    position[perm] = torch.arange(data.num_nodes)
    pool = MapEquationPool()
    out = pool(data.x, data.edge_index, data.edge_attr)
    moved = pool(data.x[perm], position[data.edge_index], data.edge_attr)
    same = out.cluster.view(-1, 1) == out.cluster
    back = moved.cluster[position]
    assert torch.equal(back.view(-1, 1) == back, same)
    assert torch.allclose(moved.x[back], out.x[out.cluster], atol=1e-6)


@pytest.mark.parametrize('reduce', ['mean', 'sum', 'max'])
def test_map_equation_pool_gradients(reduce):
    data = block_model(3, (3, 4))
    x = data.x[:, :2].double().requires_grad_()
    weight = (data.edge_attr.double() + .5).requires_grad_()
    pool = MapEquationPool(reduce=reduce)

    def function(x, weight):
        out = pool(x, data.edge_index, weight)
        return out.x, out.edge_attr

    assert torch.autograd.gradcheck(function, (x, weight))


def test_map_equation_pool_of_edge_features():
    edge_index = two_triangles()
    attr = torch.randn(14, 3)
    pool = MapEquationPool()
    out = pool(torch.randn(7, 2), edge_index, attr)
    assert out.cluster.tolist() == [0, 0, 0, 1, 1, 1, 2]
    inside = (edge_index < 3).all(dim=0)
    assert torch.allclose(out.edge_attr[0], attr[inside].sum(0), atol=1e-6)
    pool = MapEquationPool()
    pool.connect = MergeEdges('mean')
    out = pool(torch.randn(7, 2), edge_index, attr)
    assert torch.allclose(out.edge_attr[0], attr[inside].mean(0), atol=1e-6)


def test_map_equation_pool_is_sparse():
    # A dense adjacency matrix would take 13 GiB.
    edge_index = torch.arange(60_000).view(-1, 2).t()
    out = MapEquationPool()(torch.ones(60_000, 1), edge_index)
    assert out.x.size(0) == 30_000
    assert torch.equal(out.cluster, torch.arange(60_000) // 2)


@pytest.mark.parametrize('num_nodes', [0, 1, 3])
def test_map_equation_pool_without_edges(num_nodes):
    x = torch.randn(num_nodes, 2)
    edge_index = torch.empty(2, 0, dtype=torch.long)
    batch = torch.zeros(num_nodes, dtype=torch.long)
    out = MapEquationPool()(x, edge_index, batch=batch)
    assert torch.equal(out.x, x)
    assert torch.equal(out.cluster, torch.arange(num_nodes))
    assert out.edge_index.shape == (2, 0) and out.edge_attr.shape == (0, )
    assert torch.equal(out.batch, batch)


def test_map_equation_pool_in_a_network():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = GCNConv(4, 8), GCNConv(8, 2)
            self.pool = MapEquationPool()

        def forward(self, data):
            x = self.conv1(data.x, data.edge_index, data.edge_attr).relu()
            out = self.pool(x, data.edge_index, data.edge_attr, data.batch)
            x = self.conv2(out.x, out.edge_index, out.edge_attr)
            return global_mean_pool(x, out.batch)

    batch = Batch.from_data_list([block_model(0), block_model(1)])
    net = Net()
    out = net(batch)
    assert out.shape == (2, 2)
    out.sum().backward()
    assert float(net.conv1.lin.weight.grad.abs().sum()) > 0
    copied = copy.deepcopy(net)
    copied.load_state_dict(net.state_dict())
    assert torch.equal(copied(batch), out)
    assert 'pool' not in ' '.join(net.state_dict())


def test_map_equation_pool_leaves_its_input_alone():
    data = block_model(0)
    saved = data.clone()
    MapEquationPool()(data.x, data.edge_index, data.edge_attr)
    assert all(torch.equal(data[key], saved[key]) for key in data.keys())


def test_map_equation_pool_errors():
    with pytest.raises(ValueError, match="'backend' must be one of"):
        MapEquationPool('leiden')
    with pytest.raises(ValueError, match='Markov time'):
        MapEquationPool(markov_time='variable')
    with pytest.raises(ValueError, match="'reduce' must be one of"):
        MapEquationPool(reduce='median')
    pool, x, edge_index = MapEquationPool(), torch.ones(7, 1), two_triangles()
    for attr in [torch.ones(()), torch.ones(3), torch.ones(3, 14)]:
        with pytest.raises(ValueError, match="'edge_attr' must have 14 rows"):
            pool(x, edge_index, attr)
    with pytest.raises(ValueError, match=r'Edge 0 .* negative'):
        pool(x, edge_index, -torch.ones(14))
    with pytest.raises(ValueError, match='names node 5'):
        pool(x[:5], edge_index)
    with pytest.raises(ValueError, match="'batch' must have shape"):
        pool(x, edge_index, batch=torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match='joins the graphs 0 and 1'):
        pool(x, edge_index, batch=(torch.arange(7) > 2).long())


def test_map_equation_pool_markov_time():
    pytest.importorskip('infomap')
    data = KarateClub()[0]
    x = degree(data.edge_index[0]).view(-1, 1)
    few, many = [
        MapEquationPool('infomap', time)(x, data.edge_index).x.size(0)
        for time in [4., .25]]
    assert few < many
