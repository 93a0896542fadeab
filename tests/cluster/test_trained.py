r"""The contract that all trained estimators of the field share."""
import os
from copy import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import torch_sdt.typing
from torch_sdt.cluster import (
    FCESER,
    GCNVE,
    LCEPCE,
    LGCN,
    LTC,
    STARFC,
    AdaNETS,
    Clusformer,
    NDDeTPDi,
    PairCls,
    split_identities,
    trained,
)
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.trained import Cut, TrainedClustering, cuts
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import load_tensors, save_tensors
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features, structure_space
from torch_sdt.training.default_dtype import default_dtype

SMALL = dict(k=8, epochs=1, batch_size=16)
ESTIMATORS = [
    GCNVE(**SMALL),
    NDDeTPDi(**SMALL),
    LTC(**SMALL),
    Clusformer(**SMALL),
    LGCN(**{**SMALL, 'epochs': 8, 'lr': 1e-2}),
    STARFC(**SMALL),
    PairCls(**SMALL),
    LCEPCE(**SMALL),
    FCESER(**SMALL),
    AdaNETS(**SMALL),
]
all_estimators = pytest.mark.parametrize(
    'estimator', ESTIMATORS, ids=lambda e: type(e).__name__)


@lru_cache(maxsize=None)
def world(split='train', seed=0):
    data = SyntheticFaces('ms1m', num_identities=30, dim=32,
                          images_per_identity=(2, 5), split=split, seed=seed)
    return data.x, data.y


_fitted = {}


def fitted(estimator):
    name = type(estimator).__name__
    if name not in _fitted:
        _fitted[name] = clone(estimator).fit(*world())
    return _fitted[name]


def weights(model):
    return {f'{name}.{key}': value for name in model._networks
            for key, value in getattr(model, f'{name}_').state_dict().items()}


