import os.path as osp

import numpy as np
import pytest
import torch

from torch_sdt.datasets import FeatureFiles
from torch_sdt.neighbors import Neighbors

SHARED = osp.join(osp.dirname(__file__), '..', '..', '..', 'shared', 'data')


def make(n=12, dim=4, k=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)).astype(np.float32)
    return x, rng.integers(0, 3, n), Neighbors.build(x, k)


def put(path, content=b''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob('*')
                  if path.is_file())


# Round trip ##################################################################


@pytest.mark.parametrize('kind', [np.array, torch.tensor])
def test_round_trip(tmp_path, kind):
    x, y, neighbors = make()
    out = FeatureFiles.write(tmp_path, 'set', kind(x), kind(y), neighbors)
    assert files(tmp_path) == ['features/set.bin', 'knns/set/faiss_k_5.npz',
                               'labels/set.meta']
    for data in (out, FeatureFiles(str(tmp_path), 'set', dim=4)):
        assert isinstance(data.x, np.memmap) and data.x.dtype == np.float32
        assert np.array_equal(data.x, x)
        assert data.y.dtype == np.int64 and np.array_equal(data.y, y)
        assert (data.num_nodes, data.dim) == (12, 4)
        assert str(data) == "FeatureFiles('set', num_nodes=12, dim=4)"
        table = data.neighbors(k=5)
        assert torch.equal(table.index, neighbors.index)
        assert torch.allclose(table.similarity, neighbors.similarity,
                              atol=1e-6)


def test_files_have_the_published_layout(tmp_path):
    # Read as the reference implementation reads them.
    x, y, neighbors = make()
    FeatureFiles.write(tmp_path, 'set', x, y, neighbors)
    raw = np.fromfile(tmp_path / 'features' / 'set.bin', dtype=np.float32)
    assert np.array_equal(raw.reshape(-1, 4), x)
    with open(tmp_path / 'labels' / 'set.meta') as f:
        assert [int(line.strip()) for line in f] == y.tolist()
    with np.load(tmp_path / 'knns' / 'set' / 'faiss_k_5.npz') as f:
        assert f['data'].shape == (12, 2, 5)
        assert np.array_equal(f['data'][:, 0], neighbors.index.numpy())
        assert np.allclose(f['data'][:, 1], 1 - neighbors.similarity.numpy())


@pytest.mark.parametrize('dtype', [np.float16, np.float64])
def test_other_floats_are_stored_as_float32(tmp_path, dtype):
    x = make()[0].astype(dtype)
    data = FeatureFiles.write(tmp_path, 'set', x)
    assert np.array_equal(data.x, x.astype(np.float32))
    assert data.y is None and data.neighbors() is None


def test_bfloat16_and_columns_out_of_order(tmp_path):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    data = FeatureFiles.write(tmp_path, 'a', x.bfloat16())
    assert np.array_equal(data.x, x.bfloat16().float().numpy())
    data = FeatureFiles.write(tmp_path, 'b', x.numpy()[:, ::-2])
    assert np.array_equal(data.x, x.numpy()[:, ::-2])


def test_blocks_stream(tmp_path):
    x, y, neighbors = make()
    blocks = (x[start:start + 5] for start in range(0, 12, 5))
    data = FeatureFiles.write(tmp_path, 'set', blocks, y, neighbors)
    assert np.array_equal(data.x, x)


def test_large_arrays_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr('torch_sdt.datasets.feature_files._ROWS', 5)
    x, y, _ = make()
    assert np.array_equal(FeatureFiles.write(tmp_path, 'set', x, y).x, x)


def test_a_map_may_be_rewritten_to_its_own_file(tmp_path):
    x, y, _ = make()
    data = FeatureFiles.write(tmp_path, 'set', x, y)
    data = FeatureFiles.write(tmp_path, 'set', data.x[::-1], data.y[::-1])
    assert np.array_equal(data.x, x[::-1])
    assert np.array_equal(data.y, y[::-1])


