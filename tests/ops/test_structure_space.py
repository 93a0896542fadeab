import sys
from fractions import Fraction

import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, normalize_features, structure_space


@pytest.fixture(params=['numba', 'scipy'])
def path(request, monkeypatch):
    if request.param == 'numba':
        pytest.importorskip('numba')
    else:
        monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    return request.param


def table(n=40, k=7, seed=0, duplicates=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    if duplicates:
        x[n // 2:2 * (n // 2)] = x[:n // 2]
    return knn(normalize_features(x), k)


def mutual(rows, k):
    return [{j for j in row[:k] if i in rows[j][:k]}
            for i, row in enumerate(rows)]


def definition(neighbors, weight=.7, half=None, overlap=Fraction(2, 3)):
    r"""The similarity of each pair of the table, from plain sets."""
    rows = neighbors.index.tolist()
    half = neighbors.k // 2 if half is None else half
    sets, near = mutual(rows, neighbors.k), mutual(rows, half)
    large = [set(s) for s in sets]
    for i, trusted in enumerate(sets):
        for j in trusted:
            if len(near[j] & trusted) >= overlap * len(near[j]):
                large[i] |= near[j]
    out = {}
    for i, row in enumerate(rows):
        for j, cosine in zip(row, neighbors.similarity[i].tolist()):
            jaccard = Fraction(len(large[i] & large[j]),
                               len(large[i] | large[j]))
            out[i, j] = weight * float(jaccard) + (1 - weight) * cosine
    return out


def as_dict(neighbors):
    return {(i, j): s for i, (row, values) in enumerate(
        zip(neighbors.index.tolist(), neighbors.similarity.tolist()))
        for j, s in zip(row, values)}


def by_hand(rows):
    index = torch.tensor(rows)
    similarity = 1 - torch.arange(index.size(1)) / 10
    return Neighbors(index, similarity.expand(index.shape).contiguous())


@withCUDA
@pytest.mark.parametrize('duplicates', [False, True])
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (40, 1), (40, 3), (40, 7),
                                 (40, 12), (12, 12)])
def test_structure_space(n, k, duplicates, path, device):
    neighbors = table(n, k, duplicates=duplicates)
    expected = definition(neighbors)
    out = structure_space(Neighbors(neighbors.index.to(device),
                                    neighbors.similarity.to(device)))
    assert out.index.device == device and out.similarity.device == device
    assert out.similarity.dtype == torch.float32
    # The same neighbours, in descending order, oneself first.
    out.validate(n)
    assert as_dict(out) == pytest.approx(expected, abs=1e-6)
    assert bool((out.similarity[:, 0] == 1).all())


@pytest.mark.parametrize('weight', [0., .3, 1.])
@pytest.mark.parametrize('half,expansion', [(0, 0.), (0, .1), (4, .5),
                                            (6, .75), (8, 1.)])
@pytest.mark.parametrize('overlap', [0., .5, 1.])
def test_arguments(weight, half, expansion, overlap, path):
    neighbors = table(40, 8)
    out = structure_space(neighbors, weight, expansion, overlap)
    assert as_dict(out) == pytest.approx(
        definition(neighbors, weight, half, overlap), abs=1e-6)


def test_the_parts_make_a_difference():
    neighbors = table(60, 12)
    base = as_dict(structure_space(neighbors))
    for other in ({'weight': .3}, {'expansion': 0.}, {'expansion': 1.},
                  {'overlap': 0.}, {'overlap': 1.}):
        assert as_dict(structure_space(neighbors, **other)) != base


def test_weight_0_leaves_the_table_as_it_is(path):
    neighbors = table()
    out = structure_space(neighbors, weight=0.)
    assert torch.equal(out.index, neighbors.index)
    assert torch.equal(out.similarity, neighbors.similarity)


def test_weight_1_is_set_overlap_alone(path):
    neighbors = table()
    out = structure_space(neighbors, weight=1.)
    # Cosines decide among equals only, in whose order they stay.
    other = Neighbors(neighbors.index, neighbors.similarity / 2)
    assert torch.equal(structure_space(other, weight=1.).index, out.index)
    assert float(out.similarity.min()) >= 0
    assert float(out.similarity.max()) == 1


def test_symmetric(path):
    neighbors = table(60, 9, duplicates=True)
    value = as_dict(structure_space(neighbors))
    both = [(i, j) for i, j in value if i < j and (j, i) in value]
    assert len(both) > 60
    assert all(value[i, j] == pytest.approx(value[j, i], abs=1e-6)
               for i, j in both)


