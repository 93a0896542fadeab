r"""What does a second attention map cost, on dense batches and on a graph?

``batch``: the layers forward and backward on 256 ego subgraphs of 81 nodes,
all of which attend to all,

* :class:`torch_sdt.nn.DenseDiffAttentionConv`, with a mask of the nodes that
  exist,
* :class:`torch_sdt.nn.SparseDiffAttentionConv`, on the same as a graph (both
  must give the same output to 1e-5),
* :class:`torch.nn.MultiheadAttention`, one map of the same width, and an
  output projection, with the same mask,
* :class:`torch_geometric.nn.TransformerConv`, one map, on the graph.

``graph``: on a random graph of 2,000,000 edges between 100,000 nodes,

* :class:`torch_sdt.nn.SparseDiffAttentionConv` on all edges; with the 10 best
  of each target by a score; and on those alone, chosen beforehand,
* :class:`torch_geometric.nn.TransformerConv` and
  :class:`torch_geometric.nn.GATv2Conv`, one map of the same width and heads.

Time is the best of ``--repeats`` rounds, in each of which all layers of a
part take turns, so that a busy machine is busy for all; a ratio is to the one
map of MultiheadAttention or TransformerConv. Memory is what the process's
highest resident size gained during a layer's first call, forward and
backward, in a process of its own (Linux only).

``limit_seconds`` is what the machine cannot go below: for ``batch`` the
arithmetic of projections and maps at the rate of a large matrix product; for
``graph`` the rows that each edge reads and adds to, were they all to come
from memory in order, and nothing else.

    python benchmarks/diff_attention.py

On a GPU, in float32 or bfloat16, where memory is that of the tensors:

    python benchmarks/diff_attention.py --device cuda --bf16 --out gpu.csv
"""
import argparse
import csv
import json
import os
import os.path as osp
import subprocess
import sys
import time

import torch
from _memory import forget_peak, memory
from torch_geometric.nn import GATv2Conv, TransformerConv

from torch_sdt.io import atomic_path
from torch_sdt.nn import DenseDiffAttentionConv, SparseDiffAttentionConv
from torch_sdt.ops import topk_edge_mask

RESULTS = osp.join(osp.dirname(osp.realpath(__file__)), 'results')

parser = argparse.ArgumentParser()
parser.add_argument('--num-graphs', type=int, default=256)
parser.add_argument('--num-tokens', type=int, default=81)
parser.add_argument('--num-nodes', type=int, default=100_000)
parser.add_argument('--num-edges', type=int, default=2_000_000)
parser.add_argument('--width', type=int, default=128)
parser.add_argument('--heads', type=int, default=4)
parser.add_argument('--k', type=int, default=10)
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--repeats', type=int, default=7)
parser.add_argument('--device', default='cpu')
parser.add_argument('--bf16', action='store_true')
parser.add_argument('--threads', type=int, default=os.cpu_count())
parser.add_argument('--out', default=osp.join(RESULTS, 'diff_attention.csv'))
parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
args = parser.parse_args()
size = args.width // args.heads
on_gpu = args.device != 'cpu'


def batch_layers():
    shape = args.num_graphs, args.num_tokens
    x = torch.randn(*shape, args.width, requires_grad=True)
    # The last node of each graph does not exist.
    mask = torch.ones(shape, dtype=torch.bool)
    mask[:, -1] = False
    nodes = torch.arange(mask.numel()).view(shape)
    key, query = nodes[:, :-1].unsqueeze(1), nodes.unsqueeze(2)
    edge_index = torch.stack([
        part.expand(*shape, shape[1] - 1).reshape(-1)
        for part in (key, query)])

    dense = DenseDiffAttentionConv(args.width, size, args.heads)
    sparse = SparseDiffAttentionConv(args.width, size, args.heads)
    sparse.load_state_dict(dense.state_dict())
    one = torch.nn.MultiheadAttention(args.width, args.heads, bias=False,
                                      batch_first=True)
    conv = TransformerConv(args.width, size, args.heads, bias=False,
                           root_weight=False)
    flat = x.view(-1, args.width)
    return x, {
        'DenseDiffAttentionConv':
        (lambda: dense(x, mask), arithmetic(maps=2, projections=5)),
        'SparseDiffAttentionConv':
        (lambda: sparse(flat, edge_index).view_as(x),
         arithmetic(maps=2, projections=5)),
        'MultiheadAttention':
        (lambda: one(x, x, x, key_padding_mask=~mask, need_weights=False)[0],
         arithmetic(maps=1, projections=4)),
        'TransformerConv': (lambda: conv(flat, edge_index).view_as(x),
                            arithmetic(maps=1, projections=3)),
    }


def graph_layers():
    x = torch.randn(args.num_nodes, args.width, requires_grad=True)
    edge_index = torch.randint(args.num_nodes, (2, args.num_edges))
    score = torch.rand(args.num_edges)
    mask = topk_edge_mask(score, edge_index, args.k, args.num_nodes)
    chosen = edge_index[:, mask]
    conv = SparseDiffAttentionConv(args.width, size, args.heads)
    one = TransformerConv(args.width, size, args.heads, bias=False,
                          root_weight=False)
    gat = GATv2Conv(args.width, size, args.heads, add_self_loops=False)
    name = 'SparseDiffAttentionConv'
    return x, {
        name: (lambda: conv(x, edge_index), traffic(2, args.num_edges)),
        f'{name}, k={args.k}':
        (lambda: conv(x, edge_index, edge_score=score, k=args.k),
         traffic(2, args.num_edges)),
        f'{name}, k={args.k} beforehand':
        (lambda: conv(x, chosen), traffic(2, chosen.size(1))),
        'TransformerConv':
        (lambda: one(x, edge_index), traffic(1, args.num_edges)),
        'GATv2Conv': (lambda: gat(x, edge_index), None),
    }


