import json
import os
import random
import warnings
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import torch_sdt.typing
from torch_sdt import resume
from torch_sdt.cluster import (
    EdgeRule,
    SDTClustering,
    TopKJaccardClustering,
)
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import load_tensors, save_tensors
from torch_sdt.loader import AlternatingLoader
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import (
    AdaptiveFilter,
    SparseDiffTransformer,
    TopKPredictor,
)
from torch_sdt.ops import normalize_features
from torch_sdt.training import Trainer
from torch_sdt.training.default_dtype import default_dtype

pytest.importorskip('numba')

# With the default margin, at this width sparse attention would be dense.
SMALL = dict(hidden_channels=16, ffn_channels=16, num_layers=1, heads=2,
             margin=1)
K = 8


@lru_cache(maxsize=None)
def world(split='train', identities=30, dim=32, seed=0):
    data = SyntheticFaces('ms1m', num_identities=identities, dim=dim,
                          images_per_identity=(2, 5), split=split, seed=seed)
    return data.x, data.y


def estimator(**kwargs):
    # So that an epoch of a hundred samples makes a difference.
    return SDTClustering(**{'k': K, 'epochs': 1, 'batch_size': 4, 'lr': .05,
                            'model_args': SMALL, **kwargs})


@lru_cache(maxsize=None)
def fitted():
    return estimator().fit(*world())


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


def never(*args, **kwargs):
    pytest.fail('Work started before the arguments were checked')


def weights(model):
    out = {f'predictor.{name}': value
           for name, value in model.predictor_.state_dict().items()}
    if model.transformer_ is not None:
        out.update((f'transformer.{name}', value) for name, value in
                   model.transformer_.state_dict().items())
    return out


def equal(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items())


# The contract ################################################################


def test_fit():
    (x, y), model = world(), estimator()
    assert model.fit(x, y) is model
    assert isinstance(model.predictor_, TopKPredictor)
    assert isinstance(model.transformer_, SparseDiffTransformer)
    assert isinstance(model.rule_, EdgeRule)
    assert 0 < model.validation_score_ <= 1
    assert (model.k_, model.n_features_in_) == (K, 32)
    assert list(model.history_) == ['predictor', 'transformer']
    for history in model.history_.values():
        assert [row['epoch'] for row in history.rows] == [1]
        row = history.rows[0]
        # The first decides which epoch is kept.
        assert list(row)[2] == 'average_precision'
        assert 0 < row['average_precision'] <= 1 and 0 <= row['mean_f'] <= 1
    assert not hasattr(model, 'labels_')
    # The constructor's arguments stay what they were.
    assert model.get_params() == estimator().get_params()


def test_predict():
    x, _ = world('test')
    model = fitted()
    labels = model.predict(x)
    assert labels.dtype == np.int64 and labels.shape == (len(x), )
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.array_equal(model.labels_, labels)
    # It has a predict, and learns before: no fit_predict.
    assert not hasattr(model, 'fit_predict')
    # What was clustered before does not matter.
    model.predict(world()[0])
    assert np.array_equal(model.predict(x), labels)


def test_same_seed_same_everything():
    x, y = world()
    torch.rand(3)  # whatever the global generator does
    again = estimator().fit(x, y)
    assert equal(again, fitted())
    assert again.rule_ == fitted().rule_
    assert again.validation_score_ == fitted().validation_score_
    other = world('test')[0]
    assert np.array_equal(again.predict(other), fitted().predict(other))
    third = estimator(seed=1).fit(x, y)
    assert not equal(third, again)


def test_the_default_dtype_does_not_matter(tmp_path):
    (x, _), path = world('test'), tmp_path / 'model.safetensors'
    fitted().save(path)
    labels = fitted().predict(x)
    with default_dtype(torch.float64):
        model = estimator().fit(*world())
        found = model.predict(x), SDTClustering.load(path).predict(x)
        assert torch.get_default_dtype() == torch.float64
    assert equal(model, fitted())
    for one in found:
        assert np.array_equal(one, labels)


def test_global_generators_are_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), \
        random.getstate()
    estimator().fit(*world()).predict(world('test')[0])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize('convert', [
    lambda x, y: (torch.from_numpy(x), torch.from_numpy(y)),
    lambda x, y: (x, y.tolist()),
    lambda x, y: (np.asfortranarray(x), 5 * y + 3),
    lambda x, y: (x, np.array([f'id-{i:03}' for i in y])),
], ids=['torch', 'list', 'numbers', 'names'])
def test_kinds_of_input(convert):
    x, y = convert(*world())
    model = estimator().fit(x, y)
    assert equal(model, fitted())
    assert model.rule_ == fitted().rule_
    other = world('test')[0]
    assert np.array_equal(model.predict(torch.from_numpy(other)),
                          fitted().predict(other))


