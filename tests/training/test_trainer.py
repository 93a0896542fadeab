import csv
import json
import os
import pickletools
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import torch_sdt.typing
from torch_sdt.io import load_tensors
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn import TopKPredictor
from torch_sdt.ops import knn, normalize_features
from torch_sdt.training import Trainer

N, K = 42, 6
EPOCHS = 4
# The second epoch is the best.
SCORES = [.3, .9, .5, .7]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


class Killed(Exception):
    pass


class Tiny(TopKPredictor):
    # Fails in some way at some step.

    def __init__(self, fail=None, at=None, seed=0, **kwargs):
        torch.manual_seed(seed)
        super().__init__(K, **{'hidden_channels': 8, 'ffn_channels': 8,
                               'num_layers': 1, 'heads': 2, **kwargs})
        self.fail, self.at, self.steps = fail, at, 0

    def loss(self, batch):
        self.steps += 1
        loss = super().loss(batch)
        if self.steps != self.at:
            return loss
        if self.fail == 'kill':
            raise Killed
        if self.fail == 'gradient':
            # Of a finite value, but not of a finite slope.
            return loss + (0. * self.encoder.rank).sum().sqrt()
        return loss * float(self.fail)


def subgraphs(batch_size=10, seed=0):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, 5, generator=generator)[y]
    x = normalize_features(x + .5 * torch.randn(N, 5, generator=generator))
    return NeighborSubgraphs(knn(x, K), x, batch_size, y=y, shuffle=True,
                             seed=seed)


STEPS = len(subgraphs())


class Validate:
    # Scores by the book, weights seen, and death on request.

    def __init__(self, scores=SCORES, kill_at=None, first=1):
        self.scores, self.kill_at = scores, kill_at
        self.epoch, self.weights = first - 1, {}

    def __call__(self, model):
        self.epoch += 1
        assert not model.training and not torch.is_grad_enabled()
        if self.epoch == self.kill_at:
            raise Killed
        self.weights[self.epoch] = weights(model)
        return {'mean_f': self.scores[self.epoch - 1], 'other': 0.}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items())


def rows(history):
    # Without the clock.
    return [{key: value for key, value in row.items() if key != 'seconds'}
            for row in history.rows]


def train(model=None, loader=None, validate=None, fingerprint='', **kwargs):
    model = Tiny() if model is None else model
    loader = subgraphs() if loader is None else loader
    trainer = Trainer(**{'epochs': EPOCHS, 'warmup': 5, 'lr': .01, **kwargs})
    history = trainer.fit(model, loader, validate, fingerprint)
    return model, history


# Training ####################################################################


def test_it_trains():
    untrained = weights(Tiny())
    model, history = train()
    loss = [row['loss'] for row in history.rows]
    assert [row['epoch'] for row in history.rows] == [1, 2, 3, 4]
    assert loss[-1] < loss[0]
    assert all(row['seconds'] > 0 for row in history.rows)
    assert not model.training
    # Without validation, the last epoch is what is left.
    assert not equal(weights(model), untrained)
    _, longer = train(epochs=EPOCHS, validate=Validate())
    assert rows(longer)[-1]['loss'] == loss[-1]


def test_mean_loss_is_that_of_subgraphs():
    # The last batch of 42 is a small one. With lr next to nothing and no
    # dropout, the mean is that of all in one batch.
    model = Tiny(dropout=0.)
    expected = model.loss(subgraphs(N).gather(torch.arange(N))).item()
    _, history = train(model, lr=1e-12, epochs=1)
    assert history.rows[0]['loss'] == pytest.approx(expected, abs=1e-5)


def test_same_seed_same_weights():
    first, history = train()
    torch.rand(7)  # whatever the global generator does
    second, other = train()
    assert equal(weights(first), weights(second))
    assert rows(history) == rows(other)
    # Another dropout, and another order.
    for kwargs in ({'seed': 1}, {'loader': subgraphs(seed=1)}):
        third, _ = train(**kwargs)
        assert not equal(weights(first), weights(third))


