r"""The methods of the field side by side.

    python benchmarks/compare.py --data ms1m --identities 300

Every method gets the same features, the same kNN tables and the same splits:
identities to learn from, others to cluster. What has a threshold chooses it on
training identities (a trained method on those that it holds out), never on
those that are scored. K-means alone is told how many there are. Features are
centred but where settings are the published ones, which are for features as
they are. Data sets:

* `ms1m`, `deepfashion`, `msmt17`: synthetic twins, no photographs;
* `omniglot` (two thirds of the characters against the last), `lfw` (half the
  identities against the other half): real features of `../shared/data`;
* `files`: the published layout in `--root`, `--train-name` against `--name`.

Each method runs in a process of its own, so that its peak memory is its own
and its crash loses no other row (`--no-isolate` runs all in this one); with
`--jobs 2` two at a time share the cores. Goes on where it stopped. Writes
`<out>.csv`, `<out>.md` (with published figures in columns of their own),
`<out>.png` (F against time), and of identities in five bins by size and by
sparsity `<out>_hard.csv` and `<out>_hard.png`; `--readme README.md` puts the
two F of all data sets between the marks of that file.
"""
import argparse
import os
import os.path as osp
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

import matplotlib
import numpy as np
from _compare import METHODS, alone, run_method
from _learned import RESULTS, SHARED, Rows, at_hand, omniglot, twin
from scipy.stats import spearmanr

from torch_sdt.datasets import FeatureFiles
from torch_sdt.io import atomic_path
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser(
    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument('--data', nargs='+', default=['ms1m'])
parser.add_argument('--methods', nargs='+', help='only these')
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--identities', type=int, default=300,
                    help='of a twin, to learn from and to cluster')
parser.add_argument('--budget', type=int, metavar='EPOCHS',
                    help="of every training (default: each method's own)")
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--root', help='folder of the published files')
parser.add_argument('--train-name', default='part0_train')
parser.add_argument('--name', default='part1_test')
parser.add_argument('--dim', type=int, default=256)
parser.add_argument('--isolate', action=argparse.BooleanOptionalAction,
                    default=True)
parser.add_argument('--jobs', type=int, default=1,
                    help='methods at a time, each with its share of the cores')
parser.add_argument('--out', default=osp.join(RESULTS, 'compare'))
parser.add_argument('--readme')
args = parser.parse_args()


def lfw(seed):
    data = FeatureFiles(SHARED, 'facenet_lfw', dim=128)
    x, y = np.array(data.x), np.array(data.y)
    place = np.random.default_rng(seed).permutation(int(y.max()) + 1)
    train = place[y] < place.size // 2
    return (x[train], y[train], None), (x[~train], y[~train])


def files(seed):
    train, test = (FeatureFiles(args.root, name, dim=args.dim)
                   for name in (args.train_name, args.name))
    for data in (train, test):
        if data.y is None:
            parser.error(f"'{data.name}' has no labels to score against")
    return (train.x, train.y, None), (test.x, test.y)


TWINS = ('ms1m', 'deepfashion', 'msmt17')
DATA = {name: (lambda seed, preset=name: twin(seed, preset, args.identities))
        for name in TWINS}
DATA.update(omniglot=omniglot, lfw=lfw, files=files)


def title(data):
    if data in TWINS:
        return f'{data} twin, {args.identities} -> {args.identities}'
    return data if data != 'files' else f'{args.train_name} -> {args.name}'


for what, given, known in (('--data', args.data, DATA),
                           ('--methods', args.methods or [], METHODS)):
    for unknown in [name for name in given if name not in known]:
        parser.error(f"{what}: there is no {unknown!r}; known are "
                     f"{', '.join(map(repr, known))}")
names = args.methods or [n for n, m in METHODS.items() if not m.more]
for name, load in (('omniglot', 'omniglot416'), ('lfw', 'facenet_lfw')):
    if name in args.data and not at_hand(load):
        parser.error(f"--data {name}: '{osp.join(SHARED, load)}' is not there")
if 'files' in args.data and args.root is None:
    parser.error('--data files needs --root')
if args.jobs < 1 or (args.jobs > 1 and not args.isolate):
    parser.error('--jobs is a number of processes; --no-isolate runs in one')
rows = Rows(f'{args.out}.csv')
hard = Rows(f'{args.out}_hard.csv', quiet=True)
committed = Rows(osp.join(RESULTS, 'compare.csv'))


