import os

import pytest

from torch_sdt.io import atomic_path


def write(path, text):
    with open(path, 'w') as f:
        f.write(text)


@pytest.mark.parametrize('as_path', [str, lambda path: path])
def test_atomic_path(tmp_path, as_path):
    path = tmp_path / 'out.txt'
    for text in ['first', 'second']:
        before = path.read_text() if path.exists() else None
        with atomic_path(as_path(path)) as tmp:
            # Beside it, so that renaming stays within one file system.
            assert os.path.dirname(tmp) == str(tmp_path)
            assert tmp != str(path)
            write(tmp, text)
            # Whoever reads meanwhile sees what was there before.
            now = path.read_text() if path.exists() else None
            assert now == before
        assert path.read_text() == text
        assert os.listdir(tmp_path) == ['out.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('there', [False, True])
def test_atomic_path_interrupted(tmp_path, error, there):
    path = tmp_path / 'out.txt'
    if there:
        write(path, 'before')
    with pytest.raises(error):
        with atomic_path(path) as tmp:
            write(tmp, 'half')
            raise error()
    assert os.listdir(tmp_path) == (['out.txt'] if there else [])
    assert not there or path.read_text() == 'before'


def test_atomic_path_without_a_file(tmp_path):
    # Nothing was written: that is an error, and the old file stays.
    path = tmp_path / 'out.txt'
    write(path, 'before')
    with pytest.raises(FileNotFoundError):
        with atomic_path(path):
            pass
    assert path.read_text() == 'before'
    # An interruption before the first byte keeps its own name.
    with pytest.raises(ZeroDivisionError):
        with atomic_path(path):
            raise ZeroDivisionError
    with pytest.raises(FileNotFoundError):
        with atomic_path(tmp_path / 'absent' / 'out.txt') as tmp:
            write(tmp, 'text')
