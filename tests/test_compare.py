import csv
import os
import os.path as osp
import runpy
import subprocess
import sys

import pytest

for name in ['faiss', 'finch', 'matplotlib', 'networkit', 'numba']:
    pytest.importorskip(name)

ROOT = osp.dirname(osp.dirname(osp.realpath(__file__)))
SCRIPT = osp.join(ROOT, 'benchmarks', 'compare.py')
TINY = ['--identities', '8', '--seeds', '1', '--budget', '1', '--k', '8']


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    # In this process, which has imported already what takes long.
    monkeypatch.syspath_prepend(osp.dirname(SCRIPT))

    def call(*args, code=0):
        out = osp.join(tmp_path, 'compare')
        monkeypatch.setattr(sys, 'argv', [SCRIPT, *TINY, '--no-isolate',
                                          '--out', out, *args])
        failed = None
        try:
            runpy.run_path(SCRIPT, run_name='__main__')
        except SystemExit as e:
            failed = e.code
        text = capsys.readouterr()
        # A message is the status 1.
        status = failed if isinstance(failed, int) else int(failed is not None)
        assert status == code, text.err
        return text.out, f'{text.err}{failed}'

    return call


def read(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def test_every_method(tmp_path, run):
    readme = tmp_path / 'README.md'
    readme.write_text('Before\n<!-- compare: begin -->\nold\n'
                      '<!-- compare: end -->\nAfter\n')
    first, _ = run('--readme', str(readme))
    rows = read(tmp_path / 'compare.csv')
    assert all(row['error'] == '' for row in rows)
    methods = [row['method'] for row in rows]
    assert {'K-means', 'FC-ES', 'GCN(V+E)', 'NDDe+TPDi', 'SDT'} <= set(methods)
    for row in rows:
        for kind in ('pairwise', 'bcubed'):
            p, r, f = (float(row[f'{kind}_{what}'])
                       for what in ('precision', 'recall', 'fscore'))
            assert 0 <= f <= 100
            assert f == pytest.approx(2 * p * r / max(p + r, 1e-9), abs=.02)
        trained = int(row['parameters']) > 0
        assert trained or float(row['predict_seconds']) >= 0
    assert int(rows[methods.index('SDT')]['parameters']) > 0
    assert int(rows[methods.index('FC-ES')]['parameters']) == 0
    assert int(rows[methods.index('K-means')]['clusters']) == 8
    # Five bins by size and five by sparsity for each.
    hard = read(tmp_path / 'compare_hard.csv')
    assert len(hard) == 10 * len(rows)
    # The figures of the papers stand in columns of their own.
    tables, text = ((tmp_path / 'compare.md').read_text(), readme.read_text())
    row = rows[methods.index('GCN(V+E)')]
    short, full = (one for one in tables.splitlines() if '| GCN(V+E) |' in one)
    for line in (short, full):
        assert line.endswith('| 87.9 | 86.1 |')
    assert (f"{float(row['pairwise_fscore']):.1f} / "
            f"{float(row['bcubed_fscore']):.1f}") in short
    # The short table goes to the README.
    assert short in text and full not in text and 'old' not in text
    assert text.startswith('Before\n') and text.endswith('After\n')
    for name in ('compare.png', 'compare_hard.png'):
        assert (tmp_path / name).read_bytes()[:4] == b'\x89PNG'
    # What is there is not computed again.
    again, _ = run()
    assert 'seed 0' not in again
    assert read(tmp_path / 'compare.csv') == rows
    assert first.count('seed 0') == len(rows)


def test_a_crash_loses_no_other_row(tmp_path, run):
    # No epoch is none to learn in.
    methods = ['--methods', 'K-means', 'GCN(V+E)', 'FC-ES']
    _, errors = run('--budget', '0', *methods, code=1)
    assert 'Failed: GCN(V+E)' in errors
    rows = {row['method']: row for row in read(tmp_path / 'compare.csv')}
    assert list(rows) == ['K-means', 'GCN(V+E)', 'FC-ES']
    assert "'epochs' must be" in rows['GCN(V+E)']['error']
    assert rows['FC-ES']['error'] == '' and rows['FC-ES']['clusters'] != ''
    # With the fault mended, only that row is computed.
    mended, _ = run(*methods)
    assert mended.count('seed 0') == 1
    assert all(row['error'] == '' for row in read(tmp_path / 'compare.csv'))


def test_a_process_each_measures_its_memory(tmp_path):
    # Two at a time; a crash of the one does not reach the other.
    out = subprocess.run(
        [sys.executable, SCRIPT, *TINY, '--jobs', '2', '--budget', '0',
         '--out', osp.join(tmp_path, 'compare'), '--methods', 'FC-ES',
         'GCN(V+E)', 'K-means'], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': ROOT})
    assert out.returncode == 1, out.stderr
    rows = {row['method']: row for row in read(tmp_path / 'compare.csv')}
    assert "'epochs' must be" in rows.pop('GCN(V+E)')['error']
    assert set(rows) == {'FC-ES', 'K-means'}
    for row in rows.values():
        assert row['error'] == '' and float(row['peak_mb']) > 0


@pytest.mark.parametrize('args,message', [
    (['--methods', 'K-mean'], "known are 'K-means'"),
    (['--data', 'files'], 'needs --root'),
    (['--jobs', '2'], '--no-isolate runs in one'),
])
def test_bad_arguments(tmp_path, run, args, message):
    _, errors = run(*args, code=2)
    assert message in errors and os.listdir(tmp_path) == []


def test_rows_of_fewer_seeds_say_so(tmp_path, run):
    run('--methods', 'K-means', 'FC-ES')
    assert ' (1 seed)' not in (tmp_path / 'compare.md').read_text()
    run('--seeds', '2', '--methods', 'FC-ES')
    lines = (tmp_path / 'compare.md').read_text().splitlines()
    assert sum(' (1 seed)' in line for line in lines) == 2  # Of two tables.
    for line in lines:
        assert (' (1 seed)' in line) == line.startswith('| K-means')
