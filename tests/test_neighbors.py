import os
import warnings
import zipfile
from dataclasses import FrozenInstanceError
from importlib import import_module

import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, normalize_features


def features(n=40, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def table(n=40, k=7):
    return knn(features(n), k)


def equal(one, other):
    return (torch.equal(one.index, other.index) and
            torch.equal(one.similarity, other.similarity))


@withCUDA
def test_permute(device):
    x = features()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    permuted = knn(x, 7).to(device).permute(order.to(device))
    assert equal(permuted, knn(x[order], 7).to(device))
    assert equal(permuted.permute(order.argsort().to(device)),
                 knn(x, 7).to(device))


def test_neighbors():
    neighbors = table()
    assert str(neighbors) == 'Neighbors(num_nodes=40, k=7)'
    assert (neighbors.num_nodes, neighbors.k) == (40, 7)
    index, similarity = neighbors
    assert index is neighbors.index and similarity is neighbors.similarity
    with pytest.raises(FrozenInstanceError):
        neighbors.index = index


# Build ######################################################################


@withCUDA
def test_neighbors_build(device):
    x = features()
    out = Neighbors.build(x.to(device), 7)
    assert out.index.device == out.similarity.device == device
    assert equal(out.to('cpu'), knn(x, 7)) or device.type == 'cuda'
    out.validate(40)
    # Searched elsewhere, it comes back to where the features are.
    assert Neighbors.build(x, 7, device=device).index.device == x.device


def test_neighbors_build_width():
    assert Neighbors.build(features(100)).k == 80
    assert Neighbors.build(features(30)).k == 30
    assert Neighbors.build(features(100), k=3).k == 3


def test_neighbors_build_center():
    x = features()
    out = Neighbors.build(x + 50, 7, center=True)
    assert torch.equal(out.index, Neighbors.build(x - x.mean(dim=0), 7).index)


def test_neighbors_search():
    x = normalize_features(features())
    assert equal(Neighbors.search(x, 7), knn(features(), 7))


def test_neighbors_build_in_blocks(monkeypatch):
    expected = table()
    module = import_module('torch_sdt.ops.search.row_blocks')
    monkeypatch.setattr(module, 'QUERIES', 9)
    out = table()
    assert torch.equal(out.index, expected.index)
    assert torch.allclose(out.similarity, expected.similarity, atol=1e-6)


def test_neighbors_build_is_silent(capfd):
    # No bar unless asked for, and none where the output is no terminal.
    for verbose in [False, True]:
        Neighbors.build(features(), 7, verbose=verbose)
    assert capfd.readouterr() == ('', '')


def test_neighbors_build_errors():
    x = features()
    x[3] = 0
    with pytest.raises(ValueError, match='Row 3'):
        Neighbors.build(x, 7)
    with pytest.raises(ValueError, match="'k' must be between 1 and"):
        Neighbors.build(features(), 41)


# Validate ###################################################################


def changed(row, rank, index=None, similarity=None):
    out = table()
    if index is not None:
        out.index[row, rank] = index
    if similarity is not None:
        out.similarity[row, rank] = similarity
    return out


@withCUDA
def test_neighbors_validate(device):
    neighbors = table().to(device)
    assert neighbors.validate() is neighbors
    assert neighbors.validate(40) is neighbors
    # Equal similarities are in order.
    Neighbors(neighbors.index, torch.ones_like(neighbors.similarity)
              ).validate()
    assert knn(features(1), 1).validate().k == 1


@pytest.mark.parametrize('neighbors,match', [
    (changed(17, 3, index=40), r'Row 17 has a neighbour outside 0\.\.39'),
    (changed(17, 3, index=-1), r'Row 17 has a neighbour outside 0\.\.39'),
    (changed(17, 0, index=4), 'Row 17 does not start with its own sample'),
    (changed(17, 3, index=17), 'Row 17 lists a neighbour twice'),
    (changed(17, [2, 6], index=5), 'Row 17 lists a neighbour twice'),
    (changed(17, 6, similarity=float('nan')), 'Row 17 .* not finite'),
    (changed(17, 0, similarity=float('inf')), 'Row 17 .* not finite'),
    (changed(17, 6, similarity=.999), 'Row 17 is not in descending order'),
])
def test_neighbors_validate_rows(neighbors, match):
    with pytest.raises(ValueError, match=match):
        neighbors.validate()


def test_neighbors_validate_names_the_first_row():
    neighbors = changed(31, 0, index=3)
    neighbors.index[9, 0] = 0
    with pytest.raises(ValueError, match='Row 9 '):
        neighbors.validate()
    # Beyond one block of rows, too.
    n = 70_000
    index = torch.arange(n).view(-1, 1)
    index[69_999] = 0
    with pytest.raises(ValueError, match='Row 69999 '):
        Neighbors(index, torch.ones(n, 1)).validate()


def test_neighbors_validate_form():
    index, similarity = table()
    for bad in [(index[0], similarity[0]), (index, similarity[1:]),
                (index, similarity[:, 1:])]:
        with pytest.raises(ValueError, match=r'must both have shape \[N, K\]'):
            Neighbors(*bad).validate()
    with pytest.raises(ValueError, match="'index' must be int64"):
        Neighbors(index.int(), similarity).validate()
    with pytest.raises(ValueError, match="must be floating point"):
        Neighbors(index, similarity.long()).validate()
    with pytest.raises(ValueError, match='40 rows, but there are 39'):
        table().validate(39)
    for shape in [(0, 3), (3, 0)]:
        with pytest.raises(ValueError, match='The table is empty'):
            Neighbors(torch.empty(shape).long(), torch.empty(shape)
                      ).validate()


@withCUDA
def test_neighbors_to(device):
    there = table().to(device)
    assert there.index.device == there.similarity.device == device
    assert equal(there.to('cpu'), table())


def test_neighbors_truncate():
    neighbors = table()
    for k in [1, 3, 7]:
        assert torch.equal(neighbors.truncate(k).validate().index,
                           knn(features(), k).index)
    for k in [0, 8, -1]:
        with pytest.raises(ValueError, match="table's width 7"):
            neighbors.truncate(k)


# Graph ######################################################################


@withCUDA
def test_neighbors_to_edge_index(device):
    neighbors = table().to(device)
    edge_index, weight = neighbors.to_edge_index()
    assert edge_index.shape == (2, 40 * 6) and weight.shape == (40 * 6, )
    assert edge_index.device == weight.device == device
    source, target = edge_index
    # Sorted by target, by rank within: the rows, laid end to end.
    assert bool((target[1:] >= target[:-1]).all())
    assert torch.equal(source.view(40, 6), neighbors.index[:, 1:])
    assert torch.equal(weight.view(40, 6), neighbors.similarity[:, 1:])
    assert bool((source != target).all())
    # And back, in whatever order the edges come.
    perm = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    for order in [torch.arange(240), perm]:
        order = order.to(device)
        again = Neighbors.from_edge_index(edge_index[:, order], weight[order])
        assert equal(again, neighbors)


def test_neighbors_to_edge_index_weight_and_mask():
    neighbors = table()
    weight = torch.rand(40, 7, requires_grad=True)
    mask = torch.rand(40, 7, generator=torch.Generator().manual_seed(0)) < .3
    edge_index, value = neighbors.to_edge_index(weight, mask)
    mask[:, 0] = False
    row, rank = mask.nonzero(as_tuple=True)
    assert torch.equal(edge_index[0], neighbors.index[row, rank])
    assert torch.equal(edge_index[1], row)
    assert torch.equal(value, weight[mask])
    value.sum().backward()
    assert torch.equal(weight.grad, mask.float())
    # All, or none.
    out = neighbors.to_edge_index(weight, torch.ones_like(mask))
    for one, other in zip(out, neighbors.to_edge_index(weight)):
        assert torch.equal(one, other)
    edge_index, value = neighbors.to_edge_index(mask=torch.zeros_like(mask))
    assert edge_index.shape == (2, 0) and value.shape == (0, )
    assert neighbors.truncate(1).to_edge_index()[0].shape == (2, 0)


def test_neighbors_to_edge_index_errors():
    for name in ['weight', 'mask']:
        with pytest.raises(ValueError, match=f"'{name}' must have the table"):
            table().to_edge_index(**{name: torch.ones(40, 6).bool()})


def test_neighbors_from_edge_index():
    # Ties by id; self-loops are not needed and do no harm.
    edge_index = torch.tensor([[2, 1, 0, 0, 2, 1, 0], [0, 0, 1, 0, 1, 2, 2]])
    similarity = torch.tensor([.5, .5, .2, 1., .7, 0., .1])
    out = Neighbors.from_edge_index(edge_index, similarity)
    assert out.index.tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert torch.allclose(out.similarity, torch.tensor(
        [[1, .5, .5], [1, .7, .2], [1, .1, 0]]))
    out = Neighbors.from_edge_index(torch.empty(2, 0).long(),
                                    torch.empty(0), num_nodes=3)
    assert out.index.tolist() == [[0], [1], [2]]


def test_neighbors_from_edge_index_errors():
    edge_index, similarity = table().to_edge_index()
    keep = torch.arange(240) != 6 * 29
    with pytest.raises(ValueError, match='but node 29 has another number'):
        Neighbors.from_edge_index(edge_index[:, keep], similarity[keep])
    with pytest.raises(ValueError, match='node 40 has another number'):
        Neighbors.from_edge_index(edge_index, similarity, num_nodes=41)
    with pytest.raises(ValueError, match='same number of incoming edges'):
        Neighbors.from_edge_index(edge_index[:, 1:], similarity[1:])
    with pytest.raises(ValueError, match='Row 0 lists a neighbour twice'):
        Neighbors.from_edge_index(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]),
                                  torch.ones(4))