def test_scikit_learn():
    model = fitted()
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, 'rule_')
    assert 'SDTClustering(' in repr(model)
    with pytest.raises(ValueError, match='layers'):
        estimator().set_params(layers=3)
    for call in (lambda: copy.predict(world()[0]),
                 lambda: copy.save('absent.safetensors')):
        with pytest.raises(NotFittedError):
            call()
    assert not os.path.exists('absent.safetensors')


def test_it_clusters_identities_it_has_not_seen():
    # Well separated, and other identities than in training.
    rng = np.random.default_rng(0)
    sets = []
    for num in (20, 15):
        y = rng.permutation(np.repeat(np.arange(num), 8))
        center = rng.normal(size=(num, 24))
        sets.append((center[y] + .45 * rng.normal(size=(y.size, 24)), y))
    model = estimator(epochs=2).fit(*sets[0])
    x, y = sets[1]
    score = mean_fscore(y, model.predict(x))
    alone = mean_fscore(y, np.arange(y.size))
    one = mean_fscore(y, np.zeros(y.size, dtype=int))
    assert score > .9 > 2 * max(alone, one)


# All variants ################################################################


@pytest.mark.parametrize('attention', ['vanilla', 'diff', 'sparse-diff',
                                       None])
@pytest.mark.parametrize('predictor', ['rank', 'regression', 'bilstm'])
def test_variants(tmp_path, predictor, attention):
    x, y = world()
    model = estimator(predictor=predictor, attention=attention).fit(x, y)
    assert isinstance(model.predictor_, AdaptiveFilter) == (
        predictor == 'bilstm')
    assert (model.transformer_ is None) == (attention is None)
    assert len(model.history_) == (1 if attention is None else 2)
    other = world('test')[0]
    labels = model.predict(other)
    assert 1 < labels.max() + 1 <= len(other)
    model.save(tmp_path / 'model.safetensors')
    loaded = SDTClustering.load(tmp_path / 'model.safetensors')
    assert np.array_equal(loaded.predict(other), labels)
    if attention is not None:
        kinds = {module.attention for module in model.transformer_.modules()
                 if hasattr(module, 'mask')}
        assert kinds == {attention}


@pytest.mark.parametrize('kwargs', [
    {'experts': 3}, {'experts': 2, 'attention': 'vanilla'},
    {'tokens': 'feature'}, {'merge': 'jaccard'}, {'merge': 'boundary'},
    {'adapt': True}, {'adapt': False},
    {'center': True}, {'precision': 'bf16-mixed'}, {'epochs': 2,
                                                     'patience': 1},
    {'model_args': {**SMALL, 'lambda_form': 'reparam', 'mask': 'logits',
                    'margin': 2}},
    {'attention': None, 'predictor': 'regression', 'merge': 'jaccard'},
    {'val_share': .5, 'lr': 1e-4, 'index': 'torch', 'verbose': True},
], ids=str)
def test_other_arguments(tmp_path, kwargs):
    x, y = world()
    model = estimator(**kwargs).fit(x, y)
    other = world('test')[0]
    labels = model.predict(other)
    model.save(tmp_path / 'model.safetensors')
    loaded = SDTClustering.load(tmp_path / 'model.safetensors')
    assert np.array_equal(loaded.predict(other), labels)
    if 'merge' in kwargs:
        assert model.rule_.merge == kwargs['merge']
    if 'adapt' in kwargs:
        assert (model.rule_.merge == 'adapt') == kwargs['adapt']


@pytest.mark.parametrize('size,parameters', [('small', 128), ('base', 256)])
def test_sizes(size, parameters, monkeypatch):
    # Built, not trained.
    model = SDTClustering(k=K, size=size)
    monkeypatch.setattr(SDTClustering, '_train', lambda self, *args: None)
    monkeypatch.setattr(SDTClustering, '_choose', lambda self, *args: None)
    model.fit(*world())
    for network in (model.predictor_, model.transformer_):
        assert network.encoder.rank.shape == (K, parameters)


def test_features_can_be_centred():
    # An offset that all share hides everything else.
    x, y = world()
    far = normalize_features(x).numpy() + 10.
    model = estimator(center=True).fit(far, y)
    plain = estimator(center=True).fit(normalize_features(x).numpy(), y)
    assert model.validation_score_ == pytest.approx(plain.validation_score_,
                                                    abs=.1)
    other = world('test')[0]
    labels = plain.predict(normalize_features(other).numpy())
    assert np.array_equal(
        labels, plain.predict(normalize_features(other).numpy() - .01))


