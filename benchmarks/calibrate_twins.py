"""How near do the synthetic twins come to the benchmarks they stand for?

    python benchmarks/calibrate_twins.py [--preset ms1m] [--seeds 3]

runs the classical baselines on `SyntheticFaces` and prints their pairwise F
beside the published one, in percent. A method's threshold is the published
one where the row says so, and otherwise the best of a grid *on the labels*:
this script judges the data, not the methods. On one graph kNN-DBSCAN with
`min_samples=1` and single-linkage HAC are nearly the same method: where
their published scores are far apart, their settings are. Published scores
belong to the full benchmarks (MS1M: the 584K part), ours to `--num-images`
images.
"""
import argparse
import csv
import os
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import DBSCAN, kmeans_plusplus

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.metrics import bcubed_scores, pairwise_scores
from torch_sdt.ops import (
    edge_probability,
    knn,
    map_equation_communities,
    topk_jaccard,
)

RESULTS = os.path.join(os.path.dirname(__file__), 'results', 'twins.csv')
K = 80
# Cosine distances to try.
DISTANCES = np.geomspace(.04, .6, 28).round(3)

# Pairwise F; sources: learn-to-cluster, Ada-NETS, B-Attention, FC-ESER.
PUBLISHED = {
    'ms1m': {'K-means': 79.2, 'kNN-DBSCAN': 67.9, 'HAC': 70.6,
             'Infomap': 93.9},
    'deepfashion': {'K-means': 32.9, 'kNN-DBSCAN': 25.1, 'HAC': 22.5,
                    'Infomap': 38.7},
    'msmt17': {'K-means': 53.8, 'kNN-DBSCAN': 35.7, 'HAC': 60.3},
}


class Setting(NamedTuple):
    """The published settings of the baselines on one benchmark."""
    dbscan_k: int
    dbscan_eps: float
    dbscan_min: int
    hac_distance: float
    infomap_k: int
    infomap_cosine: float
    source: str = 'published'


SETTINGS = {
    'ms1m': Setting(80, .25, 1, .72, 50, .58),
    'deepfashion': Setting(4, .1, 2, .4, 400, .88),
    # None are published here.
    'msmt17': Setting(80, .25, 1, .72, 50, .58, "MS1M's"),
}


class Twin:
    """One twin with its neighbour table."""
    def __init__(self, preset: str, num_images: int, seed: int) -> None:
        self.preset, self.seed = preset, seed
        self.faces = SyntheticFaces(preset, num_images=num_images, seed=seed,
                                    split='test')
        self.y = torch.from_numpy(self.faces.y)
        self.neighbors = knn(self.faces.x, K)
        self.same = self.y[self.neighbors.index] == self.y.view(-1, 1)

    def score(self, cluster: np.ndarray) -> Tuple[float, float]:
        cluster = torch.as_tensor(cluster)
        return (100 * pairwise_scores(self.y, cluster).fscore,
                100 * bcubed_scores(self.y, cluster).fscore)


# Methods ####################################################################


def kmeans(twin: Twin) -> np.ndarray:
    import faiss

    x, num = twin.faces.x, twin.faces.num_identities
    # scikit-learn's recipe, as published. Its seeding matters (10 F_P on
    # DeepFashion's twin over plain k-means++); faiss is only faster after it.
    seeds, _ = kmeans_plusplus(x, num, random_state=twin.seed)
    model = faiss.Kmeans(x.shape[1], num, niter=25, min_points_per_centroid=1,
                         max_points_per_centroid=len(x))
    model.train(x, init_centroids=seeds)
    return model.index.search(x, 1)[1][:, 0]


