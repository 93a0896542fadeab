r"""Is differential attention more robust to noise, as the paper's title says?

    python benchmarks/noise.py

For the four kinds of second model (vanilla, diff, sparse-diff, MoE), three
seeds, on the MS1M twin (80 identities to learn from, 80 others) and on
Omniglot:

* neighbours: a rising share of each test row's neighbours is replaced by the
  nearest samples of **wrong** identities from beyond the table. Models learned
  on clean tables;
* labels: a rising share of training images is given the label of another
  identity at random. Test tables are clean, and so are the labels of held-out
  identities.

Columns: average precision of the verdict on the test table, both directions
averaged, and both F in percent, at the rule that clusters held-out identities
best. Goes on where it stopped; writes benchmarks/results/noise.csv and
noise.png.
"""
import argparse
import os.path as osp
from functools import partial

import matplotlib
import numpy as np
import torch
from _learned import (
    RESULTS,
    Case,
    Rows,
    at_hand,
    omniglot,
    percent,
    twin,
)

from torch_sdt.cluster import Edges, choose_rule
from torch_sdt.cluster.edges import average_precision
from torch_sdt.io import atomic_path
from torch_sdt.neighbors import Neighbors

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--data', nargs='*', help='only these')
parser.add_argument('--identities', type=int, default=80,
                    help='of the twin, to learn from and to cluster')
parser.add_argument('--epochs', type=int, default=4)
parser.add_argument('--out', default=osp.join(RESULTS, 'noise.csv'))
args = parser.parse_args()

KINDS = {
    'vanilla': dict(attention='vanilla'),
    'diff': dict(attention='diff'),
    'sparse-diff': {},
    'MoE': dict(experts=4),
}
SHARES = {'neighbours': (0., .2, .4), 'labels': (0., .2, .4)}
DATA = {
    f'MS1M twin, {args.identities} -> {args.identities}':
    partial(twin, identities=args.identities),
    'Omniglot, 2/3 -> 1/3': omniglot,
}
rows = Rows(args.out)


def inject(c, share):
    r"""The test table with a share of each row's neighbours replaced by the
    nearest samples of wrong identities that it did not list.
    """
    x, y, table = c.x['test'], torch.from_numpy(c.y_test), c.table['test']
    if share == 0:
        return table
    n, k = table.index.shape
    wide = Neighbors.search(x, min(4 * k, n))
    index, similarity = table.index.clone(), table.similarity.clone()
    rng = np.random.default_rng(c.seed)
    count = round(share * (k - 1))
    for i in range(n):
        beyond = wide.index[i, k:]
        wrong = (y[beyond] != y[i]).nonzero().view(-1)[:count]
        at = 1 + torch.from_numpy(rng.permutation(k - 1)[:wrong.numel()])
        index[i, at] = beyond[wrong]
        similarity[i, at] = wide.similarity[i, k:][wrong]
    return Neighbors(index, similarity).reranked(similarity).validate()


def mislabel(c, share):
    rng = np.random.default_rng(c.seed)
    y = c.y_train.numpy().copy()
    wrong = rng.permutation(y.size)[:round(share * y.size)]
    y[wrong] = rng.choice(np.unique(y), wrong.size)
    c.y_train = torch.from_numpy(y)
    return c


def measure(c, kind):
    trust = c.predictor()[0]
    verdict = c.sdt(trust, **KINDS[kind])[0]
    edges = {part: Edges(c.table[part], trust[part], verdict[part])
             for part in ('learn', 'test')}
    rule, _ = choose_rule(edges['learn'], c.y, c.held_out, seed=c.seed)
    labels = edges['test'].cluster(rule, seed=c.seed).numpy()
    precision = average_precision(c.table['test'], c.y_test,
                                  edges['test'].verdict)
    return {'average_precision': f'{precision:.4f}',
            **percent(c.y_test, labels)}


def plot():
    data = list(dict.fromkeys(row['data'] for row in rows.rows))
    columns = (('average_precision', 'Average precision'),
               ('pairwise_f', 'Pairwise F in percent'))
    fig, axes = plt.subplots(len(data) * 2, 2, figsize=(10, 6.4 * len(data)),
                             squeeze=False, layout='constrained')
    colors = ['.45', '#56B4E9', '#0072B2', '#D55E00']
    for line, (name, (column, text)) in enumerate(
            (name, column) for name in data for column in columns):
        for ax, noise in zip(axes[line], SHARES):
            for kind, color in zip(KINDS, colors):
                shares = [s for s in SHARES[noise] if rows.has(
                    data=name, noise=noise, share=s, kind=kind)]
                values = [rows.mean(column, data=name, noise=noise, share=s,
                                    kind=kind) for s in shares]
                ax.errorbar(shares, [v[0] for v in values],
                            yerr=[v[1] for v in values], marker='o',
                            color=color, label=kind, capsize=2)
            ax.set(title=f'{name}: wrong {noise}', xlabel='Share',
                   ylabel=text)
            ax.spines[['top', 'right']].set_visible(False)
    axes[0, 0].legend(frameon=False)
    with atomic_path(osp.splitext(args.out)[0] + '.png') as tmp:
        fig.savefig(tmp, dpi=110, format='png')


for seed in range(args.seeds):
    for name, load in DATA.items():
        if (args.data and name not in args.data) or (
                load is omniglot and not at_hand('omniglot416')):
            continue
        clean = None
        for noise, share in ((n, s) for n in SHARES for s in SHARES[n]):
            left = [kind for kind in KINDS if not rows.has(
                data=name, noise=noise, share=share, kind=kind, seed=seed)]
            if len(left) == 0:
                continue
            if noise == 'labels' and share > 0:
                case = mislabel(Case(load, seed, epochs=args.epochs), share)
            else:
                if clean is None:
                    clean = Case(load, seed, epochs=args.epochs)
                    calm = clean.table['test']
                case = clean
                case.replace_test_table(calm)
                if noise == 'neighbours':
                    case.replace_test_table(inject(case, share))
            for kind in left:
                rows.add(data=name, noise=noise, share=share, kind=kind,
                         seed=seed, **measure(case, kind))
if rows.rows:
    plot()
