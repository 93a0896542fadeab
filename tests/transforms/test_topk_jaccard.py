import copy

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.datasets import KarateClub
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt import ops
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import naive
from torch_sdt.transforms import CosineKNNGraph, TopKJaccard


def random_graph(num_nodes=25, num_edges=120, seed=0, loops=False):
    # Directed, weighted, without parallel edges; the last node is isolated.
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randperm((num_nodes - 1)**2, generator=generator)
    row = pair // (num_nodes - 1)
    col = pair % (num_nodes - 1)
    keep = (row != col) | loops
    edge_index = torch.stack([row, col])[:, keep][:, :num_edges]
    weight = 2 * torch.rand(num_edges, generator=generator) - .5
    return Data(edge_index=edge_index, edge_weight=weight.clamp(max=1),
                num_nodes=num_nodes)


def naive_weight(data, k=None, add_self=True, **kwargs):
    r"""The transform by plain loops over plain numbers."""
    lists = []
    for i in range(data.num_nodes):
        row = [(-float(a), j) for (j, t), a in zip(
            data.edge_index.t().tolist(), data.edge_weight)
               if t == i and not (add_self and j == i)]
        lists.append([(-1., i)] * add_self + sorted(row))
    length = [len(row) if k is None else min(len(row), k) for row in lists]
    ids = [[j for _, j in row] for row in lists]
    probability = [[naive.edge_probability(-a, **kwargs) for a, _ in row]
                   for row in lists]
    value = naive.topk_jaccard(ids, probability, length)
    of = {(j, i): p for i in range(data.num_nodes)
          for j, p in zip(ids[i], value[i])}
    return torch.tensor([of[j, i] for j, i in data.edge_index.t().tolist()])


def test_topk_jaccard_repr():
    assert str(TopKJaccard()) == (
        "TopKJaccard(k=None, transform='sigmoid', delta=7.5, epsilon=-5.0, "
        "tau=0.5, add_self=True, attr='edge_weight')")
    transform = TopKJaccard('k', 'exponential', 1., 2., .22, False, 'sim')
    assert str(transform) == (
        "TopKJaccard(k='k', transform='exponential', delta=1.0, epsilon=2.0, "
        "tau=0.22, add_self=False, attr='sim')")


@withCUDA
def test_topk_jaccard_by_hand(device):
    # A triangle with a tail, 0-1, 0-2, 1-2, 2-3, unweighted.
    edge_index = torch.tensor([[0, 0, 1, 2, 1, 2, 2, 3],
                               [1, 2, 2, 3, 0, 0, 1, 2]], device=device)
    data = Data(edge_index=edge_index, num_nodes=4)
    out = TopKJaccard()(data)
    assert 'edge_weight' not in data and len(out) == 3
    # Closed neighbourhoods {0,1,2}, {0,1,2}, {0,1,2,3}, {2,3}: the overlap
    # |both| (1 / |left| + 1 / |right|) / 2.
    expected = torch.tensor([1., 7 / 8, 7 / 8, 3 / 4], device=device)
    assert torch.allclose(out.edge_weight, expected.repeat(2), atol=1e-6)
    # Open neighbourhoods {1,2}, {0,2}, {0,1,3}, {2}: the tail shares nothing.
    out = TopKJaccard(add_self=False)(data)
    expected = torch.tensor([1 / 2, 5 / 12, 5 / 12, 0.], device=device)
    assert torch.allclose(out.edge_weight, expected.repeat(2), atol=1e-6)
    # A node that trusts itself alone has no neighbours.
    assert TopKJaccard(k=1)(data).edge_weight.tolist() == [0.] * 8


@pytest.mark.parametrize('k', [1, 2, 4, 7, 12, None])
@pytest.mark.parametrize('kwargs', [
    {}, {'delta': 3., 'epsilon': -2.}, {'transform': 'exponential',
                                        'tau': .22}])
def test_topk_jaccard_equals_ops_on_a_table(k, kwargs):
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    neighbors = Neighbors.build(x, 12)
    expected = ops.topk_jaccard(
        neighbors, k, ops.edge_probability(neighbors.similarity, **kwargs))
    data = T.Compose([CosineKNNGraph(k=12), TopKJaccard(k=k, **kwargs)])(
        Data(x=x))
    assert torch.allclose(data.edge_weight.view(60, 11), expected[:, 1:],
                          atol=1e-6)


