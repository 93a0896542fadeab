r"""How fast is Top-K Jaccard, and what does it cost in memory?

The exact kNN table of a synthetic world, every list trusted whole (the most
work there can be), by

* ``numba``: what :meth:`torch_sdt.ops.topk_jaccard` runs on a CPU,
* ``torch``: what it runs on other devices and where gradients are wanted,
* ``scipy``: the sparse products :math:`\frac{1}{2} (\hat P B^\top + B
  \hat P^\top)`, where :math:`B` has a one wherever the table has an entry, a
  thousand rows at a time, of which the entries of the table are kept.

All must give the same values to 1e-5. Each runs in a process of its own,
after a small table has warmed it up, and its time is the best of
``--repeats`` calls, or of those that fit into a minute. Extra memory is the
process's highest resident size during the first call minus its size before
(Linux only), in tables: the bytes of int64 ids and float32 similarities. The
probabilities p and the result belong to the extra memory.

A look-up reads one neighbour's id and probability, eight bytes. The last row
is what the machine can read: the time it takes to stream as many bytes as all
look-ups read, were every row to come from memory in order.

    python benchmarks/topk_jaccard.py --num-nodes 50000 --k 80
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
import scipy.sparse as sp
import torch
from _memory import forget_peak, memory

import torch_sdt.typing
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import edge_probability, topk_jaccard

RESULTS = osp.join(osp.dirname(osp.realpath(__file__)), 'results')
NAMES = ['numba', 'torch', 'scipy']

parser = argparse.ArgumentParser()
parser.add_argument('--num-nodes', type=int, default=50_000)
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--repeats', type=int, default=10)
parser.add_argument('--threads', type=int, default=os.cpu_count())
parser.add_argument('--out', default=osp.join(RESULTS, 'topk_jaccard.csv'))
parser.add_argument('--measure', choices=NAMES, help=argparse.SUPPRESS)
parser.add_argument('--folder', help=argparse.SUPPRESS)
args = parser.parse_args()


def scipy_jaccard(neighbors, rows=1000):
    p = edge_probability(neighbors.similarity)
    p = (p / p.sum(dim=1, keepdim=True)).numpy()
    n, k = p.shape
    index = neighbors.index.numpy().astype(np.int32)
    ptr = np.arange(0, n * k + 1, k)
    weight = sp.csr_matrix((p.ravel(), index.ravel(), ptr), (n, n))
    ones = sp.csr_matrix((np.ones_like(p).ravel(), index.ravel(), ptr), (n, n))
    weight_t, ones_t = weight.T.tocsr(), ones.T.tocsr()
    out = np.empty_like(p)
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        both = weight[part] @ ones_t + ones[part] @ weight_t
        both = both.multiply(ones[part]).tocsr()
        both.sort_indices()
        # Entries by column; the table's are by rank. A neighbour j is common
        # to both lists, so that no entry of the table is missing.
        order = index[part].argsort(axis=1)
        np.put_along_axis(out[part], order,
                          both.data.reshape(order.shape) / 2, axis=1)
    return torch.from_numpy(out)


def measure(name):
    torch.set_num_threads(args.threads)
    torch_sdt.typing.WITH_NUMBA = name == 'numba'
    function = scipy_jaccard if name == 'scipy' else topk_jaccard
    neighbors = Neighbors(*(
        torch.from_numpy(np.load(osp.join(args.folder, f'{part}.npy')))
        for part in ('index', 'similarity')))
    few = torch.arange(500).view(-1, 1)
    few = (few + torch.arange(args.k)) % 500
    function(Neighbors(few, torch.ones(few.shape)))

    forget_peak()
    before = memory('VmRSS')
    times = []
    while len(times) < args.repeats and sum(times) < 60:
        start = time.perf_counter()
        out = function(neighbors)
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            extra = 2**20 * (memory('VmHWM') - before)
    np.save(osp.join(args.folder, f'{name}.npy'), out.numpy())
    return {'seconds': min(times), 'extra': extra}


def measure_in_a_process(name, folder):
    command = [sys.executable, *sys.argv, '--measure', name, '--folder',
               folder]
    out = subprocess.run(command, check=True, text=True,
                         stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def seconds_to_read(num_bytes):
    data = torch.ones(2**28)  # a gibibyte, which no cache holds
    times = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return min(times) * num_bytes / (4 * data.numel())


def main():
    torch.set_num_threads(args.threads)
    faces = SyntheticFaces('ms1m', num_images=args.num_nodes, seed=args.seed)
    neighbors = Neighbors.build(faces.x, args.k, 'flat', verbose=True)
    index, similarity = neighbors
    with tempfile.TemporaryDirectory() as folder:
        np.save(osp.join(folder, 'index.npy'), index.numpy())
        np.save(osp.join(folder, 'similarity.npy'), similarity.numpy())
        results = {name: measure_in_a_process(name, folder) for name in NAMES}
        value = {name: np.load(osp.join(folder, f'{name}.npy'))
                 for name in NAMES}
    for name in NAMES:
        difference = float(np.abs(value[name] - value['numba']).max())
        if difference > 1e-5:
            raise SystemExit(f"'{name}' differs by {difference}")

    lookups = args.num_nodes * args.k**2
    table = index.numel() * (8 + 4)
    results['memory read'] = {'seconds': seconds_to_read(8 * lookups)}
    rows = [{
        'method': name,
        'num_nodes': args.num_nodes,
        'k': args.k,
        'threads': 1 if name == 'scipy' else args.threads,
        'seconds': f"{result['seconds']:.3f}",
        'times_scipy':
        f"{results['scipy']['seconds'] / result['seconds']:.1f}",
        'million_lookups_per_second':
        f"{lookups / result['seconds'] / 1e6:.0f}",
        'gigabytes_per_second':
        f"{8 * lookups / result['seconds'] / 1e9:.1f}",
        'extra_memory_in_tables':
        f"{result['extra'] / table:.1f}" if 'extra' in result else '',
    } for name, result in results.items()]

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
