import pytest
import torch
import torch.nn.functional as F
from torch_geometric.testing import withCUDA

from torch_sdt.ops import grouped_linear


def inputs(count, channels=5, out_channels=3, dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(count), channels), (len(count), out_channels, channels),
              (len(count), out_channels))
    return [torch.randn(shape, generator=generator, dtype=dtype)
            for shape in shapes]


def definition(x, weight, bias, count):
    return torch.cat([F.linear(*group) for group in zip(
        x.split(count), weight, bias)])


@withCUDA
@pytest.mark.parametrize('count', [[7], [3, 4], [0, 5, 0, 2], [0, 0], [0]])
def test_grouped_linear(count, device):
    x, weight, bias = (a.to(device) for a in inputs(count))
    out = grouped_linear(x, weight, bias, count)
    assert torch.allclose(out, definition(x, weight, bias, count))
    # Rows that are not contiguous are as good.
    wide = x.repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(grouped_linear(wide, weight, bias, count), out)


@pytest.mark.parametrize('count', [[3, 4], [0, 5, 2]])
def test_grouped_linear_gradients(count):
    args = [a.requires_grad_() for a in inputs(count)]
    assert torch.autograd.gradcheck(
        lambda *args: grouped_linear(*args, count), args)
    # A gradient that is one number for all, as that of a sum.
    grads = torch.autograd.grad(grouped_linear(*args, count).sum(), args)
    expected = torch.autograd.grad(definition(*args, count).sum(), args)
    for grad, other in zip(grads, expected):
        assert torch.allclose(grad, other)


def test_grouped_linear_under_autocast():
    count = [3, 4]
    args = [a.requires_grad_() for a in inputs(count, dtype=torch.float)]
    with torch.autocast('cpu', torch.bfloat16):
        out = grouped_linear(*args, count)
    assert out.dtype == torch.bfloat16
    expected = definition(*args, count)
    assert torch.allclose(out.float(), expected, atol=.1)
    out.sum().backward()
    assert all(a.grad.dtype == torch.float for a in args)


@pytest.mark.parametrize('count', [[3, 3], [7], [3, 4, 0]])
def test_grouped_linear_errors(count):
    args = inputs([3, 4])
    with pytest.raises(ValueError, match="'count' must hold 2 numbers that "
                       "sum to 7"):
        grouped_linear(*args, count)
