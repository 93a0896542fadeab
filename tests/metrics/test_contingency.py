from collections import Counter

import numpy as np
import pytest
import torch

from torch_sdt.metrics import (
    bcubed_scores,
    clustering_scores,
    nmi_score,
    pairwise_scores,
)
from torch_sdt.metrics.contingency import Contingency

METRICS = [pairwise_scores, bcubed_scores, nmi_score, clustering_scores]


@pytest.mark.parametrize('dtype', [
    np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64,
])
@pytest.mark.parametrize('seed', range(5))
def test_contingency_counts_every_pair(dtype, seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 100, 60).astype(dtype)  # Counted: a modest range.
    pred = rng.integers(0, 8, 60).astype(dtype)
    table = Contingency.from_labels(true, pred)

    expected = Counter(zip(true.tolist(), pred.tolist()))
    true_values, pred_values = np.unique(true), np.unique(pred)
    found = {
        (int(true_values[r]), int(pred_values[c])): int(n)
        for r, c, n in zip(table.true_index, table.pred_index, table.count)
    }
    assert found == expected
    assert table.true_size.tolist() == [
        int((true == value).sum()) for value in true_values]
    assert table.pred_size.tolist() == [
        int((pred == value).sum()) for value in pred_values]
    assert table.num_samples == 60


@pytest.mark.parametrize('low,high', [
    (-128, 127), (-2**63, 2**63 - 1), (-2**63, -2**63 + 3),
    (2**63 - 4, 2**63 - 1), (-3, 3),
])
def test_any_integer_range(low, high):
    # Differences that overflow, and ranges at either end of the type.
    labels = np.array([low, high, low, high, low], dtype=np.int64)
    pred = np.array([4, 4, 4, 0, 0])
    assert clustering_scores(labels, pred) == clustering_scores(
        [0, 1, 0, 1, 0], pred)


def test_narrow_types_do_not_wrap():
    values = np.arange(-128, 128, dtype=np.int8)
    true = np.concatenate([values, values])
    table = Contingency.from_labels(true, np.zeros(512, dtype=np.int8))
    assert table.true_size.tolist() == [2] * 256
    high = np.array([2**64 - 1, 2**64 - 2, 2**64 - 1], dtype=np.uint64)
    assert Contingency.from_labels(high, [0, 0, 0]).true_size.tolist() == [
        1, 2]


def test_inputs_of_every_kind_agree():
    true, pred = [3, 3, 1, 1, 2], [7, 7, 7, -1, -1]
    expected = clustering_scores(true, pred)
    for kind in (tuple, np.array, torch.tensor,
                 lambda labels: torch.tensor(labels, dtype=torch.int32),
                 lambda labels: np.array(labels)[::-1][::-1]):
        assert clustering_scores(kind(true), kind(pred)) == expected
    names = {1: 'anna', 2: 'bo', 3: 'cleo'}
    assert clustering_scores([names[i] for i in true], pred) == expected
    assert clustering_scores(np.array([names[i] for i in true]),
                             pred) == expected


def test_inputs_are_not_changed():
    true, pred = np.array([5, 5, 2]), np.array([-1, 0, -1])
    clustering_scores(true, pred)
    assert true.tolist() == [5, 5, 2] and pred.tolist() == [-1, 0, -1]


@pytest.mark.parametrize('seed', range(5))
def test_unassigned_are_singletons(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 5, 40), rng.integers(-1, 4, 40)
    singletons = pred.copy()
    unassigned = pred == -1
    singletons[unassigned] = 1000 + np.arange(unassigned.sum())
    assert unassigned.sum() > 1
    for metric in (pairwise_scores, bcubed_scores, nmi_score):
        assert metric(true, pred) == pytest.approx(metric(true, singletons))
    assert clustering_scores(true, pred).num_clusters == np.unique(
        singletons).size


def test_all_unassigned():
    scores = clustering_scores([0, 0, 1], [-1, -1, -1])
    assert scores.num_clusters == 3
    assert scores == clustering_scores([0, 0, 1], [0, 1, 2])


def test_minus_one_is_a_class_among_the_true_labels():
    assert clustering_scores([-1, -1, 0], [1, 1, 0]) == clustering_scores(
        [1, 1, 0], [1, 1, 0])


def test_other_negative_predictions_are_clusters():
    assert clustering_scores([0, 0, 1], [-2, -2, -7]) == clustering_scores(
        [0, 0, 1], [0, 0, 1])


def test_minus_one_as_a_string_is_a_cluster():
    assert clustering_scores([0, 0, 1], ['-1', '-1', 'a']).num_clusters == 2


@pytest.mark.parametrize('metric', METRICS)
def test_different_lengths(metric):
    with pytest.raises(ValueError, match="'labels_true' has 3 and "
                                         "'labels_pred' has 2"):
        metric([0, 0, 1], [0, 1])


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('bad,message', [
    ([], "is empty"),
    (np.zeros(0), "is empty"),
    ([0., 1., float('nan')], "must be integers or strings.*float64"),
    (torch.zeros(3, dtype=torch.bfloat16), "must be integers.*bfloat16"),
    (torch.zeros(3, dtype=torch.complex64), "must be integers.*complex64"),
    ([True, False, True], "must be integers or strings.*bool"),
    ([None, 1, 2], "must be integers or strings.*object"),
    (['a', 1, 2], "mixes strings"),
    (np.zeros((3, 1), dtype=int), r"must have shape \[N\] \(got \[3, 1\]\)"),
    (torch.zeros(3, 1, dtype=torch.long), r"must have shape \[N\]"),
    (7, r"must have shape \[N\]"),
    ('abc', r"must have shape \[N\]"),
])
def test_unusable_labels(metric, bad, message):
    good = [0, 1, 2]
    with pytest.raises(ValueError, match=f"'labels_true' {message}"):
        metric(bad, good)
    with pytest.raises(ValueError, match=f"'labels_pred' {message}"):
        metric(good, bad)


def test_strings_as_pandas_keeps_them():
    strings = ['a', 'b', 'a', 'cc']
    for metric in METRICS:
        assert metric(np.array(strings, dtype=object), [0, 1, 0, 0]) == (
            metric(strings, [0, 1, 0, 0]))
        with pytest.raises(ValueError, match='dtype object'):
            metric(np.array(['a', 1, 'a', 2], dtype=object), [0, 1, 0, 0])