def test_global_generators_are_left_alone():
    model, loader = Tiny(dropout=.5), subgraphs()
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), \
        random.getstate()
    train(model, loader, Validate())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_the_best_epoch_is_what_is_left():
    validate = Validate()
    model, history = train(validate=validate)
    assert len(history) == EPOCHS
    assert equal(weights(model), validate.weights[2])
    assert not equal(weights(model), validate.weights[4])
    # The first of equals, and the first of the scores decides.
    validate = Validate([.5, .9, .9, .1])
    model, _ = train(validate=validate)
    assert equal(weights(model), validate.weights[2])
    assert not equal(weights(model), validate.weights[3])


@pytest.mark.parametrize('patience,epochs', [(None, 4), (1, 3), (2, 4),
                                             (3, 4)])
def test_patience(patience, epochs):
    validate = Validate([.1, .2, .15, .19])
    model, history = train(validate=validate, patience=patience)
    assert len(history) == epochs
    assert equal(weights(model), validate.weights[2])
    # Who always gets better is never stopped, nor who is not validated.
    _, history = train(validate=Validate([.1, .2, .3, .4]), patience=1)
    assert len(history) == EPOCHS
    assert len(train(patience=1)[1]) == EPOCHS


def test_patience_of_one_stops_at_once():
    _, history = train(validate=Validate([.5, .4, .9, .9]), patience=1)
    assert len(history) == 2


def test_learning_rate():
    trainer = Trainer(10, lr=.1, warmup=20)
    lr = [trainer._lr(step, 8) for step in range(80)]
    assert lr[0] == pytest.approx(.1 / 20)
    assert max(lr) < .1 and lr.index(max(lr)) in range(10, 21)
    top = lr.index(max(lr))
    assert lr[:top + 1] == sorted(lr[:top + 1])
    assert lr[top:] == sorted(lr[top:], reverse=True)
    # A cosine: half of it in the middle, next to nothing at the end.
    assert lr[40] == pytest.approx(.05) and 0 < lr[-1] < .001
    assert Trainer(10, lr=.1, warmup=0)._lr(0, 8) == .1


@pytest.fixture
def steps(monkeypatch):
    # The optimizer's rate and the norm of the gradient at each of its steps.
    out, before = [], torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        group, = self.param_groups
        norms = [p.grad.norm() for p in group['params']]
        out.append((group['lr'], torch.stack(norms).norm().item()))
        return before(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, 'step', step)
    return out


def test_the_learning_rate_goes_on_from_epoch_to_epoch(steps, tmp_path):
    trainer = Trainer(EPOCHS, lr=.01, warmup=5)
    expected = [trainer._lr(step, STEPS) for step in range(EPOCHS * STEPS)]
    train()
    assert [lr for lr, _ in steps] == expected
    # And from process to process.
    steps.clear()
    interrupted(tmp_path, 'validate')
    assert len(steps) == 3 * STEPS
    train(validate=Validate(first=3), workdir=str(tmp_path))
    assert [lr for lr, _ in steps[3 * STEPS:]] == expected[2 * STEPS:]


def test_the_gradient_is_clipped(steps):
    class Steep(Tiny):
        def loss(self, batch):
            return 1e4 * super().loss(batch)

    train(Steep(), clip=.25, epochs=1)
    assert [norm for _, norm in steps] == pytest.approx([.25] * STEPS,
                                                        rel=1e-3)


def test_bf16():
    model, history = train(precision='bf16-mixed')
    plain, _ = train()
    assert all(value.dtype == torch.float32
               for value in model.state_dict().values())
    assert not equal(weights(model), weights(plain))
    assert history.rows[-1]['loss'] < history.rows[0]['loss']


# Interrupted #################################################################


