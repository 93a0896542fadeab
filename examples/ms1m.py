# Face clustering on MS1M, the benchmark of the field: the components put
# together in the open, next to the ready-made estimators. No label of the test
# split is used but for scores.
#
#     python examples/ms1m.py                       the synthetic twin
#     python examples/ms1m.py --root data           the published files
#
# The published files lie as learn-to-cluster has them:
# `<root>/features/part1_test.bin`, `<root>/labels/part1_test.meta` (optional),
# `<root>/knns/part1_test/faiss_k_80.npz` (optional: it spares the search).
import argparse
import os.path as osp

import numpy as np
import torch
import torch_geometric.transforms as T
from _report import best_threshold, read, report
from torch_geometric.utils import degree

from torch_sdt.cluster import FCES, CosineMapEquation, TopKJaccardClustering
from torch_sdt.datasets import FeatureFiles
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import MapEquationPool
from torch_sdt.progress import Stages
from torch_sdt.transforms import CosineKNNGraph, TopKJaccard

path = osp.join(osp.dirname(osp.realpath(__file__)), '..', 'out', 'ms1m')
parser = argparse.ArgumentParser()
parser.add_argument('--root', type=str, help='folder of the published files '
                    '(default: the synthetic twin)')
parser.add_argument('--name', type=str, default='part1_test')
parser.add_argument('--val-name', type=str, help='labelled set to choose '
                    'thresholds on, such as part0_train (default: the '
                    'published threshold)')
parser.add_argument('--dim', type=int, default=256,
                    help='features per image in the files')
parser.add_argument('--num-images', type=int,
                    help='images of the twin (default: 20000)')
parser.add_argument('--k', type=int, default=80,
                    help='neighbours of an image, itself included')
parser.add_argument('--center', action=argparse.BooleanOptionalAction,
                    help='remove the mean feature (default: only of the '
                    'twin, whose features share an offset)')
parser.add_argument('--thresholds', type=int, default=10,
                    help='how many thresholds are tried')
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--out', type=str, default=path)
args = parser.parse_args()

PUBLISHED = .58  # the cosine of face-cluster-by-infomap for MS1M


def knn_graph(faces, center):
    data = faces.to_data()
    k = min(args.k, data.num_nodes)
    neighbors = None
    if isinstance(faces, FeatureFiles) and not center:
        neighbors = faces.neighbors(k)  # The published table, if it is there.
    if neighbors is None:
        return CosineKNNGraph(k, center=center, seed=args.seed)(data)
    data.edge_index, data.edge_weight = neighbors.to_edge_index()
    return data


def to_table(data):
    return Neighbors.from_edge_index(data.edge_index, data.edge_weight,
                                     data.num_nodes)


class TrustAbove(T.BaseTransform):
    # Writes to `data.k` how many neighbours each node trusts: those whose
    # cosine reaches the threshold, and itself.
    def __init__(self, threshold):
        self.threshold = threshold

    def forward(self, data):
        trusted = data.edge_index[1, data.edge_weight >= self.threshold]
        data.k = 1 + degree(trusted, data.num_nodes, dtype=torch.long)
        return data


def components(graph, threshold):
    transform = T.Compose([
        TrustAbove(threshold),
        TopKJaccard(k='k', delta=7.5, epsilon=-5.),
    ])
    pool = MapEquationPool(seed=args.seed)
    data = transform(graph)
    out = pool(data.x, data.edge_index, data.edge_weight)
    return out.cluster.numpy()


def cosine(graph, threshold, neighbors):
    model = CosineMapEquation(threshold, seed=args.seed)
    return model.fit_predict(graph.x, neighbors=neighbors)


stages, found = Stages(), {}
with stages('read'):
    val, test = read(parser, args, 'ms1m', 'MS1M')
with stages('compile'):
    # numba compiles on first use, which is no method's own time.
    TopKJaccardClustering(k=10).fit(test.x[:200])

# The thresholds come from the validation split, whose identities are others.
threshold = PUBLISHED
if val is not None:
    with stages('validation: kNN'):
        graph = knn_graph(val, args.center)
        neighbors = to_table(graph)
    with stages('validation: thresholds'):
        share = np.linspace(.02, .9, args.thresholds)
        grid = np.quantile(graph.edge_weight, share)
        threshold = best_threshold(val.y, grid,
                                   lambda t: components(graph, t))
        tuned = best_threshold(val.y, grid,
                               lambda t: cosine(graph, t, neighbors))
    print(f'Chosen on {val.num_nodes:,} images of other identities: cosines '
          f'from {threshold:.3f} are trusted by the components, from '
          f'{tuned:.3f} by CosineMapEquation')

with stages('kNN'):
    graph = knn_graph(test, args.center)
    neighbors = to_table(graph)
with stages('components'):
    found['components'] = components(graph, threshold)
with stages('TopKJaccardClustering'):
    model = TopKJaccardClustering(center=args.center, seed=args.seed)
    found['TopKJaccardClustering'] = model.fit_predict(graph.x,
                                                       neighbors=neighbors)
if val is not None:
    with stages('CosineMapEquation, tuned'):
        found['CosineMapEquation, tuned'] = cosine(graph, tuned, neighbors)

# What was published is for cosines as they are, without centring.
published = neighbors
if args.center:
    with stages('kNN, not centred'):
        published = to_table(knn_graph(test, center=False))
with stages('FCES, published'):
    found['FCES, published'] = FCES(seed=args.seed).fit_predict(
        graph.x, neighbors=published)
with stages('CosineMapEquation, published'):
    found['CosineMapEquation, published'] = cosine(graph, PUBLISHED,
                                                   published)

curve = None
if test.y is not None:
    with stages('threshold curve'):
        share = np.linspace(.02, .98, args.thresholds + 2)
        curve = {t: cosine(graph, t, neighbors) for t in
                 np.quantile(graph.edge_weight, share).tolist()}

title = args.name if args.root else 'MS1M twin'
report(args.out, f'{title}, {test.num_nodes:,} images', stages, found, test.y,
       neighbors, model.k_, curve)