def test_default_width_is_no_more_than_there_is():
    # A default that does not fit is no fault of the caller.
    x, y = world()
    model = estimator(k=None).fit(x, y)
    assert model.k_ <= len(x)
    assert model.predict(x).shape == y.shape


# Other sets ##################################################################


def test_models_of_relations_serve_any_dimension():
    x, y = world(dim=48)
    for model in (fitted(), estimator(predictor='regression').fit(*world())):
        labels = model.predict(x)
        assert labels.shape == y.shape
        # The same whatever the coordinates.
        wide = np.concatenate([np.zeros((len(x), 3)), x], axis=1)
        assert np.array_equal(model.predict(wide), labels)


@pytest.mark.parametrize('kwargs', [{'tokens': 'feature'},
                                    {'predictor': 'bilstm'}])
def test_models_of_features_serve_their_dimension(monkeypatch, kwargs):
    model = estimator(**kwargs).fit(*world())
    monkeypatch.setattr(Neighbors, 'search', never)
    with pytest.raises(ValueError, match='fitted to features of dimension 32 '
                                         '.got 48'):
        model.predict(world(dim=48)[0])


@pytest.mark.parametrize('n', [1, 2, 3, K - 1, K, K + 1])
def test_few_samples(n):
    x = world('test')[0][:n]
    labels = fitted().predict(x)
    assert labels.shape == (n, ) and labels.dtype == np.int64
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    assert np.array_equal(fitted().labels_, labels)


def test_exact_duplicates():
    x = np.repeat(world('test')[0][:10], 3, axis=0)
    labels = fitted().predict(x)
    assert labels.shape == (30, )
    one = fitted().predict(np.repeat(x[:1], 30, axis=0))
    assert one.shape == (30, )


def test_a_ready_table():
    (x, y), (other, _) = world(), world('test')
    model = estimator().fit(x, y, neighbors=Neighbors.build(x, K))
    assert equal(model, fitted())
    assert model.rule_ == fitted().rule_
    labels = fitted().predict(other)
    # Of a wider one, the first neighbours.
    for k in (K, K + 5):
        table = Neighbors.build(other, k)
        assert np.array_equal(fitted().predict(other, neighbors=table),
                              labels)
    # A narrower one will do.
    narrow = Neighbors.build(other, 3)
    assert fitted().predict(other, neighbors=narrow).shape == labels.shape


def test_bad_tables(monkeypatch):
    (x, y), model = world(), fitted()
    short = Neighbors.build(x[1:], K)
    broken = Neighbors(Neighbors.build(x, K).index.flip(1),
                       Neighbors.build(x, K).similarity)
    monkeypatch.setattr(Neighbors, 'search', never)
    for table, message in ((short, f'{len(x) - 1} rows, but there are '
                                   f'{len(x)}'),
                           (broken, 'Row 0 does not start')):
        with pytest.raises(ValueError, match=message):
            estimator().fit(x, y, neighbors=table)
        with pytest.raises(ValueError, match=message):
            model.predict(x, neighbors=table)
    with pytest.raises(ValueError, match='rows, but there are 1 samples'):
        model.predict(x[:1], neighbors=short)


def test_groups_are_kept_together(monkeypatch):
    x, y = world()
    seen = {}

    def table(self, rows, neighbors=None):
        seen[len(seen)] = rows
        return before(self, rows, neighbors)

    before = SDTClustering._table
    monkeypatch.setattr(SDTClustering, '_table', table)
    group = y % 5
    estimator().fit(x, y, group)
    # The first two tables are of training and of held-out rows.
    unit = normalize_features(x)
    rows = [{int((unit == row).all(dim=1).nonzero()[0]) for row in seen[i]}
            for i in range(2)]
    assert rows[0] | rows[1] == set(range(len(x)))
    sides = [{int(group[row]) for row in side} for side in rows]
    assert not sides[0] & sides[1]


# Files #######################################################################


def test_save_and_load(tmp_path):
    model, path = fitted(), tmp_path / 'model.safetensors'
    model.save(str(path))
    assert os.listdir(tmp_path) == ['model.safetensors']
    loaded = SDTClustering.load(path)
    assert loaded.get_params() == model.get_params()
    assert (loaded.rule_, loaded.k_, loaded.validation_score_,
            loaded.likeness_) == (model.rule_, model.k_,
                                  model.validation_score_, model.likeness_)
    assert equal(loaded, model)
    for network in (loaded.predictor_, loaded.transformer_):
        assert not network.training
    for x in (world('test')[0], world(dim=48)[0]):
        assert np.array_equal(loaded.predict(x), model.predict(x))
    # And on: the same file.
    loaded.save(tmp_path / 'again.safetensors')
    assert path.read_bytes() == (tmp_path /
                                 'again.safetensors').read_bytes()
    # A device of its own is no part of the model.
    assert SDTClustering.load(path, device='cpu').device == 'cpu'


