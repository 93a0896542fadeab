import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from torch_sdt.datasets import SyntheticFaces, synthetic_faces

PRESETS = ['ms1m', 'deepfashion', 'msmt17']


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_synthetic_faces(preset, split):
    faces = SyntheticFaces(preset, num_identities=40, split=split)
    assert faces.x.dtype == np.float32 and faces.y.dtype == np.int64
    assert faces.x.shape == (faces.num_nodes, 256) and faces.dim == 256
    assert np.allclose(np.linalg.norm(faces.x, axis=1), 1, atol=1e-5)
    assert np.array_equal(np.unique(faces.y), np.arange(40))
    assert faces.num_identities == 40
    assert str(faces) == (
        f"SyntheticFaces('{preset}', num_nodes={faces.num_nodes}, "
        f"num_identities=40, dim=256, seed=0, split='{split}')")


def test_defaults():
    faces = SyntheticFaces(dim=4)
    assert faces.preset == 'ms1m' and faces.split == 'train'
    assert faces.num_nodes == 20_000


def test_to_data():
    faces = SyntheticFaces(num_identities=3, dim=8)
    data = faces.to_data()
    assert isinstance(data, Data)
    assert data.validate() and data.num_nodes == faces.num_nodes
    assert torch.equal(data.x, torch.from_numpy(faces.x))
    assert torch.equal(data.y, torch.from_numpy(faces.y))


@pytest.mark.parametrize('preset', PRESETS)
def test_same_arguments_give_the_same_bits(preset):
    args = dict(preset=preset, num_images=500, seed=3, split='val')
    one, two = SyntheticFaces(**args), SyntheticFaces(**args)
    assert one.x.tobytes() == two.x.tobytes()
    assert np.array_equal(one.y, two.y)


@pytest.mark.parametrize('change', [
    dict(seed=1), dict(split='test'), dict(preset='msmt17'),
    dict(num_images=501)])
def test_other_arguments_give_other_data(change):
    args = dict(preset='ms1m', num_images=500, seed=0, split='train')
    one, two = SyntheticFaces(**args), SyntheticFaces(**{**args, **change})
    assert not np.array_equal(one.y, two.y[:500])
    assert not np.isin(one.x[:, 0], two.x[:, 0]).any()


def test_randomness_elsewhere_is_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    SyntheticFaces(num_identities=2, dim=4)
    assert np.array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def people(split, seed=0):
    return synthetic_faces._People('msmt17', 30, seed, split, None, None, None)


def test_splits_share_the_world_but_no_identity():
    train, val, test = map(people, ['train', 'val', 'test'])
    for one, two in ((train, val), (train, test), (val, test)):
        assert np.array_equal(one.nuisance, two.nuisance)
        assert np.array_equal(one.camera, two.camera)
        assert np.array_equal(one.offset, two.offset)
        # Two random directions of 256 dimensions: cosine 0 ± 1/16.
        assert np.abs(one.centre @ two.centre.T).max() < .5
    other = people('train', seed=1)
    assert not np.isin(other.nuisance, train.nuisance).any()
    assert not np.isin(other.camera, train.camera).any()


def test_families_look_alike():
    centre = people('train').centre
    world = synthetic_faces.PRESETS['msmt17']
    low, high = world.family_weight
    cosine = np.sort(centre @ centre.T, axis=1)
    # Everybody has at least one relative at cosine w², and strangers at 0.
    relative = cosine[:, -2]
    assert relative.min() > low**2 - .3 and relative.max() < high**2 + .3
    assert abs(np.median(cosine)) < .1


# Sizes ######################################################################


@pytest.mark.parametrize('preset,mean', [
    ('ms1m', 68.1), ('deepfashion', 6.8), ('msmt17', 30.7)])
def test_mean_size(preset, mean):
    faces = SyntheticFaces(preset, num_identities=4000, dim=2)
    assert faces.num_nodes / 4000 == pytest.approx(mean, rel=.06)
    assert np.bincount(faces.y).min() >= 1


@pytest.mark.parametrize('num_images', [1, 2, 777, 8192, 8193])
@pytest.mark.parametrize('images_per_identity', [None, (2, 5)])
def test_exact_number_of_images(num_images, images_per_identity):
    faces = SyntheticFaces(num_images=num_images, dim=4,
                           images_per_identity=images_per_identity)
    size = np.bincount(faces.y)
    assert size.sum() == num_images == faces.num_nodes
    assert size.min() >= 1
    if images_per_identity is not None:
        # Only the last identity may be cut.
        assert size[:-1].min(initial=2) >= 2 and size.max() <= 5


@pytest.mark.parametrize('low,high', [(1, 6), (40, 80), (3, 3)])
def test_images_per_identity(low, high):
    faces = SyntheticFaces(num_identities=300, dim=4,
                           images_per_identity=(low, high))
    size = np.bincount(faces.y, minlength=300)
    assert size.min() == low and size.max() == high
    assert size.mean() == pytest.approx((low + high) / 2, rel=.1)


# Streaming ##################################################################


@pytest.mark.parametrize('preset,num_images', [
    ('msmt17', 20_000), ('ms1m', 8192), ('deepfashion', 10)])