def files(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def interrupted(tmp_path, how):
    # Killed in epoch 3, at its end, at its beginning or in its middle.
    if how == 'validate':
        kwargs = {'validate': Validate(kill_at=3)}
    else:
        at = 2 * STEPS + (1 if how == 'first' else STEPS // 2 + 1)
        kwargs = {'validate': Validate(), 'model': Tiny('kill', at)}
    with pytest.raises(Killed):
        train(workdir=str(tmp_path), **kwargs)


@pytest.mark.parametrize('how', ['validate', 'first', 'middle'])
def test_a_killed_training_goes_on(tmp_path, how):
    whole, history = train(validate=Validate(),
                           workdir=str(tmp_path / 'whole'))
    plain, _ = train(validate=Validate())
    assert equal(weights(whole), weights(plain))
    interrupted(tmp_path / 'cut', how)
    assert len(load_tensors(
        tmp_path / 'cut' / 'model.safetensors')[1]['history']) == 2
    # In another process weights start elsewhere, and so does the generator.
    validate = Validate(first=3)
    model, other = train(Tiny(seed=7), validate=validate,
                         workdir=str(tmp_path / 'cut'))
    assert list(validate.weights) == [3, 4]
    assert equal(weights(model), weights(whole))
    assert rows(other) == rows(history)
    # What is on disk is the same, too.
    states = [load_tensors(tmp_path / name / 'model.safetensors')[0]
              for name in ('whole', 'cut')]
    assert equal(*states)


def test_killed_before_the_first_epoch_ended(tmp_path):
    with pytest.raises(Killed):
        train(Tiny('kill', 3), workdir=str(tmp_path))
    assert os.listdir(tmp_path) == []
    model, _ = train(workdir=str(tmp_path))
    assert equal(weights(model), weights(train()[0]))


def test_a_finished_training_is_not_repeated(tmp_path):
    first, history = train(validate=Validate(), workdir=str(tmp_path))
    before = files(tmp_path)
    second, other = train(Tiny('kill', 1, seed=7),
                          validate=Validate(kill_at=1), workdir=str(tmp_path))
    assert equal(weights(first), weights(second))
    assert other.rows == history.rows
    assert files(tmp_path) == before


def test_patience_counts_across_interruptions(tmp_path):
    scores = [.5, .4, .4, .4]
    with pytest.raises(Killed):
        train(validate=Validate(scores, kill_at=3), patience=2,
              workdir=str(tmp_path))
    _, history = train(validate=Validate(scores, first=3), patience=2,
                       workdir=str(tmp_path))
    assert len(history) == 3


# Files #######################################################################


def test_data_stay_where_they_are():
    with pytest.raises(ValueError, match="The data are on 'cpu'"):
        train(device='cuda')


def test_the_checkpoint_is_one_safetensors_file(tmp_path):
    model, history = train(validate=Validate(), workdir=str(tmp_path),
                           name='it')
    assert set(os.listdir(tmp_path)) == {'it.safetensors', 'it.csv'}
    path = tmp_path / 'it.safetensors'
    with safe_open(path, 'pt') as file:
        names, meta = set(file.keys()), file.metadata()
    # Weights, those of the best epoch, and the optimizer's state of each.
    state = set(model.state_dict())
    assert {name[6:] for name in names if name[:6] == 'model.'} == state
    assert {name[5:] for name in names if name[:5] == 'best.'} == state
    slots = {name for name in names if name[:10] == 'optimizer.'}
    assert len(slots) == 3 * len(list(model.parameters()))
    assert len(names) == 2 * len(state) + len(slots)
    assert json.loads(meta['torch_sdt'])['history'] == history.rows
    # No pickle, neither plain nor in an archive.
    data = path.read_bytes()
    assert data[:2] != b'PK' and data[:1] != b'\x80'
    with pytest.raises(ValueError):
        list(pickletools.genops(data))


def test_curves(tmp_path, monkeypatch):
    _, history = train(validate=Validate(), workdir=str(tmp_path))
    with open(tmp_path / 'model.csv', newline='') as f:
        found = list(csv.DictReader(f))
    assert [{key: float(value) for key, value in row.items()}
            for row in found] == history.rows
    assert [row['mean_f'] for row in found] == [str(s) for s in SCORES]
    # And as a figure, where there is matplotlib.
    pytest.importorskip('matplotlib')
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', True)
    train(workdir=str(tmp_path / 'other'), epochs=1)
    assert set(os.listdir(tmp_path / 'other')) == {
        'model.safetensors', 'model.csv', 'model.png'}
    assert (tmp_path / 'other/model.png').read_bytes()[:4] == b'\x89PNG'


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(validate=Validate())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('change,name', [
    ({'epochs': 5}, 'epochs'), ({'lr': .02}, 'lr'),
    ({'weight_decay': .1}, 'weight_decay'), ({'warmup': 7}, 'warmup'),
    ({'clip': 2.}, 'clip'), ({'seed': 1}, 'seed'),
    ({'precision': 'bf16-mixed'}, 'precision'),
    ({'fingerprint': 'other'}, 'data'),
    ({'loader': subgraphs(5)}, 'batch_size'),
    ({'loader': subgraphs(seed=1)}, 'order'),
    ({'model': Tiny(ffn_channels=9)}, 'parameters'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_checkpoint_of_another_training(tmp_path, change, name):
    interrupted(tmp_path, 'validate')
    before = files(tmp_path)
    with pytest.raises(ValueError, match=rf"another training .it differs in "
                                         rf"{name}\).*another workdir"):
        train(**{'workdir': str(tmp_path), 'validate': Validate(), **change})
    assert files(tmp_path) == before


def test_trainings_of_other_names_are_apart(tmp_path):
    train(workdir=str(tmp_path), name='one')
    train(workdir=str(tmp_path), name='two', epochs=2)
    assert len(load_tensors(tmp_path / 'one.safetensors')[1]['history']) == 4
    assert len(load_tensors(tmp_path / 'two.safetensors')[1]['history']) == 2


@pytest.mark.parametrize('spoil', [
    lambda data: b'', lambda data: data[:7], lambda data: data[:100],
    lambda data: data[:-1], lambda data: b'\xff' * 8 + data[8:],
    lambda data: data[:8] + b'x' + data[9:], lambda data: b'PK\x03\x04' * 50,
    lambda data: data + b'more',
], ids=['empty', 'size', 'header', 'end', 'huge', 'json', 'zip', 'longer'])
def test_damaged_checkpoint(tmp_path, spoil):
    interrupted(tmp_path, 'validate')
    path = tmp_path / 'model.safetensors'
    path.write_bytes(spoil(path.read_bytes()))
    before = files(tmp_path)
    model = Tiny(seed=7)
    untouched = weights(model)
    with pytest.raises(ValueError, match="model.safetensors' is truncated"):
        train(model, workdir=str(tmp_path))
    assert files(tmp_path) == before
    assert equal(weights(model), untouched)


def test_file_of_something_else(tmp_path):
    path = tmp_path / 'model.safetensors'
    save_file({'weight': torch.ones(3)}, path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match='not written by torch_sdt'):
        train(workdir=str(tmp_path))
    assert files(tmp_path) == before


# What is not finite ##########################################################


@pytest.mark.parametrize('how', ['nan', 'inf', 'gradient'])
@pytest.mark.parametrize('with_folder', [False, True])
def test_training_that_explodes(tmp_path, how, with_folder):
    # In the middle of epoch 3.
    model = Tiny(how, 2 * STEPS + 2)
    folder = {'workdir': str(tmp_path)} if with_folder else {}
    what = 'gradient' if how == 'gradient' else 'loss'
    with pytest.raises(FloatingPointError,
                       match=rf"The {what} of 'model' is .* in epoch 3; lower "
                             rf"'lr' .now 0.01\)") as info:
        train(model, validate=Validate(), **folder)
    assert ('holds epoch 2' in str(info.value)) == with_folder
    if with_folder:
        # What is on disk goes on as if nothing had happened.
        tensors, meta = load_tensors(tmp_path / 'model.safetensors')
        assert len(meta['history']) == 2
        assert all(bool(value.isfinite().all()) for value in tensors.values())
        again, _ = train(validate=Validate(first=3), **folder)
        expected, _ = train(validate=Validate())
        assert equal(weights(again), weights(expected))


def test_explodes_in_the_first_epoch(tmp_path):
    with pytest.raises(FloatingPointError, match=r'epoch 1; lower .*\)$'):
        train(Tiny('nan', 1), workdir=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_score_that_is_no_number(tmp_path):
    with pytest.raises(FloatingPointError, match="score of 'model' is nan"):
        train(validate=Validate([.1, float('nan')]), workdir=str(tmp_path))
    meta = load_tensors(tmp_path / 'model.safetensors')[1]
    assert len(meta['history']) == 1


@pytest.mark.parametrize('kwargs,message', [
    ({'epochs': 0}, "'epochs' must be at least 1 .got 0"),
    ({'lr': 0.}, "'lr' must be positive .got 0.0"),
    ({'lr': float('nan')}, "'lr' must be positive .got nan"),
    ({'precision': 'bf16'}, "'precision' must be .*'bf16-mixed'.*'bf16'"),
    ({'patience': 0}, "'patience' must be at least 1 .got 0"),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**{'epochs': 1, **kwargs})
