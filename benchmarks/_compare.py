# The methods of the field and how each is run: what `compare.py` gives to a
# process of its own.
import multiprocessing
import os
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import NamedTuple, Optional

import numpy as np
import torch
from _memory import forget_peak, memory

from torch_sdt import cluster
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors


class Method(NamedTuple):
    r"""A row of the comparison.

    Args:
        estimator (str): Its class in :mod:`torch_sdt.cluster`.
        arguments (dict): Of the constructor.
        grid (dict): Of an untrained method, settings to choose from on the
            training identities.
        knows (str): The argument that is told the number of test identities.
        plain (bool): Whether it clusters features as they are, not centred:
            published settings are for those.
        published (tuple): F_P and F_B on MS1M 584K.
        more (bool): Whether it runs only when it is named.
    """
    estimator: str
    arguments: dict = {}
    grid: dict = {}
    knows: Optional[str] = None
    plain: bool = False
    published: tuple = (None, None)
    more: bool = False


# What the processes of all methods need, and takes seconds to import.
_IMPORTED = ['torch_sdt.cluster', 'lightning_fabric', 'matplotlib.pyplot']
COSINE = [round(.15 + .05 * i, 2) for i in range(15)]
METHODS = {
    # Untrained; what they have to choose is chosen on training identities.
    'K-means': Method('KMeans', knows='n_clusters', published=(79.21, 81.23)),
    'HAC, single': Method(
        'HAC', grid={'distance_threshold': [1 - c for c in COSINE]},
        published=(70.63, 70.46)),
    'HAC, average': Method(
        'HAC', {'linkage': 'average'},
        grid={'distance_threshold': [.3, .5, .7]}, more=True),
    'kNN-DBSCAN, published': Method(
        'KNNDBSCAN', plain=True, published=(67.93, 67.17)),
    'kNN-DBSCAN': Method(
        'KNNDBSCAN', grid={'eps': [1 - c for c in COSINE],
                           'min_samples': [1, 5]}),
    'HDBSCAN': Method('HDBSCAN', grid={'min_cluster_size': [2, 3, 5, 10]}),
    'FINCH': Method('FINCH', grid={'level': [0, 1, 2]}),
    'Chinese Whispers': Method(
        'ChineseWhispers', grid={'threshold': COSINE[::2]},
        published=(53.93, None)),
    'ARO': Method('ARO', grid={'threshold': [.5, 1., 1.5, 2., 3., 5.]},
                  published=(13.60, 17.00)),
    'CDP': Method('CDP', grid={'threshold': COSINE}, published=(75.02, 78.70)),
    'Infomap on cosine, published': Method(
        'CosineMapEquation', plain=True, published=(93.98, 92.40)),
    'Infomap on cosine': Method(
        'CosineMapEquation', grid={'threshold': COSINE}),
    'FC-ES, published': Method('FCES', plain=True),
    'FC-ES': Method(
        'FCES', grid={'theta': [.1, .15, .22, .3, .4],
                      'distance_transform': ['exponential', 'sigmoid']}),
    'Top-K Jaccard, no labels': Method('TopKJaccardClustering'),
    # Trained.
    'L-GCN': Method('LGCN', published=(78.68, 84.37)),
    'LTC': Method('LTC', published=(85.66, 85.52)),
    'GCN-V': Method('GCNVE', {'stage': 'gcn-v'}, published=(87.14, None)),
    'GCN(V+E)': Method('GCNVE', published=(87.93, 86.09)),
    'GCN(V+E)++': Method('GCNVE', {'density': 'ndde', 'distance': 'tpdi'}),
    'Clusformer': Method('Clusformer', published=(88.20, 87.17)),
    'Pair-Cls': Method('PairCls', published=(90.67, 89.54)),
    'Pair-Cls++': Method('PairCls', {'density': 'ndde', 'distance': 'tpdi'}),
    'STAR-FC': Method('STARFC', published=(91.97, 90.21)),
    'STAR-FC++': Method('STARFC', {'pruning': 'density-peaks'}),
    'Ada-NETS': Method('AdaNETS', published=(92.79, 91.40)),
    'NDDe+TPDi': Method('NDDeTPDi', published=(93.22, 92.18)),
    'NDDe+TPDi M1: neither': Method(
        'NDDeTPDi', {'density': 'sum', 'distance': 'similarity'}, more=True),
    'NDDe+TPDi M2: NDDe': Method(
        'NDDeTPDi', {'distance': 'similarity'}, more=True),
    'NDDe+TPDi M3: TPDi': Method('NDDeTPDi', {'density': 'sum'}, more=True),
    'LCE-PCE': Method('LCEPCE', published=(94.64, 93.36)),
    'FC-ESER': Method('FCESER', published=(95.28, None)),
    'SDT': Method('SDTClustering', published=(95.46, None)),
    'MoE-SDT': Method('SDTClustering', {'experts': 4}),
}
METHODS = {name: method for name, method in METHODS.items()
           if hasattr(cluster, method.estimator)}


