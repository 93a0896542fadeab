import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, naive, subgraph_values


@pytest.fixture(params=['numba', 'torch'])
def path(request, monkeypatch):
    if request.param == 'numba':
        pytest.importorskip('numba')
    else:
        monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    return request.param


def table(n=40, k=7, seed=0, duplicates=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    if duplicates:
        x[n // 2:2 * (n // 2)] = x[:n // 2]
    index = knn(x, k).index
    return index, torch.rand(n, k, generator=generator)


@withCUDA
@pytest.mark.parametrize('duplicates', [False, True])
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (40, 1), (40, 7), (12, 12)])
def test_subgraph_values(n, k, duplicates, path, device):
    index, value = table(n, k, duplicates=duplicates)
    # Some nodes twice, in no order.
    nodes = torch.arange(n).flip(0).repeat(2)[:n + 3]
    expected = torch.tensor(naive.subgraph_values(
        index.tolist(), value.tolist(), nodes.tolist()))
    out = subgraph_values(index.to(device), value.to(device),
                          nodes.to(device))
    assert out.device == device and out.dtype == torch.float32
    assert out.shape == (nodes.numel(), k, k)
    assert torch.equal(out.cpu(), expected)


def test_subgraph_values_are_those_of_a_matrix(path):
    # With all values in one matrix, a plain lookup.
    index, value = table()
    dense = torch.zeros(40, 40).scatter_(1, index, value)
    nodes = torch.tensor([3, 31])
    out = subgraph_values(index, value, nodes)
    for b, node in enumerate(nodes.tolist()):
        near = index[node]
        assert torch.equal(out[b], dense[near][:, near])
        # The node's own row stands whole in its subgraph.
        assert torch.equal(out[b, 0], value[node])


def test_subgraph_values_keep_what_they_are_given(path):
    index, value = table()
    before = index.clone(), value.clone()
    # Negative values, and values that are no numbers, are values.
    value[::2] *= -1
    value[5, 0] = torch.inf
    out = subgraph_values(index, value, torch.tensor([5]))
    assert float(out[0, 0, 0]) == torch.inf and int(out.isnan().sum()) == 0
    assert torch.equal(index, before[0])
    assert subgraph_values(index, value, torch.arange(0)).shape == (0, 7, 7)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bool])
def test_subgraph_values_dtypes(dtype, path):
    index, value = table()
    value = (value > .5).to(dtype)
    nodes = torch.arange(40)
    out = subgraph_values(index, value, nodes)
    assert out.dtype == torch.float32
    assert torch.equal(out, subgraph_values(index, value.float(), nodes))


def test_subgraph_values_non_contiguous(path):
    index, value = table()
    wide = Neighbors(index, value).truncate(4)
    nodes = torch.arange(0, 40, 3)
    expected = subgraph_values(wide.index.contiguous(),
                               wide.similarity.contiguous(), nodes)
    assert torch.equal(subgraph_values(*wide, nodes), expected)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_subgraph_values_threads(num_threads):
    # Each thread takes its marks back after each node.
    pytest.importorskip('numba')
    index, value = table()
    nodes = torch.arange(40)
    expected = naive.subgraph_values(index.tolist(), value.tolist(),
                                     nodes.tolist())
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        out = subgraph_values(index, value, nodes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, torch.tensor(expected))


@pytest.mark.parametrize('shape', [(40, 6), (39, 7), (280, ), (40, 7, 1)])
def test_subgraph_values_shape(shape, path):
    index, _ = table()
    with pytest.raises(ValueError, match=r"table's shape \[40, 7\]"):
        subgraph_values(index, torch.ones(shape), torch.arange(3))


@pytest.mark.parametrize('bad', [40, -1, -41])
def test_subgraph_values_of_no_node(bad, path):
    index, value = table()
    with pytest.raises(IndexError, match=str(bad)):
        subgraph_values(index, value, torch.tensor([0, bad]))


@pytest.mark.parametrize('wrong', [-1, 40, 10**9])
def test_subgraph_values_of_a_table_that_names_nobody(wrong):
    pytest.importorskip('numba')
    index, value = table()
    index[3, 2] = wrong
    # Row 3 is read for itself, and for those that list it.
    for node in [3, int(index[3, 1]), int((index == 3).any(1).nonzero()[0])]:
        reads = 3 in index[node].tolist()
        if reads:
            with pytest.raises(ValueError, match='Row 3 has a neighbour'):
                subgraph_values(index, value, torch.tensor([node]))
        else:
            subgraph_values(index, value, torch.tensor([node]))


def test_subgraph_values_have_no_gradient(path):
    index, value = table()
    out = subgraph_values(index, value.requires_grad_(), torch.arange(3))
    assert not out.requires_grad
