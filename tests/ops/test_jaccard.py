import os
import subprocess
import sys
from importlib import import_module
from math import exp

import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    edge_probability,
    knn,
    naive,
    topk_jaccard,
    topk_jaccard_csr,
)


@pytest.fixture(params=['numba', 'torch'])
def path(request, monkeypatch):
    if request.param == 'numba':
        pytest.importorskip('numba')
    else:
        monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    return request.param


def table(n=60, k=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return knn(torch.randn(n, 6, generator=generator), k)


def lengths(n=60, k=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, k + 1, (n, ), generator=generator)


def definition(neighbors, k, probability):
    return torch.tensor(naive.topk_jaccard(
        neighbors.index.tolist(), probability.tolist(), k.tolist()))


@withCUDA
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (60, 1), (60, 9), (30, 30)])
def test_topk_jaccard(n, k, path, device):
    neighbors, length = table(n, k), lengths(n, k)
    probability = edge_probability(neighbors.similarity)
    expected = definition(neighbors, length, probability)
    moved = Neighbors(*(part.to(device) for part in neighbors))
    out = topk_jaccard(moved, length.to(device), probability.to(device))
    assert out.device == device and out.dtype == torch.float32
    assert torch.allclose(out.cpu(), expected, atol=1e-6)
    # The sigmoid is what one gets by default.
    out = topk_jaccard(moved, length.to(device))
    assert torch.allclose(out.cpu(), expected, atol=1e-6)
    # One integer is that integer everywhere, and none is all of them.
    whole = definition(neighbors, torch.full((n, ), k), probability)
    for given in [None, k, torch.full((n, ), k)]:
        out = topk_jaccard(moved, given)
        assert torch.allclose(out.cpu(), whole, atol=1e-6)


def test_topk_jaccard_properties(path):
    neighbors, length = table(80, 12), lengths(80, 12)
    probability = edge_probability(neighbors.similarity, 'exponential')
    before = probability.clone()
    out = topk_jaccard(neighbors, length, probability)
    assert torch.equal(probability, before)
    trusted = torch.arange(12) < length.view(-1, 1)
    assert bool((out[~trusted] == 0).all())
    assert bool((out[:, 0] == 1).all())
    assert bool(((out >= 0) & (out <= 1 + 1e-6)).all())
    # Symmetric where two samples trust each other.
    dense = torch.full((80, 80), torch.nan)
    row, rank = trusted.nonzero(as_tuple=True)
    dense[row, neighbors.index[row, rank]] = out[row, rank]
    mutual = ~(dense + dense.t()).isnan()
    assert int(mutual.sum()) > 200
    assert torch.allclose(dense[mutual], dense.t()[mutual], atol=1e-6)


def test_topk_jaccard_is_that_of_fc_eser(path):
    # The neighbour-based edge probability, as its authors define it: a
    # softmax of -d / .5 over the list, and half of what two lists share.
    neighbors = table(50, 10)
    rows = []
    for ids, cosines in zip(neighbors.index.tolist(),
                            neighbors.similarity.tolist()):
        value = [exp(-(2 - 2 * min(max(c, 0.), 1.)) / .5) for c in cosines]
        rows.append({j: v / sum(value) for j, v in zip(ids, value)})
    expected = [[.5 * sum(rows[i][h] + rows[j][h] for h in rows[i]
                          if h in rows[j]) for j in rows[i]]
                for i in range(50)]
    probability = edge_probability(neighbors.similarity, 'exponential')
    out = topk_jaccard(neighbors, probability=probability)
    assert torch.allclose(out, torch.tensor(expected), atol=1e-6)


def test_topk_jaccard_of_equal_neighbourhoods(path):
    # Two groups in which everybody lists everybody.
    index = torch.arange(8).view(-1, 1)
    index = (index + torch.arange(4)) % 4 + index // 4 * 4
    out = topk_jaccard(Neighbors(index, torch.ones(8, 4)))
    assert torch.allclose(out, torch.ones(8, 4))
    # The plain overlap of equal weights: |common| / k.
    index = torch.tensor([[0, 1, 2], [1, 3, 0], [2, 3, 1], [3, 2, 0]])
    out = topk_jaccard(Neighbors(index, torch.ones(4, 3)))
    assert torch.allclose(out, torch.tensor(
        [[3, 2, 2], [3, 2, 2], [3, 2, 2], [3, 2, 2]]) / 3)


def test_topk_jaccard_scale_of_probability(path):
    # Only the shares within a row matter.
    neighbors, length = table(), lengths()
    probability = edge_probability(neighbors.similarity)
    expected = topk_jaccard(neighbors, length, probability)
    scale = 10. ** torch.linspace(-20, 20, 60).view(-1, 1)
    out = topk_jaccard(neighbors, length, probability * scale)
    assert torch.allclose(out, expected, atol=1e-5)


