r"""The methods of the textbooks, each against the library it wraps or its
definition.
"""
import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import DBSCAN
from sklearn.cluster import HDBSCAN as ScikitHDBSCAN
from sklearn.metrics import adjusted_rand_score

import torch_sdt.typing
from torch_sdt.cluster import (
    ARO,
    CDP,
    FINCH,
    HAC,
    HDBSCAN,
    KNNDBSCAN,
    ChineseWhispers,
    KMeans,
)
from torch_sdt.cluster.aro import rank_order_distance
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features


def noisy(num_clusters=8, size=12, dim=8, noise=.55, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_clusters, dim, generator=generator)
    y = torch.arange(num_clusters).repeat_interleave(size)
    x = centers[y] + noise * torch.randn(y.numel(), dim, generator=generator)
    return normalize_features(x), y.numpy()


def same(first, second):
    return adjusted_rand_score(first, second) == 1


def alone(labels):
    labels = labels.copy()
    noise = labels < 0
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return labels


@pytest.mark.parametrize('method', ['single', 'average'])
@pytest.mark.parametrize('threshold', [.05, .15, .3, .6])
def test_hac_on_all_pairs(method, threshold):
    x, _ = noisy()
    expected = fcluster(linkage(x.numpy().astype(float), method, 'cosine'),
                        threshold, 'distance')
    labels = HAC(method, distance_threshold=threshold,
                 k=len(x)).fit_predict(x)
    assert same(labels, expected)


@pytest.mark.parametrize('method', ['single', 'average'])
@pytest.mark.parametrize('n_clusters', [1, 7, 30, 96])
def test_hac_by_number(method, n_clusters):
    x, _ = noisy()
    expected = fcluster(linkage(x.numpy().astype(float), method, 'cosine'),
                        n_clusters, 'maxclust')
    model = HAC(method, n_clusters=n_clusters, k=len(x)).fit(x)
    assert model.n_clusters_ == n_clusters
    assert same(model.labels_, expected)


@pytest.mark.parametrize('method', ['single', 'average'])
def test_hac_never_joins_components(method):
    x = torch.eye(2).repeat_interleave(5, 0) + .01 * torch.rand(10, 2)
    model = HAC(method, n_clusters=1, k=4).fit(x)
    assert np.array_equal(model.labels_, [0] * 5 + [1] * 5)
    with pytest.raises(ValueError, match='not both'):
        HAC(n_clusters=2, distance_threshold=.1).fit(x)
    with pytest.raises(ValueError, match="'linkage'"):
        HAC('ward').fit(x)
    for bad in (-1, float('nan')):
        with pytest.raises(ValueError, match="'distance_threshold'"):
            HAC(distance_threshold=bad).fit(x)


