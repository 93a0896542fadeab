r"""Which parts of the method earn their place?

    python benchmarks/ablation.py

One factor at a time from the default, three seeds, on the MS1M twin (80
identities to learn from, 80 others) and on Omniglot (two thirds of the
characters with their rotations, the last third):

* neighbourhood: all K, early stopping at theta = .22, the BiLSTM of Ada-NETS,
  the Transformer with each of its heads, and an oracle (k from the test
  labels);
* distance transform: sigmoid or exponential, over all K and inside the
  predicted k;
* verdict: none, the predictor's own, vanilla, diff, sparse-diff, MoE;
* form of lambda, form of the mask, tokens;
* merge: jaccard, verdict, mean, and the paper's boundary rule.

Every variant chooses its edge rule on the same held-out training identities.
Columns: both F in percent, average precision of the verdict on all pairs of the
table (without a verdict, of the Jaccard), relative error of k (mean of |k - k*|
/ k*), parameters and inference milliseconds a node of what was trained. Goes on
where it stopped; writes benchmarks/results/ablation.csv and ablation.png.
"""
import argparse
import os.path as osp
from functools import partial

import matplotlib
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
from torch_sdt.ops import topk_target

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--data', nargs='*', help='only these')
parser.add_argument('--identities', type=int, default=80,
                    help='of the twin, to learn from and to cluster')
parser.add_argument('--epochs', type=int, default=4)
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--out', default=osp.join(RESULTS, 'ablation.csv'))
args = parser.parse_args()

rows = Rows(args.out)


def score(c, first, second=None, merge=None, transform='sigmoid'):
    trust, size, cost = first
    verdict = trust if second == 'own' else None
    if second not in (None, 'own'):
        verdict, more, cost_more = second
        size, cost = size + more, cost + cost_more
    edges = {
        part: Edges(c.table[part], trust[part],
                    None if verdict is None else verdict[part],
                    transform=transform) for part in ('learn', 'test')}
    rule, _ = choose_rule(edges['learn'], c.y, c.held_out, merge, c.seed)
    labels = edges['test'].cluster(rule, seed=c.seed).numpy()
    judged = edges['test'].verdict
    if judged is None:
        judged = edges['test'].jaccard(rule.beta)
    k, best = edges['test'].k(.5), topk_target(c.table['test'], c.y_test)
    return {
        **percent(c.y_test, labels),
        'average_precision':
        f"{average_precision(c.table['test'], c.y_test, judged):.4f}",
        'error_of_k': f'{float(((k - best).abs() / best).mean()):.3f}',
        'parameters': size, 'ms_per_node': f'{cost:.3f}',
        'rule': f'{rule.merge} {rule.beta} {rule.threshold} '
                f'{rule.markov_time}'}


def variants(c):
    r"""Name of the factor and the variant, and how it is run."""
    rank = partial(c.predictor)
    yield 'neighbourhood: all K', lambda: score(
        c, c.fixed('all'))
    yield 'neighbourhood: all K, exponential', lambda: score(
        c, c.fixed('all'), transform='exponential')
    yield 'neighbourhood: early stop, exponential', lambda: score(
        c, c.fixed('early stop'), transform='exponential')
    yield 'neighbourhood: BiLSTM', lambda: score(
        c, c.predictor('bilstm'))
    yield 'neighbourhood: Transformer, regression', lambda: score(
        c, c.predictor('regression'))
    yield 'neighbourhood: Transformer, rank', lambda: score(
        c, rank())
    yield 'neighbourhood: Transformer, rank, vanilla', lambda: score(
        c, rank(attention='vanilla'))
    yield 'neighbourhood: Transformer, rank, exponential', lambda: score(
        c, rank(), transform='exponential')
    yield 'neighbourhood: oracle', lambda: score(
        c, c.fixed('oracle'))
    yield "verdict: predictor's own", lambda: score(
        c, rank(), 'own')
    for name, more in (
            ('vanilla', dict(attention='vanilla')),
            ('diff', dict(attention='diff')),
            ('sparse-diff (default)', {}),
            ('MoE', dict(experts=4))):
        yield f'verdict: {name}', partial(
            lambda more: score(c, rank(), c.sdt(rank()[0], **more)),
            more)
    yield 'lambda: reparam', lambda: score(
        c, rank(), c.sdt(rank()[0], lambda_form='reparam'))
    yield 'lambda: starts at .3', lambda: score(
        c, rank(), c.sdt(rank()[0], lambda_init=.3))
    yield 'mask: logits', lambda: score(
        c, rank(), c.sdt(rank()[0], mask='logits'))
    yield 'tokens: feature', lambda: score(
        c, rank(), c.sdt(rank()[0], features=True))
    for merge in ('jaccard', 'verdict', 'mean', 'boundary'):
        yield f'merge: {merge}', partial(
            lambda merge: score(c, rank(), c.sdt(rank()[0]), merge), merge)


def plot():
    names = list(dict.fromkeys(row['variant'] for row in rows.rows))
    data = list(dict.fromkeys(row['data'] for row in rows.rows))
    fig, axes = plt.subplots(1, len(data), figsize=(5.2 * len(data) + 2.6, 7),
                             sharey=True, squeeze=False,
                             layout='constrained')
    for ax, name in zip(axes[0], data):
        for column, color, label in (('pairwise_f', '#0072B2', 'pairwise F'),
                                     ('bcubed_f', '#D55E00', 'BCubed F')):
            values = [rows.mean(column, data=name, variant=v) for v in names]
            ax.errorbar([v[0] for v in values], range(len(names)),
                        xerr=[v[1] for v in values], fmt='o', color=color,
                        label=label, capsize=2)
        ax.set(title=name, xlabel='F in percent, mean ± deviation over seeds')
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(axis='y', color='.9')
        ax.set_axisbelow(True)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(frameon=False, loc='lower left')
    with atomic_path(osp.splitext(args.out)[0] + '.png') as tmp:
        fig.savefig(tmp, dpi=130, format='png')


DATA = {
    f'MS1M twin, {args.identities} -> {args.identities}':
    partial(twin, identities=args.identities),
    'Omniglot, 2/3 -> 1/3': omniglot,
}
for seed in range(args.seeds):
    for name, load in DATA.items():
        if (args.data and name not in args.data) or (
                load is omniglot and not at_hand('omniglot416')):
            continue
        case = None
        # Only the names are needed to see what is left to do.
        for variant, _ in variants(Case.__new__(Case)):
            if rows.has(data=name, variant=variant, seed=seed):
                continue
            case = case or Case(load, seed, args.k, args.epochs)
            run = dict(variants(case))[variant]
            rows.add(data=name, variant=variant, seed=seed, **run())
if rows.rows:
    plot()
