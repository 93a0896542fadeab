import copy
import warnings

import numpy as np
import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.data.datapipes import DatasetAdapter
from torch_geometric.testing import withCUDA

from torch_sdt.ops import naive
from torch_sdt.transforms import CosineKNNGraph


def test_cosine_knn_graph_repr():
    assert str(CosineKNNGraph()) == (
        "CosineKNNGraph(k=None, index='auto', center=False, "
        "attr='edge_weight', seed=0)")
    # The repr is the cache key of `pre_transform`: all arguments are in it.
    transform = CosineKNNGraph(5, 'HNSW8', True, 'cosine', 3)
    assert str(transform) == ("CosineKNNGraph(k=5, index='HNSW8', "
                              "center=True, attr='cosine', seed=3)")


@withCUDA
def test_cosine_knn_graph_by_hand(device):
    # Unit vectors at 0, 10, 30 and 90 degrees, of different lengths.
    angle = torch.deg2rad(torch.tensor([0., 10., 30., 90.], device=device))
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    x = x * torch.tensor([[1.], [2.], [3.], [.1]], device=device)

    data = CosineKNNGraph(k=3)(Data(x=x))
    assert len(data) == 3
    assert data.edge_index.tolist() == [[1, 2, 0, 2, 1, 0, 2, 1],
                                        [0, 0, 1, 1, 2, 2, 3, 3]]
    degrees = torch.tensor([10., 30., 10., 20., 20., 30., 60., 80.])
    expected = torch.deg2rad(degrees).cos()
    assert torch.allclose(data.edge_weight.cpu(), expected, atol=1e-6)
    assert data.edge_weight.dtype == torch.float
    assert data.edge_index.device == data.edge_weight.device == x.device
    assert data.validate()


def test_cosine_knn_graph_equals_naive():
    torch.manual_seed(0)
    x = torch.randn(40, 5)
    index, similarity = naive.knn(x, 7)
    data = CosineKNNGraph(k=7, index='flat')(Data(x=x))
    source, target = data.edge_index
    assert torch.equal(target, torch.arange(40).repeat_interleave(6))
    assert torch.equal(source.view(40, 6), index[:, 1:])
    assert torch.allclose(data.edge_weight.view(40, 6),
                          similarity[:, 1:].float(), atol=1e-5)


def test_cosine_knn_graph_has_k_minus_one_edges_among_duplicates():
    # Searching k and dropping the self match leaves k edges in a row where
    # a duplicate was found in its place.
    x = torch.tensor([[1., 0.]]).repeat(9, 1)
    data = CosineKNNGraph(k=4)(Data(x=x))
    assert (data.edge_index[1].bincount() == 3).all()
    assert not data.has_self_loops()
    assert data.coalesce().num_edges == 27


def test_cosine_knn_graph_center():
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    shifted = Data(x=x - x.mean(dim=0) + 50)
    plain = CosineKNNGraph(k=5)(Data(x=x - x.mean(dim=0)))
    centered = CosineKNNGraph(k=5, center=True)(shifted)
    assert torch.equal(centered.edge_index, plain.edge_index)
    assert torch.allclose(centered.edge_weight, plain.edge_weight, atol=1e-4)
    assert float(CosineKNNGraph(k=5)(shifted).edge_weight.min()) > .95


def test_cosine_knn_graph_default_k():
    data = CosineKNNGraph()(Data(x=torch.randn(12, 3)))
    assert data.num_edges == 12 * 11
    data = CosineKNNGraph()(Data(x=torch.randn(90, 3)))
    assert data.num_edges == 90 * 79
    data = CosineKNNGraph()(Data(x=torch.ones(1, 3)))
    assert data.edge_index.shape == (2, 0)
    assert data.edge_weight.shape == (0, )


def test_cosine_knn_graph_leaves_its_input_alone():
    x = torch.randn(8, 3)
    before = Data(x=x, y=torch.arange(8), edge_index=torch.tensor([[0], [1]]),
                  edge_attr=torch.ones(1, 2), edge_weight=torch.ones(1))
    saved = copy.deepcopy(before)
    after = CosineKNNGraph(k=3, attr='cosine')(before)
    assert before.keys() == saved.keys()
    assert all(torch.equal(before[key], saved[key]) for key in saved.keys())
    # The old edges are gone, and what described them.
    assert set(after.keys()) == {'x', 'y', 'edge_index', 'cosine'}
    assert after.num_edges == 16 and after.validate()


