r"""How do time and memory grow with the number of faces?

    python benchmarks/scale.py --n 20000 60000 180000 584013

For each N a synthetic MS1M twin of N faces (256 dimensions, K = 80; no
photographs, not MS1M itself) goes from features to labels in a process of its
own, stage by stage: normalising, the search for neighbours, one pass of Top-K
Jaccard and map equation, and the whole search for settings of
`TopKJaccardClustering`. Columns: seconds and the process's peak memory after
each; what share of the trusted and of all neighbours the search finds; both F.
Beside them, in the same process,

* `exact kNN`: exact search for 4,096 samples, times N / 4,096;
* `the field's way`: FC-ES as it is published, Python loops over samples and
  one `add_link` call an edge, up to `--field` faces (the search excluded);
* `limit`: what the multiplications of the search would take at the rate at
  which this machine multiplies two 2048 x 2048 matrices; and what it would take
  to read, at the rate at which memory is copied, the ids and weights that the
  Jaccard compares (of each trusted neighbour those it trusts, though many of
  them stay in cache), and for the map equation its graph, once.

What the approximate search costs in F: cells.py. Writes
benchmarks/results/scale.csv and, with the fitted exponents, scale.png; goes on
where it stopped.
"""
import argparse
import os.path as osp
import sys
import time

import numpy as np
import torch
from _compare import alone
from _learned import RESULTS, Rows
from _memory import forget_peak, memory

from torch_sdt import TopKJaccardClustering
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.metrics import bcubed_scores, pairwise_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import locality_order, normalize_features, topk_jaccard
from torch_sdt.ops.knn import RECALL
from torch_sdt.ops.map_equation import symmetric_csr, table_communities
from torch_sdt.ops.search import CellSearch, ExactSearch

_EXACT = 4096
_ENTRY = 8  # Bytes of an id and a weight.


def timed(call):
    start = time.perf_counter()
    out = call()
    return out, time.perf_counter() - start


def seconds_a_flop():
    a = torch.randn(2048, 2048)
    return min(timed(lambda: a @ a)[1] for _ in range(8)) / (2 * 2048**3)


def seconds_a_byte():
    a = torch.zeros(2**26)
    b = torch.zeros_like(a)
    # Read here, written there.
    return min(timed(lambda: b.copy_(a))[1] for _ in range(8)) / (2 * a.nbytes)


def scores(y, labels):
    return {f'{name}_f': f'{100 * function(y, labels).fscore:.2f}'
            for name, function in (('pairwise', pairwise_scores),
                                   ('bcubed', bcubed_scores))}


def in_order(table):
    order = locality_order(table)
    return order.argsort(), table.permute(order)


def one_pass(table):
    # One setting: neighbours above a cosine, Jaccard, map equation. The
    # labels, seconds of each, and what each has to read.
    (back, table), ordered = timed(lambda: in_order(table))
    k = (table.similarity >= .35).sum(dim=1).clamp(min=1)
    weight, jaccard = timed(lambda: topk_jaccard(table, k))
    cluster, communities = timed(
        lambda: table_communities(table, weight, 'numba'))
    trusted = torch.arange(table.k) < k.view(-1, 1)
    entries = int(k[table.index[trusted]].sum())
    edges = symmetric_csr(table, weight).nnz
    return cluster[back].numpy(), {
        'order': (ordered, None), 'Jaccard': (jaccard, entries * _ENTRY),
        'map equation': (communities, edges * _ENTRY)}


def as_published(table):
    # FC-ES as its code does it: every sum in Python, every link a call.
    from infomap import Infomap

    index = table.index.tolist()
    p = np.exp((table.similarity.numpy() - 1) / .5)
    weight = [dict(zip(row, (values / values.sum()).tolist()))
              for row, values in zip(index, p)]
    network = Infomap('--two-level --directed', silent=True)
    for i, row in enumerate(index):
        mine = weight[i]
        for j in row:
            theirs = weight[j]
            common = [h for h in mine if h in theirs]
            nep = sum(mine[h] + theirs[h] for h in common) / 2
            if nep < .22:
                break
            network.add_link(i, j, nep)
    network.run()
    labels = np.arange(len(index)) + len(index)
    for node in network.nodes:
        labels[node.node_id] = node.module_id
    return labels


