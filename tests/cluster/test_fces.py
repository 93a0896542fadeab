import numpy as np
import pytest
import torch

from torch_sdt.cluster import FCES
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import edge_probability, topk_jaccard


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(8, 16, generator=generator)
    y = torch.arange(8).repeat_interleave(20)
    x = centers[y] + .5 * torch.randn(160, 16, generator=generator)
    return x, y.numpy()


def test_rows_stop_at_the_first_failure():
    x, _ = features()
    neighbors = Neighbors.build(x, 40)
    found = FCES(theta=.3).fit(x, neighbors=neighbors).k_
    jaccard = topk_jaccard(neighbors, probability=edge_probability(
        neighbors.similarity, 'exponential'))
    for row, k in zip(jaccard.tolist(), found.tolist()):
        below = [rank for rank, value in enumerate(row) if value < .3]
        assert k == (below[0] if below else 40)


def test_finds_groups_of_its_size():
    x, y = features()
    labels = FCES(k=20).fit_predict(x)
    same = labels[:, None] == labels[None]
    truth = y[:, None] == y[None]
    assert (same == truth).mean() > .97


def test_theta_one_links_only_equal_neighbourhoods():
    x, _ = features()
    labels = FCES(theta=1.).fit_predict(x)
    assert np.array_equal(labels, np.arange(160))


@pytest.mark.parametrize('kwargs,message', [
    ({'theta': 1.1}, "'theta'"),
    ({'theta': -.1}, "'theta'"),
    ({'distance_transform': 'linear'}, "'transform'"),
    ({'tau': 0.}, "'tau'"),
    ({'directed': True}, 'infomap'),
    ({'backend': 'louvain'}, "'backend'"),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FCES(**kwargs).fit(features()[0])
