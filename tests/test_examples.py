import argparse
import csv
import importlib.util
import os
import os.path as osp
import subprocess
import sys

import numpy as np
import pytest
import torch

from torch_sdt.datasets import FeatureFiles, SyntheticFaces, read_labels
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors

for name in ['faiss', 'matplotlib', 'networkit', 'numba']:
    pytest.importorskip(name)

ROOT = osp.dirname(osp.dirname(osp.realpath(__file__)))
PLOTS = ['precision_recall.png', 'purity.png', 'sizes.png']


def run(name, *args, code=0):
    # One thread: data this small only loses time when threads meet.
    env = {**os.environ, 'PYTHONPATH': ROOT, 'OMP_NUM_THREADS': '1',
           'NUMBA_NUM_THREADS': '1'}
    out = subprocess.run(
        [sys.executable, osp.join(ROOT, 'examples', f'{name}.py'), *args],
        capture_output=True, text=True, env=env)
    assert out.returncode == code, out.stderr
    return out.stdout


def read_table(folder):
    with open(folder / 'scores.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    return {row['stage']: row for row in rows}


def plots(folder):
    names = sorted(path.name for path in folder.glob('*.png'))
    for name in names:
        with open(folder / name, 'rb') as f:
            assert f.read(8) == b'\x89PNG\r\n\x1a\n'
    return names


def load_report():
    path = osp.join(ROOT, 'examples', '_report.py')
    spec = importlib.util.spec_from_file_location('_report', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', ['ms1m', 'deepfashion', 'msmt17'])
def test_example_on_the_twin(name, tmp_path):
    # Larger identities than the other two: more images for as many.
    learn = '900' if name == 'ms1m' else '500'
    text = run(name, '--num-images', '600', '--train-images', learn, '--k',
               '20', '--epochs', '1', '--packaged', '--out', str(tmp_path))
    assert text.startswith('SYNTHETIC TWIN of ')
    assert plots(tmp_path) == PLOTS
    table = read_table(tmp_path)
    found = {stage: row for stage, row in table.items() if row['clusters']}
    assert list(found) == ['components', 'components, Jaccard',
                           'SDTClustering', 'TopKJaccardClustering',
                           'CosineMapEquation, tuned', 'FCES, published',
                           'CosineMapEquation, published']
    # The packaged form is the same as the one in the open.
    cost = ('stage', 'seconds', 'peak_memory_bytes')
    assert all(found['components'][key] == found['SDTClustering'][key]
               for key in found['components'] if key not in cost)
    for stage, row in table.items():
        # Every row is printed as well.
        assert f'\n{stage} ' in text
        assert float(row['seconds']) >= 0
    for row in found.values():
        labels = read_labels(tmp_path / (
            row['stage'].replace(', ', '_') + '.meta'))
        assert labels.size == 600
        assert int(row['clusters']) == labels.max() + 1
        assert int(row['largest']) == np.bincount(labels).max()
        assert all(0 <= float(value) <= 1 for key, value in row.items()
                   if key.startswith(('pairwise', 'bcubed', 'nmi')))
    # Learned from a handful of identities it is far from chance.
    assert float(found['components']['bcubed_f']) > .35


def test_example_of_the_layer(tmp_path):
    text = run('sparse_diff_attention', '--quick', '--out', str(tmp_path))
    assert 'SparseDiffAttentionConv, 8 best edges' in text
    assert plots(tmp_path) == ['accuracy.png']
    with open(tmp_path / 'accuracy.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    graphs = {row['graph'] for row in rows}
    assert graphs == {'planted partition', 'digits'}
    # Every layer on every graph, better than the largest class.
    assert len(rows) == 9 * len(graphs)
    assert all(.2 < float(row['accuracy']) <= 1 for row in rows)


def test_comparison_to_copy():
    lines = run('compare_gcn_ve', '--num-identities', '12', '--epochs', '1',
                '--k', '16').splitlines()
    scores = {line[:54].split('(')[0]: [float(v) for v in line[54:].split()[:2]]
              for line in lines[2:]}
    assert {'KMeans', 'GCNVE', 'NDDeTPDi', 'SDTClustering'} <= set(scores)
    assert len(lines) == 2 + 9
    assert all(0 <= f <= 100 for pair in scores.values() for f in pair)
    assert min(scores['SDTClustering']) > 60


@pytest.fixture
def grouped(tmp_path):
    # Random features, and a table that knows 6 groups of 10 all the same.
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(6), 10))
    index = np.stack([np.r_[i, np.setdiff1d(np.flatnonzero(y == y[i]), i)]
                      for i in range(60)])
    similarity = torch.full((60, 10), .95)
    similarity[:, 0] = 1
    x = rng.normal(size=(60, 256)).astype(np.float32)
    return x, y, Neighbors(torch.from_numpy(index), similarity)


@pytest.fixture
def labelled(tmp_path):
    data = SyntheticFaces('ms1m', num_identities=12, seed=0, split='train',
                          images_per_identity=(8, 12))
    FeatureFiles.write(tmp_path, 'learn', data.x, data.y)
    return 'learn'


def test_example_on_files_takes_the_published_table(grouped, labelled,
                                                    tmp_path):
    x, y, neighbors = grouped
    FeatureFiles.write(tmp_path, 'part1_test', x, y, neighbors)
    text = run('ms1m', '--root', str(tmp_path), '--train-name', labelled,
               '--k', '10', '--epochs', '1', '--out', str(tmp_path / 'out'))
    assert 'TWIN' not in text
    assert plots(tmp_path / 'out') == PLOTS
    table = read_table(tmp_path / 'out')
    # The features know nothing of the groups, the table does.
    assert float(table['CosineMapEquation, published']['pairwise_f']) == 1.


def test_example_on_files_without_labels(grouped, labelled, tmp_path):
    x, y, neighbors = grouped
    FeatureFiles.write(tmp_path, 'somewhere', x, None, neighbors)
    out = tmp_path / 'out'
    text = run('deepfashion', '--root', str(tmp_path), '--name', 'somewhere',
               '--train-name', labelled, '--k', '10', '--epochs', '1', '--out',
               str(out))
    assert 'without labels' in text and 'F_P' not in text
    assert plots(out) == ['sizes.png']
    row = read_table(out)['CosineMapEquation, published']
    assert (row['clusters'], row['largest'], row['nmi']) == ('6', '10', '')
    labels = read_labels(out / 'CosineMapEquation_published.meta')
    assert clustering_scores(y, labels).pairwise.fscore == 1.


@pytest.mark.parametrize('options,message', [
    (dict(num_images=600), '--num-images and --train-images are for the twin'),
    (dict(train_name='plain'), "'plain' has none"),
])
def test_contradicting_arguments(grouped, tmp_path, capsys, options, message):
    FeatureFiles.write(tmp_path, 'plain', grouped[0])
    given = dict(root=str(tmp_path), name='plain', train_name='plain', dim=256,
                 num_images=None, train_images=None, center=None, seed=0)
    with pytest.raises(SystemExit) as info:
        load_report().read(argparse.ArgumentParser(),
                           argparse.Namespace(**{**given, **options}), 'ms1m',
                           'MS1M')
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_tuned_threshold_scores_on_both_metrics():
    # Two groups at .95, and as many links across at .9: to cut between the two
    # cosines is best.
    y = np.repeat([0, 1], 5)
    index = np.stack([np.r_[i, [j for j in range(10)
                                if j != i and y[j] == y[i]],
                            [j for j in range(10)
                             if y[j] != y[i] and j != (i + 5) % 10]]
                      for i in range(10)])
    similarity = torch.full((10, 9), .95)
    similarity[:, 0], similarity[:, 5:] = 1., .9
    neighbors = Neighbors(torch.from_numpy(index), similarity)
    report = load_report()
    best = report.tuned_cosine(y, neighbors)
    assert .9 < best <= .95
    labels = report.cosine_labels(neighbors, best)
    assert clustering_scores(y, labels).pairwise.fscore == 1.


def test_names_beside_a_plot_do_not_overlap():
    report = load_report()
    fig, ax = report.plt.subplots()
    names = [f'name {i}' for i in range(8)]
    # All at one height, up at the edge.
    report.name_points(fig, ax, [(.5, 1.)] * 8, names, ['black'] * 8, 'right')
    fig.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts),
                   key=lambda box: box.y0)
    assert [text.get_text() for text in ax.texts] == names
    assert all(low.y1 <= high.y0 for low, high in zip(boxes, boxes[1:]))
    assert 0 <= boxes[0].y0 and boxes[-1].y1 <= fig.bbox.y1
    report.plt.close(fig)
