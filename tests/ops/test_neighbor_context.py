import pytest
import torch

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import neighbor_context, normalize_features


def features(k=6):
    x = normalize_features(torch.randn(
        300, 5, generator=torch.Generator().manual_seed(0)))
    return Neighbors.search(x, k), x


@pytest.mark.parametrize('sharpness', [0., 3., 10.])
def test_neighbor_context(sharpness):
    table, x = features()
    context = neighbor_context(table, x, sharpness)
    # Of the first block and of the second.
    for i in (0, 100, 299):
        near = table.index[i, 1:].tolist()
        weight = [float(torch.exp(sharpness * x[i] @ x[h])) for h in near]
        expected = sum(w * x[h] for w, h in zip(weight, near)) / sum(weight)
        assert torch.allclose(context[i], expected, atol=1e-5)


def test_neighbor_context_at_its_limits():
    table, x = features()
    # From the mean of all to the nearest.
    assert torch.allclose(neighbor_context(table, x, 0.),
                          x[table.index[:, 1:]].mean(dim=1), atol=1e-5)
    assert torch.allclose(neighbor_context(table, x, 1e6),
                          x[table.index[:, 1]], atol=1e-2)
    # Nobody around leaves nothing.
    alone = neighbor_context(table.truncate(1), x)
    assert alone.shape == x.shape and bool((alone == 0).all())


@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_neighbor_context_in_other_precisions(dtype):
    table, x = features()
    out = neighbor_context(table, x.to(dtype))
    assert out.dtype == dtype
    assert torch.allclose(out.float(), neighbor_context(table, x), atol=1e-2)
