import numpy as np
import pytest
import torch

from torch_sdt.cluster import split_identities
from torch_sdt.cluster._split import MIN_IDENTITIES, check_labels


def identities(num=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(num), rng.integers(1, 9, num)))


@pytest.mark.parametrize('share', [.01, .2, .5, .9])
@pytest.mark.parametrize('seed', [0, 1])
def test_identities_stay_whole(share, seed):
    y = identities()
    train, val = split_identities(y, share=share, seed=seed)
    assert train.dtype == val.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, val])),
                          np.arange(y.size))
    assert np.all(np.diff(train) > 0) and np.all(np.diff(val) > 0)
    assert not set(y[train]) & set(y[val])
    # As many as asked for, but one at least.
    num = np.unique(y[val]).size
    assert num == max(round(share * 20), 1)


def test_the_seed_chooses():
    y = identities()
    first, again, other = [split_identities(y, seed=seed)[1].tolist()
                           for seed in (0, 0, 1)]
    assert first == again != other
    # And nothing else: neither the global generator, nor the order of rows.
    np.random.seed(0)
    np.random.rand(3)
    assert split_identities(y)[1].tolist() == first
    order = np.random.default_rng(2).permutation(y.size)
    assert set(y[order][split_identities(y[order])[1]]) == set(y[first])


@pytest.mark.parametrize('convert', [
    lambda g: g, torch.from_numpy, list, lambda g: g * 100 - 7,
    lambda g: np.array(['family-%d' % i for i in g])],
    ids=['numpy', 'torch', 'list', 'numbers', 'names'])
def test_groups_stay_whole(convert):
    y = identities()
    group = y % 6
    train, val = split_identities(y, convert(group), .3)
    assert train.size + val.size == y.size
    assert not set(group[train]) & set(group[val])
    assert len(set(group[val])) == 2  # of 6
    # Related identities would else stand on both sides.
    train, val = split_identities(y, None, .3)
    assert set(group[train]) & set(group[val])


def test_as_few_identities_as_possible():
    y = np.arange(MIN_IDENTITIES).repeat(2)
    train, val = split_identities(y, share=.1)
    assert (train.size, val.size) == (2 * MIN_IDENTITIES - 2, 2)
    with pytest.raises(ValueError, match=f"at least {MIN_IDENTITIES} "
                                         f"identities.*got "
                                         f"{MIN_IDENTITIES - 1}"):
        split_identities(y[:-2])
    with pytest.raises(ValueError, match='got 1'):
        split_identities(np.zeros(50, dtype=np.int64))


def test_labels_with_gaps_are_as_many_identities_as_there_are():
    # Whatever numbers identities go by.
    y = identities()
    for other in (1000 * y, y - 50):
        for found, expected in zip(split_identities(other),
                                   split_identities(y)):
            assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match='got 2'):
        split_identities(np.array([100, 200] * 9))


def test_bad_groups():
    y = identities()
    with pytest.raises(ValueError, match='all identities into one group'):
        split_identities(y, np.zeros(y.size))
    group = y % 6
    row = int(np.flatnonzero(y == 13)[0])
    group[row] = 0
    with pytest.raises(ValueError, match='Identity 13 .* in two groups'):
        split_identities(y, group)
    with pytest.raises(ValueError, match=rf"'groups' must have shape "
                                         rf"\[{y.size}\]"):
        split_identities(y, group[1:])


def test_what_is_left_to_train_can_be_learned_from():
    y = np.arange(MIN_IDENTITIES).repeat(2)
    # One identity in a group, all others in the other, which is held out.
    seeds = []
    for seed in range(8):
        try:
            train, _ = split_identities(y, y > 0, .3, seed)
            assert len(set(y[train])) == MIN_IDENTITIES - 1
        except ValueError as e:
            assert 'one alone would be left to train' in str(e)
            seeds.append(seed)
    assert 0 < len(seeds) < 8
    with pytest.raises(ValueError, match='Of 8 identities in 8 groups one '):
        split_identities(y, share=.99)
    with pytest.raises(ValueError, match='has two samples'):
        split_identities(np.arange(100))


# Labels ######################################################################


@pytest.mark.parametrize('convert', [
    lambda y: y, torch.from_numpy, list, lambda y: y.astype(np.uint8),
    lambda y: y.astype(float), lambda y: 10 * y - 5,
    lambda y: np.array(['id-%02d' % i for i in y])],
    ids=['numpy', 'torch', 'list', 'uint8', 'float', 'numbers', 'names'])
def test_labels_of_any_kind(convert):
    y = identities()
    out = check_labels(convert(y), y.size)
    assert out.dtype == np.int64 and np.array_equal(out, y)


@pytest.mark.parametrize('y,message', [
    (None, r'call fit\(X, y\) .y is missing'),
    (np.arange(29), r"'y' must have shape \[30\].*got \[29\]"),
    (np.ones((30, 1)), r"'y' must have shape \[30\].*got \[30, 1\]"),
    (np.where(np.arange(30) == 17, np.nan, 1.),
     "Row 17 of 'y' has no label .got nan"),
    (np.where(np.arange(30) > 3, np.inf, 1.),
     "Row 4 of 'y' has no label .got inf"),
    (np.where(np.arange(30) > 5, None, 'a'),
     "Row 6 of 'y' has no label .got None"),
    (np.array(['a'] * 29 + [np.nan], dtype=object),
     "Row 29 of 'y' has no label .got nan"),
])
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y, 30)
