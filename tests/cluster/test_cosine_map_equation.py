import numpy as np
import pytest
import torch

from torch_sdt.cluster import CosineMapEquation


def test_two_groups():
    # Two bundles of directions, cosines .99 inside and about 0 between.
    x = torch.eye(8)[[0, 0, 0, 1, 1, 1]] + .1 * torch.eye(8)[[2, 3, 4] * 2]
    labels = CosineMapEquation(threshold=.5).fit_predict(x)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_nothing_above_the_threshold():
    labels = CosineMapEquation(threshold=.9).fit_predict(torch.eye(5))
    assert np.array_equal(labels, np.arange(5))


def test_higher_threshold_never_links_more():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    found = [CosineMapEquation(threshold=t).fit(x).n_clusters_
             for t in (.9, .97, .99, .999)]
    assert found == sorted(found)


@pytest.mark.parametrize('threshold', [-1.5, 1.5, float('nan')])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="'threshold' must be a cosine"):
        CosineMapEquation(threshold=threshold).fit(torch.eye(5))


def test_infomap_backend_agrees():
    x = torch.eye(6).repeat_interleave(10, 0) + .05 * torch.randn(60, 6)
    expected = CosineMapEquation().fit_predict(x)
    for kwargs in ({}, {'directed': True}, {'markov_time': 'variable'}):
        labels = CosineMapEquation(backend='infomap', **kwargs).fit_predict(x)
        assert np.array_equal(labels, expected)


def test_networkit_knows_no_markov_time():
    with pytest.raises(ValueError, match='Markov time'):
        CosineMapEquation(markov_time=2.).fit(torch.eye(5))
