import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, local_scaling, naive


def table(n=40, k=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return knn(torch.randn(n, 8, generator=generator), k)


@withCUDA
@pytest.mark.parametrize('k', [1, 2, 3, 4, 9])
@pytest.mark.parametrize('kwargs', [
    {}, {'strength': 1.5}, {'first': 1, 'last': 1}, {'last': 100}])
def test_local_scaling(k, kwargs, device):
    neighbors = table(k=k)
    out = local_scaling(Neighbors(*(part.to(device) for part in neighbors)),
                        **kwargs)
    index, similarity = naive.local_scaling(
        neighbors.index.tolist(), neighbors.similarity.tolist(), **kwargs)
    assert torch.allclose(out.similarity.cpu(), torch.tensor(similarity),
                          atol=1e-6)
    assert out.index.tolist() == index
    out.validate(40)


def test_local_scaling_keeps_the_neighbours():
    neighbors = table()
    before = neighbors.similarity.clone()
    out = local_scaling(neighbors, strength=2.)
    assert not torch.equal(out.index, neighbors.index)
    assert torch.equal(out.index.sort(dim=1)[0],
                       neighbors.index.sort(dim=1)[0])
    assert torch.equal(neighbors.similarity, before)


def test_local_scaling_of_strength_zero():
    neighbors = table()
    out = local_scaling(neighbors, strength=0.)
    assert torch.equal(out.index, neighbors.index)
    assert torch.allclose(out.similarity, neighbors.similarity)


def test_local_scaling_is_symmetric():
    # Two samples that list each other agree on their similarity.
    neighbors = table(30, 30)
    out = local_scaling(neighbors)
    dense = torch.zeros(30, 30).scatter(1, out.index, out.similarity)
    assert torch.allclose(dense, dense.t(), atol=1e-6)


def test_local_scaling_evens_out_densities():
    # Where all samples lie equally dense nothing changes; a dense and a
    # spread group come closer together.
    index = torch.arange(12).view(-1, 1)
    index = (index + torch.arange(6)) % 6 + index // 6 * 6
    similarity = torch.ones(12, 6)
    similarity[:, 1:] = .5
    out = local_scaling(Neighbors(index, similarity))
    assert torch.allclose(out.similarity, similarity)
    similarity[:6, 1:], similarity[6:, 1:] = .9, .3
    for strength, gap in [(.5, .3), (1., 0.)]:
        out = local_scaling(Neighbors(index, similarity), strength)
        now = out.similarity[0, 1] - out.similarity[6, 1]
        assert float(now) == pytest.approx(gap, abs=1e-6)


def test_local_scaling_clamps():
    # Rank 0 stays in front, whatever the others reach.
    out = local_scaling(table(), strength=50.).validate()
    assert bool((out.similarity.abs() <= 1).all())
    assert bool((out.similarity[:, 1:] == 1).any())
    assert bool((out.similarity[:, 0] == 1).all())


@pytest.mark.parametrize('first,last', [(0, 4), (-1, 4), (3, 2)])
def test_local_scaling_errors(first, last):
    with pytest.raises(ValueError, match="'first' must be between 1"):
        local_scaling(table(), first=first, last=last)
