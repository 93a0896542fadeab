r"""The contract that all untrained estimators share."""
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

import torch_sdt.typing
from torch_sdt.cluster import (
    ARO,
    CDP,
    FCES,
    FINCH,
    HAC,
    HDBSCAN,
    KNNDBSCAN,
    ChineseWhispers,
    CosineMapEquation,
    KMeans,
    TopKJaccardClustering,
)
from torch_sdt.neighbors import Neighbors

ESTIMATORS = [
    CosineMapEquation(threshold=.9), FCES(), TopKJaccardClustering(),
    KMeans(n_clusters=1), HAC(), HAC('average'), KNNDBSCAN(), HDBSCAN(),
    FINCH(), ChineseWhispers(), ARO(), CDP(),
]
all_estimators = pytest.mark.parametrize(
    'estimator', ESTIMATORS, ids=lambda e: type(e).__name__)

# Checks of scikit-learn that cannot pass, and why.
ZERO_ROWS = {
    'check_estimators_dtypes':
    'casts features to integers, which leaves a row of zeros: such a row has '
    'no direction and is refused',
}
EXPECTED_FAILURES = {
    name: {
        **ZERO_ROWS,
        'check_clustering':
        'has 50 samples, fewer than the 80 neighbours of the published '
        'method: every neighbourhood is everything, and one cluster is found',
    } for name in ('FCES', 'ARO')
}


def blobs(num_clusters=6, size=25, dim=16, noise=.25, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_clusters, dim, generator=generator)
    y = torch.arange(num_clusters).repeat_interleave(size)
    y = y[torch.randperm(y.numel(), generator=generator)]
    x = centers[y] + noise * torch.randn(y.numel(), dim, generator=generator)
    return x, y.numpy()