def dbscan(twin: Twin, eps: float) -> np.ndarray:
    setting = SETTINGS[twin.preset]
    index, cosine = twin.neighbors.truncate(setting.dbscan_k)
    keep = 1 - cosine <= eps
    row, rank = keep.nonzero(as_tuple=True)
    # A distance of 0 would be read as no edge.
    distance = (1 - cosine[row, rank]).clamp(min=1e-6)
    matrix = sp.csr_matrix((distance, (row, index[row, rank])),
                           shape=(twin.faces.num_nodes, ) * 2)
    labels = DBSCAN(eps=eps, min_samples=setting.dbscan_min,
                    metric='precomputed').fit_predict(matrix)
    noise = labels < 0
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return labels


def hac(twin: Twin, distance: float) -> np.ndarray:
    # Single linkage cut at a distance: the components of all shorter edges.
    # A table of K neighbours finds the same ones, unless more than K
    # neighbours of both ends are nearer than an edge that they need.
    cosine = 1 - distance**2 / 2
    source, target = twin.neighbors.to_edge_index(
        mask=twin.neighbors.similarity >= cosine)[0].numpy()
    matrix = sp.coo_matrix((np.ones(source.size), (source, target)),
                           shape=(twin.faces.num_nodes, ) * 2)
    return connected_components(matrix, directed=False)[1]


def infomap(twin: Twin, cosine: float) -> np.ndarray:
    neighbors = twin.neighbors.truncate(
        min(SETTINGS[twin.preset].infomap_k, K))
    edge_index, weight = neighbors.to_edge_index(
        mask=neighbors.similarity >= cosine)
    return communities(twin, edge_index, weight)


def fces(twin: Twin, theta: float) -> np.ndarray:
    probability = edge_probability(twin.neighbors.similarity, 'exponential')
    nep = topk_jaccard(twin.neighbors, probability=probability)
    # Early stop: the first failure ends a row.
    keep = (nep >= theta).cummin(dim=1)[0]
    edge_index, weight = twin.neighbors.to_edge_index(nep, keep)
    return communities(twin, edge_index, weight)


def oracle(twin: Twin) -> np.ndarray:
    size = twin.y.bincount()[twin.y].clamp(max=K).view(-1, 1)
    true = twin.same.cumsum(dim=1)
    # F of beta = .5 of each prefix: 1.25 TP / (.25 size + length).
    score = 1.25 * true / (.25 * size + torch.arange(1, K + 1))
    jaccard = topk_jaccard(twin.neighbors, score.argmax(dim=1) + 1)
    edge_index, weight = twin.neighbors.to_edge_index(jaccard, jaccard > 0)
    return communities(twin, edge_index, weight)


def communities(twin: Twin, edge_index: torch.Tensor, weight: torch.Tensor
                ) -> np.ndarray:
    # Flow from a sample to its neighbours, as in the published codes.
    return map_equation_communities(
        edge_index.flip(0), weight, twin.faces.num_nodes, 'infomap',
        seed=twin.seed, directed=True).numpy()


# Rows #######################################################################


class Row(NamedTuple):
    method: str
    chosen: str  # where the setting is from
    setting: Optional[float]
    pairwise: float
    bcubed: float
    largest: float  # the largest cluster's share of all images, in percent


def rows(twin: Twin) -> Iterator[Row]:
    def row(method: str, chosen: str, setting: Optional[float],
            cluster: np.ndarray) -> Row:
        largest = 100 * np.bincount(cluster).max() / cluster.size
        return Row(method, chosen, setting, *twin.score(cluster), largest)

    def both(method: str, source: str, run: Callable[..., np.ndarray],
             default: float, grid: np.ndarray) -> Iterator[Row]:
        first = row(method, source, default, run(twin, default))
        others = (row(method, 'on labels', value, run(twin, value))
                  for value in grid.tolist())
        yield first
        best = max(others, key=lambda other: other.pairwise)
        yield max(best, first._replace(chosen='on labels'),
                  key=lambda other: other.pairwise)

    setting = SETTINGS[twin.preset]
    source = setting.source
    yield row('K-means', 'true number', None, kmeans(twin))
    yield from both('kNN-DBSCAN', source, dbscan, setting.dbscan_eps,
                    DISTANCES)
    yield from both('HAC', source, hac, setting.hac_distance,
                    np.sqrt(2 * DISTANCES).round(3))
    yield from both('Infomap', source, infomap, setting.infomap_cosine,
                    (1 - DISTANCES[1::2]).round(3))
    yield from both('FC-ES', 'published', fces, .22,
                    np.array([.05, .1, .15, .3, .4]))
    yield row('Top-K Jaccard', 'oracle k', None, oracle(twin))