def test_topk_jaccard_equals_ops_with_k_as_attribute():
    torch.manual_seed(0)
    x, k = torch.randn(60, 4), torch.randint(1, 13, (60, ))
    expected = ops.topk_jaccard(Neighbors.build(x, 12), k)
    data = CosineKNNGraph(k=12)(Data(x=x, trusted=k))
    out = TopKJaccard(k='trusted')(data)
    assert torch.allclose(out.edge_weight.view(60, 11), expected[:, 1:],
                          atol=1e-6)
    assert out.edge_index is data.edge_index and out.trusted is k


@pytest.mark.parametrize('k', [None, 1, 3, 100])
@pytest.mark.parametrize('add_self', [True, False])
@pytest.mark.parametrize('loops', [True, False])
def test_topk_jaccard_equals_naive_on_any_graph(k, add_self, loops):
    for seed in range(3):
        data = random_graph(seed=seed, loops=loops)
        out = TopKJaccard(k=k, add_self=add_self)(data)
        expected = naive_weight(data, k, add_self)
        # A trusted loop is a node's overlap with itself.
        assert torch.allclose(out.edge_weight, expected, atol=1e-6)
        if add_self:
            loop = data.edge_index[0] == data.edge_index[1]
            assert bool(loop.any()) == loops
            assert (out.edge_weight[loop] == 1).all()


def test_topk_jaccard_without_numba(monkeypatch):
    data = random_graph(loops=True)
    expected = TopKJaccard(k=4)(data).edge_weight
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    assert torch.allclose(TopKJaccard(k=4)(data).edge_weight, expected,
                          atol=1e-6)


def test_topk_jaccard_does_not_count_a_loop_twice():
    data = random_graph()
    looped = T.AddSelfLoops(fill_value=.1)(data)
    expected = torch.cat([TopKJaccard()(data).edge_weight, torch.ones(25)])
    assert torch.allclose(TopKJaccard()(looped).edge_weight, expected)


def test_topk_jaccard_ties_go_by_source():
    # Node 3 trusts itself and one of three equals.
    edge_index = torch.tensor([[2, 0, 1, 3], [3, 3, 3, 0]])
    data = Data(edge_index=edge_index, num_nodes=4,
                edge_weight=torch.full((4, ), .5))
    weight = TopKJaccard(k=2)(data).edge_weight
    assert (weight > 0).tolist() == [False, True, False, True]


def test_topk_jaccard_counts_itself_before_a_duplicate():
    # Cosine 1 to everyone: the node itself still comes first.
    index = torch.arange(4)
    edge_index = torch.cartesian_prod(index, index).t()
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    data = Data(edge_index=edge_index, edge_weight=torch.ones(12), num_nodes=4)
    weight = TopKJaccard(k=2)(data).edge_weight
    # {0,1} {0,1} {0,2} {0,3} in order of the nodes.
    assert weight.view(4, 3)[0].tolist() == [1., .5, .5]
    assert weight.view(4, 3)[1].tolist() == [1., 0., 0.]


def test_topk_jaccard_properties():
    # On an undirected graph with whole lists the measure is symmetric.
    data = T.ToUndirected(reduce='max')(random_graph())
    weight = TopKJaccard()(data).edge_weight
    assert 0 <= float(weight.min()) and float(weight.max()) <= 1 + 1e-6
    dense = torch.zeros(25, 25)
    dense[data.edge_index[0], data.edge_index[1]] = weight
    assert torch.allclose(dense, dense.t(), atol=1e-6)
    # Two cliques and a bridge: the bridge is weakest.
    clique = torch.cartesian_prod(torch.arange(5), torch.arange(5)).t()
    edge_index = torch.cat([clique, clique + 5, torch.tensor([[0, 5],
                                                              [5, 0]])], 1)
    data = T.RemoveSelfLoops()(Data(edge_index=edge_index, num_nodes=10))
    weight = TopKJaccard()(data).edge_weight
    assert float(weight[-2:].max()) < .5 < float(weight[:-2].min())


