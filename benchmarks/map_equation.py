r"""Which backend finds communities of a Jaccard graph how fast, how well?

The Top-K Jaccard graph of a synthetic world's exact kNN table, without edges
below ``--threshold``. Each backend of
:meth:`torch_sdt.ops.map_equation_communities` runs in a process of its own,
after a small graph has warmed it up; its time includes handing the graph over
to the library and is the best of ``--repeats`` calls. All work on one
thread; ``cpu_seconds`` is what they would take with a processor of their own.
The codelength of every partition is measured by
:meth:`torch_sdt.ops.map_equation`, and stands next to that of the true
identities.

    python benchmarks/map_equation.py --num-nodes 50000 --k 80
"""
import argparse
import csv
import json
import os
import os.path as osp
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    map_equation,
    map_equation_communities,
    topk_jaccard,
)

RESULTS = osp.join(osp.dirname(osp.realpath(__file__)), 'results')
REFERENCE = 'infomap'
NAMES = ['infomap', 'networkit', 'numba', 'torch']

parser = argparse.ArgumentParser()
parser.add_argument('--num-nodes', type=int, default=50_000)
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--threshold', type=float, default=0.)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--repeats', type=int, default=5)
parser.add_argument('--out', default=osp.join(RESULTS, 'map_equation.csv'))
parser.add_argument('--measure', choices=NAMES, help=argparse.SUPPRESS)
parser.add_argument('--folder', help=argparse.SUPPRESS)
args = parser.parse_args()


def read(folder, name):
    return torch.from_numpy(np.load(osp.join(folder, f'{name}.npy')))


def measure(name):
    few = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    map_equation_communities(few, backend=name)
    edge_index = read(args.folder, 'edge_index')
    edge_weight = read(args.folder, 'edge_weight')
    wall, cpu = [], []
    for _ in range(args.repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        cluster = map_equation_communities(
            edge_index, edge_weight, args.num_nodes, name, seed=args.seed)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    np.save(osp.join(args.folder, f'{name}.npy'), cluster.numpy())
    return {'seconds': min(wall), 'cpu_seconds': min(cpu)}


def measure_in_a_process(name, folder):
    command = [sys.executable, *sys.argv, '--measure', name, '--folder',
               folder]
    out = subprocess.run(command, check=True, text=True,
                         stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def speed(times, reference):
    if times is None:
        return dict.fromkeys(['seconds', 'cpu_seconds', 'times_infomap'], '')
    return {key: f'{value:.2f}' for key, value in times.items()} | {
        'times_infomap':
        f"{reference['seconds'] / times['seconds']:.1f}"}


def main():
    faces = SyntheticFaces('ms1m', num_images=args.num_nodes, seed=args.seed)
    neighbors = Neighbors.build(faces.x, args.k, 'flat', verbose=True)
    weight = topk_jaccard(neighbors)
    edge_index, edge_weight = neighbors.to_edge_index(
        weight, weight > args.threshold)
    times, cluster = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        np.save(osp.join(folder, 'edge_index.npy'), edge_index.numpy())
        np.save(osp.join(folder, 'edge_weight.npy'), edge_weight.numpy())
        for name in NAMES:
            times[name] = measure_in_a_process(name, folder)
            cluster[name] = read(folder, name)

    cluster['identities'] = torch.from_numpy(faces.y)
    length = {name: float(map_equation(part, edge_index, edge_weight))
              for name, part in cluster.items()}
    rows = []
    for name, part in cluster.items():
        scores = clustering_scores(faces.y, part.numpy())
        rows.append({
            'partition': name,
            'num_nodes': args.num_nodes,
            'num_edges': edge_index.size(1),
            **speed(times.get(name), times[REFERENCE]),
            'codelength': f'{length[name]:.5f}',
            'ratio_to_infomap': f'{length[name] / length[REFERENCE]:.5f}',
            'clusters': part.unique().numel(),
            'pairwise_f': f'{100 * scores.pairwise.fscore:.2f}',
            'bcubed_f': f'{100 * scores.bcubed.fscore:.2f}',
        })

    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    with atomic_path(args.out) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    for row in [dict(zip(rows[0], rows[0])), *rows]:
        print('  '.join(f'{value!s:>{max(len(key), 11)}}'
                        for key, value in row.items()))


if __name__ == '__main__':
    if args.measure is None:
        main()
    else:
        print(json.dumps(measure(args.measure)))
