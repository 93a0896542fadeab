import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.nn.pool.connect import Connect, ConnectOutput
from torch_geometric.nn.pool.select import SelectOutput
from torch_geometric.testing import withCUDA
from torch_geometric.utils import to_dense_adj

from torch_sdt.nn import MergeEdges


def assign(cluster, num_clusters=None):
    cluster = torch.as_tensor(cluster)
    n = cluster.numel()
    num_clusters = num_clusters or int(cluster.max()) + 1
    return SelectOutput(torch.arange(n, device=cluster.device), n, cluster,
                        num_clusters)


def test_merge_edges_repr():
    assert isinstance(MergeEdges(), Connect)
    assert str(MergeEdges()) == "MergeEdges(reduce='sum', " \
        "keep_self_loops=True)"
    assert str(MergeEdges('mean', False)) == (
        "MergeEdges(reduce='mean', keep_self_loops=False)")


@withCUDA
def test_merge_edges_by_hand(device):
    # A path 0 - 1 - 2 - 3 whose first three nodes become one.
    edge_index = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]],
                              device=device)
    weight = torch.tensor([1., 2., 4., 1., 2., 4.], device=device)
    select = assign(torch.tensor([0, 0, 0, 1], device=device))
    out = MergeEdges()(select, edge_index, weight)
    assert isinstance(out, ConnectOutput)
    assert out.edge_index.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert out.edge_attr.tolist() == [6., 4., 4.]
    assert out.batch is None
    assert out.edge_index.device == out.edge_attr.device == device

    out = MergeEdges(keep_self_loops=False)(select, edge_index, weight)
    assert out.edge_index.tolist() == [[0, 1], [1, 0]]
    assert out.edge_attr.tolist() == [4., 4.]
    # Without weights, edges are counted.
    out = MergeEdges()(select, edge_index)
    assert out.edge_attr.tolist() == [4., 1., 1.]
    out = MergeEdges('max')(select, edge_index, weight)
    assert out.edge_attr.tolist() == [2., 4., 4.]


@pytest.mark.parametrize('features', [(), (3, )])
def test_merge_edges_equals_dense_product(features):
    torch.manual_seed(0)
    edge_index = torch.randint(20, (2, 150))
    attr = torch.rand(150, *features)
    cluster = torch.randint(6, (20, ))
    c = torch.nn.functional.one_hot(cluster, 6).float()
    dense = to_dense_adj(edge_index, edge_attr=attr, max_num_nodes=20)[0]
    expected = torch.einsum('im,ij...,jn->mn...', c, dense, c)

    out = MergeEdges()(assign(cluster, 6), edge_index, attr)
    pooled = to_dense_adj(out.edge_index, edge_attr=out.edge_attr,
                          max_num_nodes=6)[0]
    assert torch.allclose(pooled, expected, atol=1e-5)
    # No weight is lost, and no parallel edges are left.
    assert torch.allclose(out.edge_attr.sum(0), attr.sum(0), atol=1e-4)
    key = out.edge_index[0] * 6 + out.edge_index[1]
    assert (key[1:] > key[:-1]).all()


def test_merge_edges_gradients():
    edge_index = torch.randint(8, (2, 30))
    weight = torch.rand(30, dtype=torch.double, requires_grad=True)
    select = assign(torch.arange(8) // 3)
    for connect in [MergeEdges(), MergeEdges('mean', keep_self_loops=False)]:
        assert torch.autograd.gradcheck(
            lambda w, c=connect: c(select, edge_index, w).edge_attr, weight)


def test_merge_edges_batch():
    edge_index = torch.tensor([[0, 1, 3], [1, 2, 4]])
    batch = torch.tensor([0, 0, 0, 1, 1, 2])
    out = MergeEdges()(assign([0, 0, 1, 2, 2, 3]), edge_index, batch=batch)
    assert out.batch.tolist() == [0, 0, 1, 2]


def test_merge_edges_drops_unselected_nodes():
    select = SelectOutput(torch.tensor([0, 2]), 3, torch.tensor([1, 0]), 2)
    edge_index = torch.tensor([[0, 0, 2, 1], [1, 2, 0, 1]])
    out = MergeEdges()(select, edge_index, torch.tensor([1., 2., 4., 8.]))
    assert out.edge_index.tolist() == [[0, 1], [1, 0]]
    assert out.edge_attr.tolist() == [4., 2.]


def test_merge_edges_of_one_cluster_each_is_coalesce():
    edge_index = torch.tensor([[2, 0, 2, 1], [0, 1, 0, 1]])
    index = EdgeIndex(edge_index, sparse_size=(3, 3))
    out = MergeEdges()(assign([0, 1, 2]), index)
    assert type(out.edge_index) is torch.Tensor
    assert out.edge_index.tolist() == [[0, 1, 2], [1, 1, 0]]
    assert out.edge_attr.tolist() == [1., 1., 2.]


def test_merge_edges_without_edges():
    edge_index = torch.empty(2, 0, dtype=torch.long)
    out = MergeEdges()(assign([0, 1, 1]), edge_index)
    assert out.edge_index.shape == (2, 0) and out.edge_attr.shape == (0, )
    out = MergeEdges()(assign([0, 1, 1]), edge_index, torch.empty(0, 4))
    assert out.edge_attr.shape == (0, 4)


def test_merge_edges_errors():
    with pytest.raises(ValueError, match="'reduce' must be one of"):
        MergeEdges('median')
    select = SelectOutput(torch.tensor([0, 1, 1]), 2, torch.tensor([0, 0, 1]),
                          2)
    with pytest.raises(ValueError, match='Node 1 is in several clusters'):
        MergeEdges()(select, torch.tensor([[0], [1]]))