def test_the_file_is_safetensors_and_json(tmp_path):
    path = tmp_path / 'model.safetensors'
    estimator(workdir=str(tmp_path / 'work')).fit(*world()).save(path)
    with safe_open(path, 'pt') as file:
        meta = json.loads(file.metadata()['torch_sdt'])
        assert set(file.keys()) == set(weights(fitted()))
    assert meta['class'] == 'SDTClustering'
    # Nothing of the machine that it was made on.
    assert not {'device', 'workdir', 'verbose'} & set(meta['arguments'])
    assert str(tmp_path).encode() not in path.read_bytes()


def test_settings_of_numpy_can_be_saved(tmp_path):
    model = estimator(k=np.int64(K), epochs=np.int64(1),
                      lr=np.float64(.05), workdir=str(tmp_path / 'work'))
    model.fit(*world()).save(tmp_path / 'model.safetensors')
    loaded = SDTClustering.load(tmp_path / 'model.safetensors')
    assert loaded.k == K and equal(loaded, fitted())


def test_load_of_what_is_no_model(tmp_path):
    path = tmp_path / 'model.safetensors'
    with pytest.raises(FileNotFoundError, match='There is no file'):
        SDTClustering.load(path)
    fitted().save(path)
    data = path.read_bytes()
    for bad in (b'', data[:100], data[:-1], b'x' * 500):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match='truncated'):
            SDTClustering.load(path)
    path.write_bytes(data)
    tensors, meta = load_tensors(path)
    for change, message in (
            ({'class': 'FCES'}, "holds no SDTClustering .but 'FCES'"),
            ({'format': 99}, 'has format 99, and this version .* format 3')):
        save_tensors(path, tensors, {**meta, **change})
        with pytest.raises(ValueError, match=message):
            SDTClustering.load(path)
    # The checkpoint of a training is no model.
    estimator(workdir=str(tmp_path)).fit(*world())
    with pytest.raises(ValueError, match='holds no SDTClustering'):
        SDTClustering.load(tmp_path / 'predictor.safetensors')


@pytest.mark.parametrize('spoil', [
    lambda tensors: tensors.pop('predictor.encoder.rank'),
    lambda tensors: tensors.update({'predictor.more': torch.ones(1)}),
    lambda tensors: tensors.update({
        'transformer.encoder.rank': torch.ones(K, 5)}),
], ids=['missing', 'unexpected', 'shape'])
def test_load_of_weights_that_do_not_fit(tmp_path, spoil):
    path = tmp_path / 'model.safetensors'
    fitted().save(path)
    tensors, meta = load_tensors(path)
    spoil(tensors)
    save_tensors(path, tensors, meta)
    with pytest.raises(ValueError, match='model.safetensors'):
        SDTClustering.load(path)


# Interruption ################################################################


@pytest.mark.parametrize('at', [1, 2, 3, 4])
def test_a_killed_fit_goes_on(tmp_path, monkeypatch, at):
    # Two epochs of two networks: killed after each.
    x, y = world()
    whole = estimator(epochs=2).fit(x, y)
    calls = []

    class Killed(Exception):
        pass

    def validation(self, *args):
        validate = before(self, *args)

        def killed(model):
            calls.append(model)
            if len(calls) == at:
                raise Killed
            return validate(model)

        return killed

    before = SDTClustering._validation
    monkeypatch.setattr(SDTClustering, '_validation', validation)
    with pytest.raises(Killed):
        estimator(epochs=2, workdir=str(tmp_path)).fit(x, y)
    # Elsewhere, with another state of the global generator.
    torch.rand(3)
    model = estimator(epochs=2, workdir=str(tmp_path)).fit(x, y)
    # Only what was cut off is done again.
    assert len(calls) == 4 + 1
    assert equal(model, whole)
    assert model.rule_ == whole.rule_
    assert set(os.listdir(tmp_path)) == {
        f'{name}{part}.{end}' for name in ('predictor', 'transformer')
        for part in ('', '-all') for end in ('safetensors', 'csv')}
    other = world('test')[0]
    assert np.array_equal(model.predict(other), whole.predict(other))


