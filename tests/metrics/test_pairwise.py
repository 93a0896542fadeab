from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics.cluster import pair_confusion_matrix

from torch_sdt.metrics import pairwise_scores


def brute_force(true, pred):
    pairs = list(permutations(range(len(true)), 2))
    same_true = [true[i] == true[j] for i, j in pairs]
    same_pred = [pred[i] == pred[j] for i, j in pairs]
    both = sum(t and p for t, p in zip(same_true, same_pred))
    precision = both / sum(same_pred) if any(same_pred) else 0
    recall = both / sum(same_true) if any(same_true) else 0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0


@pytest.mark.parametrize('seed', range(30))
def test_pairwise_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    n, high = rng.integers(2, 25), rng.integers(1, 12, 2)
    true, pred = rng.integers(0, high[0], n), rng.integers(0, high[1], n)
    assert pairwise_scores(true, pred) == pytest.approx(
        brute_force(true, pred))


@pytest.mark.parametrize('seed', range(5))
def test_pairwise_agrees_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 60, 2000), rng.integers(0, 80, 2000)
    (_, false_pred), (missed, both) = pair_confusion_matrix(true, pred)
    precision, recall, fscore = pairwise_scores(true, pred)
    assert precision == pytest.approx(both / (both + false_pred))
    assert recall == pytest.approx(both / (both + missed))
    assert fscore == pytest.approx(
        2 * both / (2 * both + false_pred + missed))


@pytest.mark.parametrize('seed', range(5))
def test_symmetry_renaming_and_order(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 9, 90), rng.integers(0, 12, 90)
    scores = pairwise_scores(true, pred)
    precision, recall, fscore = pairwise_scores(pred, true)
    assert (recall, precision, fscore) == scores
    names = rng.permutation(12) * 10**15  # Also leaves the counted range.
    assert pairwise_scores(true, names[pred]) == scores
    order = rng.permutation(90)
    assert pairwise_scores(true[order], pred[order]) == scores
    assert 0 < scores.precision < 1 and 0 < scores.recall < 1


def test_singletons_add_no_pairs():
    true, pred = [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]
    scores = pairwise_scores(true, pred)
    assert pairwise_scores(true + [7, 8], pred + [-1, -1]) == scores


def test_zero_instead_of_nan():
    assert pairwise_scores([0, 0, 0], [-1, -1, -1]) == (0, 0, 0)
    assert pairwise_scores([0, 1, 2], [0, 0, 0]) == (0, 0, 0)
    assert pairwise_scores([0, 1, 2], [0, 1, 2]) == (0, 0, 0)
    assert pairwise_scores([4], [9]) == (0, 0, 0)
    assert pairwise_scores([0, 0, 1, 1], [0, 1, 0, 1]) == (0, 0, 0)


def test_one_cluster_has_full_recall():
    precision, recall, _ = pairwise_scores([0, 0, 1, 1, 1], [3] * 5)
    assert recall == 1 and precision == pytest.approx((2 + 6) / 20)


def test_perfect_clustering():
    scores = pairwise_scores([5, 5, 2, 9, 2], [1, 1, 0, -1, 0])
    assert scores == (1, 1, 1)
    assert all(type(score) is float for score in scores)


def test_large_clusters_do_not_overflow():
    # 70,000^2 exceeds int32, which the narrow labels must not carry over.
    zeros = np.zeros(70_000, dtype=np.int8)
    assert pairwise_scores(zeros, zeros) == (1, 1, 1)
