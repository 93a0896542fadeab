import pytest
import torch

from torch_sdt.loader import NeighborPairs
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features


def setup(n=30, k=5):
    generator = torch.Generator().manual_seed(0)
    x = normalize_features(torch.randn(n, 4, generator=generator))
    y = torch.randint(5, (n, ), generator=generator)
    pairs = torch.randint(n, (2, 17), generator=generator)
    return Neighbors.search(x, k), x, pairs, y


def test_batches():
    neighbors, x, pairs, y = setup()
    loader = NeighborPairs(neighbors, x, pairs, 5, y)
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert torch.equal(torch.cat([b.node for b in batches]), pairs[0])
    assert torch.equal(torch.cat([b.other for b in batches]), pairs[1])
    for batch in batches:
        both = torch.stack([batch.node, batch.other], dim=1)
        assert torch.equal(batch.index, neighbors.index[both])
        assert torch.equal(batch.x, x[batch.index])
        assert torch.equal(batch.same, y[batch.node] == y[batch.other])
    assert next(iter(NeighborPairs(neighbors, x, pairs))).same is None
    assert '17' in repr(loader)


def test_shuffled():
    neighbors, x, pairs, _ = setup()
    loader = NeighborPairs(neighbors, x, pairs, 17, shuffle=True)
    loader.set_epoch(1)
    first, again = next(iter(loader)), next(iter(loader))
    loader.set_epoch(2)
    second = next(iter(loader))
    assert torch.equal(first.node, again.node)
    assert not torch.equal(first.node, second.node)
    assert sorted(zip(first.node.tolist(), first.other.tolist())) == sorted(
        zip(*pairs.tolist()))


@pytest.mark.parametrize('spoil,message', [
    (dict(pairs=torch.zeros(3, 2, dtype=torch.long)), "'pairs' must be int64"),
    (dict(pairs=torch.zeros(2, 3)), "'pairs' must be int64"),
    (dict(pairs=torch.tensor([[0], [30]])), r'in 0..29 \(got 30'),
    (dict(x=torch.ones(3, 4)), "'x'"),
    (dict(y=torch.ones(3)), "'y'"),
    (dict(batch_size=0), "'batch_size'"),
])
def test_bad_input(spoil, message):
    neighbors, x, pairs, y = setup()
    args = dict(neighbors=neighbors, x=x, pairs=pairs, y=y)
    with pytest.raises(ValueError, match=message):
        NeighborPairs(**{**args, **spoil})


def test_features_in_half_precision_are_loaded_in_single():
    neighbors, x = setup()[:2]
    batch = next(iter(NeighborPairs(neighbors, x.half(),
                                    torch.tensor([[0], [1]]))))
    assert batch.x.dtype == torch.float32