def test_topk_jaccard_of_zero_probabilities(path):
    # Single zeros, and rows without any weight.
    neighbors, length = table(), lengths()
    probability = edge_probability(neighbors.similarity)
    probability[::3, 1:4] = 0
    probability[::5] = 0
    out = topk_jaccard(neighbors, length, probability)
    expected = definition(neighbors, length, probability)
    assert torch.allclose(out, expected, atol=1e-6)
    out = topk_jaccard(neighbors, length, torch.zeros(60, 9))
    assert bool((out[:, 0] == 1).all()) and bool((out[:, 1:] == 0).all())


def test_topk_jaccard_permutation(path):
    neighbors, length = table(), lengths()
    perm = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    name = perm.argsort()
    other = Neighbors(name[neighbors.index[perm]],
                      neighbors.similarity[perm])
    assert torch.allclose(topk_jaccard(other, length[perm]),
                          topk_jaccard(neighbors, length)[perm], atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.int32, torch.int64, torch.uint8])
def test_topk_jaccard_integers(dtype, path):
    neighbors, length = table(), lengths()
    out = topk_jaccard(neighbors, length.to(dtype))
    assert torch.equal(out, topk_jaccard(neighbors, length))


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_topk_jaccard_dtypes(dtype, path):
    neighbors, length = table(), lengths()
    probability = edge_probability(neighbors.similarity).to(dtype)
    out = topk_jaccard(neighbors, length, probability)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), topk_jaccard(neighbors, length),
                          atol=1e-6 if dtype == torch.float64 else 1e-2)


def test_topk_jaccard_non_contiguous(path):
    neighbors, length = table(), lengths()
    expected = topk_jaccard(neighbors, length)
    wide = Neighbors(*(part.t().contiguous().t() for part in neighbors))
    assert torch.equal(topk_jaccard(wide, length), expected)
    longer = table(60, 12)
    assert torch.equal(topk_jaccard(longer.truncate(9), length), expected)


def test_topk_jaccard_gradients():
    neighbors, length = table(12, 5), lengths(12, 5)
    probability = edge_probability(neighbors.similarity.double())
    probability.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: topk_jaccard(neighbors, length, p), probability)
    # Without a gradient to keep, the value is the same.
    out = topk_jaccard(neighbors, length, probability)
    assert out.requires_grad
    with torch.no_grad():
        value = topk_jaccard(neighbors, length, probability)
    assert not value.requires_grad
    assert torch.allclose(out.detach(), value, atol=1e-6)


def test_topk_jaccard_gradients_of_empty_rows():
    # No NaN where a row has no weight at all.
    neighbors = table(12, 5)
    probability = edge_probability(neighbors.similarity)
    probability[::4] = 0
    probability.requires_grad_()
    topk_jaccard(neighbors, probability=probability).sum().backward()
    assert bool(probability.grad.isfinite().all())


def test_topk_jaccard_in_chunks(monkeypatch, path):
    neighbors, length = table(), lengths()
    expected = topk_jaccard(neighbors, length)
    monkeypatch.setattr(import_module('torch_sdt.ops.jaccard'), '_WEDGES', 50)
    assert torch.allclose(topk_jaccard(neighbors, length), expected,
                          atol=1e-6)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_topk_jaccard_threads(num_threads):
    # More rows than one block of the kernel, on any number of threads.
    pytest.importorskip('numba')
    neighbors, length = table(400, 9), lengths(400, 9)
    expected = definition(neighbors, length,
                          edge_probability(neighbors.similarity))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        out = topk_jaccard(neighbors, length)
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(out, expected, atol=1e-6)


@withCUDA
def test_topk_jaccard_csr(path, device):
    # Rows of different lengths, none of which need hold its own node.
    generator = torch.Generator().manual_seed(0)
    degree = torch.randint(0, 9, (40, ), generator=generator)
    degree[[0, 7, 39]] = 0
    rowptr = torch.zeros(41, dtype=torch.long)
    rowptr[1:] = degree.cumsum(0)
    rows = [torch.randperm(40, generator=generator)[:d].tolist()
            for d in degree.tolist()]
    col = torch.tensor(sum(rows, []))
    probability = torch.rand(col.numel(), generator=generator)
    length = (degree * torch.rand(40, generator=generator)).ceil().long()
    expected = naive.topk_jaccard(
        rows, [part.tolist() for part in probability.split(degree.tolist())],
        length.tolist())
    out = topk_jaccard_csr(rowptr.to(device), col.to(device),
                           length.to(device), probability.to(device))
    assert torch.allclose(out.cpu(), torch.tensor(sum(expected, [])),
                          atol=1e-6)


def test_topk_jaccard_csr_of_nothing(path):
    long = {'dtype': torch.long}
    for n in [0, 3]:
        out = topk_jaccard_csr(torch.zeros(n + 1, **long),
                               torch.empty(0, **long), torch.zeros(n, **long),
                               torch.empty(0))
        assert out.shape == (0, )
    # Edges that nobody trusts.
    out = topk_jaccard_csr(torch.tensor([0, 1, 2]), torch.tensor([1, 0]),
                           torch.zeros(2, **long), torch.ones(2))
    assert out.tolist() == [0, 0]