# Files ######################################################################


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'knn.npz'


def pair(neighbors, dtype=np.float64):
    r"""Ids and distances as files hold them."""
    distance = 1 - neighbors.similarity.double().numpy()
    return neighbors.index.numpy().astype(dtype), distance


@withCUDA
def test_neighbors_save(path, device):
    neighbors = table()
    neighbors.to(device).save(path)
    # Not one bit is lost.
    assert equal(Neighbors.load(path), neighbors)
    assert equal(Neighbors.load(str(path), num_nodes=40), neighbors)
    # The published layout.
    with np.load(path) as file:
        assert file.files == ['data']
        data = file['data']
    assert data.shape == (40, 2, 7) and data.dtype == np.float64
    assert np.array_equal(data[:, 0], neighbors.index)
    assert np.allclose(data[:, 1], 1 - neighbors.similarity.numpy())
    with zipfile.ZipFile(path) as file:
        assert file.infolist()[0].compress_type == zipfile.ZIP_DEFLATED


@pytest.mark.parametrize('dtype', [np.int32, np.int64, np.uint32, np.float32,
                                   np.float64])
def test_neighbors_load_layouts(path, dtype):
    neighbors = table()
    ids, distance = pair(neighbors, dtype)
    for keys in [('knns', 'dists'), ('idx', 'dist')]:
        for value in [distance, distance.astype(np.float32)]:
            np.savez(path, **dict(zip(keys, (ids, value))), other=np.ones(3))
            out = Neighbors.load(path)
            assert torch.equal(out.index, neighbors.index)
            assert torch.allclose(out.similarity, neighbors.similarity,
                                  atol=1e-6)
    np.savez(path, data=np.stack([ids.astype(np.float64), distance], axis=1))
    assert equal(Neighbors.load(path), neighbors)


