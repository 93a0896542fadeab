import csv
import os

import pytest

import torch_sdt.typing
from torch_sdt.training import History


def test_history():
    history = History()
    assert len(history) == 0
    history.append({'epoch': 1, 'loss': .5})
    assert len(history) == 1 and history.rows == [{'epoch': 1, 'loss': .5}]
    # Rows that it starts with are a list of its own.
    rows = list(history.rows)
    other = History(rows)
    other.append({'epoch': 2, 'loss': .4})
    assert len(other) == 2 and len(rows) == len(history) == 1


def test_write(tmp_path):
    history = History([{'epoch': 1, 'loss': .5, 'seconds': 1.},
                       {'epoch': 2, 'loss': .25, 'mean_f': .125,
                        'seconds': 2.}])
    for _ in range(2):
        history.write(str(tmp_path), 'it')
        with open(tmp_path / 'it.csv', newline='') as f:
            rows = list(csv.DictReader(f))
        # All columns, in the order in which they came; what is not there is
        # empty.
        assert list(rows[0]) == ['epoch', 'loss', 'seconds', 'mean_f']
        assert list(rows[0].values()) == ['1', '0.5', '1.0', '']
        assert list(rows[1].values()) == ['2', '0.25', '2.0', '0.125']
        # And no temporary files beside them.
        assert set(os.listdir(tmp_path)) - {'it.png'} == {'it.csv'}
        history.append({'epoch': 3, 'loss': .2, 'seconds': 1.})


@pytest.mark.parametrize('scores', [{}, {'mean_f': .5},
                                    {'a': .1, 'b': .2, 'c': .3, 'd': .4}])
def test_figure(tmp_path, scores):
    pytest.importorskip('matplotlib')
    history = History([{'epoch': epoch, 'loss': 1 / epoch, 'seconds': 1.,
                        **scores} for epoch in (1, 2)])
    history.write(str(tmp_path), 'it')
    from matplotlib.image import imread

    image = imread(tmp_path / 'it.png')
    assert image.shape[0] > 300 and image.shape[1] > 600
    # Curves in colour on both sides: the loss left, scores, if any, right.
    colour = image[..., :3].max(axis=2) - image[..., :3].min(axis=2) > .2
    half = image.shape[1] // 2
    assert colour[:, :half].any()
    assert colour[:, half:].any() == (len(scores) > 0)


def test_figure_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)
    History([{'epoch': 1, 'loss': .5}]).write(str(tmp_path), 'it')
    assert os.listdir(tmp_path) == ['it.csv']


def test_figures_leave_the_backend_alone(tmp_path):
    matplotlib = pytest.importorskip('matplotlib')
    before = matplotlib.rcParams._get('backend')
    History([{'epoch': 1, 'loss': .5}]).write(str(tmp_path), 'it')
    assert matplotlib.rcParams._get('backend') == before
