r"""From features to labels on one GPU, stage by stage.

    python benchmarks/gpu.py --n 1000000 5210000 --model model.safetensors

For each N a world of N faces with the law of the MS1M twin (256 dimensions,
K = 80; no photographs, not MS1M itself) is drawn on the device and clustered
there. A row a stage: seconds, the most memory that tensors took on the device,
both F, and, where there is one,

* ``limit_seconds``, what the device cannot go below: the search's products at
  the rate at which it multiplies two large bfloat16 (exact) or float32 (cells)
  matrices; for the Jaccard a plain gather of the rows that it reads, ids and
  weights;
* ``reference_seconds``, the same on the CPU beside it: the numba kernel on two
  threads, and networkit, whose map equation runs on one.

``one pass`` trusts neighbours above a fixed cosine; ``trained`` is
`SDTClustering` with the networks and the rule of ``--model`` (as
`SDTClustering.save` wrote them), from the same table. ``--device cpu`` runs the
same on a CPU, at an N that it can bear. Writes benchmarks/results/gpu.csv.
"""
import argparse
import os.path as osp
import time

import torch
from _learned import RESULTS, Rows

from torch_sdt import SDTClustering
from torch_sdt.cluster.sdt_clustering import Measured
from torch_sdt.datasets.synthetic_faces import _People
from torch_sdt.metrics import bcubed_scores, pairwise_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import map_equation, normalize_features, topk_jaccard
from torch_sdt.ops.knn import knn_blocks
from torch_sdt.ops.map_equation import table_communities
from torch_sdt.ops.search import ExactSearch

_SAMPLE = 4096
_COSINE = .35