@all_estimators
def test_scikit_learn_contract(estimator):
    expected = EXPECTED_FAILURES.get(type(estimator).__name__, ZERO_ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        results = check_estimator(estimator, on_skip=None, on_fail=None,
                                  expected_failed_checks=expected)
    failed = {r['check_name']: str(r['exception']) for r in results
              if r['status'] == 'failed'}
    assert failed == {}
    assert {r['check_name'] for r in results
            if r['status'] == 'xfail'} == set(expected)


@all_estimators
def test_labels(estimator):
    x, _ = blobs()
    fitted = clone(estimator).fit(x)
    assert fitted.labels_.dtype == np.int64
    assert fitted.labels_.shape == (x.size(0), )
    assert np.array_equal(np.unique(fitted.labels_),
                          np.arange(fitted.n_clusters_))
    # Numbered by first appearance.
    first = np.unique(fitted.labels_, return_index=True)[1]
    assert np.all(np.diff(first) > 0)
    assert not hasattr(fitted, 'predict')


@all_estimators
def test_same_seed_same_labels_and_a_ready_table(estimator):
    x, _ = blobs()
    expected = clone(estimator).fit_predict(x)
    assert np.array_equal(clone(estimator).fit_predict(x), expected)
    neighbors = Neighbors.build(x, 80)
    assert np.array_equal(
        clone(estimator).fit_predict(x, neighbors=neighbors), expected)


@all_estimators
@pytest.mark.parametrize('convert', [
    lambda x: x.numpy(),
    lambda x: x.double(),
    lambda x: torch.stack([x, x], dim=-1)[..., 0],
    lambda x: np.asfortranarray(x.numpy()),
    lambda x: 1000 * x,
], ids=['numpy', 'float64', 'non-contiguous', 'fortran', 'scaled'])
def test_kinds_of_input(estimator, convert):
    x, _ = blobs()
    expected = clone(estimator).fit_predict(x)
    assert np.array_equal(clone(estimator).fit_predict(convert(x)), expected)


@all_estimators
def test_float16(estimator):
    x, y = blobs()
    labels = clone(estimator).fit_predict(x.half())
    assert np.array_equal(labels,
                          clone(estimator).fit_predict(x.half().float()))


@all_estimators
def test_permuted_rows(estimator):
    # The same clusters under other names, up to ties and the order in which
    # the map equation visits nodes: these blobs are far apart.
    x, y = blobs(noise=.1)
    order = torch.randperm(x.size(0), generator=torch.Generator())
    labels = clone(estimator).fit_predict(x)[order]
    other = clone(estimator).fit_predict(x[order])
    assert np.array_equal(labels[:, None] == labels[None],
                          other[:, None] == other[None])


@all_estimators
@pytest.mark.parametrize('n', [1, 2, 3])
def test_few_samples(estimator, n):
    x = torch.eye(4)[:n]
    assert clone(estimator).fit_predict(x).shape == (n, )


@all_estimators
def test_identical_samples_are_one_thing(estimator):
    if isinstance(estimator, HDBSCAN):
        pytest.skip('The root of its hierarchy is no cluster')
    x = torch.randn(1, 8).repeat(50, 1)
    assert clone(estimator).fit(x).n_clusters_ == 1


@all_estimators
def test_exact_duplicates_stay_together(estimator):
    x, _ = blobs(noise=.1)
    labels = clone(estimator).fit_predict(torch.cat([x, x]))
    assert np.array_equal(labels[:len(x)], labels[len(x):])


@all_estimators
@pytest.mark.parametrize('spoil,message', [
    (lambda x: x.index_fill(0, torch.tensor([7]), torch.nan), 'Row 7'),
    (lambda x: x.index_fill(0, torch.tensor([3]), torch.inf), 'Row 3'),
    (lambda x: x.index_fill(0, torch.tensor([5]), 0.), 'Row 5'),
    (lambda x: x[:0], 'empty'),
    (lambda x: x[0], r'\[N, D\]'),
])
def test_bad_features(estimator, spoil, message):
    x, _ = blobs()
    with pytest.raises(ValueError, match=message):
        clone(estimator).fit(spoil(x))


@all_estimators
@pytest.mark.parametrize('k', [0, -1, 151, 2.5])
def test_bad_k(estimator, k):
    if isinstance(estimator, KMeans):
        pytest.skip('It has no table')
    x, _ = blobs()
    with pytest.raises(ValueError, match="'k' must be"):
        clone(estimator).set_params(k=k).fit(x)


@all_estimators
def test_table_of_other_features(estimator):
    x, _ = blobs()
    with pytest.raises(ValueError, match='149 rows'):
        clone(estimator).fit(x, neighbors=Neighbors.build(x[1:]))


def test_absent_backend(monkeypatch):
    x, _ = blobs()
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NETWORKIT', False)
    with pytest.raises(ImportError, match="requires 'networkit'"):
        CosineMapEquation().fit(x)
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    with pytest.raises(ImportError, match="requires 'numba'"):
        TopKJaccardClustering().fit(x)


def test_of_a_wider_table_the_first_neighbours_are_taken():
    x, _ = blobs()
    table = Neighbors.build(x, 80)
    expected = CosineMapEquation(k=3).fit_predict(x)
    for wider in [table, table.to('cpu', torch.double)]:
        labels = CosineMapEquation(k=3).fit_predict(x, neighbors=wider)
        assert np.array_equal(labels, expected)
    # There the others would have changed something.
    whole = CosineMapEquation().fit_predict(x, neighbors=table)
    assert not np.array_equal(whole, expected)


def test_seeds_are_integers_of_any_kind():
    x, _ = blobs()
    for seed in [np.arange(2)[1], np.uint8(1)]:
        labels = TopKJaccardClustering(seed=seed).fit_predict(x)
        assert np.array_equal(labels,
                              TopKJaccardClustering(seed=1).fit_predict(x))
    for seed in [-1, 2**32, 1.5, None]:
        with pytest.raises(ValueError, match="'seed' must be an integer"):
            TopKJaccardClustering(seed=seed).fit(x)


@pytest.mark.parametrize('n', [4, 5])
def test_hdbscan_of_too_few_for_a_cluster(n):
    assert HDBSCAN(min_cluster_size=5).fit_predict(
        np.eye(n)).tolist() == list(range(n))


@all_estimators
@pytest.mark.parametrize('center', [False, True])
def test_one_sample(estimator, center):
    # It is its own mean, which removed leaves nothing.
    estimator = clone(estimator).set_params(center=center)
    for x in (np.ones((1, 4)), torch.ones(1, 4)):
        try:
            assert estimator.fit_predict(x).tolist() == [0]
        except ValueError as e:
            assert 'mean' not in str(e)


def test_table_of_features_that_were_not_centred():
    x, _ = blobs()
    x = x + 20
    table = Neighbors.build(x, 140)
    estimator = CosineMapEquation(center=True)
    with pytest.warns(UserWarning, match=r"without their mean \('center'\)"):
        estimator.fit(x, neighbors=table)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        estimator.set_params(center=False).fit(x, neighbors=table)
