r"""What does clustering cost beside the exact kNN search it starts from?

    python benchmarks/untrained_time.py

One run on 50,000 x 256 features of the MS1M twin, K = 80: the exact search,
one pass of Top-K Jaccard and map equation at fixed settings, and
`TopKJaccardClustering` with its own search for settings (kNN excluded). The
figures to compare are the ratios. Beside the search stands its floor: the
flops of all inner products over the rate that a large matrix product reaches
in the same run. Writes benchmarks/results/untrained_time.csv.
"""
import argparse
import csv
import os.path as osp
import resource
import time

import torch

from torch_sdt.cluster import TopKJaccardClustering
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    map_equation_communities,
    normalize_features,
    topk_jaccard,
)

parser = argparse.ArgumentParser()
parser.add_argument('--num-images', type=int, default=50_000)
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--repeats', type=int, default=3)
parser.add_argument('--out', default=osp.join(
    osp.dirname(osp.realpath(__file__)), 'results', 'untrained_time.csv'))
args = parser.parse_args()


def timed(function, repeats):
    best, result = float('inf'), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def one_pass(neighbors, backend):
    jaccard = topk_jaccard(neighbors)
    edge_index, weight = neighbors.to_edge_index(jaccard, jaccard > 0)
    return map_equation_communities(edge_index, weight, neighbors.num_nodes,
                                    backend)


data = SyntheticFaces('ms1m', num_images=args.num_images, split='test')
x = normalize_features(data.x, center=True)
n, dim = x.shape

# Compiled before anything is timed.
small = Neighbors.search(x[:1000], 20)
one_pass(small, 'numba')
TopKJaccardClustering().fit(x[:1000], neighbors=small)

a = torch.randn(4096, 4096)
matmul, _ = timed(lambda: a @ a, 3)
rate = 2 * 4096**3 / matmul
floor = 2 * n * n * dim / rate

search, neighbors = timed(lambda: Neighbors.search(x, args.k, 'flat'), 1)
stages = [('kNN, exact', search)]
for backend in ('networkit', 'numba'):
    seconds, _ = timed(lambda: one_pass(neighbors, backend),  # noqa: B023
                       args.repeats)
    stages.append((f'Jaccard and map equation, {backend}', seconds))
seconds, _ = timed(
    lambda: TopKJaccardClustering().fit(x, neighbors=neighbors), 1)
stages.append(('TopKJaccardClustering without kNN', seconds))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

print(f'{n} x {dim}, K = {args.k}, {torch.get_num_threads()} threads; '
      f'floor of the search {floor:.1f} s at {rate / 1e9:.0f} GFLOP/s; '
      f'peak memory {peak:.2f} GiB')
for name, seconds in stages:
    print(f'  {name:42s} {seconds:7.2f} s   {seconds / search:5.2f} of kNN')

with atomic_path(args.out) as tmp, open(tmp, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(['num_images', 'dim', 'k', 'stage', 'seconds',
                     'ratio_to_knn', 'knn_floor_seconds', 'peak_gib'])
    for name, seconds in stages:
        writer.writerow([n, dim, args.k, name, f'{seconds:.3f}',
                         f'{seconds / search:.3f}', f'{floor:.2f}',
                         f'{peak:.2f}'])