def test_to_data(tmp_path):
    x, y, _ = make()
    data = FeatureFiles.write(tmp_path, 'set', x, y).to_data()
    assert data.num_nodes == 12 and sorted(data.keys()) == ['x', 'y']
    assert data.x.dtype == torch.float and data.y.dtype == torch.long
    assert np.array_equal(data.x, x) and np.array_equal(data.y, y)
    data.x.zero_()  # A copy: the file stays as it is.
    assert np.array_equal(FeatureFiles(tmp_path, 'set', dim=4).x, x)
    data = FeatureFiles.write(tmp_path, 'plain', x).to_data()
    assert data.y is None and data.keys() == ['x']


# Other layouts ###############################################################


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
def test_npy_files(tmp_path, dtype):
    x, y, _ = make()
    for folder, array in (('features', x.astype(dtype)), ('labels', y)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / 'set.npy', array)
    data = FeatureFiles(tmp_path, 'set')  # Its width is not 256.
    assert data.dim == 4 and data.x.dtype == dtype
    assert np.array_equal(data.x, x.astype(dtype))
    assert np.array_equal(data.y, y)
    assert data.to_data().x.numpy().dtype == dtype


def test_flat_folder(tmp_path):
    x, y, neighbors = make()
    put(tmp_path / 'set' / 'features.bin', x.tobytes())
    put(tmp_path / 'set' / 'labels.meta', b'\n'.join(b'%d' % i for i in y))
    neighbors.save(tmp_path / 'set' / 'hnsw_k_5.npz')
    data = FeatureFiles(tmp_path, 'set', dim=4)
    assert np.array_equal(data.x, x) and np.array_equal(data.y, y)
    assert torch.equal(data.neighbors(5).index, neighbors.index)


def test_the_published_layout_comes_first(tmp_path):
    x, _, _ = make()
    put(tmp_path / 'set' / 'features.bin', (x + 1).tobytes())
    put(tmp_path / 'set' / 'labels.meta', b'1\n' * 12)
    FeatureFiles.write(tmp_path, 'set', x)
    data = FeatureFiles(tmp_path, 'set', dim=4)
    # Labels of the other layout belong to the other features.
    assert np.array_equal(data.x, x) and data.y is None


# Neighbours ##################################################################


def test_a_wider_table_is_truncated(tmp_path):
    x, _, _ = make()
    data = FeatureFiles.write(tmp_path, 'set', x)
    folder = tmp_path / 'knns' / 'set'
    folder.mkdir(parents=True)
    for method, k in (('faiss', 4), ('any', 7), ('faiss', 10)):
        Neighbors.build(x, k).save(folder / f'{method}_k_{k}.npz')
    put(folder / 'faiss_k_6.npz.123.tmp')  # Neither of them is a table.
    put(folder / 'faiss_k_6.index')
    for k in (1, 4, 6, 10):
        table = data.neighbors(k)
        assert table.k == k
        assert torch.equal(table.index, Neighbors.build(x, k).index)
    assert data.neighbors(11) is None


def test_the_narrowest_table_is_read_and_an_exact_one_preferred(tmp_path):
    x, _, _ = make()
    data = FeatureFiles.write(tmp_path, 'set', x)
    folder = tmp_path / 'knns' / 'set'
    table = Neighbors.build(x, 6)
    put(folder / 'faiss_k_8.npz', b'not read')
    put(folder / 'any_k_6.npz', b'not read')
    put(folder / 'hnsw_k_6.npz', b'not read')
    table.save(folder / 'faiss_gpu_k_6.npz')
    assert torch.equal(data.neighbors(5).index, table.index[:, :5])


def test_a_table_cannot_be_wider_than_the_set(tmp_path):
    x, _, neighbors = make(k=12)
    data = FeatureFiles.write(tmp_path, 'set', x, neighbors=neighbors)
    assert data.neighbors().k == 12  # Of the 80 asked for by default.