def test_blocks_equal_memory(preset, num_images):
    args = dict(preset=preset, num_images=num_images, split='test', dim=32)
    faces = SyntheticFaces(**args)
    x, y = zip(*SyntheticFaces.blocks(**args))
    assert max(len(block) for block in x) <= 8192
    assert np.concatenate(x).tobytes() == faces.x.tobytes()
    assert np.array_equal(np.concatenate(y), faces.y)


def test_write(tmp_path):
    args = dict(preset='deepfashion', num_images=9000, dim=16)
    paths = SyntheticFaces.write(tmp_path, 'twin', **args)
    assert paths == (str(tmp_path / 'features' / 'twin.bin'),
                     str(tmp_path / 'labels' / 'twin.meta'))
    faces = SyntheticFaces(**args)
    x = np.fromfile(paths[0], dtype='<f4').reshape(-1, 16)
    assert x.tobytes() == faces.x.tobytes()
    with open(paths[1]) as file:
        assert [int(line) for line in file] == faces.y.tolist()


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    args = dict(num_images=9000, dim=4)
    SyntheticFaces.write(tmp_path, 'twin', **args)
    before = (tmp_path / 'features' / 'twin.bin').read_bytes()
    images = synthetic_faces._People.images

    def fail(self, start):
        if start > 0:
            raise KeyboardInterrupt
        return images(self, start)

    monkeypatch.setattr(synthetic_faces._People, 'images', fail)
    with pytest.raises(KeyboardInterrupt):
        SyntheticFaces.write(tmp_path, 'twin', seed=1, **args)
    assert (tmp_path / 'features' / 'twin.bin').read_bytes() == before
    assert os.listdir(tmp_path / 'features') == ['twin.bin']
    assert os.listdir(tmp_path / 'labels') == ['twin.meta']


# Difficulty #################################################################


@pytest.mark.parametrize('preset,floor', [
    ('ms1m', .8), ('deepfashion', .6), ('msmt17', .8)])
def test_nearest_neighbours_are_mostly_right_and_never_all(preset, floor):
    faces = SyntheticFaces(preset, num_images=3000)
    cosine = faces.x @ faces.x.T
    np.fill_diagonal(cosine, -1)
    common = np.bincount(faces.y)[faces.y] > 1
    right = (faces.y[cosine.argmax(axis=1)] == faces.y)[common].mean()
    assert floor < right < 1.


def test_row_order_tells_nothing():
    faces = SyntheticFaces(num_images=4000)
    size = np.bincount(faces.y)
    chance = (size * (size - 1)).sum() / (4000 * 3999)
    adjacent = (faces.y[1:] == faces.y[:-1]).mean()
    # Four standard deviations of a proportion of 3,999 pairs.
    assert abs(adjacent - chance) < 4 * np.sqrt(chance / 3999)
    # Nor do identity numbers follow the rows.
    assert abs(np.corrcoef(faces.y, np.arange(4000))[0, 1]) < 4 / 4000**.5


def test_offset_moves_cosines_and_not_their_order(monkeypatch):
    world, cosine = synthetic_faces.PRESETS['ms1m'], {}
    for offset in (0., .84):
        monkeypatch.setitem(synthetic_faces.PRESETS, 'ms1m',
                            replace(world, offset=offset))
        x = SyntheticFaces('ms1m', num_images=300, dim=4096).x
        cosine[offset] = (x @ x.T)[np.triu_indices(300, k=1)]
    square = .84**2
    expected = (cosine[0.] + square) / (1 + square)
    assert np.abs(cosine[.84] - expected).max() < .05
    assert np.corrcoef(cosine[0.], cosine[.84])[0, 1] > .99


# Errors #####################################################################


@pytest.mark.parametrize('args,match', [
    (dict(preset='ms2m'), r"\['ms1m', 'deepfashion', 'msmt17'\].*'ms2m'"),
    (dict(split='valid'), r"\['train', 'val', 'test'\].*'valid'"),
    (dict(num_identities=0), "'num_identities' .* at least 1 .*0"),
    (dict(num_identities=2.), "'num_identities' must be an integer"),
    (dict(num_identities=True), "'num_identities' must be an integer"),
    (dict(num_images=0), "'num_images' .* at least 1 .*0"),
    (dict(num_images=9, num_identities=3), "not both .*3 and 9"),
    (dict(dim=1), "'dim' .* at least 2"),
    (dict(seed=-1), "'seed' .* at least 0"),
    (dict(images_per_identity=(0, 3)), 'low <= high'),
    (dict(images_per_identity=(4, 3)), 'low <= high'),
    (dict(images_per_identity=(1, 2, 3)), 'low <= high'),
    (dict(images_per_identity=5), 'low <= high'),
])
def test_errors(args, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        SyntheticFaces(**args)
    # Also before the first block is asked for, and before any file is made.
    with pytest.raises(ValueError, match=match):
        SyntheticFaces.blocks(**args)
    with pytest.raises(ValueError, match=match):
        SyntheticFaces.write(tmp_path, 'twin', **args)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('name', ['', '..', 'a/b', '/etc'])
def test_write_name(tmp_path, name):
    with pytest.raises(ValueError, match="'name'"):
        SyntheticFaces.write(tmp_path, name, num_identities=1)
    assert not os.listdir(tmp_path)