def measure(n, field, k=80):
    faces = SyntheticFaces('ms1m', num_images=n)
    few = normalize_features(faces.x[:2000])
    table = Neighbors.search(few, 40)
    one_pass(table)  # Compiles, and loads what is compiled,
    TopKJaccardClustering().fit(few, neighbors=table)  # as does this.
    rate, byte = seconds_a_flop(), seconds_a_byte()
    forget_peak()
    rows = []

    def stage(name, seconds, **more):
        rows.append({'n': n, 'stage': name, 'seconds': f'{seconds:.3f}',
                     'peak_mb': f"{memory('VmHWM'):.0f}", **more})
        print(*rows[-1].values(), flush=True)

    x, seconds = timed(lambda: normalize_features(faces.x, center=True))
    stage('normalise', seconds)
    # What `Neighbors.search` does, to see the index.
    search, built = timed(lambda: CellSearch(x, k, RECALL, 0))
    # Without what lone samples ask for on top.
    flops = int(search.size[search.probe.long()].sum()) * 2 * x.size(1)
    found = dict(recall=f'{search.recall:.4f}',
                 recall_all=f'{search.recall_all:.4f}')
    del search
    table, seconds = timed(lambda: Neighbors.search(x, k, 'cells'))
    stage('kNN', seconds, **found)
    stage('kNN, of which the cells', built)
    stage('kNN, limit', flops * rate)
    labels, parts = one_pass(table)
    stage('one pass', sum(seconds for seconds, _ in parts.values()),
          **scores(faces.y, labels))
    for name, (seconds, size) in parts.items():
        stage(f'one pass, of which {name}', seconds)
        if size is not None:
            stage(f'{name}, limit', size * byte)
    model = TopKJaccardClustering(verbose=sys.stderr.isatty())
    labels, seconds = timed(lambda: model.fit_predict(x, neighbors=table))
    stage('all settings', seconds, **scores(faces.y, labels))
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    sample = sample[:_EXACT]
    _, seconds = timed(lambda: ExactSearch(x).best(sample, k))
    stage('exact kNN', seconds * n / sample.numel())
    stage('exact kNN, limit', 2. * n * n * x.size(1) * rate)
    if n <= field:
        labels, seconds = timed(lambda: as_published(table))
        stage("the field's way", seconds, **scores(faces.y, labels))
    return rows


def fit(n, seconds):
    return float(np.polyfit(np.log(n), np.log(seconds), 1)[0])


def plot(rows, path):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2),
                                      layout='constrained')
    for name, color in (('kNN', '#0072B2'), ('one pass', '#009E73'),
                        ('all settings', '#D55E00'),
                        ('exact kNN', '#777777'),
                        ("the field's way", '#CC79A7')):
        own = sorted((int(row['n']), float(row['seconds']))
                     for row in rows if row['stage'] == name)
        n, seconds = zip(*own)
        text = name
        if len(own) > 1:
            text += f' (exponent {fit(n, seconds):.2f})'
        left.loglog(n, seconds, marker='o', color=color, label=text)
    peak = {}
    for row in rows:
        if row['stage'] == 'all settings':
            peak[int(row['n'])] = float(row['peak_mb']) * 2**20 / 1e9
    right.loglog(*zip(*sorted(peak.items())), marker='o', color='#D55E00')
    left.set(xlabel='Faces', ylabel='Seconds')
    right.set(xlabel='Faces', ylabel='Peak memory of the process, GB')
    left.legend(frameon=False)
    for which in ('major', 'minor'):
        getattr(right.yaxis, f'set_{which}_formatter')('{x:g}')
    for ax in (left, right):
        ax.set_xticks(sorted(peak), [f'{n:,}' for n in sorted(peak)])
        ax.tick_params(axis='x', which='minor', bottom=False,
                       labelbottom=False)
        ax.spines[['top', 'right']].set_visible(False)
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=110, format='png')


def main():
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--n', type=int, nargs='+',
                        default=[20_000, 60_000, 180_000, 584_013])
    parser.add_argument('--field', type=int, default=20_000)
    parser.add_argument('--out', default=osp.join(RESULTS, 'scale.csv'))
    args = parser.parse_args()

    table = Rows(args.out, quiet=True)
    for n in args.n:
        if table.has(n=n, stage='exact kNN'):
            continue
        for row in alone(measure, n, args.field):
            table.add(**{column: row.get(column, '') for column in (
                'n', 'stage', 'seconds', 'peak_mb', 'recall', 'recall_all',
                'pairwise_f', 'bcubed_f')})
    plot(table.rows, f'{osp.splitext(args.out)[0]}.png')
    for name in ('kNN', 'one pass', 'all settings'):
        own = [(int(row['n']), float(row['seconds'])) for row in table.rows
               if row['stage'] == name]
        if len(own) > 1:
            print(f'{name}: exponent {fit(*zip(*own)):.2f}')


if __name__ == '__main__':
    main()