def test_a_row_that_does_not_start_with_itself(tmp_path):
    # Exact duplicates come in either order: the reader puts each row first.
    x = np.repeat(make()[0][:6], 2, axis=0)
    data = FeatureFiles.write(tmp_path, 'set', x)
    table = np.empty((12, 2, 2))
    table[:, 0] = np.arange(12)[:, None] // 2 * 2 + np.array([0, 1])
    table[:, 1] = 0
    folder = tmp_path / 'knns' / 'set'
    folder.mkdir(parents=True)
    np.savez_compressed(folder / 'faiss_k_2.npz', data=table)
    index = data.neighbors(2).index
    assert index[:, 0].tolist() == list(range(12))
    assert index[:, 1].tolist() == [i ^ 1 for i in range(12)]


def test_similarities_in_place_of_distances(tmp_path):
    x, _, neighbors = make()
    data = FeatureFiles.write(tmp_path, 'set', x, neighbors=neighbors)
    table = np.stack([neighbors.index.numpy(),
                      neighbors.similarity.numpy()], axis=1)
    np.savez_compressed(tmp_path / 'knns' / 'set' / 'faiss_k_5.npz',
                        data=table)
    with pytest.raises(ValueError, match="pass values='similarity'"):
        data.neighbors(5)
    table = data.neighbors(5, values='similarity')
    assert torch.equal(table.index, neighbors.index)
    assert torch.allclose(table.similarity, neighbors.similarity, atol=1e-6)


