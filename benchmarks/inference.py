r"""What does it cost to run the networks of `SDTClustering`?

    python benchmarks/inference.py

Both networks of size small (and base, with `--sizes`) on tables of growing N,
random features of 256 dimensions, K = 80: nodes per second and bytes of memory
per node beyond table and features, which should not grow with N. The limit
beside it: the time that the networks' multiplications alone would take at the
rate at which this machine multiplies two 1024 x 1024 matrices (8192 x 8192 on a
GPU). On a GPU with `--device cuda --batch-size 4096`, bf16 and `torch.compile`
with `--bf16 --compile`. Writes
benchmarks/results/inference.csv.
"""
import argparse
import os.path as osp
import time

import torch
from _learned import RESULTS, Rows

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import SparseDiffTransformer, TopKPredictor
from torch_sdt.ops import normalize_features
from torch_sdt.progress import peak_memory
from torch_sdt.training import infer

SIZES = {
    'small': dict(hidden_channels=128, ffn_channels=256, num_layers=2,
                  heads=4),
    'base': dict(hidden_channels=256, ffn_channels=1024, num_layers=3,
                 heads=4),
}
parser = argparse.ArgumentParser()
parser.add_argument('--num-nodes', type=int, nargs='*',
                    default=[5_000, 20_000, 80_000])
parser.add_argument('--nodes', type=int, default=4_000,
                    help='of which the networks run on so many')
parser.add_argument('--sizes', nargs='*', default=['small'])
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--batch-size', type=int, default=128)
parser.add_argument('--device', default='cpu')
parser.add_argument('--bf16', action='store_true')
parser.add_argument('--compile', action='store_true')
parser.add_argument('--out', default=osp.join(RESULTS, 'inference.csv'))
args = parser.parse_args()


def matrix_rate():
    size = 1024 if args.device == 'cpu' else 8192
    a = torch.randn(size, size, device=args.device)
    if args.bf16:
        a = a.bfloat16()
    best = float('inf')
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def flops(k, relations, width, ffn, layers):
    r"""Multiplications and additions for one node: tokens, projections of
    both maps, their products with keys and values, feed-forward, head.
    """
    token = 2 * k * (1 + relations) * width
    layer = 2 * (5 * width**2 + width**2 + 2 * width * ffn + 4 * k * width)
    return k * (token + layers * layer + 2 * width**2) + 2 * k**2 * 256


def table(n):
    # Rows of random neighbours: what they are is of no matter here.
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(n, (n, args.k), generator=generator)
    # No id twice in a row.
    step = torch.arange(args.k) * (n // args.k)
    index = (index[:, :1] + step) % n
    similarity = torch.linspace(1, 0, args.k).expand(n, args.k).contiguous()
    return Neighbors(index.to(args.device), similarity.to(args.device))


def run(n, size):
    sizes = SIZES[size]
    x = normalize_features(torch.randn(n, 256)).to(args.device)
    neighbors = table(n)
    nodes = torch.arange(min(args.nodes, n), device=args.device)
    first = TopKPredictor(args.k, **sizes).to(args.device)
    second = SparseDiffTransformer(args.k, relations=2, **sizes).to(
        args.device)
    if args.compile:
        first, second = torch.compile(first), torch.compile(second)
    trust = torch.rand(n, args.k, device=args.device)
    k = torch.full((n, ), 40, device=args.device)
    loaders = [
        NeighborSubgraphs(neighbors, x, args.batch_size, nodes=nodes),
        NeighborSubgraphs(neighbors, x, args.batch_size, nodes=nodes,
                          relations=[trust], k=k)]
    precision = 'bf16-mixed' if args.bf16 else '32-true'
    seconds = []
    for repeat in range(3):  # The first warms up.
        start = time.perf_counter()
        for model, loader in zip((first, second), loaders):
            infer(model, loader, model, precision)
        seconds.append(time.perf_counter() - start)
        if repeat == 0:
            before = memory()
    work = sum(flops(args.k, relations, sizes['hidden_channels'],
                     sizes['ffn_channels'], sizes['num_layers'])
               for relations in (0, 2))
    return {
        'nodes_per_second': f'{len(nodes) / min(seconds[1:]):.0f}',
        'ms_per_node': f'{1000 * min(seconds[1:]) / len(nodes):.5f}',
        'limit_ms_per_node': f'{1000 * work / matrix_rate():.5f}',
        'table_and_features_bytes_per_node': args.k * 12 + 256 * 4,
        'verdict_bytes_per_node': 2 * args.k * 4,
        'grown_bytes_after_warm_up': max(memory() - before, 0),
        'parameters': sum(p.numel() for model in (first, second)
                          for p in model.parameters())}


def memory():
    if args.device != 'cpu':
        return torch.cuda.max_memory_allocated()
    return peak_memory() or 0


rows = Rows(args.out)
for size in args.sizes:
    for n in args.num_nodes:
        name = args.device if args.device == 'cpu' else (
            torch.cuda.get_device_name())
        rows.add(device=name, threads=torch.get_num_threads(), size=size,
                 num_nodes=n, bf16=args.bf16, compile=args.compile,
                 batch_size=args.batch_size,
                 **run(n, size))
