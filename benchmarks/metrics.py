r"""How long do the clustering metrics take, and how much memory?

Random labels with as many classes and clusters as asked for: a tenth of the
samples lie in a random cluster, the others in their class's own. Every metric
runs in a process of its own, so that its peak memory is its own; its time is
the best of three calls. NMI is compared with scikit-learn's, which must give
the same value.

    python benchmarks/metrics.py --num-labels 5000000 --num-clusters 500000
"""
import argparse
import csv
import json
import os
import os.path as osp
import resource
import subprocess
import sys
import time

import numpy as np

from torch_sdt import metrics
from torch_sdt.io import atomic_path

RESULTS = osp.join(osp.dirname(osp.realpath(__file__)), 'results')
REFERENCE = 'sklearn normalized_mutual_info_score'
NAMES = ['clustering_scores', 'pairwise_scores', 'bcubed_scores', 'nmi_score',
         REFERENCE]

parser = argparse.ArgumentParser()
parser.add_argument('--num-labels', type=int, default=5_000_000)
parser.add_argument('--num-clusters', type=int, default=500_000)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--out', default=osp.join(RESULTS, 'metrics.csv'))
parser.add_argument('--measure', choices=NAMES, help=argparse.SUPPRESS)
args = parser.parse_args()


def make_labels():
    rng = np.random.default_rng(args.seed)
    # Every cluster occurs.
    true = np.arange(args.num_labels) % args.num_clusters
    pred = rng.permutation(args.num_clusters)[true]
    moved = rng.random(args.num_labels) < .1
    pred[moved] = rng.integers(0, args.num_clusters, int(moved.sum()))
    order = rng.permutation(args.num_labels)
    return true[order], pred[order]


def peak_mib():
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == 'darwin' else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(name):
    if name == REFERENCE:
        from sklearn.metrics import normalized_mutual_info_score as metric
    else:
        metric = getattr(metrics, name)
    true, pred = make_labels()
    before = peak_mib()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        score = metric(true, pred)
        times.append(time.perf_counter() - start)
    return {'seconds': min(times), 'peak_mib': peak_mib(),
            'labels_mib': before,
            'nmi': getattr(score, 'nmi', score)}


def measure_in_a_process(name):
    command = [sys.executable, *sys.argv, '--measure', name]
    out = subprocess.run(command, check=True, text=True,
                         stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def main():
    results = {name: measure_in_a_process(name) for name in NAMES}
    reference = results[REFERENCE]
    for name in ('clustering_scores', 'nmi_score'):
        if abs(results[name]['nmi'] - reference['nmi']) > 1e-9:
            raise SystemExit(f"{name} gives NMI {results[name]['nmi']}, "
                             f"scikit-learn {reference['nmi']}")

    rows = [{
        'metric': name,
        'num_labels': args.num_labels,
        'num_clusters': args.num_clusters,
        'seconds': f"{result['seconds']:.3f}",
        'ratio_to_sklearn_nmi':
        f"{result['seconds'] / reference['seconds']:.3f}",
        'peak_mib': f"{result['peak_mib']:.0f}",
        'peak_mib_before': f"{result['labels_mib']:.0f}",
    } for name, result in results.items()]

    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    with atomic_path(args.out) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)

    for row in [dict(zip(rows[0], rows[0])), *rows]:
        print('  '.join(
            f'{value!s:<{len(REFERENCE)}}' if key == 'metric' else
            f'{value!s:>{len(key)}}' for key, value in row.items()))


if __name__ == '__main__':
    if args.measure is None:
        main()
    else:
        print(json.dumps(measure(args.measure)))