def test_neighbors_load_similarity(path):
    neighbors = table()
    ids, distance = pair(neighbors)
    np.savez(path, knns=ids, dists=1 - distance)
    assert equal(Neighbors.load(path, values='similarity'), neighbors)
    # The one cannot pass for the other.
    with pytest.raises(ValueError, match="pass values='similarity'"):
        Neighbors.load(path)
    np.savez(path, knns=ids, dists=distance)
    with pytest.raises(ValueError, match="pass values='distance'"):
        Neighbors.load(path, values='similarity')
    with pytest.raises(ValueError, match="'values' must be"):
        Neighbors.load(path, values='cosine')


def test_neighbors_load_self_anywhere(path):
    # Exact duplicates: any of them may come first.
    ids = np.array([[1, 0, 2], [0, 1, 2], [2, 3, 1], [2, 3, 0]])
    distance = np.array([[0, 0, .5]] * 2 + [[0, 0, .7]] * 2)
    np.savez(path, data=np.stack([ids, distance], axis=1))
    out = Neighbors.load(path)
    assert out.index.tolist() == [[0, 1, 2], [1, 0, 2], [2, 3, 1], [3, 2, 0]]
    assert torch.allclose(out.similarity, torch.tensor(
        [[1, 1, .5]] * 2 + [[1, 1, .3]] * 2))


def test_neighbors_load_without_self(path):
    # The last neighbour makes room.
    neighbors = table()
    ids, distance = pair(neighbors)
    np.savez(path, knns=ids[:, 1:], dists=distance[:, 1:])
    out = Neighbors.load(path)
    assert out.k == 6
    assert equal(out, neighbors.truncate(6))
    # In some rows only.
    ids[::3, :-1], distance[::3, :-1] = ids[::3, 1:], distance[::3, 1:]
    np.savez(path, knns=ids[:, :-1], dists=distance[:, :-1])
    assert equal(Neighbors.load(path), neighbors.truncate(6))


