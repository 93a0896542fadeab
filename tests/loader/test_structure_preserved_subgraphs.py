import pytest
import torch
from torch.nn.functional import normalize

from torch_sdt.loader.structure_preserved_subgraphs import (
    StructurePreservedSubgraphs,
)
from torch_sdt.ops import knn

K, D, COUNT = 5, 8, 12
# Of 4 to 15 samples each, named by numbers that are not consecutive.
SIZES = torch.arange(4, 4 + COUNT)


def world():
    generator = torch.Generator().manual_seed(0)
    identity = torch.arange(COUNT).repeat_interleave(SIZES)
    center = torch.randn(COUNT, D, generator=generator)[identity]
    noise = torch.randn(identity.numel(), D, generator=generator)
    # Mixed up, and a feature apart to tell samples by.
    order = torch.randperm(identity.numel(), generator=generator)
    x = normalize(center + .8 * noise, dim=1)[order]
    return x, identity[order] * 7 + 3


def loader(**kwargs):
    return StructurePreservedSubgraphs(*world(), K, **{
        'batch_size': 16, **kwargs})


def rows_of(sample):
    # Which samples of the world a sample consists of.
    x, _ = world()
    return (sample.x @ x.t()).argmax(dim=1)


def epochs(sample, num=8):
    for epoch in range(num):
        sample.set_epoch(epoch)
        yield sample


def test_a_share_of_the_samples_of_some_near_identities():
    x, y = world()
    names = y.unique()
    centers = normalize(torch.stack([x[y == name].mean(dim=0)
                                     for name in names]), dim=1)
    near = (centers @ centers.t()).topk(5)[1]
    near = [set(names[row].tolist()) for row in near]
    seen = set()
    for sample in epochs(loader(num_nearest=5, num_identities=3, share=.7)):
        rows = rows_of(sample)
        assert torch.equal(sample.x, x[rows])
        assert torch.equal(sample.y, y[rows])
        assert rows.unique().numel() == rows.numel()
        drawn = set(sample.y.tolist())
        assert len(drawn) == 3
        assert any(drawn <= around for around in near)
        for name in drawn:
            size = int((y == name).sum())
            # 70 %, rounded up: in integers, without a rounding error.
            assert int((sample.y == name).sum()) == -(-7 * size // 10)
        seen.add(tuple(rows.sort()[0].tolist()))
    # Which identities, and which of their samples, differs.
    assert len(seen) == 8


def test_neighbors_are_searched_within_the_sample():
    for sample in epochs(loader(), 3):
        expected = knn(sample.x, K)
        assert torch.equal(sample.neighbors.index, expected.index)
        sample.neighbors.validate(sample.x.size(0))


def test_pairs_are_of_neighbors_and_none_twice():
    for sample in epochs(loader(num_pairs=40), 4):
        node, other = sample.pairs
        assert node.numel() == 40 and len(sample) == 3
        assert bool((node != other).all())
        index = sample.neighbors.index
        assert bool((index[node] == other.view(-1, 1)).any(dim=1).all())
        assert torch.stack([node, other]).unique(dim=1).size(1) == 40
        for batch in sample:
            assert torch.equal(batch.same,
                               sample.y[batch.node] == sample.y[batch.other])
            assert batch.x.shape == (batch.node.numel(), 2, K, D)


def test_all_of_it():
    x, y = world()
    sample = loader(num_nearest=COUNT, num_identities=COUNT, share=1.,
                    num_pairs=10**6)
    assert torch.equal(sample.x, x) and torch.equal(sample.y, y)
    # Every pair, once.
    expected = sample.neighbors.to_edge_index()[0].flip(0)
    order = (sample.pairs[0] * x.size(0) + sample.pairs[1]).argsort()
    other = (expected[0] * x.size(0) + expected[1]).argsort()
    assert torch.equal(sample.pairs[:, order], expected[:, other])


def test_structure_is_preserved():
    # Drawn around a centre, identities are nearer to each other than a draw
    # from all would have them.
    def nearness(sample):
        total = 0.
        for s in epochs(sample, 20):
            centers = normalize(torch.stack([
                s.x[s.y == name].mean(dim=0) for name in s.y.unique()]), dim=1)
            total += float((centers @ centers.t()).mean())
        return total / 20

    assert nearness(loader(num_nearest=3, num_identities=3)) > nearness(
        loader(num_nearest=COUNT, num_identities=3)) + .05


def test_the_sample_depends_on_seed_and_epoch_alone():
    first, second, other = loader(), loader(), loader(seed=1)
    first.set_epoch(5)
    for epoch in (3, 5):
        second.set_epoch(epoch)
    other.set_epoch(5)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.pairs, second.pairs)
    assert [b.node.tolist() for b in first] == [b.node.tolist()
                                                for b in second]
    assert rows_of(first).tolist() != rows_of(other).tolist()


def test_processes_share_one_sample():
    halves = [loader(num_pairs=50), loader(num_pairs=50)]
    seen = []
    for rank, half in enumerate(halves):
        half.rank, half.world_size = rank, 2
        half.set_epoch(2)
        seen += [(int(i), int(j)) for b in half
                 for i, j in zip(b.node, b.other)]
    assert torch.equal(halves[0].x, halves[1].x)
    assert len(seen) == 50 and len(set(seen)) == 50


def test_large_samples_lose_identities():
    x, y = world()
    for sample in epochs(loader(max_nodes=30, share=1.)):
        sizes = sample.y.unique(return_counts=True)
        assert sample.x.size(0) <= 30
        # Whole ones, never a part.
        for name, size in zip(*sizes):
            assert int(size) == int((y == name).sum())
    # One is left even if it does not fit.
    for sample in epochs(loader(max_nodes=1), 3):
        assert sample.y.unique().numel() == 1 and sample.x.size(0) >= 4


def test_defaults_are_the_published_where_there_are_enough():
    assert loader().num_nearest == 6 and loader().num_identities == 6
    x = torch.randn(3200, 4, generator=torch.Generator().manual_seed(0))
    sample = StructurePreservedSubgraphs(normalize(x, dim=1),
                                         torch.arange(3200), 3)
    assert sample.num_nearest == 1500 and sample.num_identities == 1300
    # One image each, of which 90 % are one.
    assert sample.x.size(0) == 1300 and sample.share == .9
    assert sample.max_nodes == 100_000


def test_fewer_samples_than_neighbors():
    x, y = world()
    few = torch.cat([(y == name).nonzero()[:1] for name in y.unique()[:4]])
    few = few.view(-1)
    sample = StructurePreservedSubgraphs(x[few], y[few], 9)
    assert sample.neighbors.k == 2 and sample.pairs.size(1) == 2
    # One sample alone has no neighbour.
    alone = StructurePreservedSubgraphs(x[:1], y[:1], 9)
    assert list(alone) == []


@pytest.mark.parametrize('name,value', [
    ('num_nearest', 0), ('num_nearest', COUNT + 1), ('num_identities', 0),
    ('num_identities', 7), ('share', 0.), ('share', 1.1), ('max_nodes', 0),
    ('num_pairs', 0), ('batch_size', 0)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"'{name}'"):
        loader(**{name: value})


def test_bad_shapes():
    x, y = world()
    with pytest.raises(ValueError, match=r"\[N, D\] and \[N\]"):
        StructurePreservedSubgraphs(x, y[1:], K)
    with pytest.raises(ValueError, match="'k' must be at least 2"):
        StructurePreservedSubgraphs(x, y, 1)
