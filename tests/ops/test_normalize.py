from importlib import import_module

import numpy as np
import pytest
import torch
from torch_geometric.testing import onlyCUDA, withCUDA

from torch_sdt.ops import normalize_features


def features(n=50, d=7, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@withCUDA
def test_normalize_features(device):
    x = features().to(device)
    before = x.clone()
    out = normalize_features(x)
    assert out.device == device and out.dtype == torch.float32
    assert out.is_contiguous()
    assert torch.equal(x, before)
    assert torch.allclose(out.norm(dim=1), torch.ones(50, device=device))
    # The direction stays.
    cosine = torch.nn.functional.cosine_similarity(out, x)
    assert torch.allclose(cosine, torch.ones_like(cosine))
    # Doing it twice is doing it once.
    assert torch.allclose(normalize_features(out), out, atol=1e-7)


def test_unit_rows_are_not_copied():
    x = normalize_features(features())
    assert normalize_features(x).data_ptr() == x.data_ptr()
    assert not normalize_features(x.requires_grad_()).requires_grad
    x = x.detach()
    for given, kwargs in ((x.t().contiguous().t(), {}), (x.numpy(), {}),
                          (x, {'center': True}), (x, {'dtype': torch.half}),
                          (torch.cat([x, 2 * x[:1]]), {})):
        out = normalize_features(given, **kwargs)
        assert out.data_ptr() != x.data_ptr() and out.is_contiguous()
        assert torch.allclose(out.float().norm(dim=1),
                              torch.ones(len(out)), atol=1e-3)


def test_normalize_features_of_any_scale():
    x = features()
    scale = 10. ** torch.linspace(-30, 30, 50).view(-1, 1)
    assert torch.allclose(normalize_features(x * scale),
                          normalize_features(x), atol=1e-6)
    # Beyond what float32 holds: scaled before the cast.
    x = features().double()
    assert torch.allclose(normalize_features(x * 1e200),
                          normalize_features(x), atol=1e-6)
    half = normalize_features(torch.full((2, 300), 6e4, dtype=torch.half))
    assert torch.allclose(half, torch.full((2, 300), 300**-.5))


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64,
                                   np.int64, np.uint8])
def test_normalize_features_dtypes(dtype):
    x = np.random.default_rng(0).integers(1, 9, (30, 4))
    expected = normalize_features(x.astype(np.float32))
    for given in [x.astype(dtype), torch.from_numpy(x.astype(dtype))]:
        out = normalize_features(given)
        assert out.dtype == torch.float32
        assert torch.allclose(out, expected)


def test_normalize_features_layouts(tmp_path):
    x = features().numpy()
    np.save(tmp_path / 'x.npy', x)
    expected = normalize_features(x)
    for given in [np.load(tmp_path / 'x.npy', mmap_mode='r'),
                  np.asfortranarray(x), x[::-1][::-1],
                  torch.from_numpy(x).t().contiguous().t(),
                  torch.nn.Parameter(torch.from_numpy(x))]:
        out = normalize_features(given)
        assert torch.allclose(out, expected, atol=1e-6)
        assert out.is_contiguous() and not out.requires_grad


def test_normalize_features_center():
    # What all features share disappears, whatever it was.
    x, offset = features().double(), 10 * features(1).double()
    out = normalize_features(x, center=True)
    assert torch.allclose(normalize_features(x + offset, center=True), out,
                          atol=1e-5)
    expected = x - x.mean(dim=0)
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(out, expected.float(), atol=1e-6)
    assert torch.allclose(out, normalize_features(x.numpy(), center=True))