def test_neighbors_load_rounding(path):
    # Distances a little below 0, as float32 products give them.
    ids, distance = pair(table())
    distance[:, 0] = -2e-7
    distance[:, 1] -= 1e-9
    np.savez(path, knns=ids, dists=distance)
    out = Neighbors.load(path)
    assert bool((out.similarity <= 1).all())
    assert bool((out.similarity[:, 0] == 1).all())


@pytest.mark.parametrize('bad,match', [
    (-1, r'Row 23 of .* has a neighbour outside 0\.\.39'),
    (40, r'Row 23 of .* has a neighbour outside 0\.\.39'),
    (2.5, 'Row 23 of .* no whole number'),
    (float('nan'), 'Row 23 of .* no whole number'),
    (float('inf'), r'Row 23 of .* has a neighbour outside'),
    (1e300, r'Row 23 of .* has a neighbour outside'),
])
def test_neighbors_load_bad_ids(path, bad, match):
    ids, distance = pair(table())
    ids[[23, 31], 4] = bad
    np.savez(path, data=np.stack([ids, distance], axis=1))
    with pytest.raises(ValueError, match=match):
        Neighbors.load(path)


def test_neighbors_load_bad_values(path):
    for bad in [float('nan'), float('inf')]:
        ids, distance = pair(table())
        distance[23, 4] = bad
        np.savez(path, knns=ids, dists=distance)
        with pytest.raises(ValueError, match='Row 23 of .* not finite'):
            Neighbors.load(path)
    # Euclidean distances are not cosine distances.
    ids, distance = pair(table())
    np.savez(path, knns=ids, dists=distance * 5)
    with pytest.raises(ValueError, match='cannot be a cosine distance'):
        Neighbors.load(path)
    ids, distance = pair(table())
    ids[23, 4] = ids[23, 5]
    np.savez(path, knns=ids, dists=distance)
    with pytest.raises(ValueError, match='Row 23 lists a neighbour twice'):
        Neighbors.load(path)


def test_neighbors_load_another_size(path):
    table().save(path)
    with pytest.raises(ValueError, match='has 40 rows, but there are 41'):
        Neighbors.load(path, num_nodes=41)


@pytest.mark.parametrize('arrays,match', [
    ({'x': np.ones((3, 2, 2))}, r"keys \['x'\], not 'data'"),
    ({'knns': np.ones((3, 2))}, "not 'data'"),
    ({'data': np.ones((3, 4))}, r'must have shape \[N, 2, K\] .got \[3, 4\]'),
    ({'data': np.ones((3, 3, 4))}, r'must have shape \[N, 2, K\]'),
    ({'data': np.ones((0, 2, 4))}, 'does not hold a kNN table'),
    ({'data': np.ones((4, 2, 0))}, 'does not hold a kNN table'),
    ({'data': np.full((3, 2, 2), 'a')}, 'no array of numbers'),
    ({'knns': np.ones((3, 2)), 'dists': np.ones((3, 3))},
     'does not hold a kNN table'),
    ({'knns': np.ones(3), 'dists': np.ones(3)}, 'does not hold a kNN table'),
])
def test_neighbors_load_another_layout(path, arrays, match):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=match):
        Neighbors.load(path)


class Trap:
    r"""Unpickling it leaves a trace."""
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


def test_neighbors_load_refuses_pickles(path, tmp_path):
    ragged = np.empty(2, dtype=object)
    ragged[:] = [Trap(tmp_path / 'trace'), [1, 2, 3]]
    for arrays in [{'data': ragged}, {'knns': ragged, 'dists': ragged}]:
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=r'pickled \(ragged\) table'):
            Neighbors.load(path)
    assert not (tmp_path / 'trace').exists()
    # The trap works.
    np.load(path, allow_pickle=True)['dists']
    assert (tmp_path / 'trace').exists()


@pytest.mark.parametrize('keep', [0, 1, 100, .5, .99])
def test_neighbors_load_truncated(path, keep):
    table().save(path)
    content = path.read_bytes()
    size = int(keep * len(content)) if keep < 1 else keep
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match='is truncated or no .npz file'):
        Neighbors.load(path)


