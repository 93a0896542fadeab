r"""How well could anybody cluster the MS1M twin?

    python benchmarks/twin_ceiling.py

A classifier that is told what no method can know: each identity's true
prototypes (what the images of its modes scatter around, without noise), its
size and its spread. An image goes to the identity of its nearest prototype, by
cosine + a log(spread) + b log(size); images whose best identity leads the
second by less than a margin become singletons. a, b and the margin are those
that score best on the labels themselves. What is missing to 100 are images so
bad that they resemble others more than themselves.

Beside it what GCN-V and its kin could reach on the features as they are
(`links_...`): every image is linked to the nearest neighbour of higher
confidence, the *true* confidence, and links are cut where the labels like it
best; and K-means, told how many identities there are (`k_means_...`). Three
seeds. Writes
benchmarks/results/twin_ceiling.csv.
"""
import argparse
import os.path as osp

import numpy as np
import torch
from _learned import RESULTS, Rows, percent

from torch_sdt.cluster import KMeans
from torch_sdt.cluster.trained import cuts
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features
from torch_sdt.ops.density_peaks import density_peaks

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--identities', type=int, default=300)
parser.add_argument('--out', default=osp.join(RESULTS, 'twin_ceiling.csv'))
args = parser.parse_args()

rows = Rows(args.out)


def classify(score, margin):
    first, second = -np.sort(-np.partition(score, -2)[:, -2:])[:, :2].T
    labels = score.argmax(axis=1)
    rejected = first - second < margin
    labels[rejected] = score.shape[1] + np.arange(rejected.sum())
    return labels


def mean_f(y, labels):
    scores = clustering_scores(y, labels)
    return scores.pairwise.fscore + scores.bcubed.fscore


def links(y, table):
    # A share of the neighbours of one's identity, weighed by cosines.
    index = table.index.numpy()
    sign = np.where(y[index] == y[:, None], 1, -1)
    confidence = (sign * table.similarity.numpy()).mean(axis=1)
    peaks = density_peaks(table, torch.from_numpy(confidence),
                          1 - table.similarity)
    return max((peaks.cut(rule.tau).numpy() for rule in cuts(peaks.distance)),
               key=lambda labels: mean_f(y, labels))


for seed in range(args.seeds):
    if rows.has(seed=seed):
        continue
    data = SyntheticFaces('ms1m', num_identities=args.identities, seed=seed,
                          split='test')
    x = normalize_features(data.x, center=True)
    others = {'links': links(data.y, Neighbors.search(x, 80)),
              'k_means': KMeans(args.identities, seed=seed).fit_predict(x)}
    x = x.numpy()
    num, modes, dim = data.prototypes.shape
    prototypes = normalize_features(data.prototypes.reshape(-1, dim)).numpy()
    cosine = (x @ prototypes.T).reshape(len(x), num, modes).max(axis=2)
    own = cosine[np.arange(len(x)), data.y]
    size = np.bincount(data.y)
    spread = np.bincount(data.y, 1 - own) / size
    best, setting = None, None
    for a in (0., .02, .05, .1):
        for b in (0., .005, .01):
            score = cosine + a * np.log(spread) + b * np.log(size)
            for margin in np.linspace(0, .06, 13):
                labels = classify(score, margin)
                if best is None or mean_f(data.y, labels) > mean_f(
                        data.y, best):
                    best, setting = labels, (a, b, margin)
    rows.add(seed=seed, **percent(data.y, best), a=setting[0], b=setting[1],
             margin=f'{setting[2]:.3f}',
             **{f'{name}_{kind}_f': value for name, labels in others.items()
                for kind, value in zip(('pairwise', 'bcubed'),
                                       percent(data.y, labels).values())})
for column in ('pairwise_f', 'bcubed_f', 'links_pairwise_f',
               'links_bcubed_f', 'k_means_pairwise_f', 'k_means_bcubed_f'):
    print(column, '%.2f ± %.2f (%d seeds)' % rows.mean(column))