@pytest.mark.parametrize('eps', [.02, .1, .2])
@pytest.mark.parametrize('min_samples', [1, 3])
def test_dbscan_on_all_pairs(eps, min_samples):
    x, _ = noisy()
    expected = DBSCAN(eps=eps, min_samples=min_samples,
                      metric='cosine').fit_predict(x)
    labels = KNNDBSCAN(eps, min_samples, k=len(x)).fit_predict(x)
    assert same(labels, alone(expected))
    for bad in (dict(eps=0), dict(min_samples=0), dict(min_samples=97)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            KNNDBSCAN(**bad).fit(x)


@pytest.mark.parametrize('min_cluster_size', [2, 5, 10])
def test_hdbscan_on_all_pairs(min_cluster_size):
    x, _ = noisy()
    expected = ScikitHDBSCAN(min_cluster_size, metric='cosine',
                             copy=True).fit_predict(x)
    labels = HDBSCAN(min_cluster_size, k=len(x)).fit_predict(x)
    # Many mutual reachabilities are equal, and which of them come first in
    # the spanning tree is another in a sparse one.
    assert adjusted_rand_score(labels, alone(expected)) > .9


def test_hdbscan_of_a_graph_in_pieces():
    x, y = noisy(noise=.05)
    labels = HDBSCAN(k=6).fit_predict(x)
    assert same(labels, y)
    with pytest.raises(ValueError, match='width 6'):
        HDBSCAN(k=6, min_samples=7).fit(x)
    for bad in (dict(min_cluster_size=1), dict(min_samples=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            HDBSCAN(**bad).fit(x)


def test_finch():
    pytest.importorskip('finch')
    from finch import FINCH as package

    x, _ = noisy()
    expected, counts, _ = package(x.numpy(), distance='cosine', verbose=False)
    model = FINCH().fit(x)
    assert model.levels_.shape[1] == len(counts) > 1
    for level in range(len(counts)):
        assert same(model.levels_[:, level], expected[:, level])
    assert same(FINCH(level=-1).fit_predict(x), expected[:, -1])
    # Of each level's own number, that level.
    for level, count in enumerate(counts):
        labels = FINCH(n_clusters=count).fit_predict(x)
        assert same(labels, expected[:, level])
    with pytest.raises(ValueError, match="'level' must be in"):
        FINCH(level=99).fit(x)


def test_finch_absent(monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_FINCH', False)
    with pytest.raises(ImportError, match="'FINCH' requires 'finch-clust'"):
        FINCH().fit(noisy()[0])


def test_kmeans():
    x, y = noisy(noise=.1)
    assert same(KMeans(8, n_init=10).fit_predict(x), y)
    with pytest.raises(ValueError, match='needs the number of clusters'):
        KMeans().fit(x)
    for n_clusters in (0, 97):
        with pytest.raises(ValueError, match="'n_clusters' must be between"):
            KMeans(n_clusters).fit(x)
    with pytest.raises(ValueError, match="'n_clusters' must be an integer"):
        KMeans(3.7).fit(x)


def test_chinese_whispers():
    x, y = noisy(noise=.1)
    assert same(ChineseWhispers(.9).fit_predict(x), y)
    # Two cliques with one bridge keep their own names.
    labels = ChineseWhispers(.6, k=8).fit_predict(x)
    assert ChineseWhispers(1., sweeps=1).fit(x).n_clusters_ == len(x)
    assert len(np.unique(labels)) >= 8
    for bad in (dict(threshold=2), dict(sweeps=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ChineseWhispers(**bad).fit(x)


def test_chinese_whispers_ends_where_nothing_moves():
    x, _ = noisy()
    table = Neighbors.search(x, 10)
    labels = ChineseWhispers(.5, sweeps=100).fit_predict(x, neighbors=table)
    weight = np.zeros((len(x), len(x)))
    edge_index, cosine = table.to_edge_index()
    strong = cosine >= .5
    row, col = edge_index[:, strong].numpy()
    weight[row, col] = weight[col, row] = cosine[strong]
    for i in range(len(x)):
        total = np.bincount(labels, weight[i])
        # Its own label weighs as much as any.
        assert total.max() == 0 or np.isclose(total[labels[i]], total.max())


def test_rank_order_distance():
    x, _ = noisy(size=6)
    table = Neighbors.search(x, 12)
    rows = [row.tolist() for row in table.index]
    distance = rank_order_distance(table)
    for i, row in enumerate(rows):
        assert distance[i, 0] == 0
        for rank, j in enumerate(row[1:], start=1):
            if i not in rows[j]:
                assert distance[i, rank] == torch.inf
                continue
            back = rows[j].index(i)
            d_ij = len(set(row[:rank]) - set(rows[j]))
            d_ji = len(set(rows[j][:back]) - set(row))
            assert float(distance[i, rank]) == pytest.approx(
                (d_ij + d_ji) / min(rank, back))


def test_aro():
    x, y = noisy(noise=.1)
    assert same(ARO(k=12).fit_predict(x), y)
    # With everything linked that lists each other, one piece at most a blob.
    assert ARO(threshold=100., k=30).fit(x).n_clusters_ < 8
    with pytest.raises(ValueError, match="'threshold'"):
        ARO(-1.).fit(x)


def test_cdp():
    x, y = noisy(noise=.1)
    assert same(CDP(.9).fit_predict(x), y)
    one = CDP(-1, k=len(x), max_size=len(x)).fit(x)
    assert one.n_clusters_ == 1
    bounded = CDP(-1, k=len(x), max_size=12).fit_predict(x)
    assert np.bincount(bounded).max() <= 12
    with pytest.raises(ValueError, match="'threshold'"):
        CDP(2.).fit(x)
