import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from torch_sdt.metrics import nmi_score

AVERAGES = ['arithmetic', 'geometric', 'min', 'max']


@pytest.mark.parametrize('average_method', AVERAGES)
@pytest.mark.parametrize('seed', range(10))
def test_nmi_agrees_with_sklearn(seed, average_method):
    rng = np.random.default_rng(seed)
    n, high = rng.integers(2, 500), rng.integers(1, 40, 2)
    true = rng.integers(0, high[0], n)
    pred = np.where(rng.random(n) < .5, true, rng.integers(0, high[1], n))
    assert nmi_score(true, pred, average_method) == pytest.approx(
        normalized_mutual_info_score(true, pred,
                                     average_method=average_method))


@pytest.mark.parametrize('true,pred', [
    ([0, 0, 0], [1, 1, 1]),
    ([0, 0, 0], [0, 1, 2]),
    ([0, 1, 2], [0, 0, 0]),
    ([0, 1, 2], [2, 0, 1]),
    ([0], [5]),
    ([0, 0, 1, 1], [0, 1, 0, 1]),
])
@pytest.mark.parametrize('average_method', AVERAGES)
def test_nmi_of_degenerate_labels(true, pred, average_method):
    score = nmi_score(true, pred, average_method)
    assert score == pytest.approx(normalized_mutual_info_score(
        true, pred, average_method=average_method))
    assert type(score) is float


def test_the_averages_differ():
    true, pred = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]
    scores = [nmi_score(true, pred, name)
              for name in ('max', 'arithmetic', 'geometric', 'min')]
    assert scores == sorted(scores) and len(set(scores)) == 4


@pytest.mark.parametrize('seed', range(5))
def test_symmetry_renaming_and_order(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 9, 90), rng.integers(0, 12, 90)
    score = nmi_score(true, pred)
    assert nmi_score(pred, true) == pytest.approx(score)
    names = rng.permutation(12) * 10**15
    assert nmi_score(true, names[pred]) == pytest.approx(score)
    order = rng.permutation(90)
    assert nmi_score(true[order], pred[order]) == pytest.approx(score)
    assert 0 < score < 1


@pytest.mark.parametrize('seed', range(5))
def test_perfect_clustering_is_one_at_most(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 300, 3000)
    score = nmi_score(labels, rng.permutation(300)[labels])
    assert score == pytest.approx(1, abs=1e-12) and score <= 1


def test_unassigned_are_singletons():
    true = [0, 0, 1, 1]
    assert nmi_score(true, [-1, -1, 3, 3]) == pytest.approx(
        nmi_score(true, [0, 1, 3, 3]))
    assert nmi_score(true, [-1, -1, 3, 3]) < 1


def test_unknown_average():
    with pytest.raises(ValueError, match="'average_method' must be one of "
                                         ".*'arithmetic'.*got 'mean'"):
        nmi_score([0, 1], [0, 1], average_method='mean')


@pytest.mark.parametrize('average_method', AVERAGES)
def test_nmi_of_the_same_partition_is_one(average_method):
    for seed in range(50):
        y = np.random.default_rng(seed).integers(0, 9, 40)
        assert nmi_score(y, y[::-1].max() - y, average_method) == 1