@pytest.mark.parametrize('name', ['predictor-all', 'transformer-all'])
def test_a_fit_killed_among_all_identities_goes_on(tmp_path, monkeypatch,
                                                   name):
    x, y = world()
    whole, before, done = estimator(epochs=2).fit(x, y), Trainer.fit, []

    class Killed(Exception):
        pass

    def fit(self, *args, **kwargs):
        history = before(self, *args, **kwargs)
        if self.name == name and not done:
            done.append(name)
            raise Killed
        return history

    monkeypatch.setattr(Trainer, 'fit', fit)
    killed = estimator(epochs=2, workdir=str(tmp_path))
    with pytest.raises(Killed):
        killed.fit(x, y)
    with pytest.raises(NotFittedError):
        killed.predict(x)
    again = estimator(epochs=2, workdir=str(tmp_path)).fit(x, y)
    assert equal(again, whole) and again.rule_ == whole.rule_
    # What was learned before it does not depend on it.
    first = estimator(epochs=2, refit=False, workdir=str(tmp_path)).fit(x, y)
    assert equal(first, estimator(epochs=2, refit=False).fit(x, y))


@pytest.mark.parametrize('epochs,further', [(1, 0), (2, 1), (4, 1), (5, 2)])
def test_networks_go_on_with_all_identities(monkeypatch, epochs, further):
    (x, y), before, seen = world(), Trainer.fit, {}

    def fit(self, model, loader, *args, **kwargs):
        history = before(self, model, loader, *args, **kwargs)
        seen[self.name] = loader.nodes.numel(), len(history)
        return history

    monkeypatch.setattr(Trainer, 'fit', fit)
    model = estimator(epochs=epochs).fit(x, y)
    names = ['predictor', 'transformer']
    every = [f'{name}-all' for name in names] if further else []
    assert list(seen) == list(model.history_) == names + every
    assert all(seen[name][0] < len(x) for name in names)
    assert all(seen[name] == (len(x), further) for name in every)
    # What was chosen with identities held out is not chosen again.
    first = estimator(epochs=epochs, refit=False).fit(x, y)
    assert list(first.history_) == names
    assert model.rule_ == first.rule_
    assert model.validation_score_ == first.validation_score_
    assert equal(model, first) == (further == 0)


