r"""What does the approximate search cost in F?

    python benchmarks/cells.py

The same worlds (synthetic twins, no photographs; 256 dimensions, K = 80), each
clustered on the exact table and on that of `CellSearch`: by one pass of Top-K
Jaccard and map equation, and by `TopKJaccardClustering` with its search for
settings. Which of two like settings that takes may turn on a few neighbours,
so one world says little: what is printed is the mean loss over seeds, in
points, with its standard error. Writes benchmarks/results/cells.csv; goes on
where it stopped.
"""
import argparse
import os.path as osp

from _learned import RESULTS, Rows, percent
from scale import one_pass

from torch_sdt import TopKJaccardClustering
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features

METHODS = {
    'one pass': lambda x, table: one_pass(table)[0],
    'all settings': lambda x, table: TopKJaccardClustering().fit_predict(
        x, neighbors=table),
}

parser = argparse.ArgumentParser(
    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument('--data', nargs='+',
                    default=['ms1m', 'msmt17', 'deepfashion'])
parser.add_argument('--n', type=int, nargs='+', default=[20_000, 60_000])
parser.add_argument('--seeds', type=int, default=5)
parser.add_argument('--out', default=osp.join(RESULTS, 'cells.csv'))
args = parser.parse_args()

rows = Rows(args.out)


def compare(data, n, seed):
    faces = SyntheticFaces(data, num_images=n, seed=seed)
    x = normalize_features(faces.x, center=True)
    exact, cells = (Neighbors.search(x, 80, index, seed=seed)
                    for index in ('flat', 'cells'))
    for name, cluster in METHODS.items():
        row = dict(data=data, n=n, seed=seed, method=name)
        on_exact, on_cells = (percent(faces.y, cluster(x, table))
                              for table in (exact, cells))
        for f in on_exact:
            loss = float(on_exact[f]) - float(on_cells[f])
            row.update({f: on_exact[f], f'{f}_cells': on_cells[f],
                        f'{f}_loss': f'{loss:.2f}'})
        rows.add(**row)


for seed in range(args.seeds):
    for data in args.data:
        for n in args.n:
            key = dict(data=data, n=n, seed=seed)
            if not rows.has(**key, method='all settings'):
                rows.drop(**key)
                compare(**key)
for data in args.data:
    for n in args.n:
        for name in METHODS:
            text = f'{data}, {n:,}, {name}: loss of'
            for f in ('pairwise_f', 'bcubed_f'):
                mean, std, count = rows.mean(f'{f}_loss', data=data, n=n,
                                             method=name)
                error = std / max(count - 1, 1)**.5
                text += f'  {f} {mean:.2f} ± {error:.2f}'
            print(text)
