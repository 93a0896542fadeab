r"""Can a model that has only seen synthetic faces cluster anything?

    python benchmarks/cross_domain.py

`SDTClustering` with relation tokens learns on the MS1M twin (300 identities of
256-d features), plainly and on random views (`augment='all'`), and is applied
unchanged to LFW faces (128-d), to all Omniglot drawings (128-d) and to
scikit-learn's digits (64-d): with the edge rule of the twin, and with settings
found without labels (`adapt=True`). Beside it, the untrained estimators on the
same tables. Three seeds of the twin. Features are centred. Goes on where it
stopped; writes benchmarks/results/cross_domain.csv.
"""
import argparse
import os.path as osp

import numpy as np
from _learned import (
    RESULTS,
    SHARED,
    Rows,
    at_hand,
    cosine_on_labels,
    percent,
    twin,
)
from sklearn.datasets import load_digits

from torch_sdt.cluster import FCES, SDTClustering, TopKJaccardClustering
from torch_sdt.datasets import FeatureFiles
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features

parser = argparse.ArgumentParser()
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--models', nargs='*', default=['augmented', 'plain'])
parser.add_argument('--out', default=osp.join(RESULTS, 'cross_domain.csv'))
args = parser.parse_args()

rows = Rows(args.out)


def files(name):
    data = FeatureFiles(SHARED, name, dim=128)
    return np.array(data.x), data.y


SETS = {'digits': lambda: load_digits(return_X_y=True)}
if at_hand('facenet_lfw'):
    SETS = {'LFW faces': lambda: files('facenet_lfw'),
            'Omniglot': lambda: files('omniglot416'), **SETS}

tables = {}
for name, load in SETS.items():
    x, y = load()
    x = normalize_features(x, center=True)
    tables[name] = x, y, Neighbors.search(x, min(80, len(x)))

UNTRAINED = {
    'TopKJaccardClustering': lambda x, y, n: TopKJaccardClustering(
    ).fit_predict(x, neighbors=n),
    'FCES, published': lambda x, y, n: FCES().fit_predict(x, neighbors=n),
    'CosineMapEquation, on labels': cosine_on_labels,
}
for name, (x, y, neighbors) in tables.items():
    for method, run in UNTRAINED.items():
        if not rows.has(data=name, method=method):
            rows.add(data=name, method=method, seed=0,
                     **percent(y, run(x, y, neighbors)))

for seed in range(args.seeds):
    for kind in args.models:
        if rows.has(data=list(tables)[-1], method=f'{kind}, adapt',
                    seed=seed):
            continue
        (x_train, y_train, _), _ = twin(seed)
        model = SDTClustering(center=True, seed=seed,
                              augment='all' if kind == 'augmented' else 'none')
        model.fit(x_train, y_train)
        model.center = False  # The tables' features are centred already.
        for name, (x, y, neighbors) in tables.items():
            for adapt in (False, True):
                method = f'{kind}, adapt' if adapt else kind
                if not rows.has(data=name, method=method, seed=seed):
                    # A model that took `adapt` by itself has no rule.
                    labels = model.predict(
                        x, neighbors,
                        adapt=adapt or model.rule_.merge == 'adapt')
                    rows.add(data=name, method=method, seed=seed,
                             **percent(y, labels))

for name in tables:
    print(f'\n{name}: F_P / F_B')
    for method in dict.fromkeys(row['method'] for row in rows.rows):
        (p, p_std, n), (b, b_std, _) = (
            rows.mean(column, data=name, method=method)
            for column in ('pairwise_f', 'bcubed_f'))
        print(f'  {method:30s} {p:5.1f} ± {p_std:3.1f} / {b:5.1f} ± '
              f'{b_std:3.1f}   ({n} seeds)')