def write_case(path, data, seed, plain):
    # Features and tables of both sides, centred, as all of these need it or
    # bear it; but as they are for published settings.
    (x, y, groups), (x_test, y_test) = DATA[data](seed)
    case = {'train_y': y, 'test_y': y_test}
    if groups is not None:
        case['train_groups'] = groups
    sides = {'train': x, 'test': x_test}
    if plain:
        sides['plain'] = x_test
    for side, features in sides.items():
        features = normalize_features(features, center=side != 'plain')
        table = Neighbors.search(features, min(args.k, len(features)))
        case[f'{side}_x'] = features.numpy()
        case[f'{side}_index'] = table.index.numpy()
        case[f'{side}_similarity'] = table.similarity.numpy()
    np.savez(path, **case)


def seconds(name):
    r"""What a method took in the committed table."""
    return sum(float(row['fit_seconds'] or 0) for row in committed.rows
               if row['method'] == name)


def finished(left, path, seed):
    r"""Methods, as they come to an end, each with a call that gives its result
    or raises what it raised.
    """
    if not args.isolate:  # Nor in a thread: FINCH takes stdout from all.
        for name in left:
            yield name, partial(run_method, name, path, seed, args.budget)
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        # What takes longest begins first, so that no process is alone at last.
        running = {pool.submit(alone, run_method, name, path, seed,
                               args.budget): name
                   for name in sorted(left, key=seconds, reverse=True)}
        for done in as_completed(running):
            yield running[done], done.result


def compare():
    for seed in range(args.seeds):
        for data in args.data:
            left = [name for name in names if not rows.has(
                data=title(data), method=name, seed=seed, error='')]
            if len(left) == 0:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = osp.join(folder, 'case.npz')
                write_case(path, data, seed,
                           any(METHODS[name].plain for name in left))
                for name, result in finished(left, path, seed):
                    key = dict(data=title(data), method=name, seed=seed)
                    rows.drop(**key)
                    hard.drop(**key)
                    try:
                        row, bins = result()
                    except Exception as e:  # The others go on.
                        traceback.print_exc()
                        text = ' '.join(f'{type(e).__name__}: {e}'.split())
                        row, bins = {'error': text}, []
                    for one in bins:
                        hard.add(**key, **one)
                    rows.add(**key, **row)


# Tables and figures #########################################################

COLUMNS = {
    'Clusters': 'clusters', 'P_P': 'pairwise_precision',
    'R_P': 'pairwise_recall', 'F_P': 'pairwise_fscore',
    'P_B': 'bcubed_precision', 'R_B': 'bcubed_recall',
    'F_B': 'bcubed_fscore', 'NMI': 'nmi', 'Fit, s': 'fit_seconds',
    'Predict, s': 'predict_seconds', 'Peak, MB': 'peak_mb',
    'Parameters': 'parameters'}


def shown(data):
    r"""The methods that ran, in the order in which they are listed."""
    return [name for name in METHODS if rows.has(
        data=data, method=name, error='')]


def cell(column, **key):
    mean, std, count = rows.mean(column, error='', **key)
    if column in {'clusters', 'parameters', 'peak_mb'}:
        return f'{mean:,.0f}'
    if column == 'nmi':
        return f'{mean:.3f}'
    if column.endswith('seconds'):
        return f'{mean:.1f}'
    return f'{mean:.1f} ± {std:.1f}' if count > 1 else f'{mean:.1f}'


def table(data):
    head = ['Method', *COLUMNS, 'Published F_P', 'Published F_B']
    return markdown(head, [
        [name + fewer(data, name),
         *(cell(column, data=data, method=name)
           for column in COLUMNS.values()), *published(name)]
        for name in shown(data)])


def summary(data):
    r"""Both F of every method on every data set."""
    head = ['Method', *(f'{name}, {seeds(data=name)}' for name in data),
            'Published F_P', 'Published F_B']
    ran = {name: shown(name) for name in data}
    return markdown(head, [
        [method, *(both_f(name, method) if method in ran[name] else ''
                   for name in data), *published(method)]
        for method in METHODS if any(method in names for names in ran.values())
    ])


def both_f(data, method):
    return ' / '.join(cell(column, data=data, method=method)
                      for column in ('pairwise_fscore', 'bcubed_fscore')
                      ) + fewer(data, method)


def published(method):
    return ['' if value is None else f'{value:.1f}'
            for value in METHODS[method].published]


def markdown(head, lines):
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [
        head, ['---'] + ['--:'] * (len(head) - 1), *lines])


def seeds(**key):
    count = len({row['seed'] for row in rows.rows
                 if all(row[name] == value for name, value in key.items())})
    return f'{count} seed{"s" * (count > 1)}'


def fewer(data, method):
    r"""Says so where a method did not run on all seeds of a data set."""
    own = seeds(data=data, method=method, error='')
    return '' if own == seeds(data=data) else f' ({own})'


