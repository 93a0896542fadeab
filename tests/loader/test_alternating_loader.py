import numpy as np
import pytest
import torch

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.loader import (
    AlternatingLoader,
    BatchLoader,
    NeighborSubgraphs,
    RandomViews,
)
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features


class Numbers(BatchLoader):
    # Its batches are its items, and the epoch they were asked for in.

    def __init__(self, nodes, batch_size=2, **kwargs):
        super().__init__(torch.tensor(nodes), batch_size, **kwargs)
        self.x = self.nodes[:, None].float()

    def gather(self, nodes):
        return nodes.tolist(), self.epoch


def items(loader, epoch):
    loader.set_epoch(epoch)
    return [batch for batch, _ in loader]


def test_batches_in_turn():
    loader = AlternatingLoader(Numbers(list(range(8))),
                               Numbers(list(range(100, 106))))
    assert len(loader) == 4
    assert torch.equal(loader.nodes, torch.arange(8))
    assert torch.equal(loader.x[:, 0], torch.arange(8.))
    assert items(loader, 1) == [[0, 1], [100, 101], [2, 3], [102, 103]]


def test_the_second_begins_anew_whenever_it_is_over():
    loader = AlternatingLoader(Numbers(list(range(14))),
                               Numbers([100, 101, 102]))
    loader.set_epoch(2)
    found = list(loader)
    assert [batch for batch, _ in found[1::2]] == [[100, 101], [102],
                                                   [100, 101]]
    epochs = [epoch for _, epoch in found[1::2]]
    assert epochs[0] == epochs[1] and epochs[2] == epochs[0] + 1
    # Views of another epoch are others.
    loader.set_epoch(3)
    assert {epoch for _, epoch in list(loader)[1::2]}.isdisjoint(epochs)


@pytest.mark.parametrize('num', [1, 2, 3, 5, 6])
def test_half_of_all_batches(num):
    # Also where an epoch has one batch only.
    loader = AlternatingLoader(Numbers(list(range(num)), 1),
                               Numbers([100, 101], 1))
    found = [items(loader, epoch) for epoch in range(1, 5)]
    assert [len(batches) for batches in found] == [num] * 4
    views = sum(batch[0] >= 100 for batches in found for batch in batches)
    assert views == 2 * num


def test_an_epoch_depends_on_its_number_alone():
    first, second = (
        AlternatingLoader(Numbers(list(range(20)), shuffle=True, seed=3),
                          Numbers(list(range(100, 110)), shuffle=True))
        for _ in range(2))
    found = [items(first, epoch) for epoch in (1, 2, 3)]
    assert found[0] != found[1] != found[2]
    assert items(second, 3) == found[2]
    assert items(second, 3) == found[2]


def test_every_process_has_its_share():
    def loader(**kwargs):
        return AlternatingLoader(Numbers(list(range(16))),
                                 Numbers(list(range(100, 116)), **kwargs))

    parts = []
    for rank in range(2):
        part = loader()
        part.rank, part.world_size = rank, 2  # as Trainer does
        assert len(part) == 4
        parts.append(items(part, 2))
    assert [len(part) for part in parts] == [4, 4]
    found = [number for part in parts for batch in part for number in batch]
    assert len(set(found)) == len(found) == 16


def test_views_of_the_samples_themselves():
    pytest.importorskip('numba')
    data = SyntheticFaces('ms1m', num_identities=20, seed=0, dim=32,
                          images_per_identity=(4, 12))
    x, y = normalize_features(data.x), torch.from_numpy(data.y)
    loader = AlternatingLoader(
        NeighborSubgraphs(Neighbors.search(x, 6), x, 16, y=y, shuffle=True),
        RandomViews(x, y, 6, 60, batch_size=16))
    loader.set_epoch(1)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(x) // 16)
    start = len(loader)  # of the first epoch
    dims = np.array([batch.x.size(-1) for batch in batches])
    assert (dims[start % 2::2] == 32).all()
    assert all(batch.same.shape == batch.index.shape for batch in batches)


def test_an_empty_second_loader_is_refused():
    with pytest.raises(ValueError, match="'second' must have a batch"):
        AlternatingLoader(Numbers([1, 2]), Numbers([]))
