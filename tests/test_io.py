import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from torch_sdt.io import atomic_path, load_tensors, save_tensors


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


# Tensors #####################################################################


def tensors():
    return {
        'a': torch.arange(12).view(3, 4), 'b.c': torch.rand(2, 3).t(),
        'half': torch.rand(5).bfloat16(), 'scalar': torch.tensor(7.5),
        'bool': torch.tensor([True, False]), 'none': torch.empty(0, 3),
        'grad': torch.rand(2, requires_grad=True),
        'special': torch.tensor([torch.inf, -torch.inf, torch.nan]),
    }


META = {'name': 'ünder', 'rows': [{'epoch': 1, 'loss': .1}], 'nothing': None,
        'third': 1 / 3, 'best': float('-inf')}


@pytest.mark.parametrize('as_path', [str, lambda path: path])
def test_tensors_come_back(tmp_path, as_path):
    path = tmp_path / 'out.safetensors'
    written = tensors()
    for _ in range(2):
        save_tensors(as_path(path), written, META)
        assert os.listdir(tmp_path) == ['out.safetensors']
        out, meta = load_tensors(as_path(path))
        assert meta == META and out.keys() == written.keys()
        for name, value in written.items():
            assert out[name].dtype == value.dtype
            assert out[name].shape == value.shape
            assert not out[name].requires_grad
            assert torch.equal(out[name].nan_to_num(7.),
                               value.nan_to_num(7.))
    save_tensors(path, {}, {})
    assert load_tensors(path) == ({}, {})


def test_numbers_of_numpy_are_numbers(tmp_path):
    save_tensors(tmp_path / 'out', {}, {
        'k': np.int64(8), 'lr': np.float32(.5), 'on': np.bool_(True),
        'all': [np.float64(1 / 3)]})
    assert load_tensors(tmp_path / 'out')[1] == {
        'k': 8, 'lr': .5, 'on': True, 'all': [1 / 3]}


def test_same_tensors_same_bytes(tmp_path):
    written = tensors()
    for name in ('one', 'two'):
        save_tensors(tmp_path / name, written, META)
    assert (tmp_path / 'one').read_bytes() == (tmp_path / 'two').read_bytes()


def test_tensors_of_any_safetensors_reader(tmp_path):
    # No format of our own: the description is JSON in the header.
    save_tensors(tmp_path / 'out', {'a': torch.ones(2)}, META)
    assert load_file(tmp_path / 'out')['a'].tolist() == [1., 1.]
    data = (tmp_path / 'out').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    meta = json.loads(header['__metadata__']['torch_sdt'])
    assert len(meta.pop('fingerprint')) == 16 and meta == META


@pytest.mark.parametrize('meta', [{'a': torch.ones(1)}, {'a': {1, 2}}])
def test_a_description_that_is_no_json(tmp_path, meta):
    path = tmp_path / 'out.safetensors'
    save_tensors(path, {'a': torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(TypeError, match='JSON'):
        save_tensors(path, {'a': torch.zeros(2)}, meta)
    assert os.listdir(tmp_path) == ['out.safetensors']
    assert path.read_bytes() == before


def test_writing_tensors_is_interrupted(tmp_path, monkeypatch):
    path = tmp_path / 'out.safetensors'
    save_tensors(path, {'a': torch.ones(2)}, {})
    before = path.read_bytes()

    def half(tensors, name, metadata):
        with open(name, 'wb') as f:
            f.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr('safetensors.torch.save_file', half)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {'a': torch.zeros(2)}, {})
    assert os.listdir(tmp_path) == ['out.safetensors']
    assert path.read_bytes() == before


@pytest.mark.parametrize('keep', [0, 4, 8, 20, .5, -1])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / 'out.safetensors'
    save_tensors(path, tensors(), META)
    data = path.read_bytes()
    data = data[:int(keep * len(data)) if isinstance(keep, float) else keep]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="out.safetensors' is truncated"):
        load_tensors(path)
    assert path.read_bytes() == data


def test_a_flipped_bit_anywhere(tmp_path):
    # safetensors itself sees the header's structure only.
    path = tmp_path / 'out.safetensors'
    save_tensors(path, {'a': torch.arange(9.), 'b': torch.ones(2, 3)}, META)
    data = path.read_bytes()
    load_tensors(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) +
                         data[at + 1:])
        with pytest.raises(ValueError, match="out.safetensors'"):
            load_tensors(path)


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / 'out.safetensors'
    for write_other in (
            lambda: torch.save({'a': torch.ones(2)}, path),
            lambda: path.write_bytes(pickle.dumps({'a': 1})),
            lambda: path.write_bytes(b'\xff' * 100),
            lambda: np.save(open(path, 'wb'), np.ones(9)),
            lambda: path.write_text('{"a": 1}' * 20)):
        write_other()
        with pytest.raises(ValueError, match='no safetensors file'):
            load_tensors(path)
    # Safetensors, but not ours.
    for meta in (None, {}, {'format': 'pt'}):
        save_file({'a': torch.ones(2)}, path, meta)
        with pytest.raises(ValueError, match='not written by torch_sdt'):
            load_tensors(path)
    # Ours, it says, but what it says is no JSON, or of other tensors.
    for text in ('{"a": ', '{"fingerprint": "0123456789abcdef"}'):
        save_file({'a': torch.ones(2)}, path, {'torch_sdt': text})
        with pytest.raises(ValueError, match='damaged'):
            load_tensors(path)


def test_no_tensors_there(tmp_path):
    for path in (tmp_path / 'absent', tmp_path):
        with pytest.raises(FileNotFoundError, match='There is no file'):
            load_tensors(path)
    # What safetensors says is no error of the operating system.
    with pytest.raises(OSError, match="absent/out' cannot be written"):
        save_tensors(tmp_path / 'absent' / 'out', {}, {})
