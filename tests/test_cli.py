import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import torch_sdt.typing
from torch_sdt.cli import main
from torch_sdt.cluster import SDTClustering
from torch_sdt.datasets import (
    SyntheticFaces,
    files,
    read_labels,
    write_labels,
)
from torch_sdt.io import load_tensors, save_tensors
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, normalize_features

METHODS = ('topk-jaccard', 'fces', 'cosine')
METRICS = {'pairwise', 'bcubed', 'nmi', 'num_clusters'}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    # Three well separated identities of 8 images, in a folder of their own.
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(3), 8))
    x = 5 * np.eye(3, 6)[y] + .3 * rng.normal(size=(24, 6))
    np.save(tmp_path / 'x.npy', x.astype(np.float32))
    x.astype('<f4').tofile(tmp_path / 'x.bin')
    write_labels(tmp_path / 'y.meta', y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def succeed(capfd, *args):
    # Below Python too: what a native library prints would spoil JSON.
    assert main(list(args)) == 0
    out, err = capfd.readouterr()
    assert err == ''
    return out


def fail(capfd, *args, code=1):
    # One sentence, no traceback, and no file that was not there before.
    before = sorted(os.listdir())
    assert main(list(args)) == code
    out, err = capfd.readouterr()
    assert out == '' and err.count('\n') == 1
    assert sorted(os.listdir()) == before
    assert err.startswith('torch-sdt: ')
    return err


def fail_usage(capfd, *args):
    with pytest.raises(SystemExit) as info:
        main(list(args))
    assert info.value.code == 2
    out, err = capfd.readouterr()
    assert out == '' and err.startswith('usage: torch-sdt')
    return err


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def never(*args, **kwargs):
    pytest.fail('Work started before the arguments were checked')


# Cluster #####################################################################


@pytest.mark.parametrize('method', METHODS)
def test_cluster_finds_the_identities(capfd, method):
    out = succeed(capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--k', '8',
                  '--method', method, '--truth', 'y.meta', '--json')
    result = json.loads(out)
    scores = clustering_scores(read_labels('y.meta'), read_labels('out.txt'))
    assert scores.pairwise.fscore == 1.
    assert result['scores']['pairwise'] == scores.pairwise._asdict()
    assert result['scores'].keys() == METRICS
    assert result['method'] == method and result['num_clusters'] == 3
    assert (result['num_samples'], result['k']) == (24, 8)
    names = [stage['name'] for stage in result['stages']]
    assert names == ['read', 'kNN', 'cluster', 'write']
    assert all(stage['seconds'] >= 0 for stage in result['stages'])
    memory = [stage['peak_memory'] for stage in result['stages']]
    assert memory == sorted(memory) and memory[0] > 1e7


def test_the_default_method_is_topk_jaccard(capfd):
    out = succeed(capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--json')
    result = json.loads(out)
    assert result['method'] == 'topk-jaccard'
    assert result['k'] == 24  # min(80, N)
    assert 'scores' not in result


def test_cluster_closes_with_a_table(capfd):
    args = ('cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces')
    out = succeed(capfd, *args, '--truth', 'y.meta')
    lines = [line.split() for line in out.splitlines()]
    names = [line[0] for line in lines]
    assert names[:6] == ['stage', 'read', 'kNN', 'cluster', 'write', 'total']
    assert lines[1][1:4] == ['24', 'x', '6']
    assert lines[2][1:4] == ['24', 'x', '24']
    assert float(lines[5][1]) == pytest.approx(
        sum(float(line[-3]) for line in lines[1:5]), abs=.03)
    assert 'bcubed' in names and "'out.txt'" in out
    assert succeed(capfd, *args, '--quiet') == ''


def test_cluster_from_bin_as_from_npy(capfd):
    for name, more in (('x.npy', ()), ('x.bin', ('--dim', '6')),
                       ('x.npy', ('--dim', '6'))):
        succeed(capfd, 'cluster', name, '--out', f'{len(more)}{name}.txt',
                '--method', 'fces', *more)
    written = [open(name).read() for name in os.listdir()
               if name.endswith('.txt')]
    assert len(written) == 3 and len(set(written)) == 1


def test_cluster_overwrites_the_last_result(capfd):
    with open('out.txt', 'w') as f:
        f.write('what was there before\n' * 100)
    succeed(capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces')
    assert read_labels('out.txt').size == 24
    assert sorted(os.listdir()) == ['out.txt', 'x.bin', 'x.npy', 'y.meta']


def test_method_options_reach_the_method(capfd):
    def num_clusters(*args):
        out = succeed(capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--json',
                      *args)
        return json.loads(out)['num_clusters']

    # No two samples point in the same direction, few have all five
    # neighbours in common, and without neighbours nobody is linked.
    assert num_clusters('--method', 'cosine', '--threshold', '1') == 24
    few_neighbors = ('--method', 'fces', '--k', '5')
    assert num_clusters(*few_neighbors, '--theta', '0') == 3
    assert num_clusters(*few_neighbors, '--theta', '1') > 12
    assert num_clusters('--method', 'fces', '--k', '1') == 24


def test_center_removes_a_shared_offset(capfd):
    np.save('far.npy', np.load('x.npy') + 1000)
    args = ('cluster', 'far.npy', '--out', 'out.txt', '--method', 'cosine',
            '--truth', 'y.meta', '--json')
    assert json.loads(succeed(capfd, *args))['num_clusters'] == 1
    result = json.loads(succeed(capfd, *args, '--center'))
    assert result['scores']['pairwise']['fscore'] == 1.


# Train #######################################################################


@pytest.fixture
def identities(here, monkeypatch):
    # Ten overlapping identities of five to learn from, other ten to cluster.
    # Without figures, which take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)
    rng = np.random.default_rng(1)
    for name in ('learn', 'other'):
        y = rng.permutation(np.repeat(np.arange(10), 5))
        center = rng.normal(size=(10, 8))
        x = center[y] + .6 * rng.normal(size=(50, 8))
        np.save(f'{name}.npy', x.astype(np.float32))
        write_labels(f'{name}.meta', y)
    return here


LEARN = ('train', 'learn.npy', '--labels', 'learn.meta', '--out',
         'model.safetensors', '--k', '6', '--epochs', '1')


_MODELS = {}


def write_model(*more):
    # Trained once for all tests that want to have one.
    if more not in _MODELS:
        assert main([*LEARN, '--quiet', *more]) == 0
        with open('model.safetensors', 'rb') as f:
            _MODELS[more] = f.read()
    with open('model.safetensors', 'wb') as f:
        f.write(_MODELS[more])


def test_train_and_cluster_as_in_python(identities, capfd):
    result = json.loads(succeed(capfd, *LEARN, '--json'))
    model = SDTClustering(k=6, epochs=1).fit(np.load('learn.npy'),
                                             read_labels('learn.meta'))
    assert result['out'] == 'model.safetensors'
    assert result['rule'] == model.rule_._asdict()
    assert result['validation_score'] == model.validation_score_
    assert (result['num_samples'], result['k'], result['center'],
            result['seed']) == (50, 6, False, 0)
    names = [stage['name'] for stage in result['stages']]
    assert names == ['read', 'train', 'write']
    # The file is what Python writes, to the last bit.
    model.save('python.safetensors')
    assert (identities / 'model.safetensors').read_bytes() == (
        identities / 'python.safetensors').read_bytes()
    # And clusters as it does there.
    args = ('cluster', 'other.npy', '--model', 'model.safetensors', '--out',
            'out.txt', '--truth', 'other.meta', '--json')
    result = json.loads(succeed(capfd, *args))
    assert np.array_equal(read_labels('out.txt'),
                          model.predict(np.load('other.npy')))
    assert (result['model'], result['method']) == ('model.safetensors', None)
    assert result['k'] == 6 and result['scores'].keys() == METRICS


@pytest.mark.parametrize('option,expected', [
    ((), None), (('--adapt', ), True), (('--no-adapt', ), False)])
def test_adapt_reaches_the_model(identities, capfd, monkeypatch, option,
                                 expected):
    SDTClustering(k=6, epochs=1, merge='verdict').fit(
        np.load('learn.npy'), read_labels('learn.meta')).save('m.safetensors')
    given = []

    def predict(self, x, neighbors=None, adapt=None):
        given.append(adapt)
        return np.zeros(len(x), dtype=np.int64)

    monkeypatch.setattr(SDTClustering, 'predict', predict)
    succeed(capfd, 'cluster', 'other.npy', '--model', 'm.safetensors',
            '--out', 'out.txt', *option)
    assert given == [expected]


@pytest.mark.parametrize('given,expected', [
    ((), (3, 'auto')), (('--seed', '7'), (7, 'auto')),
    (('--index', 'flat'), (3, 'flat'))])
def test_seed_and_index_reach_the_model(identities, capfd, monkeypatch, given,
                                        expected):
    SDTClustering(k=6, epochs=1, seed=3).fit(
        np.load('learn.npy'), read_labels('learn.meta')).save('m.safetensors')
    seen = []

    def predict(self, x, neighbors=None, adapt=None):
        seen.append((self.seed, self.index))
        return np.zeros(len(x), dtype=np.int64)

    monkeypatch.setattr(SDTClustering, 'predict', predict)
    result = json.loads(succeed(
        capfd, 'cluster', 'other.npy', '--model', 'm.safetensors', '--out',
        'out.txt', '--json', *given))
    assert seen == [expected] and result['seed'] == expected[0]


def test_train_closes_with_a_table(identities, capfd):
    out = succeed(capfd, *LEARN)
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[:5]] == ['stage', 'read', 'train',
                                               'write', 'total']
    assert lines[1][1:4] == ['50', 'x', '8']
    assert lines[2][1:3] == ['10', 'identities']
    assert "'model.safetensors'" in out and 'held-out identities' in out
    assert succeed(capfd, *LEARN, '--quiet') == ''


def test_options_of_training_reach_it(identities, capfd):
    write_labels('groups.txt', read_labels('learn.meta') // 2)
    succeed(capfd, *LEARN, '--center', '--tokens', 'feature', '--seed', '3',
            '--groups', 'groups.txt', '--index', 'torch', '--workdir', 'work')
    model = SDTClustering.load('model.safetensors')
    assert (model.k, model.epochs, model.center, model.tokens, model.seed,
            model.index, model.size) == (6, 1, True, 'feature', 3, 'torch',
                                         'small')
    assert {'predictor.safetensors', 'transformer.safetensors',
            'predictor.csv', 'transformer.csv'} <= set(os.listdir('work'))
    expected = SDTClustering(k=6, epochs=1, center=True, tokens='feature',
                             seed=3, index='torch')
    expected.fit(np.load('learn.npy'), read_labels('learn.meta'),
                 read_labels('groups.txt'))
    assert model.rule_ == expected.rule_
    assert model.validation_score_ == expected.validation_score_
    # Which centres what it clusters, too.
    args = ('--model', 'model.safetensors', '--out', 'out.txt', '--json')
    for name in ('other.npy', 'far.npy'):
        np.save('far.npy', np.load('other.npy') + 1)
        result = json.loads(succeed(capfd, 'cluster', name, *args))
        assert result['center']
        assert np.array_equal(read_labels('out.txt'),
                              expected.predict(np.load(name)))


def test_a_killed_training_goes_on(identities, capfd, monkeypatch):
    args = (*LEARN, '--workdir', 'work', '--json')
    write_model()
    data = (identities / 'model.safetensors').read_bytes()
    os.remove('model.safetensors')
    os.mkdir('work')
    before = SDTClustering._choose
    monkeypatch.setattr(SDTClustering, '_choose', interrupt)
    assert fail(capfd, *args, code=130) == 'torch-sdt: interrupted\n'
    monkeypatch.setattr(SDTClustering, '_choose', before)
    state = {name: os.stat(f'work/{name}').st_mtime_ns
             for name in os.listdir('work')}
    assert len(state) >= 4
    succeed(capfd, *args)
    # Nothing was trained again.
    assert state == {name: os.stat(f'work/{name}').st_mtime_ns
                     for name in os.listdir('work')}
    assert (identities / 'model.safetensors').read_bytes() == data


def test_cluster_with_a_model_and_a_table(identities, capfd, monkeypatch):
    write_model()
    args = ('cluster', 'other.npy', '--model', 'model.safetensors', '--out',
            'out.txt', '--json')
    succeed(capfd, *args)
    expected = read_labels('out.txt')
    # Of a wider table, the model takes what it is for.
    for k in ('6', '9'):
        succeed(capfd, 'knn', 'other.npy', '--out', f'{k}.npz', '--k', k)
    monkeypatch.setattr(Neighbors, 'search', never)
    for k in ('6', '9'):
        succeed(capfd, *args, '--neighbors', f'{k}.npz')
        assert np.array_equal(read_labels('out.txt'), expected)


def test_models_of_relations_cluster_any_features(identities, capfd):
    write_model()
    # Six wide, and as few as three.
    np.save('few.npy', np.load('x.npy')[:3])
    for name, num in (('x.npy', 24), ('few.npy', 3)):
        succeed(capfd, 'cluster', name, '--model', 'model.safetensors',
                '--out', 'out.txt')
        assert read_labels('out.txt').size == num


def test_models_of_features_do_not(identities, capfd, monkeypatch):
    write_model('--tokens', 'feature')
    monkeypatch.setattr(Neighbors, 'search', never)
    assert 'dimension 8 (got 6)' in fail(
        capfd, 'cluster', 'x.npy', '--model', 'model.safetensors', '--out',
        'out.txt')


def test_unusable_models(identities, capfd, monkeypatch):
    write_model()
    data = (identities / 'model.safetensors').read_bytes()
    monkeypatch.setattr(Neighbors, 'search', never)
    args = ('cluster', 'other.npy', '--out', 'out.txt', '--model')
    assert "no file 'absent.safetensors'" in fail(capfd, *args,
                                                  'absent.safetensors')
    assert 'truncated, damaged, or no safetensors' in fail(capfd, *args,
                                                           'other.npy')
    save_tensors('other.safetensors', {}, {'history': []})
    assert 'holds no SDTClustering' in fail(capfd, *args,
                                            'other.safetensors')
    (identities / 'model.safetensors').write_bytes(data[:-10])
    assert 'truncated' in fail(capfd, *args, 'model.safetensors')


@pytest.mark.parametrize('args, message', [
    (('--labels', 'absent.txt'), "no file 'absent.txt'"),
    (('--labels', 'short.txt'), "3 labels, but 'learn.npy' has 50"),
    (('--groups', 'absent.txt'), "no file 'absent.txt'"),
    (('--groups', 'short.txt'), "3 labels, but 'learn.npy' has 50"),
    (('--groups', 'one.txt'), 'all identities into one group'),
    (('--labels', 'one.txt'), 'at least 8 identities'),
    (('--labels', 'words.txt'), "Line 1 of 'words.txt'"),
    (('--out', 'model.pt'), '--out must end in .safetensors'),
    (('--out', 'absent/model.safetensors'), "no folder 'absent'"),
    (('--k', '50'), "'k' must be between 2 and"),
    (('--k', '1'), "'k' must be between 2 and"),
    (('--dim', '9'), 'width 8, not 9'),
    (('--index', 'nonsense'), "'index' must be"),
    (('--workdir', 'short.txt'), 'short.txt'),
])
def test_bad_training(identities, capfd, monkeypatch, args, message):
    if '--index' not in args and '--workdir' not in args:
        monkeypatch.setattr(Neighbors, 'search', never)
    write_labels('short.txt', [1, 2, 3])
    write_labels('one.txt', np.zeros(50, dtype=int))
    with open('words.txt', 'w') as f:
        f.write('one\n' * 50)
    err = fail(capfd, *LEARN, *args)
    assert err.startswith('torch-sdt: error: ') and message in err


def test_training_does_not_overwrite_its_input(identities, capfd):
    os.link('learn.npy', 'features.safetensors')
    assert "would overwrite the input 'learn.npy'" in fail(
        capfd, *LEARN, '--out', 'features.safetensors')


def test_a_loss_that_is_no_number_is_an_error(identities, capfd,
                                              monkeypatch):
    monkeypatch.setattr('torch_sdt.nn.TopKPredictor.loss',
                        lambda self, batch: self.out.lin_out.bias.sum() *
                        float('nan'))
    assert "loss of 'predictor' is nan" in fail(capfd, *LEARN)


def test_failure_in_the_middle_of_writing_a_model(identities, capfd,
                                                  monkeypatch):
    def half(tensors, name, metadata):
        with open(name, 'wb') as f:
            f.write(b'half')
        raise OSError('No space left')

    with open('model.safetensors', 'w') as f:
        f.write('what was there before')
    monkeypatch.setattr('safetensors.torch.save_file', half)
    assert 'No space left' in fail(capfd, *LEARN)
    assert open('model.safetensors').read() == 'what was there before'


def test_the_model_says_nothing_of_the_machine(identities, capfd):
    succeed(capfd, *LEARN, '--workdir', str(identities / 'work'))
    arguments = load_tensors('model.safetensors')[1]['arguments']
    assert not {'workdir', 'device', 'verbose'} & set(arguments)


# Neighbours ##################################################################


def test_knn_writes_the_published_layout(capfd):
    out = succeed(capfd, 'knn', 'x.npy', '--out', 't.npz', '--k', '5',
                  '--center', '--json')
    with np.load('t.npz', allow_pickle=False) as file:
        assert file['data'].shape == (24, 2, 5)
    x = normalize_features(np.load('x.npy'), center=True)
    expected, table = knn(x, 5), Neighbors.load('t.npz')
    assert torch.equal(table.index, expected.index)
    assert torch.allclose(table.similarity, expected.similarity, atol=1e-6)
    names = [stage['name'] for stage in json.loads(out)['stages']]
    assert names == ['read', 'kNN', 'write']


def test_knn_in_half_precision(capfd):
    x = normalize_features(np.load('x.npy'), dtype=torch.float16)
    expected = Neighbors.search(x, 5)
    for args in [(), ('--workdir', 'work')]:
        succeed(capfd, 'knn', 'x.npy', '--out', 't.npz', '--k', '5', '--half',
                *args)
        table = Neighbors.load('t.npz')
        assert torch.equal(table.index, expected.index)
        assert torch.allclose(table.similarity, expected.similarity, atol=1e-6)
    assert np.array_equal(np.fromfile('work/features.f16', dtype=np.float16),
                          x.view(-1).numpy())


def test_cluster_takes_the_table_that_knn_wrote(capfd, monkeypatch):
    args = ('--out', 'out.txt', '--method', 'cosine', '--json')
    for k in ('4', '8'):
        succeed(capfd, 'cluster', 'x.npy', '--k', k, *args)
        os.rename('out.txt', f'{k}.txt')
    succeed(capfd, 'knn', 'x.npy', '--out', 't.npz', '--k', '8')
    monkeypatch.setattr(Neighbors, 'search', never)
    for k, more in ((8, ()), (4, ('--k', '4'))):
        out = succeed(capfd, 'cluster', 'x.npy', '--neighbors', 't.npz',
                      *more, *args)
        assert json.loads(out)['k'] == k
        assert open('out.txt').read() == open(f'{k}.txt').read()


def test_unusable_tables(capfd):
    args = ('cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces',
            '--neighbors', 't.npz')
    assert "no file 't.npz'" in fail(capfd, *args)
    open('t.npz', 'w').close()
    assert 'truncated or no .npz' in fail(capfd, *args)
    knn(np.load('x.npy')[:20], 5).save('t.npz')
    assert '20 rows, but there are 24 samples' in fail(capfd, *args)
    knn(np.load('x.npy'), 5).save('t.npz')
    assert "between 1 and the table's width 5" in fail(capfd, *args, '--k',
                                                       '6')


# Evaluate ####################################################################


def test_evaluate(capfd):
    write_labels('pred.txt', read_labels('y.meta') // 2)
    scores = clustering_scores(read_labels('y.meta'), read_labels('pred.txt'))
    result = json.loads(succeed(capfd, 'evaluate', 'y.meta', 'pred.txt',
                                '--json'))
    assert result.pop('num_samples') == 24
    assert result == {'pairwise': scores.pairwise._asdict(),
                      'bcubed': scores.bcubed._asdict(), 'nmi': scores.nmi,
                      'num_clusters': 2}
    lines = succeed(capfd, 'evaluate', 'y.meta', 'pred.txt').splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert [float(value) for value in rows['pairwise']] == pytest.approx(
        scores.pairwise, abs=5e-5)
    assert float(rows['nmi'][0]) == pytest.approx(scores.nmi, abs=5e-5)
    assert rows['clusters'] == ['2']


def test_evaluate_tells_true_from_predicted(capfd):
    write_labels('one.txt', np.zeros(24, dtype=int))
    for args, name in ((('y.meta', 'one.txt'), 'recall'),
                       (('one.txt', 'y.meta'), 'precision')):
        result = json.loads(succeed(capfd, 'evaluate', *args, '--json'))
        assert result['pairwise'][name] == 1. > result['pairwise']['fscore']


def test_evaluate_bad_labels(capfd):
    write_labels('short.txt', [1, 2, 3])
    err = fail(capfd, 'evaluate', 'y.meta', 'short.txt', '--json')
    assert "'y.meta' has 24 labels, but 'short.txt' has 3 samples" in err
    assert "no file 'absent.txt'" in fail(capfd, 'evaluate', 'y.meta',
                                          'absent.txt')
    with open('words.txt', 'w') as f:
        f.write('1\ntwo\n')
    assert "Line 2 of 'words.txt'" in fail(capfd, 'evaluate', 'y.meta',
                                           'words.txt')


# Info ########################################################################


def test_info(capfd, monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NETWORKIT', True)
    result = json.loads(succeed(capfd, 'info', '--json'))
    assert result['torch'] == torch.__version__
    assert result['torch_geometric'] == importlib.metadata.version(
        'torch-geometric')
    assert result['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert result['cores'] >= 1 and {'torch_sdt', 'cuda'} <= result.keys()
    assert result['optional']['numba'] is None
    assert result['optional']['networkit'] is not None
    flags = {name[5:].lower() for name in dir(torch_sdt.typing)
             if name.startswith('WITH_')}
    assert result['optional'].keys() == flags
    lines = [line.split() for line in succeed(capfd, 'info').splitlines()]
    assert ['numba', 'absent'] in lines
    assert ['torch', torch.__version__] in lines


def test_run_as_a_module():
    # From the checkout, wherever it lies.
    root = os.path.dirname(os.path.dirname(torch_sdt.typing.__file__))
    out = subprocess.run([sys.executable, '-m', 'torch_sdt.cli', 'info',
                          '--json'], env={**os.environ, 'PYTHONPATH': root},
                         capture_output=True, text=True, check=True).stdout
    assert json.loads(out)['torch'] == torch.__version__


# Bad input ###################################################################


@pytest.mark.parametrize('command', ['cluster', 'knn'])
@pytest.mark.parametrize('args, message', [
    (('absent.npy', ), "no file 'absent.npy'"),
    (('x.bin', ), "'x.bin' has no header"),
    (('x.bin', '--dim', '7'), "no multiple of the 28 bytes"),
    (('x.npy', '--dim', '7'), 'width 6, not 7'),
    (('y.meta', ), 'must end in .bin or .npy'),
    (('zero.npy', ), 'Row 3 of the features is all zeros'),
    (('x.npy', '--k', '25'), "'k' must be between 1 and the number of "
                             "samples 24 (got 25)"),
    (('x.npy', '--index', 'nonsense'), "'index' must be 'auto'"),
    (('x.npy', '--out', 'out.csv'), '--out must end in'),
    (('x.npy', '--out', '.txt'), '--out must end in'),
    (('x.npy', '--out', 'absent/{}'), "no folder 'absent'"),
    (('x.npy', '--out', 'x.npy/{}'), "no folder 'x.npy'"),
    (('x.npy', '--out', 'folder-{}'), 'is a folder'),
])
def test_bad_input(capfd, command, args, message):
    name = {'cluster': 'out.txt', 'knn': 'out.npz'}[command]
    x = np.load('x.npy')
    x[3] = 0
    np.save('zero.npy', x)
    os.mkdir(f'folder-{name}')
    method = ('--method', 'fces') if command == 'cluster' else ()
    args = [arg.format(name) for arg in args]
    err = fail(capfd, command, '--out', name, *method, *args)
    assert err.startswith('torch-sdt: error: ') and message in err


def test_bad_truth(capfd, monkeypatch):
    monkeypatch.setattr(Neighbors, 'search', never)
    write_labels('short.txt', [1, 2, 3])
    args = ('cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces')
    assert "no file 'absent.txt'" in fail(capfd, *args, '--truth',
                                          'absent.txt')
    assert "3 labels, but 'x.npy' has 24" in fail(capfd, *args, '--truth',
                                                  'short.txt')


@pytest.mark.parametrize('link', [os.link, os.symlink, None])
def test_the_input_is_not_overwritten(capfd, link):
    name = 'y.meta'
    if link is not None:
        name = 'other.txt'
        link('y.meta', name)
    err = fail(capfd, 'cluster', 'x.npy', '--truth', 'y.meta', '--out', name)
    assert "would overwrite the input 'y.meta'" in err
    assert read_labels('y.meta').size == 24


def test_the_folder_is_checked_before_the_work(capfd, monkeypatch):
    # Not by its mode: the superuser may write anywhere.
    os.mkdir('locked')
    access = os.access
    monkeypatch.setattr(os, 'access', lambda path, mode: (
        path != 'locked' and access(path, mode)))
    monkeypatch.setattr(Neighbors, 'search', never)
    for args in (('cluster', 'x.npy', '--out', 'locked/out.txt'),
                 ('knn', 'x.npy', '--out', 'locked/out.npz')):
        assert "'locked' is not writable" in fail(capfd, *args)


@pytest.mark.parametrize('args, message', [
    (('--method', 'cosine', '--threshold', '2'), "'threshold' must be"),
    (('--method', 'fces', '--theta', 'nan'), "'theta' must be"),
])
def test_the_method_is_checked_before_the_work(capfd, monkeypatch, args,
                                               message):
    monkeypatch.setattr(Neighbors, 'search', never)
    assert message in fail(capfd, 'cluster', 'x.npy', '--out', 'out.txt',
                           *args)


def test_absent_packages(capfd, monkeypatch):
    monkeypatch.setattr(torch_sdt.typing, 'WITH_FAISS', False)
    assert "requires 'faiss-cpu'" in fail(
        capfd, 'knn', 'x.npy', '--out', 'out.npz', '--index', 'IVF2,Flat')
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NETWORKIT', False)
    monkeypatch.setattr(Neighbors, 'search', never)
    assert "requires 'networkit'" in fail(
        capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces')


@pytest.mark.parametrize('args, message', [
    ((), 'COMMAND'),
    (('train', ), 'required: FEATURES, --out, --labels'),
    (('train', 'x.npy', '--out', 'm.safetensors'), '--labels'),
    (('train', 'x.npy', '--labels', 'y.meta', '--size', 'large'), '--size'),
    (('train', 'x.npy', '--labels', 'y.meta', '--tokens', 'x'), '--tokens'),
    (('train', 'x.npy', '--labels', 'y.meta', '--epochs', '0'),
     '--epochs: must be at least 1'),
    (('train', 'x.npy', '--labels', 'y.meta', '--truth', 'y.meta'),
     'unrecognized'),
    (('cluster', 'x.npy', '--model', 'm.safetensors', '--method', 'fces'),
     '--model is a method: leave --method out'),
    (('cluster', 'x.npy', '--model', 'm.safetensors', '--k', '5'),
     '--center and --k are those of the --model'),
    (('cluster', 'x.npy', '--model', 'm.safetensors', '--center'),
     '--center and --k are those of the --model'),
    (('cluster', 'x.npy', '--no-adapt'), 'need a --model'),
    (('cluster', 'x.npy', '--model', 'm.safetensors', '--theta', '.2'),
     '--theta is an option of --method fces (got a --model)'),
    (('cluster', 'x.npy', '--model', 'm.safetensors', '--threshold', '.2'),
     '--threshold is an option of --method cosine (got a --model)'),
    (('knn', 'x.npy', '--model', 'm.safetensors'), 'unrecognized'),
    (('cluster', 'x.npy'), '--out'),
    (('cluster', 'x.npy', '--method', 'k-means'), '--method'),
    (('cluster', 'x.npy', '--theta', '.2'),
     '--theta is an option of --method fces (got --method topk-jaccard)'),
    (('cluster', 'x.npy', '--theta', '0', '--method', 'cosine'),
     '--theta is an option of --method fces (got --method cosine)'),
    (('cluster', 'x.npy', '--threshold', '0', '--method', 'fces'),
     '--threshold is an option of --method cosine'),
    (('cluster', 'x.npy', '--neighbors', 't.npz', '--index', 'flat'),
     '--index'),
    (('cluster', 'x.npy', '--k', '0'), '--k: must be at least 1'),
    (('cluster', 'x.npy', '--seed', '-1'), '--seed: must be at least 0'),
    (('cluster', 'x.bin', '--dim', 'wide'), "invalid integer value: 'wide'"),
    (('knn', 'x.npy', '--truth', 'y.meta'), 'unrecognized'),
    (('evaluate', 'y.meta'), 'PRED'),
])
def test_wrong_usage(capfd, args, message):
    writes = len(args) > 1 and args[0] in {'cluster', 'knn', 'train'}
    out = ('--out', 'out.txt') if writes and message != '--out' else ()
    assert message in fail_usage(capfd, *args, *out)
    assert not os.path.exists('out.txt')


# Interruption ################################################################


@pytest.mark.parametrize('command, name', [('cluster', 'out.txt'),
                                           ('knn', 'out.npz')])
def test_ctrl_c_in_the_search(capfd, monkeypatch, command, name):
    # The module, which the function of the same name hides.
    monkeypatch.setattr(sys.modules['torch_sdt.ops.knn'], 'knn_blocks',
                        interrupt)
    args = (command, 'x.npy', '--out', name)
    assert fail(capfd, *args, code=130) == 'torch-sdt: interrupted\n'


@pytest.mark.parametrize('error, code', [(KeyboardInterrupt, 130),
                                         (OSError('No space left'), 1)])
@pytest.mark.parametrize('command, name', [('cluster', 'out.txt'),
                                           ('knn', 'out.npz')])
def test_failure_in_the_middle_of_writing(capfd, monkeypatch, command, name,
                                          error, code):
    def half(file, *args, **kwargs):
        # A path for labels, an open file for tables.
        (open(file, 'wb') if isinstance(file, str) else file).write(b'1\n')
        raise error

    monkeypatch.setattr(files, 'write_lines', half)
    monkeypatch.setattr(np, 'savez_compressed', half)
    args = (command, 'x.npy', '--out', name, '--k', '8',
            *(('--method', 'fces') if command == 'cluster' else ()))
    fail(capfd, *args, code=code)
    assert not os.path.exists(name)
    with open(name, 'w') as f:
        f.write('what was there before')
    fail(capfd, *args, code=code)
    assert open(name).read() == 'what was there before'


def test_ctrl_c_in_networkit(capfd, monkeypatch):
    # Which catches the signal itself and raises this.
    def fit(self, *args, **kwargs):
        raise RuntimeError('Received CTRL+C/SIGINT')

    monkeypatch.setattr('torch_sdt.cluster.fces.FCES.fit', fit)
    fail(capfd, 'cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces',
         code=130)


def test_a_defect_is_not_called_bad_input(monkeypatch):
    def fit(self, *args, **kwargs):
        raise RuntimeError('A defect')

    monkeypatch.setattr('torch_sdt.cluster.fces.FCES.fit', fit)
    with pytest.raises(RuntimeError, match='A defect'):
        main(['cluster', 'x.npy', '--out', 'out.txt', '--method', 'fces'])
    assert not os.path.exists('out.txt')


def test_json_stays_alone_on_a_terminal():
    # The bar and what the index says of itself go to the terminal.
    pty = pytest.importorskip('pty')
    np.save('faces.npy', SyntheticFaces('ms1m', num_images=3000, dim=64).x)
    ours, theirs = pty.openpty()
    out = subprocess.run(
        [sys.executable, '-m', 'torch_sdt.cli', 'knn', 'faces.npy', '--out',
         't.npz', '--k', '5', '--index', 'cells', '--json'],
        stdout=subprocess.PIPE, stderr=theirs, check=True).stdout
    os.close(theirs)  # Where nothing is said, reading ends.
    assert b'CellSearch' in os.read(ours, 4096)
    assert json.loads(out)['k'] == 5
