r"""How well do the methods cluster that see no label?

    python benchmarks/untrained.py

Real features (LFW faces, Omniglot drawings, where `../shared/data` holds
them), the MS1M twin at 20,000 images and synthetic worlds of small, medium
and large identities, three seeds each. `TopKJaccardClustering` and `FCES` run
at their defaults. Rows marked "on labels" are opponents, not methods: they
take the one setting, of a grid, that scores best on the very labels they are
scored with. Features are centred for every method. Writes
benchmarks/results/untrained.csv.
"""
import argparse
import csv
import os.path as osp
import time
import warnings

import numpy as np
from sklearn.cluster import HDBSCAN
from sklearn.datasets import load_digits

from torch_sdt.cluster import FCES, CosineMapEquation, TopKJaccardClustering
from torch_sdt.datasets import FeatureFiles, SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features

HERE = osp.dirname(osp.realpath(__file__))
SHARED = osp.join(HERE, '..', '..', 'shared', 'data')

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--data', nargs='*', help='only these rows')
parser.add_argument('--out', default=osp.join(HERE, 'results',
                                              'untrained.csv'))
args = parser.parse_args()


def files(name, keep=None):
    def load(seed):
        data = FeatureFiles(SHARED, name, dim=128)
        rows = np.ones(data.num_nodes, dtype=bool)
        if keep is not None:
            rows = keep(data.y)
        return np.array(data.x)[rows], data.y[rows]

    return load


def world(images=None, num_images=None, identities=None, preset='ms1m'):
    def load(seed):
        data = SyntheticFaces(preset, num_identities=identities, seed=seed,
                              split='test', num_images=num_images,
                              images_per_identity=images)
        return data.x, data.y

    return load


def digits(seed):
    return load_digits(return_X_y=True)


# name: (loader, random, is it at hand)
shared = osp.isdir(SHARED)
DATA = {
    'LFW faces': (files('facenet_lfw'), False, shared),
    'Omniglot': (files('omniglot416'), False, shared),
    # With all four rotations of every other character.
    'Omniglot, half the characters':
    (files('omniglot416', lambda y: y % 2 == 0), False, shared),
    'digits': (digits, False, True),
    'MS1M twin, 20,000': (world(num_images=20_000), True, True),
    'DeepFashion twin, 10,000':
    (world(num_images=10_000, preset='deepfashion'), True, True),
    'MSMT17 twin, 10,000':
    (world(num_images=10_000, preset='msmt17'), True, True),
    '1-6 images an identity': (world((1, 6), identities=2500), True, True),
    '40-80 images an identity': (world((40, 80), identities=200), True, True),
    '250-500 images an identity':
    (world((250, 500), identities=30), True, True),
}


def best_on_labels(y, candidates):
    scored = [(clustering_scores(y, labels), labels)
              for labels in candidates]
    return max(scored, key=lambda s: s[0].pairwise.fscore +
               s[0].bcubed.fscore)[1]


def cosine_grid(x, neighbors):
    low, high = np.percentile(neighbors.similarity[:, 1:].numpy(), (1, 99))
    for threshold in np.linspace(max(low, .05), high, 20):
        yield CosineMapEquation(threshold).fit_predict(x, neighbors=neighbors)


def hdbscan_grid(x):
    for size in (2, 3, 5, 10, 20):
        labels = HDBSCAN(min_cluster_size=size, copy=True).fit_predict(x)
        yield np.where(labels < 0, -1, labels)


def finch_levels(x):
    from finch import FINCH
    return list(FINCH(x, verbose=False)[0].T)


METHODS = {
    'TopKJaccardClustering':
    lambda x, y, n: TopKJaccardClustering().fit_predict(x, neighbors=n),
    'FCES, published': lambda x, y, n: FCES().fit_predict(x, neighbors=n),
    'FCES, sigmoid':
    lambda x, y, n: FCES(distance_transform='sigmoid').fit_predict(
        x, neighbors=n),
    'CosineMapEquation, on labels':
    lambda x, y, n: best_on_labels(y, cosine_grid(x, n)),
    'FINCH, on labels': lambda x, y, n: best_on_labels(y, finch_levels(x)),
    'HDBSCAN, on labels': lambda x, y, n: best_on_labels(y, hdbscan_grid(x)),
}
# Minutes a fit above this size, and five are tried.
HDBSCAN_UP_TO = 5_000

rows = []
for name, (load, random, at_hand) in DATA.items():
    if not at_hand or (args.data and name not in args.data):
        continue
    results = {}
    for seed in range(args.seeds if random else 1):
        x, y = load(seed)
        x = normalize_features(x, center=True)
        neighbors = Neighbors.search(x, min(80, len(x)))
        for method, run in METHODS.items():
            if method.startswith('HDBSCAN') and len(x) > HDBSCAN_UP_TO:
                continue
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                labels = run(x.numpy(), y, neighbors)
            seconds = time.perf_counter() - start
            scores = clustering_scores(y, labels)
            results.setdefault(method, []).append(
                (100 * scores.pairwise.fscore, 100 * scores.bcubed.fscore,
                 scores.nmi, scores.num_clusters, seconds))
    print(f'\n{name}: {len(x)} x {x.shape[1]}, {len(np.unique(y))} '
          f'identities')
    for method, values in results.items():
        mean, std = np.mean(values, axis=0), np.std(values, axis=0)
        print(f'  {method:30s} F_P {mean[0]:5.1f} ± {std[0]:3.1f}   '
              f'F_B {mean[1]:5.1f} ± {std[1]:3.1f}   NMI {mean[2]:.3f}   '
              f'clusters {mean[3]:7.0f}   {mean[4]:6.1f} s', flush=True)
        rows.append([name, method, len(values)] +
                    [f'{v:.2f}' for pair in zip(mean[:2], std[:2])
                     for v in pair] +
                    [f'{mean[2]:.4f}', f'{mean[3]:.0f}', f'{mean[4]:.1f}'])

with atomic_path(args.out) as tmp, open(tmp, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(['data', 'method', 'seeds', 'pairwise_f', 'pairwise_f_sd',
                     'bcubed_f', 'bcubed_f_sd', 'nmi', 'clusters', 'seconds'])
    writer.writerows(rows)
