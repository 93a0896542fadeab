from math import exp

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.ops import edge_probability, naive

TRANSFORMS = ['sigmoid', 'exponential']


@withCUDA
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_edge_probability(transform, device):
    similarity = torch.linspace(-1, 1, 201, dtype=torch.double)
    for kwargs in [{}, {'delta': 3., 'epsilon': -1., 'tau': .1}]:
        out = edge_probability(similarity.to(device), transform, **kwargs)
        expected = [naive.edge_probability(a, transform, **kwargs)
                    for a in similarity.tolist()]
        assert torch.allclose(out.cpu(), torch.tensor(expected).double())


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32,
                                   torch.float64])
def test_edge_probability_is_a_probability(transform, dtype):
    similarity = torch.linspace(-1, 1, 60, dtype=dtype).view(3, 4, 5)
    before = similarity.clone()
    out = edge_probability(similarity, transform)
    assert (out.shape, out.dtype) == (similarity.shape, dtype)
    assert torch.equal(similarity, before)
    assert bool(((out > 0) & (out <= 1)).all())
    # It grows with the cosine, and opposite samples count as orthogonal ones.
    flat = out.view(-1)
    assert bool((flat[1:] >= flat[:-1]).all())
    assert bool((flat[similarity.view(-1) <= 0] == flat[0]).all())
    assert flat[-1] > flat[30]


def test_edge_probability_scales():
    # One half where delta d = -epsilon, by default at a cosine of 2/3.
    for delta, epsilon in [(7.5, -5.), (4., -2.), (20., -10.)]:
        half = torch.tensor(1 + epsilon / delta / 2)
        out = edge_probability(half, delta=delta, epsilon=epsilon)
        assert float(out) == pytest.approx(.5, abs=1e-6)
    # A distance of tau costs a factor e.
    for tau in [.1, .5, 2.]:
        at = torch.tensor([1., 1 - tau / 2], dtype=torch.double)
        out = edge_probability(at, 'exponential', tau=tau)
        assert out.tolist() == pytest.approx([1., exp(-1)])


def test_edge_probability_edge_cases():
    assert edge_probability(torch.empty(0, 3)).shape == (0, 3)
    assert edge_probability(torch.tensor(1.)).dim() == 0
    # A steep step saturates; it does not overflow.
    out = edge_probability(torch.tensor([0., 1.]), delta=1e4, epsilon=-5e3)
    assert out.tolist() == [0, 1]
    # What is unknown stays so.
    assert bool(edge_probability(torch.tensor(torch.nan)).isnan())


@pytest.mark.parametrize('transform', TRANSFORMS)
def test_edge_probability_gradients(transform):
    similarity = torch.tensor([-.6, .1, .5, .9], dtype=torch.double,
                              requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a: edge_probability(a, transform), similarity)


def test_edge_probability_errors():
    with pytest.raises(ValueError, match="'sigmoid' or 'exponential' .got "
                       "'cosine'"):
        edge_probability(torch.ones(2), 'cosine')
    for tau in [0., -1., float('nan')]:
        with pytest.raises(ValueError, match="'tau' must be positive"):
            edge_probability(torch.ones(2), 'exponential', tau=tau)
