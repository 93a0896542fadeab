import numpy as np
import pytest
import torch
from sklearn.base import clone

from torch_sdt.cluster import NDDeTPDi
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.trained import Cut
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.ops import density_peaks, ndde, tpdi
from torch_sdt.training import infer


def world(split):
    rng = np.random.default_rng(['train', 'test'].index(split))
    y = np.repeat(np.arange(24), rng.integers(8, 16, 24))
    x = rng.normal(size=(24, 32))[y] + .6 * rng.normal(size=(y.size, 32))
    return x.astype(np.float32), y


def estimator(**kwargs):
    return NDDeTPDi(**{'k': 10, 'epochs': 4, 'batch_size': 32, **kwargs})


@pytest.fixture(scope='module')
def fitted():
    return estimator().fit(*world('train'))


def test_quality(fitted):
    x, y = world('test')
    assert mean_fscore(y, fitted.predict(x)) > .75


@pytest.mark.parametrize('density', ['ndde', 'sum'])
@pytest.mark.parametrize('distance', ['tpdi', 'similarity'])
def test_ablation(fitted, density, distance):
    # Neither changes the network, so that one training serves all four.
    model = clone(fitted).set_params(density=density, distance=distance)
    model.k_, model.n_features_in_ = fitted.k_, fitted.n_features_in_
    model.similarity_ = fitted.similarity_
    x, _ = world('test')
    table = fitted._table(torch.from_numpy(x))
    probability = infer(
        fitted.similarity_,
        NeighborSubgraphs(table.neighbors, table.x),
        lambda batch: fitted.similarity_(batch).sigmoid())
    ranked = table.neighbors.reranked(probability)
    far = 1 - ranked.similarity
    rho = ndde(ranked, far) if density == 'ndde' else 10 - far.sum(dim=1)
    apart = tpdi(ranked, far) if distance == 'tpdi' else far
    expected = density_peaks(ranked, rho, apart, ties=True)
    found = model._measure(table)
    assert (found.parent == expected.parent).float().mean() > .97
    assert torch.allclose(found.distance[found.parent == expected.parent],
                          expected.distance[found.parent == expected.parent],
                          atol=1e-4)


def test_tau(fitted):
    x, _ = world('test')
    model = clone(fitted).set_params(tau=.3)
    assert model._rules(fitted._measure(fitted._to_predict(x, None))) == [
        Cut(.3)]
    assert isinstance(fitted.rule_, Cut)
    assert len(np.unique(fitted.predict(x))) < len(x)


@pytest.mark.parametrize('argument', [dict(density='x'), dict(distance='x')])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"'{next(iter(argument))}'"):
        clone(estimator()).set_params(**argument).fit(*world('train'))
