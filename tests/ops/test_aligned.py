import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.ops.aligned import aligned_empty, aligned_product


@withCUDA
@pytest.mark.parametrize('dtype', [torch.float16, torch.float, torch.double])
@pytest.mark.parametrize('shape', [(0, 3), (1, 1), (3, 0), (5, 16), (4, 2293)])
def test_rows_begin_at_multiples_of_64_bytes(shape, dtype, device):
    like = torch.empty(0, dtype=dtype, device=device)
    out = aligned_empty(*shape, like)
    assert out.shape == shape
    assert out.dtype == dtype and out.device == like.device
    for row in out:
        assert (row.data_ptr() - out.data_ptr()) % 64 == 0
    # Of one more step of 64 bytes all would be too wide.
    assert out.stride(0) * out.element_size() < (
        shape[1] * out.element_size() + 64)


@withCUDA
@pytest.mark.parametrize('columns', [1, 15, 16, 33])
def test_product(columns, device):
    generator = torch.Generator().manual_seed(columns)
    a, b = (torch.randn(n, 8, generator=generator).to(device)
            for n in (7, columns))
    out = aligned_product(a, b.t())
    assert torch.allclose(out, a @ b.t(), atol=1e-6)
    assert aligned_product(a[:0], b.t()).shape == (0, columns)