parser = argparse.ArgumentParser(
    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument('--n', type=int, nargs='+', default=[1_000_000])
parser.add_argument('--k', type=int, default=80)
parser.add_argument('--model', help='of SDTClustering, for the last stage')
parser.add_argument('--compared', type=int, default=1_000_000,
                    help='largest N of which the CPU does the same')
parser.add_argument('--device', default='cuda')
parser.add_argument('--out', default=osp.join(RESULTS, 'gpu.csv'))
args = parser.parse_args()
on_gpu = args.device != 'cpu'
name = torch.cuda.get_device_name() if on_gpu else 'cpu'
table_of_rows = Rows(args.out)
# What a first call compiles or loads is not measured.
FEW = Neighbors((torch.arange(500).view(-1, 1) + torch.arange(4)) % 500,
                torch.ones(500, 4))


def timed(function, *arguments, **named):
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    out = function(*arguments, **named)
    if on_gpu:
        torch.cuda.synchronize()
    return out, time.perf_counter() - start


def stage(n, what, seconds, reference=None, limit=None, y=None, labels=None,
          **more):
    row = dict(device=name, n=n, stage=what, seconds=f'{seconds:.3f}')
    row['gpu_gb'] = (f'{torch.cuda.max_memory_allocated() / 1e9:.1f}'
                     if on_gpu else '')
    row['reference_seconds'] = '' if reference is None else f'{reference:.2f}'
    row['limit_seconds'] = '' if limit is None else f'{limit:.3f}'
    for score, function in (('pairwise_f', pairwise_scores),
                            ('bcubed_f', bcubed_scores)):
        row[score] = '' if labels is None else (
            f'{100 * function(y, labels.cpu().numpy()).fscore:.2f}')
    row['note'] = ', '.join(f'{key} {value}' for key, value in more.items())
    table_of_rows.add(**row)


def seconds_a_flop(dtype):
    size = 8192 if on_gpu else 2048
    a = torch.randn(size, size, device=args.device, dtype=dtype)
    return min(timed(torch.mm, a, a)[1] for _ in range(8)) / (2 * size**3)


def faces(n):
    r"""The twin's law; random numbers of the device."""
    people = _People('ms1m', None, 0, 'test', n, None, None)
    world = people.world

    def move(array):
        return torch.from_numpy(array).to(args.device)

    generator = torch.Generator(args.device).manual_seed(0)
    y, spread, prototype = map(move, (people.y, people.spread,
                                      people.prototypes()))
    nuisance, offset = move(people.nuisance), move(people.offset)
    share = torch.tensor(world.mode_share, device=args.device)
    x = torch.empty(n, people.dim, device=args.device)
    for start in range(0, n, 2**16):
        of = y[start:start + 2**16]
        mode = share.multinomial(of.numel(), True, generator=generator)
        quality = torch._standard_gamma(
            torch.full(of.shape, world.quality_shape, device=args.device),
            generator) / world.quality_shape
        bad = torch.rand(of.shape, generator=generator,
                         device=args.device) < world.bad_share
        quality[bad] *= world.bad_factor
        noise = world.noise_scale * quality * spread[of] / people.dim**.5
        part = noise.view(-1, 1) * torch.randn(
            of.numel(), people.dim, generator=generator, device=args.device)
        part += prototype[of, mode]
        part += torch.randn(of.numel(), len(nuisance), generator=generator,
                            device=args.device) @ nuisance
        unit = torch.nn.functional.normalize
        x[start:start + 2**16] = unit(unit(part) + offset)
    return x, people.y


def search(x, k):
    blocks = knn_blocks(x, k, 'cells')
    table = Neighbors(torch.empty(len(x), k, dtype=torch.long, device=x.device),
                      torch.empty(len(x), k, device=x.device))
    for rows, index, similarity in blocks:
        table.index[rows], table.similarity[rows] = index, similarity
    return table, blocks.search


def gather(index, weight):
    # What the Jaccard reads, and nothing else: of each neighbour its row.
    for part in index.split(8192):
        index[part.view(-1).long()], weight[part.view(-1).long()]


def jaccard(table):
    topk_jaccard(FEW.to(table.index.device))  # Compiles.
    return timed(topk_jaccard, table)


def numba_jaccard(table):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    out = jaccard(table)
    torch.set_num_threads(threads)
    return out


def exact_search(x, k):
    search = ExactSearch(x)
    sample = torch.arange(_SAMPLE, device=x.device) * (len(x) // _SAMPLE)
    search.best(sample, k)
    return timed(search.best, sample, k)[1], search.reduced.dtype


def neighbors_of(x, n):
    (table, cells), seconds = timed(search, x, args.k)
    # Without what lone samples ask for on top.
    products = int(cells.size[cells.probe.long()].sum())
    stage(n, 'kNN, cells', seconds,
          limit=2 * x.size(1) * products * seconds_a_flop(torch.float),
          recall=f'{cells.recall:.4f}', all=f'{cells.recall_all:.4f}',
          probes=f'{cells.num_probes}/{cells.num_cells}')
    seconds, dtype = exact_search(x, args.k)
    stage(n, 'kNN, exact, from 4,096 rows', seconds * n / _SAMPLE,
          limit=2. * n * n * x.size(1) * seconds_a_flop(dtype))
    return table


def jaccard_of_all(table, n):
    weight, seconds = jaccard(table)
    index = table.index.int()
    _, limit = min((timed(gather, index, weight) for _ in range(2)),
                   key=lambda run: run[1])
    reference, more = None, {}
    if n <= args.compared:
        expected, reference = numba_jaccard(table.to('cpu'))
        more = dict(difference=f'{(weight.cpu() - expected).abs().max():.1e}')
    stage(n, 'Jaccard of all K', seconds, reference, limit, **more)


def codelength(table, weight, labels):
    return f'{float(map_equation(labels, *table.to_edge_index(weight))):.5f}'


def one_pass(table, y, n):
    k = (table.similarity >= _COSINE).sum(dim=1).clamp(min=1)
    weight, seconds = timed(topk_jaccard, table, k)
    stage(n, 'one pass: Jaccard', seconds)
    few = FEW.to(args.device)
    table_communities(few, torch.ones_like(few.similarity), 'torch')
    labels, seconds = timed(table_communities, table, weight, 'torch')
    reference = None
    more = dict(edges=int((weight > 0).sum()))
    if n <= args.compared:
        more['codelength'] = codelength(table, weight, labels)
        graph, table, weight = (table, weight), table.to('cpu'), weight.cpu()
        for backend in ('numba', 'networkit'):
            table_communities(FEW, torch.ones(500, 4), backend)
            other, reference = timed(table_communities, table, weight, backend)
            stage(n, f'one pass: map equation, {backend}', reference, y=y,
                  labels=other,
                  codelength=codelength(*graph, other.to(args.device)))
    stage(n, 'one pass: map equation', seconds, reference, y=y, labels=labels,
          **more)


def trained(x, table, y, n):
    model = SDTClustering.load(args.model, device=args.device)
    model.set_params(precision='bf16-mixed' if on_gpu else '32-true')
    table = model._to_predict(x, table)
    trust, seconds = timed(model._trust, table)
    stage(n, 'trained: Top-K', seconds)
    edges, seconds = timed(model._edges, table, trust)
    stage(n, 'trained: SDT', seconds)
    labels, seconds = timed(model._partition, Measured(table, edges),
                            model.rule_)
    stage(n, 'trained: edges and map equation', seconds, y=y, labels=labels)


def measure(n):
    (x, y), seconds = timed(faces, n)
    stage(n, 'features made', seconds)
    x, seconds = timed(normalize_features, x, center=True)
    stage(n, 'normalise', seconds)
    table = neighbors_of(x, n)
    jaccard_of_all(table, n)
    one_pass(table, y, n)
    if args.model is not None:
        trained(x, table, y, n)


for n in args.n:
    if not table_of_rows.has(device=name, n=n):
        measure(n)
