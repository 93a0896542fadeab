import pytest
import torch

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import ndde, tpdi, transition_probability


def table(n=50, k=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    neighbors = Neighbors.build(torch.randn(n, 6, generator=generator), k)
    return neighbors, torch.rand(n, k, generator=generator)


def dense(neighbors, probability):
    n = neighbors.num_nodes
    return torch.zeros(n, n).scatter(1, neighbors.index, probability)


def test_transition_probability():
    _, distance = table()
    p = transition_probability(distance, .3)
    assert torch.allclose(p.sum(dim=1), torch.ones(50))
    expected = torch.exp(-(distance[:, 0] - distance[:, 1]) / .3)
    assert torch.allclose(p[:, 0] / p[:, 1], expected)
    with pytest.raises(ValueError, match="'sigma'"):
        transition_probability(distance, 0.)


def test_density_is_one_step_of_diffusion():
    neighbors, distance = table()
    rho = ndde(neighbors, distance, k=9, sigma=.5)
    p = dense(neighbors, transition_probability(distance, .5))
    assert torch.allclose(rho, p.sum(dim=0), atol=1e-5)
    assert float(rho.sum()) == pytest.approx(50, rel=1e-5)
    # Wider than the table is as wide as it is.
    assert torch.equal(ndde(neighbors, distance, k=99, sigma=.5), rho)


def test_density_of_the_nearest():
    neighbors, distance = table()
    near, rank = distance.topk(4, largest=False)
    p = transition_probability(near, .5)
    expected = torch.zeros(50).index_add(
        0, neighbors.index.gather(1, rank).view(-1), p.view(-1))
    assert torch.allclose(ndde(neighbors, distance, k=4), expected, atol=1e-5)


def test_exact_density_is_the_fixed_point():
    neighbors, distance = table()
    rho = ndde(neighbors, distance, exact=True, tolerance=1e-7,
               max_steps=10_000)
    # Rank 0 is the sample itself, to which no walk goes.
    p = dense(neighbors, torch.cat([
        torch.zeros(50, 1), transition_probability(distance[:, 1:], .5)], 1))
    assert float(rho.sum()) == pytest.approx(1, rel=1e-4)
    assert torch.allclose(p.t() @ rho, rho, atol=1e-6)


def test_density_does_not_depend_on_the_cluster_size():
    # A clique of 5 and one of 20, no edges between: sums of similarities
    # differ, densities do not.
    clique = Neighbors.build(torch.cat([
        torch.eye(2)[:1].repeat(5, 1), torch.eye(2)[1:].repeat(20, 1)]), 5)
    index = clique.index.clone()
    # Each lists itself and the next four of its clique, around.
    for i in range(25):
        start, size = (0, 5) if i < 5 else (5, 20)
        index[i] = start + (i - start + torch.arange(5)) % size
    rho = ndde(Neighbors(index, torch.ones(25, 5)))
    assert torch.allclose(rho, torch.ones(25))


def test_distance_is_the_bhattacharyya_overlap():
    neighbors, distance = table()
    p = dense(neighbors, transition_probability(distance, .2))
    overlap = p.sqrt() @ p.sqrt().t()
    out = tpdi(neighbors, distance, sigma=.2)
    assert torch.allclose(out, 1 - overlap.gather(1, neighbors.index),
                          atol=1e-5)
    assert out.min() >= 0 and out.max() <= 1
    assert torch.allclose(out[:, 0], torch.zeros(50), atol=1e-5)


def test_distance_of_equal_and_of_disjoint_rows():
    index = torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2]])
    similarity = torch.tensor([[1., 1.]] * 4)
    assert torch.allclose(tpdi(Neighbors(index, similarity)),
                          torch.zeros(4, 2), atol=1e-6)
    # Two of three in common, all alike: the overlap is 2 / 3.
    index = torch.tensor([[0, 1, 2], [1, 0, 3], [2, 0, 1], [3, 1, 0]])
    out = tpdi(Neighbors(index, torch.ones(4, 3)))
    assert float(out[0, 1]) == pytest.approx(1 / 3, abs=1e-6)


def test_defaults_are_cosine_distances():
    neighbors, _ = table()
    distance = 1 - neighbors.similarity
    assert torch.equal(ndde(neighbors), ndde(neighbors, distance))
    assert torch.equal(tpdi(neighbors), tpdi(neighbors, distance))


@pytest.mark.parametrize('call', [ndde, tpdi])
def test_bad_shape(call):
    neighbors, distance = table()
    with pytest.raises(ValueError, match="'distance'"):
        call(neighbors, distance[1:])
    with pytest.raises(ValueError, match="'sigma'"):
        call(neighbors, distance, sigma=-1.)


def test_bad_k():
    with pytest.raises(ValueError, match="'k'"):
        ndde(table()[0], k=0)
