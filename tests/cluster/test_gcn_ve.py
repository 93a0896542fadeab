import numpy as np
import pytest
import torch
from sklearn.base import clone

from torch_sdt.cluster import GCNVE
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.trained import Cut
from torch_sdt.ops import density_peaks, ndde, tpdi


def world(split):
    rng = np.random.default_rng(['train', 'test'].index(split))
    y = np.repeat(np.arange(24), rng.integers(8, 16, 24))
    x = rng.normal(size=(24, 32))[y] + .6 * rng.normal(size=(y.size, 32))
    return x.astype(np.float32), y


def estimator(**kwargs):
    return GCNVE(**{'k': 10, 'epochs': 5, 'lr': 1e-3, 'batch_size': 32,
                    **kwargs})


def test_quality_and_stages():
    x, y = world('test')
    scores = {}
    for stage in ('feature', 'gcn-v', 'gcn-e'):
        model = estimator(stage=stage).fit(*world('train'))
        scores[stage] = mean_fscore(y, model.predict(x))
        assert (model.edge_ is None) == (stage != 'gcn-e')
    assert min(scores.values()) > .8, scores


def test_feature_stage_is_density_peaks_of_the_confidence():
    model = estimator(stage='feature').fit(*world('train'))
    x, _ = world('test')
    table = model._to_predict(x, None)
    density = model._vertex_stage(table).density
    expected = density_peaks(table.neighbors, density).cut(model.rule_.tau)
    assert np.array_equal(model.predict(x), expected.numpy())


def test_density_and_distance_in_place_of_its_own():
    model = estimator(stage='gcn-v', density='ndde',
                      distance='tpdi').fit(*world('train'))
    x, _ = world('test')
    table = model._to_predict(x, None)
    seen = model._vertex_stage(table)
    assert torch.equal(seen.density, ndde(table.neighbors))
    expected = density_peaks(seen.neighbors, seen.density,
                             tpdi(seen.neighbors))
    measured = model._measure(table)
    assert torch.equal(measured.parent, expected.parent)
    assert torch.equal(measured.distance, expected.distance)


def test_edges_of_the_confident_only():
    vertex = estimator(stage='gcn-v').fit(*world('train'))
    edge = estimator(stage='gcn-e', ignore_ratio=.5).fit(*world('train'))
    x, _ = world('test')
    table = edge._to_predict(x, None)
    seen = edge._vertex_stage(table)
    first, second = vertex._measure(table), edge._measure(table)
    moved = (first.parent != second.parent).nonzero().view(-1)
    confident = seen.density.argsort(descending=True)[:len(x) // 2]
    assert 0 < moved.numel() and set(moved.tolist()) <= set(
        confident.tolist())
    linked = second.distance.isfinite()
    assert bool((seen.density[second.parent] > seen.density)[linked].all())
    assert torch.equal(first.distance.isfinite(), linked)


def test_tau():
    x, _ = world('test')
    model = estimator(stage='gcn-v', tau=.05).fit(*world('train'))
    assert model.rule_ == Cut(.05)
    few = len(np.unique(model.predict(x)))
    model.rule_ = Cut(0.)
    assert len(np.unique(model.predict(x))) == len(x) > few


@pytest.mark.parametrize('argument', [
    dict(stage='gcn-x'), dict(density='x'), dict(distance='x'),
    dict(ignore_ratio=1.)])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"'{next(iter(argument))}'"):
        clone(estimator()).set_params(**argument).fit(*world('train'))