def agreement(data):
    # With the published order, of the methods that were published.
    both = [(METHODS[name].published[0],
             rows.mean('pairwise_fscore', data=data, method=name, error='')[0])
            for name in shown(data) if METHODS[name].published[0] is not None]
    if len(both) < 3:
        return ''
    rho = spearmanr(*zip(*both)).statistic
    return (f'\nRank correlation of F_P with the published figures (Spearman): '
            f'{rho:.2f} over {len(both)} methods.\n')


def report():
    data = list(dict.fromkeys(row['data'] for row in rows.rows))
    short = f'F_P / F_B in percent\n\n{summary(data)}\n'
    text = '\n'.join([short] + [
        f'**{name}** ({seeds(data=name)}; published: MS1M 584K, other data)\n\n'
        f'{table(name)}\n{agreement(name)}' for name in data])
    with atomic_path(f'{args.out}.md') as tmp, open(tmp, 'w') as f:
        f.write(text)
    if args.readme is not None:
        between(args.readme, short)
    plot(data)
    plot_hard(data)
    print(text)


def between(path, text, mark='compare'):
    start, end = f'<!-- {mark}: begin -->\n', f'<!-- {mark}: end -->'
    with open(path) as f:
        before, rest = f.read().split(start)
    after = rest.split(end)[1]
    with atomic_path(path) as tmp, open(tmp, 'w') as f:
        f.write(before + start + '\n' + text + '\n' + end + after)


def plot(data):
    columns = min(len(data), 2)
    lines = -(-len(data) // columns)
    fig, axes = plt.subplots(lines, columns, squeeze=False,
                             figsize=(7.5 * columns, 5.5 * lines),
                             layout='constrained')
    for ax in axes.flat[len(data):]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, data):
        for method in shown(name):
            key = dict(data=name, method=method, error='')
            seconds = (rows.mean('fit_seconds', **key)[0] +
                       rows.mean('predict_seconds', **key)[0])
            f = rows.mean('pairwise_fscore', **key)[0]
            ours = method in {'SDT', 'MoE-SDT', 'Top-K Jaccard, no labels'}
            ax.plot(max(seconds, .05), f, 'o',
                    color='#D55E00' if ours else '#0072B2')
            ax.annotate(method, (max(seconds, .05), f), fontsize=7,
                        xytext=(4, 2), textcoords='offset points')
        ax.set(xscale='log', title=name, ylabel='Pairwise F in percent',
               xlabel='Seconds to fit and to predict')
        ax.spines[['top', 'right']].set_visible(False)
    save(fig, f'{args.out}.png')


def plot_hard(data):
    fig, axes = plt.subplots(len(data) * 2, 2, figsize=(11, 8 * len(data)),
                             squeeze=False, layout='constrained')
    colors = plt.get_cmap('tab20').colors
    for line, (name, what) in enumerate(
            (name, what) for name in data for what in ('recall', 'fscore')):
        for ax, by in zip(axes[line], ('size', 'sparsity')):
            for i, method in enumerate(shown(name)):
                bins = sorted({int(row['bin']) for row in hard.rows
                               if row['data'] == name and row['by'] == by})
                values = [hard.mean(what, data=name, method=method, by=by,
                                    bin=b)[0] for b in bins]
                ax.plot(bins, values, marker='o', markersize=3,
                        color=colors[i % 20], label=method,
                        linestyle='-' if i < 20 else '--')
            ax.set(title=name, xlabel=f'Identities by {by}, least first',
                   ylabel={'recall': 'BCubed recall', 'fscore': 'BCubed F'}[
                       what] + ' in percent')
            ax.spines[['top', 'right']].set_visible(False)
            ax.locator_params(axis='x', integer=True)
    axes[0, 1].legend(frameon=False, fontsize=6, loc='upper left',
                      bbox_to_anchor=(1, 1))
    save(fig, f'{args.out}_hard.png', dpi=70)


def save(fig, path, dpi=120):
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=dpi, format='png')
    plt.close(fig)


if __name__ == '__main__':  # Not in the processes of single methods.
    if args.jobs > 1:  # They read it when they start.
        share = str(max((os.cpu_count() or 1) // args.jobs, 1))
        os.environ.update(OMP_NUM_THREADS=share, NUMBA_NUM_THREADS=share)
    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    compare()
    if any(row['error'] == '' for row in rows.rows):
        report()
    failed = [row for row in rows.rows if row['error'] != '']
    if len(failed) > 0:
        sys.exit('Failed: ' + ', '.join(sorted(
            {f"{row['method']} on {row['data']}" for row in failed})))