def test_cosine_knn_graph_on_hetero_data():
    data = HeteroData()
    data['paper'].x = torch.randn(10, 4)
    data['author'].x = torch.randn(3, 2)
    data['venue'].num_nodes = 5
    edge_index = torch.tensor([[0], [1]])
    data['author', 'writes', 'paper'].edge_index = edge_index
    data['paper', 'in', 'venue'].edge_index = edge_index
    out = CosineKNNGraph()(data)
    assert len(data.edge_types) == 2
    assert set(out.edge_types) == {('author', 'writes', 'paper'),
                                   ('paper', 'in', 'venue'),
                                   ('paper', 'knn', 'paper'),
                                   ('author', 'knn', 'author')}
    assert out['paper', 'knn', 'paper'].num_edges == 90
    assert out['author', 'knn', 'author'].num_edges == 6
    expected = CosineKNNGraph()(Data(x=data['author'].x))
    store = out['author', 'knn', 'author']
    assert torch.equal(store.edge_index, expected.edge_index)
    assert torch.equal(store.edge_weight, expected.edge_weight)
    assert out.validate()


def test_cosine_knn_graph_is_permutation_equivariant():
    torch.manual_seed(0)
    x, perm = torch.randn(25, 6), torch.randperm(25)
    data = CosineKNNGraph(k=6)(Data(x=x))
    moved = CosineKNNGraph(k=6)(Data(x=x[perm]))
    back = perm[moved.edge_index]
    order = torch.argsort(back[1], stable=True)
    assert torch.equal(back[:, order], data.edge_index)
    assert torch.allclose(moved.edge_weight[order], data.edge_weight,
                          atol=1e-6)


def test_cosine_knn_graph_in_pipelines():
    dataset = [Data(x=torch.randn(6, 2)), Data(x=torch.randn(7, 2))]
    out = list(DatasetAdapter(dataset).cosine_knn_graph(k=3))
    assert [data.num_edges for data in out] == [12, 14]
    data = T.Compose([CosineKNNGraph(k=3), T.ToUndirected(reduce='max')])(
        dataset[0])
    assert data.is_undirected()


class _Random(InMemoryDataset):
    def __init__(self, root, pre_transform):
        super().__init__(root, pre_transform=pre_transform)
        self.load(self.processed_paths[0])

    raw_file_names = []
    processed_file_names = ['data.pt']

    def process(self):
        data = Data(x=torch.randn(20, 3))
        self.save([self.pre_transform(data)], self.processed_paths[0])


def test_cosine_knn_graph_as_pre_transform(tmp_path):
    data = _Random(tmp_path, CosineKNNGraph(k=4))[0]
    assert data.num_edges == 60
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(_Random(tmp_path, CosineKNNGraph(k=4))[0].x, data.x)
    with pytest.warns(UserWarning, match='pre_transform'):
        _Random(tmp_path, CosineKNNGraph(k=4, center=True))


@pytest.mark.parametrize('k', [0, -1, 2.5, True, 'k'])
def test_cosine_knn_graph_refuses_k(k):
    with pytest.raises(ValueError, match="'k' must be a positive integer"):
        CosineKNNGraph(k=k)


def test_cosine_knn_graph_errors():
    with pytest.raises(ValueError, match="number of samples 4"):
        CosineKNNGraph(k=5)(Data(x=torch.randn(4, 2)))
    with pytest.raises(ValueError, match="needs node features 'x'"):
        CosineKNNGraph()(Data(num_nodes=4))
    with pytest.raises(ValueError, match="empty"):
        CosineKNNGraph()(Data(x=torch.empty(0, 2)))
    x = torch.ones(4, 2)
    x[2] = 0
    with pytest.raises(ValueError, match="Row 2 "):
        CosineKNNGraph()(Data(x=x))
    batch = Batch.from_data_list([Data(x=torch.randn(4, 2))] * 2)
    with pytest.raises(ValueError, match="different graphs of a batch"):
        CosineKNNGraph(k=3)(batch)


def test_cosine_knn_graph_replaces_attributes_of_any_name():
    data = Data(x=torch.randn(6, 4), y=torch.arange(6),
                edge_index=torch.randint(0, 6, (2, 10)),
                weight=torch.rand(10), pseudo=torch.rand(10, 1))
    out = CosineKNNGraph(np.int64(3))(data)
    assert sorted(out.keys()) == ['edge_index', 'edge_weight', 'x', 'y']
