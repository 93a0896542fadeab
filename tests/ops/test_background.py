import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import Background, estimate_background, normalize_features


def pairs(x):
    cosine = (x @ x.t()).cpu()
    return cosine[~torch.eye(len(x), dtype=torch.bool)].numpy()


@withCUDA
@pytest.mark.parametrize('n,d', [(2, 3), (300, 2), (300, 3), (500, 64)])
def test_percentiles_of_all_pairs(n, d, device):
    generator = torch.Generator().manual_seed(n)
    x = normalize_features(torch.randn(n, d, generator=generator)).to(device)
    low, median, high = np.percentile(pairs(x), (16, 50, 84))
    location, scale = estimate_background(x)
    assert location == pytest.approx(median, abs=1e-5)
    assert scale == pytest.approx((high - low) / 2, abs=1e-5)


@pytest.mark.parametrize('preset', ['ms1m', 'msmt17', 'deepfashion'])
def test_many_identities_are_one_heap(preset):
    x = normalize_features(SyntheticFaces(preset, num_images=1500).x)
    low, median, high = np.percentile(pairs(x), (16, 50, 84))
    assert estimate_background(x) == pytest.approx(
        Background(median, (high - low) / 2), abs=1e-5)


@pytest.mark.parametrize('identities', [2, 3, 4])
def test_few_identities_do_not_hide_it(identities):
    faces = SyntheticFaces('ms1m', num_identities=identities, seed=1,
                           split='test', images_per_identity=(100, 150))
    x = normalize_features(faces.x, center=True)
    y = torch.from_numpy(faces.y)
    strangers = (x @ x.t())[y.view(-1, 1) != y]
    location, scale = estimate_background(x)
    # What percentiles of all pairs would take for it.
    low, median, high = np.percentile(pairs(x), (16, 50, 84))
    expected = float(strangers.median())
    assert abs(location - expected) < min(.05, abs(median - expected))
    assert scale < min(1.5 * float(strangers.std()), (high - low) / 3)


def test_one_identity_that_most_are_of():
    others = SyntheticFaces('ms1m', num_identities=60,
                            images_per_identity=(5, 20))
    most = SyntheticFaces('ms1m', num_identities=1, split='val',
                          images_per_identity=(1500, 1500))
    expected = estimate_background(normalize_features(others.x))
    location, scale = estimate_background(normalize_features(
        np.concatenate([most.x, others.x])))
    assert abs(location - expected.location) < .03
    assert scale < 1.5 * expected.scale


@pytest.mark.parametrize('x', [
    [[1., 0.]], [[1., 0.], [1., 0.]], [[1., 0.], [0., 1.]],
    [[1., 0.]] * 5 + [[0., 1.]] * 5,
    [[1., 1e-4 * i] for i in range(9)]])
def test_awkward_samples(x):
    location, scale = estimate_background(torch.tensor(x))
    assert abs(location) < 1 + 1e-6 and scale >= 0


def test_seed():
    x = normalize_features(np.random.default_rng(0).normal(size=(3000, 8)))
    assert estimate_background(x, 1) == estimate_background(x, 1)
    assert estimate_background(x, 1) != estimate_background(x, 2)
