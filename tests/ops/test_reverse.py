import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, naive, reverse_values, symmetric_values


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
def test_reverse_values(n, k, duplicates, path, device):
    index, value = table(n, k, duplicates=duplicates)
    expected = torch.tensor(naive.reverse_values(index.tolist(),
                                                 value.tolist()))
    out = reverse_values(index.to(device), value.to(device))
    assert out.device == device and out.dtype == torch.float32
    assert torch.equal(out.cpu(), expected)


def test_reverse_values_are_those_of_the_transpose(path):
    index, value = table()
    dense = torch.zeros(40, 40).scatter_(1, index, value)
    out = reverse_values(index, value)
    assert torch.equal(out, dense.t().gather(1, index))
    assert torch.equal(out[:, 0], value[:, 0])
    # Twice is there and back, where both list each other.
    mutual = reverse_values(index, torch.ones(40, 7)) == 1
    assert 40 < int(mutual.sum()) < 280
    assert bool((out[~mutual] == 0).all())
    assert torch.equal(reverse_values(index, out)[mutual], value[mutual])


def test_reverse_values_of_everybody(path):
    # Where all list all, nothing is missing.
    index, value = table(12, 12)
    assert torch.equal(reverse_values(index, reverse_values(index, value)),
                       value)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bool])
def test_reverse_values_dtypes(dtype, path):
    index, value = table()
    value = (value > .5).to(dtype)
    out = reverse_values(index, value)
    assert out.dtype == torch.float32
    assert torch.equal(out, reverse_values(index, value.float()))


def test_reverse_values_in_blocks(monkeypatch):
    # More rows than one block of the torch path.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    n = 4099
    step = torch.tensor([0, 1, 2, n - 1])
    index = (torch.arange(n).view(-1, 1) + step) % n
    value = torch.arange(4 * n).view(n, 4).float()
    out = reverse_values(index, value)
    zero = torch.zeros(n)
    # Forth by one is back by one of the next row; forth by two is not.
    expected = [value[:, 0], value[:, 3].roll(-1), zero, value[:, 1].roll(1)]
    assert torch.equal(out, torch.stack(expected, dim=1))


def test_reverse_values_non_contiguous(path):
    index, value = table()
    wide = Neighbors(index, value).truncate(4)
    expected = reverse_values(wide.index.contiguous(),
                              wide.similarity.contiguous())
    assert torch.equal(reverse_values(*wide), expected)


@pytest.mark.parametrize('shape', [(40, 6), (39, 7), (280, ), (40, 7, 1)])
def test_reverse_values_shape(shape, path):
    index, _ = table()
    with pytest.raises(ValueError, match=r"table's shape \[40, 7\]"):
        reverse_values(index, torch.ones(shape))


@pytest.mark.parametrize('wrong', [-1, 40, 10**9])
def test_reverse_values_of_a_table_that_names_nobody(wrong, path):
    index, value = table()
    index[3, 2] = wrong
    with pytest.raises(ValueError, match='Row 3 has a neighbour outside'):
        reverse_values(index, value)


@withCUDA
def test_symmetric_values(path, device):
    index, value = table(duplicates=True)
    out = symmetric_values(index.to(device), value.to(device)).cpu()
    back = reverse_values(index, value)
    for i, row in enumerate(index.tolist()):
        for r, j in enumerate(row):
            said = [value[i, r]] + [back[i, r]] * (i in index[j].tolist())
            assert torch.isclose(out[i, r], sum(said) / len(said))
