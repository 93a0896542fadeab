import os

import pytest
import torch

from torch_sdt import neighbors
from torch_sdt import resume as module
from torch_sdt.io import fingerprint
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features
from torch_sdt.ops.knn import KNNBlocks
from torch_sdt.ops.search import row_blocks


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(neighbors, '_KEPT', 64)
    monkeypatch.setattr(row_blocks, 'QUERIES', 16)


def unit(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize_features(torch.randn(700, 12, generator=generator))


def search(workdir, x=None, k=6, **kwargs):
    x = unit() if x is None else x
    return Neighbors.search(x, k, 'torch', workdir=workdir, **kwargs)


def equal(a, b):
    return torch.equal(a.index, b.index) and torch.equal(
        a.similarity, b.similarity)


@pytest.fixture
def asked(monkeypatch):
    # Which blocks were searched.
    asked, get = [], KNNBlocks.__getitem__

    def spy(self, block):
        asked.append(block)
        return get(self, block)

    monkeypatch.setattr(KNNBlocks, '__getitem__', spy)
    return asked


def files(workdir):
    folder, = os.listdir(workdir)
    folder = os.path.join(workdir, folder)
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]


def test_is_the_table_without(tmp_path, asked):
    expected = search(None)
    count = len(asked)
    assert count > 20 and equal(search(tmp_path), expected)
    built = Neighbors.build(unit(), 6, 'torch', workdir=tmp_path)
    assert equal(built, expected) and len(os.listdir(tmp_path)) == 1
    assert len(files(tmp_path)) == -(-count // 4)
    # A second time nothing is searched.
    del asked[:]
    assert equal(search(tmp_path), expected) and asked == []


def test_rows_that_learn():
    x = unit()
    for index in ('torch', 'cells', 'auto'):
        expected = Neighbors.search(x, 6, index)
        found = Neighbors.search(x.clone().requires_grad_(), 6, index)
        assert equal(found, expected) and not found.similarity.requires_grad


def test_goes_on_after_a_kill(tmp_path, asked, monkeypatch):
    expected = search(None)
    count = len(asked)
    del asked[:]
    get = KNNBlocks.__getitem__

    def killed(self, block):
        if block == 10:
            raise KeyboardInterrupt
        return get(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(KNNBlocks, '__getitem__', killed)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path)
    assert len(files(tmp_path)) == 2
    del asked[:]
    assert equal(search(tmp_path), expected)
    assert asked == list(range(8, count))


def test_parts_of_another_order_are_no_table(tmp_path, monkeypatch):
    # What is kept holds row 0 twice, and row 699 nowhere.
    get = KNNBlocks.__getitem__

    def other(self, block):
        rows, *found = get(self, block)
        return rows.masked_fill(rows == 699, 0), *found

    with monkeypatch.context() as patch:
        patch.setattr(KNNBlocks, '__getitem__', other)
        with pytest.raises(ValueError, match='another machine'):
            search(tmp_path)
    with pytest.raises(ValueError, match='delete the folder') as error:
        search(tmp_path)
    assert os.listdir(tmp_path)[0] in str(error.value)


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'flipped', 'other',
                                    'renamed'])
def test_damaged_files_are_made_again(tmp_path, asked, damage):
    expected = search(tmp_path)
    path, other = files(tmp_path)[1:3]
    with open(other if damage == 'other' else path, 'rb') as f:
        data = f.read()
    with open(path, 'wb') as f:
        f.write({'truncated': data[:-9], 'empty': b'', 'other': data,
                 'flipped': b'\xff' * 8 + data[8:],
                 'renamed': data.replace(b'blocks', b'bl0cks')}[damage])
    del asked[:]
    assert equal(search(tmp_path), expected)
    assert asked == [4, 5, 6, 7]


def test_others_have_folders_of_their_own(tmp_path):
    x = unit()
    moved = x.flip(0)
    for kwargs in (dict(), dict(x=moved), dict(k=7), dict(seed=1),
                   dict(recall=.5)):
        assert equal(search(tmp_path, **kwargs), search(None, **kwargs))
    assert len(os.listdir(tmp_path)) == 5
    assert fingerprint(x, 1) != fingerprint(x, 2) != fingerprint(moved, 2)


def test_a_full_disk_loses_no_finished_block(tmp_path, monkeypatch, asked):
    expected = search(None)
    save, count = module.save_tensors, []

    def full(path, *args):
        count.append(path)
        if len(count) == 3:
            raise OSError(28, 'No space left on device')
        save(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module, 'save_tensors', full)
        with pytest.raises(OSError, match='No space left'):
            search(tmp_path)
    assert len(files(tmp_path)) == 2
    del asked[:]
    assert equal(search(tmp_path), expected) and asked[0] == 8