def test_normalize_features_in_half_precision():
    x = features()
    out = normalize_features(x, dtype=torch.float16)
    assert out.dtype == torch.float16
    assert torch.equal(out, normalize_features(x).half())
    for dtype in [torch.float64, torch.bfloat16, torch.int8]:
        with pytest.raises(ValueError, match="'dtype' must be torch.float32"):
            normalize_features(x, dtype=dtype)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_normalize_features_mapped_from_a_file(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(import_module('torch_sdt.ops.normalize'), '_ROWS', 7)
    x, path = features(), tmp_path / 'unit'
    expected = normalize_features(x, center=True, dtype=dtype)
    out = normalize_features(x, center=True, dtype=dtype, path=path)
    assert out.dtype == dtype and torch.equal(out, expected)
    assert path.stat().st_size == out.numel() * out.element_size()
    # What is done to the rows does not reach the file, and a failed call
    # leaves it as it was.
    out.zero_()
    before = path.read_bytes()
    bad = x.clone()
    bad[40, 3] = torch.nan
    with pytest.raises(ValueError, match='Row 40 .* NaN'):
        normalize_features(bad, path=path)
    assert path.read_bytes() == before == expected.numpy().tobytes()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        normalize_features(x, path=tmp_path / 'nowhere' / 'unit')


@onlyCUDA
def test_normalize_features_on_a_gpu_are_not_mapped(tmp_path):
    with pytest.raises(ValueError, match="leave 'path' out"):
        normalize_features(features().cuda(), path=tmp_path / 'unit')


def test_normalize_features_blocks(monkeypatch):
    x = features(50)
    expected = [normalize_features(x, center) for center in [False, True]]
    monkeypatch.setattr(import_module('torch_sdt.ops.normalize'), '_ROWS', 7)
    for center, value in zip([False, True], expected):
        assert torch.allclose(normalize_features(x, center), value,
                              atol=1e-6)
    x[23, 1] = torch.nan
    with pytest.raises(ValueError, match='Row 23 '):
        normalize_features(x)


@pytest.mark.parametrize('center', [False, True])
def test_normalize_features_bad_rows(center):
    for bad in [torch.nan, torch.inf, -torch.inf]:
        x = features()
        x[[31, 40], 2] = bad
        with pytest.raises(ValueError, match='Row 31 of the features holds'):
            normalize_features(x, center)


def test_normalize_features_zero_rows():
    x = features()
    x[[31, 40]] = 0
    with pytest.raises(ValueError, match='Row 31 .* all zeros'):
        normalize_features(x)
    # Away from the mean, zero is a feature like any other.
    out = normalize_features(x + 3, center=True)
    assert torch.allclose(normalize_features(x, center=True), out, atol=1e-5)


def test_normalize_features_equal_to_the_mean():
    x = torch.tensor([[1., .1], [3., .3], [2., .2]])
    with pytest.raises(ValueError, match='Row 2 .* center=False'):
        normalize_features(x, center=True)
    with pytest.raises(ValueError, match='Row 0 .* center=False'):
        normalize_features(features(1).expand(2, -1), center=True)
    # A single sample is the mean, which is left to it.
    assert torch.equal(normalize_features(features(1), center=True),
                       normalize_features(features(1)))


def test_normalize_features_errors():
    for shape in [(0, 3), (3, 0)]:
        with pytest.raises(ValueError, match='empty'):
            normalize_features(np.ones(shape))
    for shape in [(), (3, ), (1, 2, 3)]:
        with pytest.raises(ValueError, match=r'shape \[N, D\]'):
            normalize_features(np.ones(shape))
    for bad in [np.array([['a', 'b']]), np.ones((2, 2), dtype=bool),
                np.ones((2, 2), dtype=complex),
                np.array([[{}, {}]]), torch.ones(2, 2, dtype=torch.bool),
                torch.ones(2, 2, dtype=torch.cfloat)]:
        with pytest.raises(ValueError, match='must be numbers'):
            normalize_features(bad)
    with pytest.raises(TypeError, match="got 'list'"):
        normalize_features([[1., 2.]])


def test_center_keeps_double_precision():
    x = np.random.default_rng(0).standard_normal((50, 8))

    def expected(x):
        x = x - x.mean(axis=0)
        return torch.from_numpy(
            x / np.linalg.norm(x, axis=1, keepdims=True)).float()

    for shifted in [x + 1e5, x + 1e6, x * 1e200, x * 1e-200]:
        scale = np.abs(shifted).max()
        out = normalize_features(shifted, center=True)
        assert torch.allclose(out, expected(shifted / scale), atol=1e-6)


def test_normalize_features_in_a_foreign_order_of_bytes():
    x = features().numpy()
    assert torch.equal(normalize_features(x.astype('>f4')),
                       normalize_features(x))


@pytest.mark.parametrize('convert', [
    np.asfortranarray, lambda x: np.broadcast_to(x[:1], x.shape),
    lambda x: np.ascontiguousarray(x.T).T, lambda x: x[:, ::-1]])
def test_normalize_features_of_any_layout_into_a_file(convert, tmp_path):
    x = convert(features().numpy())
    out = normalize_features(x, path=tmp_path / 'unit')
    assert torch.equal(out, normalize_features(x)) and out.is_contiguous()
