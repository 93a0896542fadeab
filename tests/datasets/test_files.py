import io
import pickle

import numpy as np
import pytest
import torch

from torch_sdt.datasets import read_features, read_labels, write_labels


class Trap:
    # Unpickling it would fail the test.
    def __reduce__(self):
        return pytest.fail, ('A pickle was loaded',)


def write(path, content):
    path.write_bytes(content)
    return path


# Features ####################################################################


def test_read_bin_is_a_read_only_map(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype('<f4')
    path = write(tmp_path / 'x.bin', x.tobytes())
    out = read_features(path, dim=3)
    assert isinstance(out, np.memmap) and not out.flags.writeable
    assert out.dtype == np.float32 and np.array_equal(out, x)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_read_npy_as_it_is(tmp_path, dtype, order):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype, order)
    np.save(tmp_path / 'x.npy', x)
    out = read_features(str(tmp_path / 'x.npy'))
    assert isinstance(out, np.memmap) and not out.flags.writeable
    assert out.dtype == x.dtype and np.array_equal(out, x)


def test_bin_needs_its_width(tmp_path):
    path = write(tmp_path / 'x.bin', bytes(24))
    with pytest.raises(ValueError, match="no header.*'dim'"):
        read_features(path)
    with pytest.raises(ValueError, match=r"no header.*got 0"):
        read_features(path, dim=0)
    with pytest.raises(ValueError, match="24 bytes.*no multiple of the 16 "
                                         "bytes.*dim=4.*pass"):
        read_features(path, dim=4)


def test_unusable_features(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.bin'):
        read_features(tmp_path / 'absent.bin', dim=4)
    with pytest.raises(ValueError, match="must end in .bin or .npy"):
        read_features(write(tmp_path / 'x.csv', b'1,2'), dim=2)
    with pytest.raises(ValueError, match='is empty'):
        read_features(write(tmp_path / 'x.bin', b''), dim=4)
    for array in (np.zeros((4, 2), int), np.zeros(4, 'f4'),
                  np.zeros((4, 2), '>f4'), np.zeros((4, 2, 1), 'f4')):
        np.save(tmp_path / 'x.npy', array)
        with pytest.raises(ValueError, match=r'floating point of shape '
                                             r'\[N, D\], but.*x.npy'):
            read_features(tmp_path / 'x.npy')
    np.save(tmp_path / 'x.npy', np.zeros((0, 2), 'f4'))
    with pytest.raises(ValueError, match=r'is empty.*\[0, 2\]'):
        read_features(tmp_path / 'x.npy')


@pytest.mark.parametrize('read', [read_features, read_labels])
def test_truncated_and_pickled_npy(tmp_path, read):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((40, 2), 'f4'))
    archive = io.BytesIO()
    np.savez(archive, data=np.zeros((4, 2), 'f4'))
    objects = io.BytesIO()
    np.save(objects, np.array([Trap()], dtype=object), allow_pickle=True)
    for content in (buffer.getvalue()[:-1], buffer.getvalue()[:60], b'',
                    archive.getvalue(), objects.getvalue(),
                    pickle.dumps(Trap())):
        path = write(tmp_path / 'x.npy', content)
        with pytest.raises(ValueError, match='x.npy.*truncated.*no pickle'):
            read(path)


# Labels ######################################################################


@pytest.mark.parametrize('suffix', ['.meta', '.txt'])
@pytest.mark.parametrize('make', [
    list, np.array, torch.tensor, lambda y: np.array(y, dtype=np.uint64)])
def test_labels_round_trip(tmp_path, suffix, make):
    y = [5, 0, 0, 2**62, 3]
    path = tmp_path / f'y{suffix}'
    write_labels(path, make(y))
    assert path.read_bytes() == b'5\n0\n0\n%d\n3\n' % 2**62
    out = read_labels(path)
    assert out.dtype == np.int64 and out.tolist() == y
    assert list(tmp_path.iterdir()) == [path]


