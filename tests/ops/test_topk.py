from math import inf, nan

import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import expected_topk, knn, naive, topk_target


def world(n=40, k=9, identities=6, seed=0):
    # Identities of different sizes, some larger than the table.
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=generator)**2 * identities).long()
    center = torch.randn(identities, 6, generator=generator)
    x = center[y] + torch.randn(n, 6, generator=generator)
    return knn(x, k), y


# β² of these have few bits: equals are equal in single precision, too.
BETAS = [.25, .5, 1., 2.]


@withCUDA
@pytest.mark.parametrize('beta', BETAS)
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (40, 1), (40, 9), (30, 30)])
def test_topk_target(n, k, beta, device):
    neighbors, y = world(n, k)
    moved = Neighbors(*(part.to(device) for part in neighbors))
    expected = naive.topk_target(neighbors.index.tolist(), y.tolist(), beta)
    out = topk_target(moved, y.to(device), beta)
    assert out.device == device and out.dtype == torch.long
    assert out.tolist() == expected
    # Wherever labels come from, and whatever they are called.
    assert topk_target(moved, y.numpy(), beta).tolist() == expected
    assert topk_target(moved, 7 - 3 * y, beta).tolist() == expected


def test_topk_target_by_hand():
    # Of the node's own identity, of size 3: itself, ranks 1 and 4.
    index = torch.tensor([[0, 1, 3, 4, 2], [1, 0, 2, 3, 4], [2, 0, 1, 3, 4],
                          [3, 4, 0, 1, 2], [4, 3, 0, 1, 2]])
    neighbors = Neighbors(index, torch.ones(5, 5))
    y = np.array([0, 0, 0, 1, 1])
    # β small is precision, β large is recall.
    assert topk_target(neighbors, y, .5).tolist() == [2, 3, 3, 2, 2]
    assert topk_target(neighbors, y, 1e3).tolist() == [5, 3, 3, 2, 2]
    # Who is alone trusts itself.
    assert topk_target(neighbors, np.arange(5)).tolist() == [1] * 5


def test_topk_target_of_identities_larger_than_the_table():
    # Nobody recalls more than the table holds: all of one identity is all
    # ranks, however large it is.
    neighbors, _ = world(40, 9)
    y = torch.zeros(40, dtype=torch.long)
    assert topk_target(neighbors, y).tolist() == [9] * 40


@pytest.mark.parametrize('estimate', [False, True])
def test_beta_trades_precision_for_recall(estimate):
    neighbors, y = world(80, 20)
    same = (y[neighbors.index] == y.view(-1, 1)).float()
    if estimate:
        generator = torch.Generator().manual_seed(1)
        probability = torch.rand(80, 20, generator=generator)
        k = [expected_topk(probability, beta) for beta in (1e-3, .5, 2., 1e3)]
        assert k[0].tolist() == [1] * 80 and k[-1].tolist() == [20] * 80
    else:
        k = [topk_target(neighbors, y, beta) for beta in (1e-3, .5, 2., 1e3)]
        found = same.cumsum(dim=1)
        # The longest prefix without a stranger, and one with all there are.
        pure = same.cumprod(dim=1).sum(dim=1).long()
        assert bool((k[0] <= pure).all())
        assert torch.equal(found.gather(1, k[-1].view(-1, 1) - 1)[:, 0],
                           found[:, -1])
    for less, more in zip(k, k[1:]):
        assert bool((less <= more).all()) and not torch.equal(less, more)


@withCUDA
@pytest.mark.parametrize('beta', [*BETAS, .7])
@pytest.mark.parametrize('n,k', [(1, 1), (3, 1), (40, 2), (40, 9)])
def test_expected_topk(n, k, beta, device):
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(n, k, generator=generator).double()
    before = probability.clone()
    expected = naive.expected_topk(probability.tolist(), beta)
    out = expected_topk(probability.to(device), beta)
    assert out.device == device and out.dtype == torch.long
    assert out.tolist() == expected
    # What it says of the node itself does not matter, nor is it changed.
    assert torch.equal(probability, before)
    probability[:, 0] = 0.
    assert expected_topk(probability.to(device), beta).tolist() == expected


@pytest.mark.parametrize('beta', [*BETAS, .7])
def test_expected_topk_of_certainty_is_the_target(beta):
    # With all of an identity in the table, the expected size is the size.
    neighbors, y = world(30, 30)
    same = (y[neighbors.index] == y.view(-1, 1)).float()
    assert torch.equal(expected_topk(same, beta),
                       topk_target(neighbors, y, beta))


def test_expected_topk_of_half_precision():
    # 300 ranks of one half: sums in half precision would stand still.
    probability = torch.full((2, 300), .5)
    probability[1, 250:] = 0.
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(expected_topk(probability.to(dtype)),
                           expected_topk(probability))


@pytest.mark.parametrize('shape', [(39, ), (40, 1), ()])
def test_topk_target_shape(shape):
    neighbors, _ = world()
    with pytest.raises(ValueError, match=r"'y' must have shape \[40\]"):
        topk_target(neighbors, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize('beta', [0., -1., nan, inf])
def test_bad_beta(beta):
    neighbors, y = world()
    with pytest.raises(ValueError, match="'beta' must be positive"):
        topk_target(neighbors, y, beta)
    with pytest.raises(ValueError, match="'beta' must be positive"):
        expected_topk(torch.ones(40, 9), beta)


def test_expected_topk_shape():
    with pytest.raises(ValueError, match=r'\[N, K\] .got \[9\]'):
        expected_topk(torch.ones(9))


def test_topk_target_of_labels_of_any_kind():
    neighbors, y = world()[:2]
    y = np.asarray(y)
    expected = topk_target(neighbors, y)
    readonly = y.copy()
    readonly.setflags(write=False)
    for given in [y.astype('>i4'), y[::-1].copy()[::-1], readonly,
                  y.tolist()]:
        assert torch.equal(topk_target(neighbors, given), expected)