# Tables #####################################################################


class Mean(NamedTuple):
    preset: str
    method: str
    chosen: str
    setting: str
    pairwise: float
    deviation: float
    bcubed: float
    largest: float
    published: Optional[float]


def summarise(preset: str, runs: List[List[Row]]) -> List[Mean]:
    out = []
    for same in zip(*runs):
        first = same[0]
        pairwise = np.array([row.pairwise for row in same])
        used = sorted({row.setting for row in same if row.setting is not None})
        out.append(Mean(
            preset, first.method, first.chosen, ' '.join(map('{:g}'.format,
                                                             used)),
            round(pairwise.mean(), 1), round(pairwise.std(), 1),
            round(np.mean([row.bcubed for row in same]), 1),
            round(np.mean([row.largest for row in same]), 1),
            PUBLISHED[preset].get(first.method)))
    return out


def show(table: List[Mean]) -> None:
    print(f'{"method":<24}{"setting":<30}{"F_P":>12}{"F_B":>7}'
          f'{"largest":>9}{"published":>11}')
    for row in table:
        setting = f'{row.chosen} {row.setting}'.strip()
        published = '' if row.published is None else f'{row.published:.1f}'
        score = f'{row.pairwise:.1f} ±{row.deviation:4.1f}'
        print(f'{row.method:<24}{setting:<30}{score:>12}{row.bcubed:>7.1f}'
              f'{row.largest:>8.1f}%{published:>11}')


def misses(table: List[Mean], near: float = 5.) -> List[str]:
    """Methods neither of whose settings lands within `near` F_P."""
    found: Dict[str, List[Mean]] = {}
    for row in table:
        if row.published is not None:
            found.setdefault(row.method, []).append(row)
    out = []
    for method, group in found.items():
        off = min((row.pairwise - row.published for row in group), key=abs)
        if abs(off) > near:
            out.append(f'{method} {off:+.1f}')
    return out


def write(path: str, table: List[Mean], num_images: int, seeds: int) -> None:
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with atomic_path(path) as tmp, open(tmp, 'w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([*Mean._fields, 'num_images', 'seeds'])
        writer.writerows([*row, num_images, seeds] for row in table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--preset', choices=list(PUBLISHED), nargs='+',
                        default=list(PUBLISHED))
    parser.add_argument('--num-images', type=int, default=20_000)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', help='a CSV file (default: '
                        'benchmarks/results/twins.csv, for all presets)')
    args = parser.parse_args()

    table = []
    for preset in args.preset:
        runs = []
        for seed in range(args.seeds):
            start = time.perf_counter()
            twin = Twin(preset, args.num_images, seed)
            nearest = 100 * twin.same[:, 1].float().mean()
            print(f'{twin.faces}: the nearest neighbour is right for '
                  f'{nearest:.1f} %', flush=True)
            runs.append(list(rows(twin)))
            print(f'  {time.perf_counter() - start:.0f} s', flush=True)
        part = summarise(preset, runs)
        show(part)
        print('Further than 5 from the published score at either setting:',
              ', '.join(misses(part)) or 'none', end='\n\n', flush=True)
        table += part
    complete = set(args.preset) == set(PUBLISHED)
    out = args.out or (RESULTS if complete else None)
    if out is not None:
        write(out, table, args.num_images, args.seeds)


if __name__ == '__main__':
    main()