def test_labels_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr('torch_sdt.datasets.files._LINES', 4)
    y = np.random.default_rng(0).integers(-9, 9, 10)
    write_labels(tmp_path / 'y.meta', y)
    assert np.array_equal(read_labels(tmp_path / 'y.meta'), y)
    write_labels(tmp_path / 'y.meta', y[:8])
    assert np.array_equal(read_labels(tmp_path / 'y.meta'), y[:8])


@pytest.mark.parametrize('content', [b'1\n-2\n3\n', b'1\n-2\n3',
                                     b'1\r\n-2\r\n3\r\n', b' 1 \n-2\n3\n'])
def test_line_ends(tmp_path, content):
    assert read_labels(write(tmp_path / 'y.meta', content)).tolist() == [
        1, -2, 3]


@pytest.mark.parametrize('line', [b'1.0', b'', b'anna', b'1 2', b'nan', b'1_0',
                                  b'9223372036854775808', b'\xff'])
def test_a_line_that_is_no_integer(tmp_path, line):
    path = write(tmp_path / 'y.meta', b'4\n5\n' + line + b'\n6\n')
    with pytest.raises(ValueError, match="Line 3 of '.*y.meta' is no int"):
        read_labels(path)


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'int64', '>i4'])
def test_read_npy_labels(tmp_path, dtype):
    np.save(tmp_path / 'y.npy', np.array([3, 1, 2], dtype=dtype))
    out = read_labels(tmp_path / 'y.npy')
    assert out.dtype == np.int64 and out.tolist() == [3, 1, 2]
    assert out.flags.writeable and not isinstance(out, np.memmap)


def test_unusable_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.meta'):
        read_labels(tmp_path / 'absent.meta')
    with pytest.raises(ValueError, match="must end in .meta or .txt or .npy"):
        read_labels(write(tmp_path / 'y.csv', b'1'))
    with pytest.raises(ValueError, match='is empty'):
        read_labels(write(tmp_path / 'y.meta', b''))
    for array in (np.zeros(3), np.zeros((3, 1), int), np.zeros(3, bool),
                  np.array(['1', '2'])):
        np.save(tmp_path / 'y.npy', array)
        with pytest.raises(ValueError, match=r'integers of shape \[N\], but'):
            read_labels(tmp_path / 'y.npy')
    np.save(tmp_path / 'y.npy', np.zeros(0, int))
    with pytest.raises(ValueError, match='is empty'):
        read_labels(tmp_path / 'y.npy')
    np.save(tmp_path / 'y.npy', np.array([0, 2**63], dtype=np.uint64))
    with pytest.raises(ValueError, match='of row 1 .*exceeds int64'):
        read_labels(tmp_path / 'y.npy')


@pytest.mark.parametrize('labels,message', [
    ([], r'shape \[N\]'),
    ([[1], [2]], r'shape \[N\]'),
    ([1., 2.], 'integers.*float64'),
    (torch.zeros(2, dtype=torch.bfloat16), 'integers.*bfloat16'),
    (['1', '2'], 'integers'),
])
def test_labels_that_cannot_be_written(tmp_path, labels, message):
    path = write(tmp_path / 'y.meta', b'1\n')
    with pytest.raises(ValueError, match=message):
        write_labels(path, labels)
    assert path.read_bytes() == b'1\n'


def test_labels_are_not_written_to_other_files(tmp_path):
    with pytest.raises(ValueError, match="must end in .meta or .txt"):
        write_labels(tmp_path / 'y.npy', [1])


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / 'y.meta', b'1\n')

    def interrupt(tmp, labels):
        with open(tmp, 'w') as f:
            f.write('2\n')
        raise KeyboardInterrupt

    monkeypatch.setattr('torch_sdt.datasets.files.write_lines', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_labels(path, [2, 3])
    assert path.read_bytes() == b'1\n'
    assert list(tmp_path.iterdir()) == [path]