def test_topk_jaccard_is_permutation_equivariant():
    data = random_graph(loops=True)
    node = torch.randperm(25, generator=torch.Generator().manual_seed(1))
    edge = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    moved = Data(edge_index=node[data.edge_index][:, edge], num_nodes=25,
                 edge_weight=data.edge_weight[edge])
    for k in [None, 4]:
        expected = TopKJaccard(k=k)(data).edge_weight[edge]
        assert torch.allclose(TopKJaccard(k=k)(moved).edge_weight, expected,
                              atol=1e-6)


def test_topk_jaccard_gradients():
    data = random_graph(num_nodes=12, num_edges=40, loops=True)
    # Away from the kink of the probability at cosine 0.
    data.edge_weight = torch.linspace(.3, .9, 40).double().requires_grad_()

    def function(value):
        copied = copy.copy(data)
        copied.edge_weight = value
        return TopKJaccard(k=4)(copied).edge_weight

    out = function(data.edge_weight)
    assert out.requires_grad
    assert torch.allclose(out.detach().float(),
                          function(data.edge_weight.detach()).float(),
                          atol=1e-6)
    assert torch.autograd.gradcheck(function, data.edge_weight)
    out.square().sum().backward()
    assert float(data.edge_weight.grad.abs().sum()) > 0


def test_topk_jaccard_leaves_its_input_alone():
    data = random_graph()
    data.edge_type = torch.arange(120)
    saved = copy.deepcopy(data)
    out = TopKJaccard(k=3)(data)
    for key in ['edge_index', 'edge_weight', 'edge_type']:
        assert torch.equal(data[key], saved[key])
    assert torch.equal(out.edge_index, saved.edge_index)
    assert torch.equal(out.edge_type, saved.edge_type)
    assert not torch.equal(out.edge_weight, saved.edge_weight)


def test_topk_jaccard_of_another_attribute():
    data = random_graph()
    other = Data(edge_index=data.edge_index, sim=data.edge_weight,
                 num_nodes=25)
    out = TopKJaccard(attr='sim')(other)
    assert 'edge_weight' not in out
    assert torch.equal(out.sim, TopKJaccard()(data).edge_weight)


def test_topk_jaccard_on_batches_and_edge_index():
    graphs = [random_graph(seed=seed) for seed in range(3)]
    batch = TopKJaccard(k=4)(Batch.from_data_list(graphs))
    expected = [TopKJaccard(k=4)(data).edge_weight for data in graphs]
    assert torch.allclose(batch.edge_weight, torch.cat(expected))
    data = copy.copy(graphs[0])
    data.edge_index = EdgeIndex(data.edge_index, sparse_size=(25, 25))
    out = TopKJaccard(k=4)(data)
    assert isinstance(out.edge_index, EdgeIndex)
    assert type(out.edge_weight) is torch.Tensor
    assert torch.equal(out.edge_weight, expected[0])


def test_topk_jaccard_on_hetero_data():
    graph = random_graph()
    data = HeteroData()
    data['a'].num_nodes, data['b'].num_nodes = 25, 4
    data['a'].k = torch.full((25, ), 3)
    data['a', 'knows', 'a'].edge_index = graph.edge_index
    data['a', 'knows', 'a'].edge_weight = graph.edge_weight
    data['a', 'likes', 'a'].edge_index = graph.edge_index.flip(0)
    bipartite = torch.tensor([[0, 24], [3, 0]])
    data['a', 'has', 'b'].edge_index = bipartite
    out = TopKJaccard(k='k')(data)
    expected = TopKJaccard(k=3)(graph).edge_weight
    assert torch.equal(out['a', 'knows', 'a'].edge_weight, expected)
    assert out['a', 'likes', 'a'].edge_weight.shape == (120, )
    assert 'edge_weight' not in data['a', 'likes', 'a']
    assert list(out['a', 'has', 'b'].keys()) == ['edge_index']


@pytest.mark.parametrize('add_self', [True, False])
@pytest.mark.parametrize('num_nodes', [0, 1, 3])
def test_topk_jaccard_without_edges(add_self, num_nodes):
    for requires_grad in [False, True]:
        data = Data(edge_index=torch.empty(2, 0, dtype=torch.long),
                    edge_weight=torch.empty(0, requires_grad=requires_grad),
                    num_nodes=num_nodes)
        out = TopKJaccard(k=2, add_self=add_self)(data)
        assert out.edge_weight.shape == (0, )


