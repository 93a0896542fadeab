r"""How well does the trained method cluster identities it has never seen?

    python benchmarks/sdt_clustering.py

`SDTClustering` at its defaults learns on one set of identities and clusters
another: the MS1M twin (300 identities, 300 others) and Omniglot (two thirds of
the characters with their rotations, the last third). Thresholds are chosen on
held-out training identities. Beside it stand, on the same tables, the untrained
estimator, untrained methods with the threshold that is best **on the test
labels** (opponents, not methods), and Top-K Jaccard with k taken from the test
labels (an oracle). Three seeds. Features are centred for every method, but for
"FCES, not centred, on labels". Goes on where it stopped; writes
benchmarks/results/sdt_clustering.csv.
"""
import argparse
import os.path as osp
import time
from typing import NamedTuple

import numpy as np
import torch
from _learned import (
    RESULTS,
    Rows,
    at_hand,
    cosine_on_labels,
    fces_on_labels,
    omniglot,
    percent,
    twin,
)

from torch_sdt.cluster import SDTClustering, TopKJaccardClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import (
    map_equation_communities,
    normalize_features,
    topk_jaccard,
    topk_target,
)

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--data', nargs='*', help='only these rows')
parser.add_argument('--out', default=osp.join(RESULTS, 'sdt_clustering.csv'))
args = parser.parse_args()

DATA = {'MS1M twin, 300 -> 300': twin, 'Omniglot, 2/3 -> 1/3': omniglot}
rows = Rows(args.out)


class Case(NamedTuple):
    train: tuple  # x, y, groups
    x: torch.Tensor  # centred unit features
    plain: torch.Tensor  # not centred
    y: np.ndarray
    neighbors: Neighbors  # of x
    seed: int


def case(load, seed):
    train, (x, y) = load(seed)
    plain, x = normalize_features(x), normalize_features(x, center=True)
    return Case(train, x, plain, y, Neighbors.search(x, min(80, len(x))),
                seed)


def sdt(c):
    x_train, y_train, groups = c.train
    model = SDTClustering(center=True, seed=c.seed)
    start = time.perf_counter()
    model.fit(x_train, y_train, groups)
    fitted = time.perf_counter()
    model.center = False  # x is centred already.
    labels = model.predict(c.x.numpy(), neighbors=c.neighbors)
    rule = model.rule_
    return labels, {
        'fit_seconds': f'{fitted - start:.0f}',
        'predict_seconds': f'{time.perf_counter() - fitted:.0f}',
        'validation': f'{100 * model.validation_score_:.2f}',
        'rule': f'{rule.merge} beta={rule.beta} threshold={rule.threshold} '
                f'markov_time={rule.markov_time}'}


def oracle(c, beta):
    weight = topk_jaccard(c.neighbors, topk_target(c.neighbors, c.y, beta))
    graph = c.neighbors.to_edge_index(weight, weight > 0)
    labels = map_equation_communities(*graph, c.neighbors.num_nodes)
    return labels.numpy(), {}


METHODS = {
    'SDTClustering': sdt,
    'TopKJaccardClustering': lambda c: (TopKJaccardClustering().fit_predict(
        c.x, neighbors=c.neighbors), {}),
    'CosineMapEquation, on labels':
    lambda c: (cosine_on_labels(c.x, c.y, c.neighbors), {}),
    'FCES, on labels': lambda c: (fces_on_labels(c.x, c.y, c.neighbors), {}),
    'FCES, not centred, on labels': lambda c: (fces_on_labels(
        c.plain, c.y, Neighbors.search(c.plain, c.neighbors.k)), {}),
    'Top-K Jaccard, oracle k (beta .5)': lambda c: oracle(c, .5),
    'Top-K Jaccard, oracle k (beta 1)': lambda c: oracle(c, 1.),
}

for name, load in DATA.items():
    if (args.data and name not in args.data) or (
            load is omniglot and not at_hand('omniglot416')):
        continue
    for seed in range(args.seeds):
        keys = [dict(data=name, method=method, seed=seed)
                for method in METHODS]
        if all(rows.has(**key) for key in keys):
            continue
        c = case(load, seed)
        for key in keys:
            if not rows.has(**key):
                labels, more = METHODS[key['method']](c)
                rows.add(**key, **percent(c.y, labels),
                         clusters=len(set(labels.tolist())), **more)

for name in DATA:
    print(f'\n{name}: F_P / F_B')
    for method in dict.fromkeys(row['method'] for row in rows.rows):
        (p, p_std, n), (b, b_std, _) = (
            rows.mean(column, data=name, method=method)
            for column in ('pairwise_f', 'bcubed_f'))
        if n > 0:
            print(f'  {method:36s} {p:5.1f} ± {p_std:3.1f} / {b:5.1f} ± '
                  f'{b_std:3.1f}   ({n} seeds)')