def test_names_do_not_matter(path):
    neighbors = table(duplicates=True)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    renamed = Neighbors(place[neighbors.index][order],
                        neighbors.similarity[order])
    out, other = structure_space(neighbors), structure_space(renamed)
    assert torch.equal(place[out.index][order], other.index)
    assert torch.equal(out.similarity[order], other.similarity)


def test_whoever_is_not_listed_in_return_is_passed_by(path):
    # Two trios, and 6, who lists nobody that lists it; 0 lists 3, which does
    # not list 0.
    neighbors = by_hand([[0, 3, 1, 2], [1, 0, 2, 6], [2, 0, 1, 6],
                         [3, 4, 5, 1], [4, 3, 5, 6], [5, 3, 4, 2],
                         [6, 0, 3, 5]])
    out = structure_space(neighbors, weight=1., expansion=0.)
    # 1 and 2 trust whom 0 trusts, 3 none of them.
    assert out.index[0].tolist() == [0, 1, 2, 3]
    assert out.similarity[0].tolist() == [1., 1., 1., 0.]
    assert out.similarity[6].tolist() == [1., 0., 0., 0.]


def test_what_most_agree_on_is_added(path):
    # Row 0 overlooks 3, and 3 row 0; 1 and 2 have all of them near.
    rows = [[0, 1, 2, 4], [1, 2, 3, 0], [2, 1, 3, 0], [3, 1, 2, 5],
            [4, 5, 0, 1], [5, 4, 3, 1]]
    neighbors = by_hand(rows)
    before = as_dict(structure_space(neighbors, 1., expansion=0.))
    # R: {0, 1, 2, 4}, {0, 1, 2, 3}, {0, 1, 2, 3}, {1, 2, 3, 5}.
    assert before[0, 1] == pytest.approx(3 / 5)
    # In three ranks R' of 1 and of 2 is {1, 2, 3}, two thirds of it in R of
    # 0; that of 0 is {0}, and of 3 {3, 1, 2}. So R* of 0 is {0, 1, 2, 3, 4}.
    after = as_dict(structure_space(neighbors, 1., expansion=.75))
    assert after[0, 1] == pytest.approx(4 / 5)
    # Which are not enough where all are asked for.
    strict = as_dict(structure_space(neighbors, 1., .75, overlap=.7))
    assert strict[0, 1] == pytest.approx(3 / 5)


def test_it_finds_identities_where_cosines_are_noisy():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 15
    x = torch.randn(15, 32, generator=generator)[y]
    x = normalize_features(x + torch.randn(300, 32, generator=generator))
    neighbors = knn(x, 30)

    def precision(neighbors):
        return float((y[neighbors.index[:, 1:15]] == y.view(-1, 1))
                     .float().mean())

    assert .5 < precision(neighbors) < .9
    jaccard = precision(structure_space(neighbors))
    assert jaccard > precision(neighbors) + .05
    assert jaccard > precision(structure_space(neighbors, expansion=0.))


def test_in_blocks(monkeypatch):
    # More rows than one block of the path without numba.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    # The function hides its module.
    module = sys.modules['torch_sdt.ops.structure_space']
    monkeypatch.setattr(module, '_ROWS', 7)
    neighbors = table()
    assert as_dict(structure_space(neighbors)) == pytest.approx(
        definition(neighbors), abs=1e-6)


@pytest.mark.parametrize('num_threads', [1, 3])
def test_threads(num_threads):
    # Each thread takes its marks back after each row.
    pytest.importorskip('numba')
    neighbors = table()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        out = structure_space(neighbors)
    finally:
        torch.set_num_threads(before)
    assert as_dict(out) == pytest.approx(definition(neighbors), abs=1e-6)


def test_awkward_tables(path):
    neighbors = table()
    index, similarity = neighbors.index.clone(), neighbors.similarity.clone()
    # A view of a wider table, and cosines below 0 and in other precisions.
    narrow = structure_space(neighbors.truncate(4))
    assert as_dict(narrow) == pytest.approx(
        definition(neighbors.truncate(4)), abs=1e-6)
    below = Neighbors(index, similarity - 2.)
    assert as_dict(structure_space(below)) == pytest.approx({
        pair: 1. if pair[0] == pair[1] else value
        for pair, value in definition(below).items()}, abs=1e-6)
    double = structure_space(Neighbors(index, similarity.double()))
    assert double.similarity.dtype == torch.float32
    assert torch.equal(neighbors.index, index)
    assert torch.equal(neighbors.similarity, similarity)


@pytest.mark.parametrize('name', ['weight', 'expansion', 'overlap'])
@pytest.mark.parametrize('value', [-.1, 1.1, float('nan')])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"'{name}'"):
        structure_space(table(), **{name: value})
