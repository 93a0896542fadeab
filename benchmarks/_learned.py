# What the benchmarks of trained models share: data with disjoint identities,
# and tables that go on where a killed run stopped.
import csv
import os
import os.path as osp
import time
from functools import partial

import numpy as np
import torch

from torch_sdt.cluster import FCES, CosineMapEquation, split_identities
from torch_sdt.datasets import FeatureFiles, SyntheticFaces
from torch_sdt.io import atomic_path
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.metrics import clustering_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import AdaptiveFilter, SparseDiffTransformer, TopKPredictor
from torch_sdt.ops import (
    edge_probability,
    estimate_background,
    expected_topk,
    normalize_features,
    topk_jaccard,
    topk_target,
)
from torch_sdt.training import Trainer, infer

HERE = osp.dirname(osp.realpath(__file__))
RESULTS = osp.join(HERE, 'results')
SHARED = osp.join(HERE, '..', '..', 'shared', 'data')


def twin(seed, preset='ms1m', identities=300):
    r"""Training and test set of a twin: ``(x, y, groups), (x, y)``."""
    train, test = (SyntheticFaces(preset, num_identities=identities,
                                  seed=seed, split=split)
                   for split in ('train', 'test'))
    return (train.x, train.y, None), (test.x, test.y)


def omniglot(seed):
    r"""Two thirds of the characters, with their rotations, and the rest."""
    data = FeatureFiles(SHARED, 'omniglot416', dim=128)
    character = data.y % 104
    place = np.empty(104, dtype=int)
    place[np.random.default_rng(seed).permutation(104)] = np.arange(104)
    train = place[character] < 69
    x, y = np.array(data.x), np.array(data.y)
    return (x[train], y[train], character[train]), (x[~train], y[~train])


def at_hand(name):
    return osp.isdir(osp.join(SHARED, name)) or osp.exists(
        osp.join(SHARED, name))


class Rows:
    r"""A CSV that is written anew after each row, and a key of which is
    computed once only.
    """

    def __init__(self, path, quiet=False):
        self.path, self.quiet = path, quiet
        self.read()

    def read(self):
        self.rows = []
        if osp.exists(self.path):
            with open(self.path, newline='') as f:
                self.rows = list(csv.DictReader(f))

    def has(self, **key):
        return any(_is(row, key) for row in self.rows)

    def drop(self, **key):
        self.rows = [row for row in self.rows if not _is(row, key)]
        if osp.exists(self.path):
            self._write()

    def add(self, **row):
        self.read()  # Another run may have added some meanwhile.
        self.rows.append({name: str(value) for name, value in row.items()})
        self._write()
        if not self.quiet:
            print('  '.join(f'{name} {value}' for name, value in row.items()),
                  flush=True)

    def _write(self):
        columns = list(dict.fromkeys(c for r in self.rows for c in r))
        os.makedirs(osp.dirname(osp.abspath(self.path)), exist_ok=True)
        with atomic_path(self.path) as tmp, open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, columns, restval='')
            writer.writeheader()
            writer.writerows(self.rows)

    def mean(self, column, **key):
        r"""Mean and standard deviation over the rows of a key."""
        values = [float(row[column]) for row in self.rows
                  if _is(row, key) and row[column] != '']
        return (np.mean(values), np.std(values), len(values))


def _is(row, key):
    return all(row.get(name, '') == str(value) for name, value in key.items())