def test_unusable_tables(tmp_path):
    x, _, neighbors = make()
    data = FeatureFiles.write(tmp_path, 'set', x, neighbors=neighbors)
    path = tmp_path / 'knns' / 'set' / 'faiss_k_5.npz'
    content = path.read_bytes()
    with pytest.raises(ValueError, match="'k' must be positive"):
        data.neighbors(0)

    put(path, content[:len(content) // 2])
    with pytest.raises(ValueError, match='faiss_k_5.npz.*truncated'):
        data.neighbors(5)

    ragged = np.empty(12, dtype=object)
    ragged[:] = [[[0], [0.]]] * 12
    np.savez_compressed(path, data=ragged)
    with pytest.raises(ValueError, match='no pickle is loaded'):
        data.neighbors(5)

    make(n=11)[2].save(path)
    with pytest.raises(ValueError, match='11 rows, but there are 12'):
        data.neighbors(5)

    make(k=4)[2].save(path)
    with pytest.raises(ValueError, match='holds 4 .*not the 5 of its name'):
        data.neighbors(5)


# Unusable files ##############################################################


def test_missing_features(tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        FeatureFiles(tmp_path, 'part1_test')
    for path in ('features/part1_test.bin', 'features/part1_test.npy',
                 'part1_test/features.bin', 'part1_test/features.npy',
                 'labels/part1_test.meta', 'knns/part1_test/faiss_k_80.npz'):
        assert str(tmp_path / path) in str(info.value)


def test_a_wrong_width(tmp_path):
    x, y, _ = make()
    FeatureFiles.write(tmp_path, 'set', x, y)
    with pytest.raises(ValueError, match='192 bytes.*1024 bytes.*dim=256'):
        FeatureFiles(tmp_path, 'set')
    # A multiple, by accident: the labels tell.
    with pytest.raises(ValueError, match='has 6 rows of dim=8, but .* has 12 '
                                         'labels; the sizes would agree at '
                                         'dim=4'):
        FeatureFiles(tmp_path, 'set', dim=8)


def test_another_number_of_labels(tmp_path):
    x, _, _ = make()
    FeatureFiles.write(tmp_path, 'set', x)
    put(tmp_path / 'labels' / 'set.meta', b'1\n' * 11)
    with pytest.raises(ValueError, match='12 rows .*set.meta.* 11 labels$'):
        FeatureFiles(tmp_path, 'set', dim=4)


def test_unusable_labels_and_features(tmp_path):
    x, _, _ = make()
    FeatureFiles.write(tmp_path, 'set', x)
    meta = put(tmp_path / 'labels' / 'set.meta', b'1\n' * 6 + b'x\n' * 6)
    with pytest.raises(ValueError, match="Line 7 of .*set.meta.*'x'"):
        FeatureFiles(tmp_path, 'set', dim=4)
    meta.unlink()
    np.save(tmp_path / 'labels' / 'set.npy', np.array([{}] * 12),
            allow_pickle=True)
    with pytest.raises(ValueError, match='no pickle'):
        FeatureFiles(tmp_path, 'set', dim=4)
    put(tmp_path / 'features' / 'set.bin')
    with pytest.raises(ValueError, match='set.bin.* is empty'):
        FeatureFiles(tmp_path, 'set', dim=4)


# Writing #####################################################################


@pytest.mark.parametrize('x,message', [
    (np.zeros((0, 4), 'f4'), 'no features'),
    (np.zeros((4, 0), 'f4'), r'shape \[N, D\]'),
    (np.zeros(4, 'f4'), r'shape \[N, D\] \(got \[4\]\)'),
    (np.zeros((4, 2), int), 'floating point.*int64'),
    (torch.zeros(4, 2, dtype=torch.long), 'floating point.*int64'),
    (np.array([[0., 1.], [1., np.nan]]), 'Row 1 '),
    (np.array([[0., 1.], [1e39, 0.]]), 'Row 1 .*float32'),
    (iter([]), 'no features'),
    (iter([np.ones(4)]), r'shape \[N, D\]'),
    (iter([np.ones((2, 4)), np.ones((2, 3))]), 'row 2 have dim=3.*dim=4'),
    (iter([np.ones((2, 4)), np.full((1, 4), np.inf)]), 'Row 2 '),
])
def test_unusable_features_leave_nothing(tmp_path, x, message):
    with pytest.raises(ValueError, match=message):
        FeatureFiles.write(tmp_path, 'set', x)
    assert files(tmp_path) == []


@pytest.mark.parametrize('split', [False, True])
def test_lengths_must_agree(tmp_path, split):
    x, y, neighbors = make()
    FeatureFiles.write(tmp_path, 'set', x, y, neighbors)

    def write(y, neighbors):
        blocks = iter([x[:5] + 1, x[5:] + 1]) if split else x + 1
        FeatureFiles.write(tmp_path, 'set', blocks, y, neighbors)

    with pytest.raises(ValueError, match='12 rows .* 11 labels'):
        write(y[:11], neighbors)
    with pytest.raises(ValueError, match='12 rows .*kNN table has 11'):
        write(y, make(n=11)[2])
    # What was there before is there still, and nothing else.
    assert len(files(tmp_path)) == 3
    assert np.array_equal(FeatureFiles(tmp_path, 'set', dim=4).x, x)


def test_an_interrupted_write_leaves_the_old_files(tmp_path):
    x, y, _ = make()
    FeatureFiles.write(tmp_path, 'set', x, y)

    def blocks():
        yield x + 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureFiles.write(tmp_path, 'set', blocks(), y)
    assert files(tmp_path) == ['features/set.bin', 'labels/set.meta']
    assert np.array_equal(FeatureFiles(tmp_path, 'set', dim=4).x, x)


@pytest.mark.parametrize('other', [
    'labels/set.meta', 'labels/set.npy', 'features/set.npy',
    'knns/set/hnsw_k_5.npz'])
def test_files_of_older_features_are_not_left_beside_new_ones(
        tmp_path, other):
    put(tmp_path / other)
    with pytest.raises(FileExistsError, match=f'{other}.*remove'):
        FeatureFiles.write(tmp_path, 'set', make()[0])
    assert files(tmp_path) == [other]


# Real data ###################################################################


@pytest.mark.parametrize('name,shape,num_classes', [
    ('facenet_lfw', (2921, 128), 353),
    ('omniglot416', (8320, 128), 416),
])
def test_real_features(name, shape, num_classes):
    if not osp.exists(osp.join(SHARED, name)):
        pytest.skip('The data is not there')
    data = FeatureFiles(SHARED, name, dim=128)
    assert data.x.shape == shape and np.isfinite(data.x).all()
    assert np.unique(data.y).size == num_classes
    assert data.neighbors() is None
    # At another width the sizes cannot agree, or the labels tell.
    with pytest.raises(ValueError, match='dim=256'):
        FeatureFiles(SHARED, name)
