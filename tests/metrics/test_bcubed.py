import numpy as np
import pytest

from torch_sdt.metrics import bcubed_scores


def brute_force(true, pred):
    n = len(true)
    precision = recall = 0
    for i in range(n):
        cluster = {j for j in range(n) if pred[j] == pred[i]}
        same = {j for j in range(n) if true[j] == true[i]}
        precision += len(cluster & same) / len(cluster) / n
        recall += len(cluster & same) / len(same) / n
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize('seed', range(30))
def test_bcubed_averages_over_samples(seed):
    rng = np.random.default_rng(seed)
    n, high = rng.integers(1, 25), rng.integers(1, 12, 2)
    true, pred = rng.integers(0, high[0], n), rng.integers(0, high[1], n)
    assert bcubed_scores(true, pred) == pytest.approx(
        brute_force(true, pred))


@pytest.mark.parametrize('seed', range(5))
def test_symmetry_renaming_and_order(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 9, 90), rng.integers(0, 12, 90)
    scores = bcubed_scores(true, pred)
    precision, recall, fscore = bcubed_scores(pred, true)
    assert (recall, precision, fscore) == pytest.approx(scores)
    names = rng.permutation(12) * 10**15
    assert bcubed_scores(true, names[pred]) == pytest.approx(scores)
    order = rng.permutation(90)
    assert bcubed_scores(true[order], pred[order]) == pytest.approx(scores)
    assert 0 < scores.precision < 1 and 0 < scores.recall < 1


def test_singletons():
    # Each predicted singleton is pure and finds 1 of its class.
    precision, recall, _ = bcubed_scores([0, 0, 0, 0, 1], [-1] * 5)
    assert precision == 1
    assert recall == pytest.approx((4 / 4 + 1) / 5)


def test_one_cluster_and_one_sample():
    precision, recall, _ = bcubed_scores([0, 0, 1, 1, 1], [3] * 5)
    assert recall == 1
    assert precision == pytest.approx((2 * 2 / 5 + 3 * 3 / 5) / 5)
    assert bcubed_scores([4], [-1]) == (1, 1, 1)


@pytest.mark.parametrize('seed', range(5))
def test_perfect_clustering_is_exactly_one(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 300, 3000)
    scores = bcubed_scores(labels, labels)
    assert scores == (1, 1, 1)
    assert all(type(score) is float for score in scores)