class Case:
    r"""One data set and seed: tables of training identities (`train`), of all
    labelled samples (`learn`), and of the test samples (`test`).
    """

    def __init__(self, load, seed, k=80, epochs=4):
        (x, y, groups), (x_test, y_test) = load(seed)
        self.seed, self.y, self.y_test = seed, y, y_test
        self.k, self.epochs = k, epochs
        train, self.held_out = split_identities(y, groups, seed=seed)
        x, x_test = (normalize_features(a, center=True) for a in (x, x_test))
        self.y_train = torch.from_numpy(y[train])
        self.table = {
            part: Neighbors.search(a, min(k, len(a)))
            for part, a in (('train', x[train]), ('learn', x),
                            ('test', x_test))}
        self.x = {'train': x[train], 'learn': x, 'test': x_test}
        # What several variants share.
        self.models, self.said = {}, {}

    def loader(self, part, trust=None, y=None):
        more = {}
        if trust is not None:
            more = dict(relations=[trust], k=expected_topk(trust, beta=1.))
            if trust.dim() == 1:
                more = dict(relations=[topk_jaccard(self.table[part], trust)],
                            k=trust)
        return NeighborSubgraphs(
            self.table[part], self.x[part], y=y, shuffle=y is not None,
            seed=self.seed, **more,
            background=estimate_background(self.x[part], self.seed))

    def train(self, name, build, call, trust=None):
        r"""Trains a model once, and returns what it says of all three sets,
        its parameters, and milliseconds a node.
        """
        of = trust or {'train': None, 'learn': None, 'test': None}
        if name not in self.models:
            torch.manual_seed(self.seed)
            model = self.models[name] = build()
            Trainer(self.epochs, seed=self.seed, name=name).fit(
                model, self.loader('train', of['train'], self.y_train))
        model = self.models[name]
        for part in self.table:
            if (name, part) not in self.said:
                start = time.perf_counter()
                said = infer(model, self.loader(part, of[part]),
                             lambda batch: call(model, batch))
                seconds = time.perf_counter() - start
                self.said[name, part] = said, 1000 * seconds / len(said)
        size = sum(p.numel() for p in model.parameters())
        return ({part: self.said[name, part][0] for part in self.table}, size,
                self.said[name, 'test'][1])

    def replace_test_table(self, table):
        self.table['test'] = table
        self.said = {key: value for key, value in self.said.items()
                     if key[1] != 'test'}

    # Neighbourhoods ##########################################################

    def predictor(self, head='rank', **kwargs):
        name = f'predictor {head} {kwargs}'
        if head == 'bilstm':
            build = partial(AdaptiveFilter, self.k, self.x['train'].size(1))
        else:
            build = partial(TopKPredictor, self.k, head, **kwargs)
        call = sigmoid if head == 'rank' else k_of
        return self.train(name, build, call)

    def fixed(self, which):
        r"""k without training."""
        out = {}
        for part, table in self.table.items():
            if which == 'all':
                k = torch.full((table.num_nodes, ), table.k)
            elif which == 'early stop':
                jaccard = topk_jaccard(table, probability=edge_probability(
                    table.similarity, 'exponential'))
                k = (jaccard >= .22).cummin(dim=1)[0].sum(dim=1)
            else:
                y = {'learn': self.y, 'test': self.y_test,
                     'train': self.y_train}[part]
                k = topk_target(table, y, .5)
            out[part] = k
        return out, 0, 0.

    def sdt(self, trust, features=False, **kwargs):
        name = f'sdt {features} {kwargs}'
        if features:
            kwargs['in_channels'] = self.x['train'].size(1)
        return self.train(
            name, partial(SparseDiffTransformer, self.k, relations=2,
                          **kwargs), sigmoid, trust)


def sigmoid(model, batch):
    return model(batch).sigmoid()


def k_of(model, batch):
    return model.predict(batch)


def percent(y, labels):
    r"""F_P and F_B, in percent."""
    scores = clustering_scores(y, labels)
    return {'pairwise_f': f'{100 * scores.pairwise.fscore:.2f}',
            'bcubed_f': f'{100 * scores.bcubed.fscore:.2f}'}


def best_on_labels(y, candidates):
    r"""The labels that score best on the very labels they are scored with:
    an opponent, not a method.
    """
    def score(labels):
        scores = clustering_scores(y, labels)
        return scores.pairwise.fscore + scores.bcubed.fscore

    return max(candidates, key=score)


def cosine_on_labels(x, y, neighbors):
    low, high = np.percentile(neighbors.similarity[:, 1:].numpy(), (1, 99))
    return best_on_labels(y, [
        CosineMapEquation(threshold).fit_predict(x, neighbors=neighbors)
        for threshold in np.linspace(max(low, .05), high, 20)])


def fces_on_labels(x, y, neighbors):
    return best_on_labels(y, [
        FCES(theta, distance_transform=transform).fit_predict(
            x, neighbors=neighbors)
        for transform in ('exponential', 'sigmoid')
        for theta in np.linspace(.1, .6, 11)])