@pytest.mark.parametrize('bad', [0, -2, 10])
def test_topk_jaccard_k_out_of_range(bad):
    length = lengths()
    length[[17, 30]] = bad
    with pytest.raises(ValueError, match=f"width 9 .got {bad} in row 17"):
        topk_jaccard(table(), length)
    with pytest.raises(ValueError, match=f"width 9 .got {bad} in row 0"):
        topk_jaccard(table(), bad)


@pytest.mark.parametrize('bad', [
    2.5, True, float('nan'), torch.tensor(3), torch.ones(59).long(),
    torch.ones(60, 1).long(), torch.ones(60),
    torch.ones(60, dtype=torch.bool)])
def test_topk_jaccard_k_is_no_integer(bad):
    with pytest.raises(ValueError, match='integer'):
        topk_jaccard(table(), bad)


@pytest.mark.parametrize('bad', [-1e-6, float('nan'), float('inf')])
def test_topk_jaccard_bad_probability(bad):
    probability = torch.rand(60, 9)
    probability[[41, 50], 8] = bad
    with pytest.raises(ValueError, match='Row 41 has an edge probability'):
        topk_jaccard(table(), probability=probability)


def test_topk_jaccard_csr_names_the_row():
    # Empty rows count, too.
    rowptr = torch.tensor([0, 0, 2, 2, 3])
    probability = torch.tensor([.5, .5, -1.])
    with pytest.raises(ValueError, match='Row 3 has'):
        topk_jaccard_csr(rowptr, torch.tensor([0, 1, 2]), rowptr.diff(),
                         probability)


@pytest.mark.parametrize('shape', [(60, 8), (59, 9), (540, ), (60, 9, 1)])
def test_topk_jaccard_shape(shape):
    with pytest.raises(ValueError, match=r"table's shape \[60, 9\]"):
        topk_jaccard(table(), probability=torch.ones(shape))


def test_numba_leaves_the_threads_of_torch_alone():
    # In a process of its own: it is the first call that starts threads.
    pytest.importorskip('numba')
    code = ('import torch; torch.set_num_threads(1); '
            'from torch_sdt.neighbors import Neighbors; '
            'from torch_sdt.ops import topk_jaccard; '
            'topk_jaccard(Neighbors.build(torch.randn(50, 4), 5)); '
            'assert torch.get_num_threads() == 1')
    env = {**os.environ, 'NUMBA_NUM_THREADS': '2'}
    subprocess.run([sys.executable, '-c', code], check=True, env=env)


@pytest.mark.parametrize('wrong', [-1, 60, 10**9])
def test_topk_jaccard_of_a_table_that_names_nobody(wrong, path):
    neighbors = table()
    neighbors.index[3, 2] = wrong
    with pytest.raises(ValueError, match=r'Row 3 has a neighbour outside'):
        topk_jaccard(neighbors)


def test_topk_jaccard_csr_checks_what_it_gets(path):
    rowptr, col = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1])
    length, p = torch.tensor([1, 2]), torch.rand(3)
    topk_jaccard_csr(rowptr, col, length, p)
    for args, message in [
            ((rowptr, col, torch.tensor([3, 2]), p), 'got 3 in row 0 of 1'),
            ((rowptr, col, torch.tensor([1, -1]), p), 'got -1 in row 1'),
            ((torch.tensor([0, 1, 9]), col, length, p), 'got 0 and 9'),
            ((torch.tensor([0, 1]), col, length, p), "'rowptr' must have"),
            ((rowptr, torch.tensor([0, 2, 1]), length, p), 'got 2 at 1'),
            ((rowptr, torch.tensor([0, -1, 1]), length, p), 'got -1 at 1'),
            ((rowptr, col, length, p[:2]), r'shape \[E\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            topk_jaccard_csr(*args)


@pytest.mark.parametrize('dtype', [torch.long, torch.bool])
def test_topk_jaccard_wants_floating_point(dtype, path):
    with pytest.raises(ValueError, match="'probability' must be floating"):
        topk_jaccard(table(), None, torch.ones(60, 9, dtype=dtype))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_topk_jaccard_of_any_scale(dtype, path):
    neighbors = table()
    p = edge_probability(neighbors.similarity).to(dtype)
    expected = topk_jaccard(neighbors, None, p)
    scales = [1e-38, 1e-30, 1e30, 1e37]
    if dtype == torch.float64:
        scales += [1e-200, 1e200]
    for scale in scales:
        out = topk_jaccard(neighbors, None, p * scale)
        assert torch.allclose(out, expected, atol=1e-5)
    # Each row has a scale of its own.
    scale = torch.logspace(-36, 30, 60, dtype=dtype).view(-1, 1)
    out = topk_jaccard(neighbors, None, p * scale)
    assert torch.allclose(out, expected, atol=1e-5)
