import numpy as np
import pytest
import torch

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.loader import RandomViews
from torch_sdt.ops import normalize_features

pytest.importorskip('numba')
K, SIZE = 6, 60


@pytest.fixture(scope='module')
def samples():
    data = SyntheticFaces('ms1m', num_identities=20, seed=0, dim=32,
                          images_per_identity=(4, 12))
    return normalize_features(data.x), torch.from_numpy(data.y)


def views(samples, **kwargs):
    return RandomViews(*samples, K, SIZE, batch_size=16, **kwargs)


def test_each_epoch_has_a_view_of_its_own(samples):
    loader = views(samples)
    sizes, dims = set(), set()
    for epoch in range(8):
        loader.set_epoch(epoch)
        # Valid, no larger than asked for, and as long as any other.
        loader.neighbors.validate(loader.x.size(0))
        assert loader.x.size(0) <= SIZE
        assert loader.nodes.numel() == SIZE and len(loader) == 4
        assert torch.allclose(loader.x.norm(dim=1),
                              torch.ones(loader.x.size(0)), atol=1e-5)
        sizes.add(loader.x.size(0))
        dims.add(loader.x.size(1))
    assert len(sizes) > 1 and len(dims) > 1
    assert dims <= {4, 8, 16, 32}


def test_the_view_depends_on_seed_and_epoch_alone(samples):
    first, second, other = views(samples), views(samples), views(samples,
                                                                 seed=1)
    first.set_epoch(5)
    for epoch in (3, 5):
        second.set_epoch(epoch)
    other.set_epoch(5)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.neighbors.index, second.neighbors.index)
    assert (other.x.shape != first.x.shape
            or not torch.equal(other.x, first.x))


def test_names_of_identities_do_not_matter(samples):
    x, y = samples
    expected = views(samples)
    for other in (y - 5, y * 10**12):
        loader = views((x, other))
        assert torch.equal(loader.x, expected.x)
        assert torch.equal(loader.y, expected.y)
    with pytest.raises(ValueError, match="'y' must have shape"):
        views((x, y[:-1]))


def test_labels_go_with_their_samples(samples):
    x, y = samples
    loader = views(samples)
    for epoch in range(6):
        loader.set_epoch(epoch)
        size = torch.bincount(loader.y)
        # Identities are thinned, never invented.
        assert bool((size <= torch.bincount(y)[:size.numel()]).all())
        batch = next(iter(loader))
        same = loader.y[batch.index] == loader.y[batch.node].view(-1, 1)
        assert torch.equal(batch.same, same)


def test_relate_sees_the_view_in_order(samples):
    seen = []

    def relate(loader):
        nodes = torch.cat([batch.node for batch in loader])
        assert torch.equal(nodes, torch.arange(loader.x.size(0)))
        seen.append(loader.x)
        return torch.rand(loader.neighbors.index.shape)

    loader = views(samples, relate=relate)
    loader.set_epoch(1)
    assert torch.equal(seen[-1], loader.x)
    batch = next(iter(loader))
    assert batch.relation.shape[1:] == (2, K, K)
    assert bool((batch.k >= 1).all()) and bool((batch.k <= K).all())


def test_large_sets_are_cut_to_the_size_of_a_view():
    # More samples than fit: whole identities are left out.
    data = SyntheticFaces('ms1m', num_identities=60, seed=1, dim=16,
                          images_per_identity=(30, 30))
    loader = RandomViews(normalize_features(data.x), torch.from_numpy(data.y),
                         K, 100)
    for epoch in range(4):
        loader.set_epoch(epoch)
        assert loader.x.size(0) <= 100
        assert np.unique(loader.y.numpy()).size >= 1


def test_views_of_samples_that_are_all_one():
    # They equal their mean, which is not taken away then.
    x, y = normalize_features(torch.ones(40, 6)), torch.arange(40) // 5
    loader = RandomViews(x, y, K, SIZE)
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert all(bool(batch.similarity.isfinite().all())
                   for batch in loader)
