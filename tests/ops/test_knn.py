from importlib import import_module

import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, naive, normalize_features

EXACT = ['torch', pytest.param('flat', marks=pytest.mark.skipif(
    not torch_sdt.typing.WITH_FAISS, reason='faiss is absent'))]
APPROXIMATE = ['cells', 'IVF16,Flat', 'HNSW32']


def features(n, d=16, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def blobs(n, d=48, seed=0):
    # Ten to an identity, as cells need them.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n // 10, d, generator=generator).repeat(10, 1)
    return x + .5 * torch.randn(n, d, generator=generator)


def signs(n, d=16, seed=0):
    r"""Features of entries -1 and 1: every cosine is a multiple of 2 / d, and
    exact in any floating point, so that ties are ties.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (n, d), generator=generator) * 2. - 1


def cosines(x):
    x = x.double()
    x = x / x.norm(dim=1, keepdim=True)
    return x @ x.t()


def check(neighbors, x, k):
    r"""What every table must satisfy, whichever index made it."""
    assert neighbors.index.shape == (len(x), k)
    assert neighbors.similarity.dtype == torch.float32
    # Self first, all ids there and different, descending.
    neighbors.validate(len(x))
    assert bool((neighbors.similarity[:, 0] == 1).all())
    expected = cosines(x).gather(1, neighbors.index)
    assert torch.allclose(neighbors.similarity.double(), expected, atol=1e-6)


@withCUDA
@pytest.mark.parametrize('index', EXACT)
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (40, 1), (40, 7), (40, 40)])
def test_knn_exact(index, n, k, device):
    x = features(n)
    out = knn(x.to(device), k, index)
    assert out.index.device == out.similarity.device == device
    expected, similarity = naive.knn(x, k)
    check(type(out)(out.index.cpu(), out.similarity.cpu()), x, k)
    assert out.index.tolist() == expected.tolist()
    assert torch.allclose(out.similarity.cpu(), similarity, atol=1e-6)


@withCUDA
@pytest.mark.parametrize('index', EXACT)
def test_knn_breaks_ties_by_index(index, device):
    # Seventeen different cosines among 120: nearly everything is a tie, and
    # one crosses the boundary of nearly every row.
    x = signs(120)
    expected, similarity = naive.knn(x, 120)
    for k in [1, 2, 5, 50, 120]:
        out = knn(x.to(device), k, index)
        assert torch.equal(out.index.cpu(), expected[:, :k])
        assert torch.equal(out.similarity.cpu(), similarity[:, :k].float())


@pytest.mark.parametrize('index', EXACT)
def test_knn_orders_duplicates_by_index(index):
    # Many exact duplicates, of an odd dimension and in several blocks of
    # queries: the last bits of a product must not decide.
    generator = torch.Generator().manual_seed(0)
    member = torch.randint(0, 1200, (5000, ), generator=generator)
    out = knn(features(1200, 33)[member], 20, index)
    duplicate = member[out.index] == member.view(-1, 1)
    for i in range(0, 5000, 7):
        same = (member == member[i]).nonzero().view(-1)
        same = same[same != i][:19].tolist()
        assert out.index[i, 1:][duplicate[i, 1:]].tolist() == same
        assert duplicate[i, :len(same) + 1].all()


@pytest.mark.parametrize('index', EXACT + APPROXIMATE)
def test_knn_of_identical_features(index):
    if index in APPROXIMATE[1:]:
        pytest.importorskip('faiss')
    out = knn(torch.ones(60, 5), 4, index)
    assert bool((out.similarity == 1).all())
    if index in APPROXIMATE:
        return  # Which of them is found is open.
    for i, row in enumerate(out.index.tolist()):
        others = [j for j in range(4) if j != i][:3]
        assert row == [i] + others


@pytest.mark.parametrize('index', APPROXIMATE)
def test_knn_approximate(index):
    if index != 'cells':
        pytest.importorskip('faiss')
    x = blobs(1500)
    out, exact = knn(x, 10, index), knn(x, 10, 'torch')
    check(out, x, 10)
    found = (out.index.unsqueeze(2) == exact.index.unsqueeze(1)).any(dim=2)
    assert float(found.double().mean()) > .9
    again = knn(x, 10, index)
    assert torch.equal(again.index, out.index)
    assert torch.equal(again.similarity, out.similarity)


@pytest.mark.parametrize('index', APPROXIMATE)
def test_knn_approximate_finds_everybody(index):
    # A cell or a graph walk cannot hold all: what it lacks is searched again.
    if index != 'cells':
        pytest.importorskip('faiss')
    x = features(150)
    out = knn(x, 150, index)
    check(out, x, 150)
    assert torch.equal(out.index, knn(x, 150, 'torch').index)


def test_knn_seed_of_the_training():
    pytest.importorskip('faiss')
    x = features(2000, 24)
    index = [knn(x, 40, 'IVF512,Flat', seed=seed).index for seed in [0, 0, 1]]
    assert torch.equal(index[0], index[1])
    assert not torch.equal(index[0], index[2])


def test_knn_without_faiss(monkeypatch):
    x = features(300)
    expected = knn(x, 9)
    monkeypatch.setattr(torch_sdt.typing, 'WITH_FAISS', False)
    for index in ['auto', 'flat', 'torch']:
        out = knn(x, 9, index)
        assert torch.equal(out.index, expected.index)
        assert torch.allclose(out.similarity, expected.similarity, atol=1e-6)
    check(knn(x, 9, 'cells'), x, 9)
    for index in APPROXIMATE[1:]:
        with pytest.raises(ImportError, match="'knn' requires 'faiss-cpu'"):
            knn(x, 9, index)


@withCUDA
def test_knn_torch_cluster(device):
    pytest.importorskip('torch_cluster')
    x = features(200)
    out = knn(x.to(device), 9, 'torch_cluster')
    assert torch.equal(out.index.cpu(), naive.knn(x, 9)[0])


def test_knn_without_torch_cluster(monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_TORCH_CLUSTER', False)
    with pytest.raises(ImportError, match="requires 'torch-cluster'"):
        knn(features(5), 2, 'torch_cluster')


@withCUDA
@pytest.mark.parametrize('index', ['auto', 'torch', *APPROXIMATE])
def test_knn_of_features_in_half_precision(index, device, tmp_path):
    # The table is that of the rounded features, in float32.
    if index in APPROXIMATE[1:]:
        pytest.importorskip('faiss')
    x = normalize_features(features(1500).to(device), dtype=torch.float16)
    out = Neighbors.search(x, 10, index)
    expected = Neighbors.search(x.float(), 10, index)
    assert out.similarity.dtype == torch.float32
    assert torch.equal(out.index, expected.index)
    assert torch.allclose(out.similarity, expected.similarity, atol=1e-6)
    exact = normalize_features(features(1500)).double()
    true = (exact @ exact.t()).gather(1, out.index.cpu())
    assert float((true - out.similarity.cpu()).abs().max()) <= 2**-10
    if device.type == 'cpu':
        path = tmp_path / 'x.f16'
        mapped = normalize_features(features(1500), False, x.dtype, path)
        again = Neighbors.search(mapped, 10, index)
        assert torch.equal(again.index, out.index)
        assert torch.equal(again.similarity, out.similarity)


def test_knn_auto_switches_to_cells(monkeypatch):
    module = import_module('torch_sdt.ops.knn')
    x = blobs(2000)
    exact, expected = knn(x, 15, 'flat'), knn(x, 15, 'cells')
    assert torch.equal(knn(x, 15).index, exact.index)
    monkeypatch.setattr(module, '_EXACT_BELOW', 1000)
    assert torch.equal(knn(x, 15).index, expected.index)
    assert not torch.equal(expected.index, exact.index)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64,
                                   np.int32, np.uint8])
def test_knn_dtypes(dtype):
    # Small whole numbers are the same features in all of them.
    x = np.random.default_rng(0).integers(0, 9, (60, 12)) + 1
    expected = knn(x.astype(np.float64), 6)
    for given in [x.astype(dtype), torch.from_numpy(x.astype(dtype))]:
        out = knn(given, 6)
        assert torch.equal(out.index, expected.index)
        assert torch.allclose(out.similarity, expected.similarity, atol=1e-6)


def test_knn_layouts(tmp_path):
    x = features(60).numpy()
    expected = knn(x, 6)
    on_disk = np.lib.format.open_memmap(tmp_path / 'x.npy', mode='w+',
                                        dtype=np.float32, shape=x.shape)
    on_disk[:] = x
    on_disk.flush()
    wide = np.zeros((60, 32), dtype=np.float32)
    wide[:, ::2] = x
    for given in [
            np.load(tmp_path / 'x.npy', mmap_mode='r'),
            np.asfortranarray(x),
            wide[:, ::2],
            x[::-1][::-1],
            torch.from_numpy(x).t().contiguous().t(),
            torch.from_numpy(x).requires_grad_(),
    ]:
        out = knn(given, 6)
        assert torch.equal(out.index, expected.index)
        assert not out.similarity.requires_grad
        # The features stay what they were.
        assert np.array_equal(x, on_disk)


def test_knn_permutation():
    # Renaming the samples renames their neighbours.
    x = features(80)
    perm = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    out, other = knn(x, 7), knn(x[perm], 7)
    assert torch.equal(perm[other.index], out.index[perm])


def test_knn_of_any_scale():
    x = features(50)
    scale = 10. ** torch.linspace(-30, 30, 50).view(-1, 1)
    assert torch.equal(knn(x * scale, 8).index, knn(x, 8).index)
    # Orthogonal and opposite samples are neighbours like any other.
    out = knn(torch.tensor([[1., 0.], [0., 3.], [-2., 0.]]), 3)
    assert out.index.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0]]
    assert out.similarity.tolist() == [[1, 0, -1], [1, 0, 0], [1, 0, -1]]


@pytest.mark.parametrize('k', [0, -1, 6])
def test_knn_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"'k' must be between 1 and the "
                       f"number of samples 5 .got {k}"):
        knn(features(5), k)


@pytest.mark.parametrize('k', [2.5, 2., '3', None, True])
def test_knn_k_is_no_integer(k):
    with pytest.raises(ValueError, match="'k' must be an integer"):
        knn(features(5), k)
    assert knn(features(5), np.int64(3)).k == 3


@pytest.mark.parametrize('index', ['', 'banana', 'IVF', 'Flatt', 'flat,'])
def test_knn_unknown_index(index):
    pytest.importorskip('faiss')
    with pytest.raises(ValueError, match="'index' must be 'auto', 'flat'"):
        knn(features(5), 2, index)


def test_knn_impossible_index():
    for index in [None, 3]:
        with pytest.raises(ValueError, match="'index' must be a string"):
            knn(features(5), 2, index)
    pytest.importorskip('faiss')
    with pytest.raises(ValueError, match="'IVF64,Flat' cannot be trained on "
                       "5 samples"):
        knn(features(5), 2, 'IVF64,Flat')


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_knn_bad_row(bad):
    x = features(9)
    x[4, 2] = bad
    with pytest.raises(ValueError, match='Row 4 .* NaN or infinity'):
        knn(x, 2)
    with pytest.raises(ValueError, match='Row 4 .* NaN or infinity'):
        knn(x.numpy(), 2)


def test_knn_zero_row():
    x = features(9)
    x[[3, 7]] = 0
    with pytest.raises(ValueError, match='Row 3 .* all zeros'):
        knn(x, 2)


@pytest.mark.parametrize('shape', [(0, 4), (4, 0), (0, 0)])
def test_knn_empty(shape):
    with pytest.raises(ValueError, match='Features are empty'):
        knn(torch.ones(shape), 1)


@pytest.mark.parametrize('shape', [(), (4, ), (2, 3, 4)])
def test_knn_shape(shape):
    with pytest.raises(ValueError, match=r'must have shape \[N, D\]'):
        knn(torch.ones(shape), 1)


@pytest.mark.parametrize('index', ['torch', 'cells'])
def test_knn_searches_again_only_where_it_must(monkeypatch, index):
    # To do it for no rows at all would still go through all samples.
    module = import_module('torch_sdt.ops.knn')
    asked, exact = [], module._exact_rows

    def spy(x, row, k):
        asked.append(row.numel())
        return exact(x, row, k)

    monkeypatch.setattr(module, '_exact_rows', spy)
    knn(features(800), 9, index)
    assert 0 not in asked and sum(asked) < 40


@pytest.mark.parametrize('seed', [-1, .5, None])
def test_knn_seeds(seed):
    with pytest.raises(ValueError, match="'seed' must be an integer"):
        knn(features(10), 3, seed=seed)