def load_case(path):
    r"""Features, labels, groups and tables of both sides, and of the test side
    with features as they are (`plain`) if a method takes those.
    """
    with np.load(path) as file:
        case = {name: file[name] for name in file.files}
    for side in {'train', 'test', 'plain'} & {
            name.split('_')[0] for name in case}:
        case[f'{side}_table'] = Neighbors(
            torch.from_numpy(case.pop(f'{side}_index')),
            torch.from_numpy(case.pop(f'{side}_similarity')))
    return case


def run_method(name, path, seed, epochs):
    r"""Runs a method on a case; returns its row and its labels."""
    case, method = load_case(path), METHODS[name]
    side = 'plain' if method.plain else 'test'
    x, y, table = case[f'{side}_x'], case['test_y'], case[f'{side}_table']
    trained = hasattr(getattr(cluster, method.estimator), 'predict')
    forget_peak()
    before = memory('VmRSS')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        start = time.perf_counter()
        model, setting = (fit_trained if trained else choose)(
            method, case, seed, epochs)
        fit_seconds = time.perf_counter() - start
        start = time.perf_counter()
        if trained:
            labels = model.predict(x, neighbors=table)
        else:
            if method.knows is not None:
                model.set_params(**{method.knows: len(np.unique(y))})
            labels = model.fit_predict(x, neighbors=table)
        predict_seconds = time.perf_counter() - start
    scores = clustering_scores(y, labels)
    parameters = sum(p.numel() for network in getattr(model, '_networks', ())
                     if getattr(model, f'{network}_') is not None
                     for p in getattr(model, f'{network}_').parameters())
    row = {'clusters': scores.num_clusters}
    for kind in ('pairwise', 'bcubed'):
        for what in ('precision', 'recall', 'fscore'):
            value = getattr(getattr(scores, kind), what)
            row[f'{kind}_{what}'] = f'{100 * value:.2f}'
    row.update(nmi=f'{scores.nmi:.4f}', fit_seconds=f'{fit_seconds:.1f}',
               predict_seconds=f'{predict_seconds:.2f}',
               peak_mb=f"{memory('VmHWM') - before:.0f}",
               parameters=parameters, setting=setting, error='')
    return row, hard_clusters(case['test_x'], y, labels)


def alone(function, *args):
    r"""Calls a function in a process of its own, which ends with this one:
    hours of work that nobody waits for would take the machine. What all of
    them import is imported once.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(_IMPORTED)
    with ProcessPoolExecutor(1, context, _follow) as executor:
        return executor.submit(function, *args).result()


def _follow():
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def build(method, seed, **more):
    estimator = getattr(cluster, method.estimator)(**method.arguments, **more)
    if 'seed' in estimator.get_params():
        estimator.set_params(seed=seed)
    return estimator


def fit_trained(method, case, seed, epochs):
    model = build(method, seed)
    if epochs is not None:
        model.set_params(epochs=epochs)
    groups = case.get('train_groups')
    model.fit(case['train_x'], case['train_y'], groups,
              neighbors=case['train_table'])
    return model, ' '.join(map(str, model.rule_))


def choose(method, case, seed, epochs):
    # The setting that clusters the training identities best.
    if len(method.grid) == 0:
        return build(method, seed), ''
    best, best_score = None, -1.
    for values in product(*method.grid.values()):
        setting = dict(zip(method.grid, values))
        try:
            model = build(method, seed, **setting)
            labels = model.fit_predict(case['train_x'],
                                       neighbors=case['train_table'])
        except ValueError:
            continue  # A level of FINCH that these samples do not have.
        score = mean_fscore(case['train_y'], labels)
        if score > best_score:
            best, best_score = setting, score
    return (build(method, seed, **best),
            ' '.join(f'{value}' for value in best.values()))


def hard_clusters(x, y, labels, bins=5):
    r"""BCubed recall and F of identities in five bins by size and by sparsity
    (one minus the mean cosine of an identity's images).
    """
    _, y, size = np.unique(y, return_inverse=True, return_counts=True)
    # Of each row: how many share its identity, its cluster, and both.
    _, labels, count = np.unique(labels, return_inverse=True,
                                 return_counts=True)
    _, both, shared = np.unique(y * count.size + labels, return_inverse=True,
                                return_counts=True)
    precision = shared[both] / count[labels]
    recall = shared[both] / size[y]
    total = np.zeros((size.size, x.shape[1]))
    np.add.at(total, y, x)
    cosine = ((total**2).sum(axis=1) - size) / np.maximum(
        size * (size - 1), 1)
    out = []
    for kind, value in (('size', size), ('sparsity', 1 - cosine)):
        # As many identities in each; one image alone is neither.
        counted = np.flatnonzero(size > 1) if kind == 'sparsity' else (
            np.arange(size.size))
        order = counted[np.argsort(value[counted], kind='stable')]
        for index, identities in enumerate(np.array_split(order, bins)):
            rows = np.isin(y, identities)
            if not rows.any():
                continue
            p, r = precision[rows].mean(), recall[rows].mean()
            out.append({
                'by': kind, 'bin': index + 1,
                'mean': f'{value[identities].mean():.4f}',
                'recall': f'{100 * r:.2f}',
                'fscore': f'{100 * 2 * p * r / (p + r):.2f}'})
    return out
