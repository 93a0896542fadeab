import numpy as np
import pytest

from torch_sdt.metrics import (
    bcubed_scores,
    clustering_scores,
    nmi_score,
    pairwise_scores,
)


@pytest.mark.parametrize('seed', range(5))
def test_all_scores_at_once(seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.integers(0, 20, 300), rng.integers(-1, 30, 300)
    pairwise, bcubed, nmi, num_clusters = clustering_scores(true, pred)
    assert pairwise == pairwise_scores(true, pred)
    assert bcubed == bcubed_scores(true, pred)
    assert nmi == nmi_score(true, pred)
    unassigned = int((pred == -1).sum())
    assert unassigned > 0
    assert num_clusters == np.unique(pred[pred != -1]).size + unassigned
    assert type(num_clusters) is int


def test_many_clusters_stay_sparse():
    # A dense table of 100,000 x 100,000 cells could not be made.
    labels = np.arange(100_000)
    scores = clustering_scores(labels, labels[::-1])
    assert scores.num_clusters == 100_000
    assert scores.bcubed == (1, 1, 1) and scores.pairwise == (0, 0, 0)
    assert scores.nmi == pytest.approx(1)