def test_topk_jaccard_of_one_loop():
    data = Data(edge_index=torch.zeros(2, 1, dtype=torch.long), num_nodes=1)
    assert TopKJaccard()(data).edge_weight.tolist() == [1.]


def test_topk_jaccard_in_a_pipe():
    pipe = DatasetAdapter([KarateClub()[0]]).topk_jaccard(k=6)
    data = next(iter(pipe))
    expected = TopKJaccard(k=6)(KarateClub()[0])
    assert torch.equal(data.edge_weight, expected.edge_weight)


@pytest.mark.parametrize('k', [0, -3, 2.5, True])
def test_topk_jaccard_refuses_k(k):
    with pytest.raises(ValueError, match="'k' must be"):
        TopKJaccard(k=k)


def test_topk_jaccard_refuses_arguments():
    with pytest.raises(ValueError, match="'transform' must be"):
        TopKJaccard(transform='linear')
    with pytest.raises(ValueError, match="'tau' must be positive"):
        TopKJaccard(tau=0.)


@pytest.mark.parametrize('value', [float('nan'), float('inf'),
                                   -float('inf'), 1.5, -2.])
def test_topk_jaccard_refuses_similarities(value):
    data = random_graph()
    data.edge_weight[7] = value
    row, col = data.edge_index[:, 7].tolist()
    with pytest.raises(ValueError, match=rf'Edge 7 \({row}, {col}\)'):
        TopKJaccard()(data)


def test_topk_jaccard_refuses_graphs():
    data = Data(x=torch.ones(2, 1), adj_t=torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match="needs 'edge_index'"):
        TopKJaccard()(data)
    parallel = torch.tensor([[0, 1, 0], [1, 0, 1]])
    with pytest.raises(ValueError, match=r'Edge 2 \(0, 1\) repeats'):
        TopKJaccard()(Data(edge_index=parallel, num_nodes=2))
    with pytest.raises(ValueError, match=r'Edge 1 \(1, 0\) names a node'):
        TopKJaccard()(Data(edge_index=torch.tensor([[0, 1], [0, 0]]),
                           num_nodes=1))
    for weight in [torch.ones(3, 2), torch.ones(4), torch.ones(3).long()]:
        with pytest.raises(ValueError, match="'edge_weight' must be float"):
            TopKJaccard()(Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]),
                               edge_weight=weight, num_nodes=3))


@pytest.mark.parametrize('k, match', [
    (None, r'\(got None\)'),
    (3, r'\(got 3\)'),
    (torch.ones(24).long(), r'of shape \[24\]'),
    (torch.ones(25), 'float32'),
    (torch.ones(25).bool(), 'bool'),
    (torch.arange(25).flip(0), 'got 0 at node 24'),
])
def test_topk_jaccard_refuses_k_attribute(k, match):
    data = random_graph()
    if k is not None:
        data.trusted = k
    with pytest.raises(ValueError, match=match):
        TopKJaccard(k='trusted')(data)


def test_topk_jaccard_of_edges_alone():
    data = HeteroData()
    data['a', 'e', 'a'].edge_index = torch.tensor([[0, 1], [1, 0]])
    out = TopKJaccard()(data)
    assert out['a', 'e', 'a'].edge_weight.tolist() == [1, 1]


def test_topk_jaccard_of_zeros():
    # exp(-50 * 2) in single precision is next to nothing.
    data = Data(edge_index=torch.tensor([[0, 1, 1, 2, 0, 2],
                                         [1, 0, 2, 1, 2, 0]]),
                edge_weight=torch.zeros(6), num_nodes=3)
    out = TopKJaccard(transform='exponential', tau=.02, add_self=False)(data)
    assert torch.allclose(out.edge_weight, torch.full((6, ), .5))


def test_topk_jaccard_takes_integers_of_numpy():
    data = random_graph()
    out, expected = (TopKJaccard(k=k)(data) for k in [np.int64(3), 3])
    assert torch.equal(out.edge_weight, expected.edge_weight)