def equal(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


def test_cuts():
    assert cuts(torch.rand(9), .3) == [Cut(.3)]
    value = torch.tensor([torch.inf, .1, .2, .3, .4, torch.inf])
    taus = [cut.tau for cut in cuts(value, num=3)]
    assert taus == pytest.approx([.1, .2, .3, .4])
    assert cuts(value[:1]) == [Cut(0.)]
    # Values that are equal are one threshold.
    assert len(cuts(torch.ones(5))) == 1


@all_estimators
def test_labels(estimator):
    model = fitted(estimator)
    x, y = world('test')
    labels = model.predict(x)
    assert labels.dtype == np.int64 and labels.shape == y.shape
    assert labels.min() == 0
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.array_equal(model.labels_, labels)
    assert 0 < model.validation_score_ <= 1
    assert set(model.history_) == set(model._networks)


@all_estimators
def test_better_than_nothing(estimator):
    x, y = world('test')
    score = mean_fscore(y, fitted(estimator).predict(x))
    n = np.arange(y.size)
    assert score > max(mean_fscore(y, n), mean_fscore(y, 0 * n))


@all_estimators
def test_same_seed_same_weights_and_another_seed_others(estimator):
    model = fitted(estimator)
    x, _ = world('test')
    again = clone(estimator).fit(*world())
    assert equal(model, again)
    assert np.array_equal(model.predict(x), again.predict(x))
    assert not equal(model, clone(estimator).set_params(seed=1).fit(*world()))


@all_estimators
def test_the_default_dtype_does_not_matter(estimator):
    x, _ = world('test')
    with default_dtype(torch.float64):
        model = clone(estimator).fit(*world())
        labels = model.predict(x)
        assert torch.get_default_dtype() == torch.float64
    assert equal(model, fitted(estimator))
    assert np.array_equal(labels, fitted(estimator).predict(x))


@all_estimators
def test_training_changes_every_network(estimator):
    model = fitted(estimator)
    raw = clone(estimator)
    raw.k_, raw.n_features_in_ = model.k_, model.n_features_in_
    raw._build_networks()
    before, after = weights(raw), weights(model)
    for name in model._networks:
        assert any(not torch.equal(value, after[key])
                   for key, value in before.items()
                   if key.startswith(f'{name}.'))


@all_estimators
def test_save_and_load(estimator, tmp_path):
    model, path = fitted(estimator), os.fspath(tmp_path / 'model.safetensors')
    x, _ = world('test')
    model.save(path)
    other = type(model).load(path)
    assert equal(model, other) and other.rule_ == model.rule_
    assert other.get_params() == model.get_params()
    assert np.array_equal(other.predict(x), model.predict(x))
    tensors, meta = load_tensors(path)
    save_tensors(path, tensors, {**meta, 'class': 'Other'})
    with pytest.raises(ValueError, match='holds no'):
        type(model).load(path)


@all_estimators
def test_a_killed_fit_goes_on(estimator, tmp_path):
    twice = clone(estimator).set_params(workdir=os.fspath(tmp_path))
    twice.fit(*world())
    assert equal(twice, fitted(estimator))
    # Everything is trained already: another fit only reads.
    again = clone(twice).fit(*world())
    assert equal(again, twice)
    with pytest.raises(ValueError, match='another training'):
        clone(twice).set_params(lr=.02).fit(*world())


@all_estimators
def test_a_ready_table(estimator):
    x, _ = world('test')
    model = fitted(estimator)
    table = Neighbors.search(normalize_features(x), 12)
    assert np.array_equal(model.predict(x, table), model.predict(x))
    with pytest.raises(ValueError, match='rows'):
        model.predict(x, Neighbors.search(normalize_features(x[:50]), 8))


def test_the_width_of_a_table_is_the_default_of_k():
    x, y = world()
    for k in (5, 12):
        table = Neighbors.search(normalize_features(x), k)
        model = GCNVE(**{**SMALL, 'k': None}).fit(x, y, neighbors=table)
        assert model.k_ == k


@all_estimators
@pytest.mark.parametrize('n', [1, 2, 3, 9])
def test_few_samples(estimator, n):
    x, _ = world('test')
    labels = fitted(estimator).predict(x[:n])
    assert labels.shape == (n, ) and labels.min() == 0


@all_estimators
def test_one_sample_is_its_own_mean(estimator):
    model = copy(fitted(estimator))
    model.center = True
    assert model.predict(world('test')[0][:1]).tolist() == [0]


@all_estimators
def test_identical_samples(estimator):
    x, _ = world('test')
    labels = fitted(estimator).predict(np.repeat(x[:1], 20, axis=0))
    assert labels.shape == (20, )


@all_estimators
def test_bad_input(estimator):
    x, y = world()
    raw = clone(estimator)
    with pytest.raises(ValueError, match='y is missing'):
        raw.fit(x)
    with pytest.raises(ValueError, match='one label a sample'):
        raw.fit(x, y[:-1])
    bad = x.copy()
    bad[3, 0] = np.nan
    with pytest.raises(ValueError, match='Row 3'):
        raw.fit(bad, y)
    with pytest.raises(NotFittedError):
        raw.predict(x)
    for name, value in (('k', 1), ('k', 8.), ('k', '8'), ('epochs', 0),
                        ('epochs', 1.5), ('lr', 0.), ('batch_size', 0),
                        ('val_share', 1.)):
        with pytest.raises(ValueError, match=f"'{name}'"):
            clone(estimator).set_params(**{name: value}).fit(x, y)
    # The rule would suit tables as narrow.
    with pytest.raises(ValueError, match='lists 7 neighbours.*take k=8.*k=7'):
        raw.fit(x, y, neighbors=Neighbors.build(x, 7))
    with pytest.raises(ValueError, match="'size'"):
        clone(estimator).set_params(size='huge').fit(x, y)
    with pytest.raises(ValueError, match='dimension 32'):
        fitted(estimator).predict(x[:, :16])


@all_estimators
def test_never_sees_held_out_identities(estimator, monkeypatch):
    # They choose the epoch and the rule, nothing else: whatever their features
    # are, the only epoch's weights are the same.
    from torch_sdt.cluster import split_identities

    x, y = world()
    _, val = split_identities(y, None, estimator.val_share, estimator.seed)
    other = x.copy()
    other[val] = np.random.default_rng(0).normal(size=other[val].shape)
    one = clone(estimator).set_params(epochs=1)
    assert equal(clone(one).fit(other, y), one.fit(x, y))


class Fake(TrainedClustering):
    r"""The threshold at one fourth of its epochs is right, given or not."""
    _rule = Cut
    _networks = ('model', )
    _no_weights = ('device', 'workdir', 'verbose', 'tau')

    def __init__(self, tau=None, epochs=8):
        self.tau, self.epochs = tau, epochs
        self.k, self.center, self.index, self.seed = 4, False, 'flat', 0
        self.lr, self.batch_size, self.val_share = 1e-3, 16, .3
        self.device = self.workdir = None
        self.verbose = False

    def _build(self):
        self.model_ = Counter()

    def _learn(self, table, y, held_out, y_held_out):
        self.y = {held_out.x.size(0): y_held_out}
        self._train('model', NeighborSubgraphs(table.neighbors, table.x, 16,
                                               pairs=False),
                    self._clusters(held_out, y_held_out))
        self.best = int(self.model_.epoch)

    def _measure(self, table):
        return self.y.get(table.x.size(0), torch.arange(table.x.size(0)))

    def _rules(self, measured):
        return cuts(torch.tensor([.2, .8]), self.tau)

    def _partition(self, measured, rule):
        right = int(self.model_.epoch) == 2 and rule.tau < .5
        return measured if right else torch.arange(measured.numel())


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer('epoch', torch.zeros(()))
        self.register_buffer('seen', torch.zeros(()))

    def loss(self, batch):
        self.seen += batch.node.numel()
        total = world()[1].size - FAKE_HELD_OUT
        self.epoch.copy_((self.seen / total).ceil())
        return self.weight.square().sum()


FAKE_HELD_OUT = split_identities(world()[1], None, .3, 0)[1].size


@pytest.mark.parametrize('tau', [None, .3, .7])
def test_keeps_the_epoch_that_clusters_held_out_identities_best(tau):
    # ... with the best of all rules, whether or not one is given.
    model = Fake(tau).fit(*world())
    assert model.best == 2
    scores = [row['mean_f'] for row in model.history_['model'].rows]
    assert len(scores) == 8 and scores[1] == 1 > max(scores[2:])
    assert model.tau == tau
    assert model.rule_.tau == pytest.approx(tau or .2)


def test_a_refit_shows_all_identities_and_chooses_nothing():
    x, y = world()
    first, model = Fake().fit(x, y), Fake()
    model.refit = True
    model.fit(x, y)
    assert list(model.history_) == ['model', 'model-all']
    # A third of eight epochs, without validation.
    assert [set(row) for row in model.history_['model-all'].rows] == [
        {'epoch', 'loss', 'seconds'}] * 3
    # From the best epoch on, and each shows every sample.
    assert model.model_.seen - first.model_.seen == 3 * y.size
    assert model.rule_ == first.rule_
    assert model.validation_score_ == first.validation_score_


def test_of_many_samples_some_choose_the_rule(monkeypatch):
    # Held-out identities keep their share; the refit sees everyone.
    monkeypatch.setattr(trained, '_CHOOSE_UP_TO', 50)
    x, y = world()
    model, chosen, learned = Fake(), [], []
    best_rule, learn = model._best_rule, model._learn

    def on(measured, y, scored):
        chosen.append((y, scored))
        return best_rule(measured, y, scored)

    def learning(table, y, held_out, y_held_out):
        learned.append(y.numel())
        learn(table, y, held_out, y_held_out)

    model.refit = True
    monkeypatch.setattr(model, '_best_rule', on, raising=False)
    monkeypatch.setattr(model, '_learn', learning, raising=False)
    model.fit(x, y)
    (some, scored), = chosen
    assert 40 <= some.size <= 50 and .2 <= scored.mean() <= .4
    assert set(some[scored]).isdisjoint(some[~scored])
    # Whole identities.
    name, size = np.unique(some, return_counts=True)
    assert np.array_equal(np.bincount(y)[name], size)
    assert learned[1:] == [y.size]


def test_keeps_the_epoch_of_the_least_held_out_loss():
    x, y = world()
    model = AdaNETS(**{**SMALL, 'epochs': 4, 'lr': .03}).fit(x, y)
    loss = [-row['negative_loss'] for row in model.history_['filter'].rows]
    assert len(loss) == 4 and len(set(loss)) > 1
    x, y = (torch.from_numpy(a) for a in (x, y))
    # What was kept has that loss.
    _, val = split_identities(y.numpy(), None, .3, 0)
    table = Neighbors.search(normalize_features(x[val]), SMALL['k'])
    loader = NeighborSubgraphs(
        structure_space(table, model.weight), normalize_features(x[val]),
        16, y=y[val], beta=model.beta, pairs=False, shuffle=True)
    with torch.no_grad():
        total = sum(float(model.filter_.loss(batch)) * batch.node.numel()
                    for batch in loader)
    assert total / val.size == pytest.approx(min(loss), abs=1e-6)


@all_estimators
@pytest.mark.skipif(not torch.cuda.is_available(), reason='No GPU')
def test_cuda(estimator):
    x, y = world('test')
    model = clone(estimator).set_params(device='cuda').fit(*world())
    assert mean_fscore(y, model.predict(x)) > .1


def test_a_refit_that_fails_leaves_nothing_to_predict_by(monkeypatch):
    model = clone(ESTIMATORS[0]).fit(*world())
    monkeypatch.setattr(model, '_learn', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(*world())
    with pytest.raises(NotFittedError):
        model.predict(world()[0])


def test_a_table_in_double_precision():
    model, (x, _) = fitted(ESTIMATORS[0]), world('test')
    table = Neighbors.build(x, 8)
    expected = model.predict(x, table)
    assert np.array_equal(model.predict(x, table.to('cpu', torch.double)),
                          expected)


@pytest.mark.parametrize('damage', ['arguments', 'k', 'rule', 'size'])
def test_damaged_settings(damage, tmp_path):
    path = tmp_path / 'model.safetensors'
    fitted(ESTIMATORS[0]).save(path)
    tensors, meta = load_tensors(path)
    if damage == 'k':
        del meta['k']
    elif damage == 'size':
        meta['arguments']['size'] = 'smalL'
    else:
        meta[damage]['banana'] = 1
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match='are damaged'):
        GCNVE.load(path)


def test_training_on_a_cpu_seeds_no_gpu(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    monkeypatch.setattr(torch.cuda, 'manual_seed', seeds.append)
    before = torch.random.get_rng_state()
    clone(ESTIMATORS[0]).fit(*world())
    assert seeds == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_are_integers_of_any_kind():
    x, y = world()
    one, other = (clone(ESTIMATORS[0]).set_params(seed=seed).fit(x, y)
                  for seed in [3, np.arange(4)[3]])
    assert equal(one, other)
    for seed in [-1, 2**32, 1.5, None]:
        with pytest.raises(ValueError, match="'seed' must be an integer"):
            clone(ESTIMATORS[0]).set_params(seed=seed).fit(x, y)


def test_lists():
    model, (x, y) = fitted(GCNVE(**SMALL)), world()
    assert np.array_equal(model.predict(x.tolist()), model.predict(x))
    assert equal(clone(model).fit(x.tolist(), y.tolist()), model)


def test_one_held_out_sample():
    y = np.arange(10)
    train, _ = split_identities(y.repeat(2), share=.01)
    y = np.append(y, y.repeat(2)[train[::2]])
    x = np.eye(10, dtype=np.float32)[y] + .1
    model = LCEPCE(k=8, epochs=1, val_share=.01).fit(x, y)
    assert model.predict(x).shape == (19, )