PARTS = {'batch': (batch_layers, 'MultiheadAttention'),
         'graph': (graph_layers, 'TransformerConv')}


def layers_of(part):
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    # On a GPU everything is made there.
    with torch.device(args.device):
        return PARTS[part][0]()


def now():
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def call(layer, x):
    x.grad = None
    start = now()
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        out = layer()
    middle = now()
    out.backward(torch.ones_like(out))
    return middle - start, now() - start


def check(part, layers):
    first, second = list(layers)[:2]
    if part == 'graph':
        first, second = list(layers)[1:3]
    with torch.no_grad():
        difference = layers[first][0]() - layers[second][0]()
    difference = float(difference.abs().max())
    if difference > 1e-5:
        raise SystemExit(f"'{first}' and '{second}' differ by {difference}")


def time_of(part):
    x, layers = layers_of(part)
    if not on_gpu:
        check(part, layers)
    times = {name: [] for name in layers}
    extra = {name: device_memory(layer, x)
             for name, (layer, _) in layers.items()} if on_gpu else None
    # The first round warms up.
    for _ in range(args.repeats + 1):
        for name, (layer, _) in layers.items():
            times[name].append(call(layer, x))
    return {name: ([min(values) for values in zip(*times[name][1:])], work)
            for name, (_, work) in layers.items()}, extra


def device_memory(layer, x):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(layer, x)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def memory_of(part, name):
    command = [sys.executable, *sys.argv, '--measure', part, name]
    out = subprocess.run(command, check=True, text=True,
                         stdout=subprocess.PIPE)
    return json.loads(out.stdout)


def measure(part, name):
    x, layers = layers_of(part)
    # What the libraries themselves take, on the first of all calls.
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).sum().backward()
    forget_peak()
    before = memory('VmRSS')
    call(layers[name][0], x)
    return memory('VmHWM') - before


# The machine's limits ########################################################

def rate(function, work, repeats=5):
    times = []
    for _ in range(repeats):
        start = now()
        function()
        times.append(now() - start)
    return work / min(times)


def limits():
    side = 8192 if on_gpu else 2048
    a, b = torch.randn(2, side, side, device=args.device)
    if args.bf16:
        a, b = a.bfloat16(), b.bfloat16()
    # A gibibyte, which no cache holds.
    data = torch.ones(2**28, device=args.device)
    return {'flops': rate(lambda: a @ b, 2 * side**3),
            'bytes': rate(data.sum, 4 * data.numel())}


def arithmetic(maps, projections):
    # Operations, forward and backward: a product of matrices takes two of
    # its size to go back; fused attention forms its logits once more.
    rows = args.num_graphs * args.num_tokens
    project = 3 * projections * 2 * rows * args.width**2
    attend = (2 + 5) * maps * 2 * rows * args.num_tokens * args.width
    return {'flops': project + attend}


def traffic(maps, num_edges):
    # Bytes of rows of one width an edge, forward and backward: what is added
    # to is read and written.
    forward = maps * (1 + 1) + 1 + 2  # queries, keys; values; output
    # keys, to queries; queries, to keys; output's gradient, values, to values
    backward = maps * (1 + 2 + 1 + 2) + 1 + 1 + 2
    return {'bytes': 4 * args.width * (forward + backward) * num_edges}


def name_of_device():
    return torch.cuda.get_device_name() if on_gpu else 'cpu'


def main():
    torch.set_num_threads(args.threads)
    limit = limits()
    rows = []
    for part, (_, reference) in PARTS.items():
        results, extra = time_of(part)
        extra = extra or {name: memory_of(part, name) for name in results}
        for name, ((forward, total), work) in results.items():
            work = work or {}
            least = [amount / limit[kind] for kind, amount in work.items()]
            rows.append({
                'part': part,
                'layer': name,
                'threads': args.threads,
                'device': name_of_device(),
                'bf16': args.bf16,
                'forward_seconds': f'{forward:.4f}',
                'seconds': f'{total:.4f}',
                'ratio': f'{total / results[reference][0][1]:.2f}',
                'memory_mib': f'{extra[name]:.0f}',
                'memory_ratio': f'{extra[name] / extra[reference]:.2f}',
                'gigaflop': f"{work['flops'] / 1e9:.1f}"
                if 'flops' in work else '',
                'gigabytes': f"{work['bytes'] / 1e9:.1f}"
                if 'bytes' in work else '',
                'limit_seconds': f'{max(least):.5f}' if least else '',
            })

    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    with atomic_path(args.out) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    for row in [dict(zip(rows[0], rows[0])), *rows]:
        print('  '.join(f'{value!s:>{40 if key == "layer" else len(key)}}'
                        for key, value in row.items()))


if __name__ == '__main__':
    if args.measure is None:
        main()
    else:
        print(json.dumps(measure(*args.measure)))