def test_neighbors_load_damaged(path):
    # Wherever the damage is, it is named, or there was none to the table.
    neighbors = table()
    neighbors.save(path)
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 41):
        damaged = bytearray(content)
        damaged[at:at + 8] = b'\xa5' * len(damaged[at:at + 8])
        path.write_bytes(damaged)
        try:
            assert equal(Neighbors.load(path), neighbors)
        except ValueError:
            refused += 1
    assert refused > .9 * len(content) / 41
    # The front is gone; the directory at the end is there.
    path.write_bytes(content[len(content) // 2:])
    with pytest.raises(ValueError, match='truncated or damaged'):
        Neighbors.load(path)


def test_neighbors_load_junk(path):
    for content in [b'', b'junk', b'PK\x03\x04junk', bytes(1000)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match='truncated or no .npz file'):
            Neighbors.load(path)
    np.save(path.with_suffix('.npy'), np.ones((3, 2, 2)))
    with pytest.raises(ValueError, match='no .npz file'):
        Neighbors.load(path.with_suffix('.npy'))
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('data', 'no array')
    with pytest.raises(ValueError, match="'data' in .* is no array"):
        Neighbors.load(path)
    with pytest.raises(FileNotFoundError, match='There is no file'):
        Neighbors.load(path.with_name('absent.npz'))


def test_neighbors_save_is_atomic(path, tmp_path, monkeypatch):
    neighbors = table()
    neighbors.save(path)
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(np, 'savez_compressed', interrupted)
    for target in [path, tmp_path / 'new.npz']:
        with pytest.raises(KeyboardInterrupt):
            neighbors.save(target)
    # What was there is untouched, and nothing else is left.
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['knn.npz']


def test_reranked_keeps_rank_0_in_front():
    index = torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
    index = torch.cat([index, torch.tensor([[2, 3, 0, 1], [3, 2, 1, 0]])])
    neighbors = Neighbors(index, torch.tensor([1., .9, .5, .1]).repeat(4, 1))
    other = torch.tensor([[.2, .3, .8, .3], [.2, 5., .1, .4],
                          [.2, .1, .1, .1], [.2, -1., -2., -.5]])
    out = neighbors.reranked(other)
    assert out.index.tolist() == [[0, 2, 1, 3], [1, 0, 2, 3], [2, 3, 0, 1],
                                  [3, 0, 2, 1]]
    assert out.similarity[:, 0].tolist() == [1.] * 4
    assert torch.equal(out.similarity[0, 1:], torch.tensor([.8, .3, .3]))
    # Nothing is changed in place.
    assert float(other[0, 0]) == float(torch.tensor(.2))
    assert torch.equal(neighbors.index, index)


def test_from_edge_index_of_cosines_beyond_one_by_rounding():
    x = torch.nn.functional.normalize(features(20))[torch.arange(40) // 2]
    neighbors = knn(x, 3)
    edge_index, cosine = neighbors.to_edge_index()
    cosine = cosine.view(40, 2)
    cosine[:, 0] = 1 + 2e-7
    out = Neighbors.from_edge_index(edge_index, cosine.view(-1))
    assert torch.equal(out.index, neighbors.index)
    assert float(out.similarity.max()) == 1
    with pytest.raises(ValueError, match='descending order'):
        Neighbors.from_edge_index(edge_index, 2 * cosine.view(-1))


def test_from_edge_index_of_bad_shapes():
    edge_index, cosine = table().to_edge_index()
    for bad in [cosine[:-1], cosine.view(-1, 1), cosine[:1]]:
        with pytest.raises(ValueError, match=r"must have shape \[240\]"):
            Neighbors.from_edge_index(edge_index, bad)
    with pytest.raises(ValueError, match='There are no nodes'):
        Neighbors.from_edge_index(edge_index[:, :0], cosine[:0], 0)


def test_reranked_wants_a_number_for_each_entry():
    neighbors = table()
    for bad in [neighbors.similarity[:, 1:], neighbors.index]:
        with pytest.raises(ValueError, match=r'floating point of shape \[40'):
            neighbors.reranked(bad)


@withCUDA
def test_table_of_other_features(device):
    generator = torch.Generator().manual_seed(0)
    x = normalize_features(torch.randn(300, 6, generator=generator)).to(device)
    table = Neighbors.search(x, 9)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for other in (x, x.half(), x.cpu()):
            table.check_features(other)
        Neighbors.search(x[:1], 1).check_features(x[:1])
    with pytest.warns(UserWarning, match='not the cosines of these features'):
        table.check_features(x.flip(0))
