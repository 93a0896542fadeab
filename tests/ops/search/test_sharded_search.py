import pytest
import torch
from torch_geometric.testing import onlyCUDA

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, normalize_features
from torch_sdt.ops.search import (
    CellSearch,
    ExactSearch,
    ShardedSearch,
    cell_search,
    row_blocks,
)


def features(n=500, dim=8):
    generator = torch.Generator().manual_seed(0)
    return normalize_features(torch.randn(n, dim, generator=generator))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, 'QUERIES', 64)
    monkeypatch.setattr(cell_search, '_BYTES', 2**14)


@pytest.mark.parametrize('count', [1, 2, 3])
@pytest.mark.parametrize('build', [ExactSearch,
                                   lambda x: CellSearch(x, 5, .9, 0)])
def test_as_on_one_device(build, count):
    search = build(features())
    sharded = ShardedSearch(search, ['cpu'] * count)
    assert len(sharded) == len(search) > 3
    assert sharded.exact == search.exact
    # In order, and in any other.
    for block in [*range(len(search)), 3, 0, len(search) - 1, 1]:
        for k in (5, 2):
            for one, other in zip(sharded(block, k), search(block, k)):
                assert torch.equal(one, other)
        assert torch.equal(sharded.rows(block), search.rows(block))


@pytest.mark.parametrize('index', ['auto', 'flat', 'torch', 'cells'])
def test_knn_on_several_devices(index, tmp_path):
    x = features()
    expected = knn(x, 5, 'torch' if index != 'cells' else index)
    for out in (knn(x, 5, index, device=['cpu', 'cpu']),
                Neighbors.search(x, 5, index, ['cpu', torch.device('cpu')],
                                 workdir=tmp_path)):
        assert torch.equal(out.index, expected.index)
        assert torch.equal(out.similarity, expected.similarity)


def test_every_device_searches():
    asked = []

    class Spy(ExactSearch):

        def __call__(self, block, k):
            asked.append((self.name, block))
            return super().__call__(block, k)

    sharded = ShardedSearch(Spy(features()), ['cpu'] * 2)
    for name, replica in enumerate(sharded.replicas):
        replica.name = name
    for block in range(len(sharded)):
        sharded(block, 5)
    # Each block once, by turns.
    assert sorted(asked, key=lambda one: one[1]) == [
        (block % 2, block) for block in range(len(sharded))]


def test_a_fault_is_told():
    class Broken(ExactSearch):

        def __call__(self, block, k):
            if block == 2:
                raise RuntimeError('the second device fell over')
            return super().__call__(block, k)

    sharded = ShardedSearch(Broken(features()), ['cpu'] * 2)
    sharded(0, 5)
    sharded(1, 5)
    with pytest.raises(RuntimeError, match='fell over'):
        sharded(2, 5)


def test_errors():
    with pytest.raises(ValueError, match="at least one device"):
        knn(features(), 5, device=[])
    for index in ('HNSW8', 'torch_cluster'):
        with pytest.raises(ValueError, match=f"in torch only.*'{index}'"):
            knn(features(), 5, index, device=['cpu', 'cpu'])


@onlyCUDA
def test_two_kinds_of_device():
    x = features()
    out = knn(x, 5, 'torch', device=['cuda', 'cpu'])
    assert torch.equal(out.index, knn(x, 5, 'torch').index)
    assert out.index.device == x.device