@pytest.mark.parametrize('network', ['predictor_', 'transformer_'])
def test_a_killed_predict_goes_on(tmp_path, monkeypatch, network):
    monkeypatch.setattr(resume, '_GROUP', 2)
    x, _ = world('test')
    expected = fitted().predict(x)
    fitted().save(tmp_path / 'model.safetensors')
    model = SDTClustering.load(tmp_path / 'model.safetensors')
    model.workdir = str(tmp_path / 'work')
    assert np.array_equal(model.predict(x), expected)
    folder, = (tmp_path / 'work').glob('predict-*')
    whole = len(list((folder / network[:-1]).iterdir()))
    assert whole >= 4

    model.workdir = str(tmp_path / 'again')
    batches = []

    def killed(module, args):
        batches.append(args)
        if len(batches) == 5:
            raise KeyboardInterrupt

    hook = getattr(model, network).register_forward_pre_hook(killed)
    with pytest.raises(KeyboardInterrupt):
        model.predict(x)
    folder, = (tmp_path / 'again').glob('predict-*')
    assert len(list((folder / network[:-1]).iterdir())) == 2
    hook.remove()
    asked = []
    getattr(model, network).register_forward_pre_hook(
        lambda module, args: asked.append(args))
    assert np.array_equal(model.predict(x), expected)
    assert len(asked) == -(-len(x) // 4) - 4
    # Nothing is left to ask; of other features and weights, everything is.
    del asked[:]
    assert np.array_equal(model.predict(x), expected) and asked == []
    model.predict(x[1:])
    assert len(asked) == -(-(len(x) - 1) // 4)
    del asked[:]
    with torch.no_grad():
        next(getattr(model, network).parameters()).mul_(1.5)
    model.predict(x)
    assert len(asked) == -(-len(x) // 4)


@pytest.mark.parametrize('change', [
    {'lr': 1e-2}, {'seed': 1}, {'batch_size': 16}, {'epochs': 2},
    {'precision': 'bf16-mixed'}, {'val_share': .5}, {'center': True},
    {'attention': 'diff'}, {'attention': 'vanilla'}, {'k': K - 1},
    {'margin': 0}, {'dropout': .5}, {'lambda_init': .1}, {'mask': 'logits'},
    {'predictor': 'regression'}, {'experts': 2}, {'index': 'torch'},
    {'groups': True},
], ids=str)
def test_checkpoints_of_other_settings_are_not_used(tmp_path, change):
    # Either it says so, or what comes out is what the settings say.
    x, y = world()
    estimator(workdir=str(tmp_path)).fit(x, y)
    change = dict(change)
    groups = y % 5 if change.pop('groups', False) else None
    if not set(change) <= set(estimator().get_params()):
        change = {'model_args': {**SMALL, **change}}
    try:
        model = estimator(workdir=str(tmp_path), **change).fit(x, y, groups)
    except ValueError as e:
        assert 'another training' in str(e) and 'workdir' in str(e)
    else:
        expected = estimator(**change).fit(x, y, groups)
        assert equal(model, expected)


def test_checkpoints_of_other_data_are_not_used(tmp_path):
    x, y = world()
    estimator(workdir=str(tmp_path)).fit(x, y)
    other = np.where(y == 3, 4, y)
    for args in ((x[::-1].copy(), y[::-1]), (x, other), (x + .01, y)):
        with pytest.raises(ValueError, match='differs in data'):
            estimator(workdir=str(tmp_path)).fit(*args)
    # The networks go on with what is in the table that is given.
    with pytest.raises(ValueError, match='differs in data'):
        estimator(workdir=str(tmp_path)).fit(x, y, neighbors=Neighbors.build(
            x, K))


def test_exploding_is_an_error(tmp_path, monkeypatch):
    def loss(self, batch):
        return before(self, batch) * float('nan')

    before = SparseDiffTransformer.loss
    monkeypatch.setattr(SparseDiffTransformer, 'loss', loss)
    with pytest.raises(FloatingPointError, match="loss of 'transformer'"):
        estimator().fit(*world())


# Errors ######################################################################


@pytest.mark.parametrize('kwargs,message', [
    ({'predictor': 'lstm'}, r"'predictor' must be .*'bilstm'.* 'lstm'"),
    ({'attention': 'dense'}, "'attention' must be .*None.* 'dense'"),
    ({'tokens': 'pixels'}, "'tokens' must be .*'pixels'"),
    ({'size': 'large'}, "'size' must be .*'small', 'base'.*'large'"),
    ({'merge': 'median'}, "'merge' must be .*'boundary'.*'median'"),
    ({'augment': 'some'}, "'augment' must be .*'half'.* 'some'"),
    ({'augment': 'all', 'tokens': 'feature'}, "augment='all' needs"),
    ({'augment': 'half', 'predictor': 'bilstm'}, "augment='half' needs"),
    ({'val_share': 0.}, "'val_share' must be between 0 and 1 .got 0.0"),
    ({'val_share': 1.}, "'val_share' must be between 0 and 1 .got 1.0"),
    ({'experts': 0}, "'experts' must be at least 1 .got 0"),
    ({'epochs': 0}, "'epochs' must be at least 1 .got 0"),
    ({'k': 1}, "'k' must be between 2 and .* .got 1"),
    ({'k': 1000}, "'k' must be between 2 and .* .got 1000"),
    ({'model_args': {**SMALL, 'heads': 3}}, 'multiple of the 3 heads'),
    ({'model_args': {**SMALL, 'lambda_form': 'x'}}, "'lambda_form' must"),
    ({'batch_size': 0}, "'batch_size' must be at least 1 .got 0"),
    ({'lr': 0.}, "'lr' must be positive .got 0.0"),
    ({'patience': 0}, "'patience' must be at least 1 .got 0"),
    ({'precision': 'half'}, "'precision' must be .*'half'"),
    ({'index': 'nonsense'}, "'index' must be"),
    ({'predictor': 'regression', 'attention': None, 'merge': 'mean'},
     "'merge'"),
    ({'predictor': 'regression', 'attention': None, 'adapt': True},
     "'adapt' needs a verdict"),
], ids=str)
def test_bad_arguments(monkeypatch, kwargs, message):
    # Before any work: hours of it may follow.
    if 'index' not in kwargs:
        monkeypatch.setattr(Neighbors, 'search', never)
    with pytest.raises(ValueError, match=message):
        estimator(**kwargs).fit(*world())


def test_unknown_arguments(monkeypatch):
    monkeypatch.setattr(Neighbors, 'search', never)
    with pytest.raises(TypeError, match='layers'):
        SDTClustering(layers=3)
    with pytest.raises(TypeError, match='layers'):
        estimator(model_args={'layers': 3}).fit(*world())


@pytest.mark.parametrize('spoil,message', [
    (lambda x, y: (x, None), 'y is missing'),
    (lambda x, y: (x, y[1:]), "'y' must have shape"),
    (lambda x, y: (x, np.where(y == y[5], np.nan, y)), 'has no label'),
    (lambda x, y: (x, np.zeros_like(y)), 'at least 8 identities.*got 1'),
    (lambda x, y: (x, y % 7), 'at least 8 identities.*got 7'),
    (lambda x, y: (x, np.arange(y.size)), 'has two samples'),
    (lambda x, y: (x, y, np.zeros_like(y)), 'one group'),
    (lambda x, y: (x, y, y[1:]), "'groups' must have shape"),
    (lambda x, y: (x, y, np.arange(y.size)), 'in two groups'),
    (lambda x, y: (np.where(np.arange(len(x))[:, None] == 7, np.nan, x), y),
     'Row 7'),
    (lambda x, y: (x[:, 0], y), r'\[N, D\]'),
])
def test_bad_data(monkeypatch, spoil, message):
    monkeypatch.setattr(Neighbors, 'search', never)
    with pytest.raises(ValueError, match=message):
        estimator().fit(*spoil(*world()))


@pytest.mark.parametrize('spoil,message', [
    (lambda x: x[:0], 'empty'),
    (lambda x: x[0], r'\[N, D\]'),
    (lambda x: np.where(np.arange(len(x))[:, None] == 3, np.inf, x), 'Row 3'),
    (lambda x: np.where(np.arange(len(x))[:, None] == 5, 0., x), 'Row 5'),
])
def test_bad_features_to_predict(spoil, message):
    with pytest.raises(ValueError, match=message):
        fitted().predict(spoil(world('test')[0]))


# Features of other kinds #####################################################


@pytest.mark.parametrize('augment', ['none', 'half', 'all'])
def test_augmented_models_train_and_repeat(augment):
    x, y = world()
    first, second = (estimator(augment=augment, epochs=1).fit(x, y)
                     for _ in range(2))
    assert equal(first, second)
    # None is the default where few epochs are asked for.
    assert equal(first, estimator(epochs=1).fit(x, y)) == (augment == 'none')


@pytest.mark.parametrize('kwargs,expected', [
    ({'epochs': 11}, True), ({'epochs': 10}, False), ({'epochs': None}, True),
    ({'epochs': 1, 'augment': 'half'}, True),
    ({'epochs': 11, 'augment': 'none'}, False)])
def test_views_where_a_set_would_be_learned_by_heart(monkeypatch, kwargs,
                                                     expected):
    # A hundred samples would be shown 25 times.
    loaders = []
    monkeypatch.setattr(SDTClustering, '_train',
                        lambda self, name, loader, *_: loaders.append(loader))
    monkeypatch.setattr(SDTClustering, '_choose', lambda self, *args: None)
    estimator(**kwargs).fit(*world())
    assert len(loaders) == 2
    for loader in loaders:
        assert isinstance(loader, AlternatingLoader) == expected


def test_no_views_where_the_networks_cannot_take_them(monkeypatch):
    x, y = world()
    monkeypatch.setattr('torch_sdt.cluster.sdt_clustering.RandomViews', never)
    for kwargs in ({'tokens': 'feature'}, {'predictor': 'regression'}):
        estimator(epochs=11, **kwargs).fit(x, y)


@pytest.mark.parametrize('labels,given,expected', [
    ('true', {}, True), ('one', {}, False), ('true', {'merge': 'mean'}, False),
    ('one', {'adapt': True}, True), ('true', {'adapt': False}, False)])
def test_held_out_identities_decide_whether_to_adapt(
        monkeypatch, labels, given, expected):
    x, y = world()
    found = y if labels == 'true' else np.zeros_like(y)
    monkeypatch.setattr(SDTClustering, '_adapt', lambda *_: found)
    model = estimator(epochs=1, **given).fit(x, y)
    assert (model.rule_.merge == 'adapt') == expected
    assert (model.validation_score_ == 1.) == (labels == 'true' and expected)
    # Where a rule is kept, it is what `predict` applies.
    test = world('test')[0]
    monkeypatch.setattr(SDTClustering, '_adapt', lambda *_: np.arange(
        len(test)))
    assert (np.unique(model.predict(test)).size == len(test)) == expected


def test_adapting_follows_cosines_where_the_verdict_is_silent(monkeypatch):
    # A verdict of one half moves nothing.
    x, _ = world('test')
    model = fitted()

    def edges(table, trust=None):
        out = before(table, trust)
        out.verdict = torch.full_like(out.verdict, .5)
        return out

    before = model._edges
    expected = TopKJaccardClustering().fit_predict(
        model._features(x), neighbors=Neighbors.build(model._features(x), K))
    monkeypatch.setattr(model, '_edges', edges, raising=False)
    labels = model.predict(x, adapt=True)
    monkeypatch.undo()
    assert np.array_equal(labels, expected)
    assert np.array_equal(model.predict(x, adapt=True), model.labels_)


@pytest.mark.parametrize('right', [True, False])
def test_a_verdict_counts_where_it_is_better_than_none(monkeypatch, right):
    (x, y), model = world('test'), fitted()
    without = TopKJaccardClustering(k=K).fit_predict(x)

    def edges(table, trust=None):
        out = before(table, trust)
        same = y[table.neighbors.index] == y[:, None]
        out.verdict = torch.from_numpy(same == right).float()
        return out

    before = model._edges
    monkeypatch.setattr(model, '_edges', edges, raising=False)
    labels = model.predict(x, adapt=True)
    if right:
        assert mean_fscore(y, labels) > mean_fscore(y, without) + .1
    else:
        assert np.array_equal(labels, without)


@pytest.mark.parametrize('likeness,better', [(1., True), (.4, True),
                                             (1., False), (0., True)])
@pytest.mark.parametrize('compared', [50_000, 60])
def test_a_rule_that_fails_is_left_aside(monkeypatch, likeness, better,
                                         compared):
    # A rule that makes one cluster of all, and settings that do better or
    # leave every sample alone.
    x, model = world('test')[0], fitted()
    monkeypatch.setattr('torch_sdt.cluster.sdt_clustering._COMPARED', compared)
    monkeypatch.setattr(model, 'rule_', EdgeRule(
        threshold=0., markov_time=50.))
    monkeypatch.setattr(model, 'likeness_', likeness)
    if not better:
        monkeypatch.setattr(model, '_adapt', lambda table, _: np.arange(
            len(table.x)), raising=False)
    kept, found = (model.predict(x, adapt=adapt) for adapt in (False, True))
    assert kept.max() == 0 < found.max()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        labels = model.predict(x)
    # Where it could not tell labelled samples it does not judge others.
    fails = better and likeness >= .5
    told = [str(one.message) for one in caught
            if 'adapt=False keeps the rule' in str(one.message)]
    assert len(told) == fails
    assert np.array_equal(labels, found if fails else kept)


def test_a_rule_is_not_compared_without_numba(monkeypatch):
    # As on a GPU, where a rule does without.
    model, asked = fitted(), []

    def partition(measured, rule):
        asked.append(rule)
        return torch.zeros(measured.table.x.size(0), dtype=torch.long)

    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    monkeypatch.setattr(model, 'rule_', EdgeRule())
    monkeypatch.setattr(model, 'likeness_', 1.)
    monkeypatch.setattr(model, '_partition', partition, raising=False)
    assert model.predict(world('test')[0]).max() == 0
    assert asked == [model.rule_]


def test_without_numba(monkeypatch):
    # Nothing but settings found without labels needs it.
    x, y = world()
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    model = estimator().fit(x, y)
    assert model.rule_.merge == 'verdict' and model.likeness_ == 0
    assert model.predict(x).shape == y.shape
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'fit', never)
        patch.setattr(model, '_measure', never, raising=False)
        with pytest.raises(ImportError, match="requires 'numba'"):
            estimator(adapt=True).fit(x, y)
        with pytest.raises(ImportError, match="requires 'numba'"):
            model.predict(x, adapt=True)
        # A model without a rule has nothing else.
        patch.setattr(model, 'rule_', model.rule_._replace(merge='adapt'))
        with pytest.raises(ImportError, match="requires 'numba'"):
            model.predict(x)


def test_adapt_asks_for_what_is_there(monkeypatch):
    x, y = world()
    none = estimator(attention=None, predictor='regression').fit(x, y)
    ruled = estimator(adapt=True).fit(x, y)
    for model, adapt in ((none, True), (ruled, False)):
        with monkeypatch.context() as patch:
            patch.setattr(model, '_measure', never, raising=False)
            with pytest.raises(ValueError, match="verdict|no edge rule"):
                model.predict(x, adapt=adapt)


@pytest.mark.parametrize('kwargs,compared', [
    ({}, True), ({'adapt': False}, False), ({'adapt': True}, False),
    ({'merge': 'verdict'}, False),
    ({'attention': None, 'predictor': 'regression'}, False)])
def test_what_a_rule_is_compared_with(monkeypatch, kwargs, compared):
    # True clusters, which the rule is likely to find, with worse ones.
    x, y = world()
    worse = np.where(np.arange(y.size) % 2 == 0, y, y[::-1])
    worse = np.unique(worse, return_inverse=True)[1]
    monkeypatch.setattr(SDTClustering, '_adapt', lambda *_: worse)
    model = estimator(**kwargs).fit(x, y)
    assert (model.likeness_ > 0) == compared
