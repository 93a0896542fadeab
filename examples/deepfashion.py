# Clustering clothes on DeepFashion, where the same item is seen 7 times on
# average and look-alikes are many: published pairwise F end at about 42.
#
#     python examples/deepfashion.py                the synthetic twin
#     python examples/deepfashion.py --root data    the published files
#
# What differs from ms1m.py: a narrower table, another published threshold.
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

path = osp.join(osp.dirname(osp.realpath(__file__)), '..', 'out',
                'deepfashion')
parser = argparse.ArgumentParser()
parser.add_argument('--root', type=str, help='folder of the published files '
                    '(default: the synthetic twin)')
parser.add_argument('--name', type=str, default='deepfashion_test')
parser.add_argument('--val-name', type=str, help='labelled set to choose '
                    'thresholds on, such as deepfashion_train (default: the '
                    'published threshold)')
parser.add_argument('--dim', type=int, default=256,
                    help='features per image in the files')
parser.add_argument('--num-images', type=int,
                    help='images of the twin (default: 20000)')
# Published methods for this set link all of 5 to 8 neighbours. Here the table
# is only what each image chooses from: it must hold the large items, which
# have dozens of images, while small ones trust fewer.
parser.add_argument('--k', type=int, default=40,
                    help='neighbours of an image, itself included')
parser.add_argument('--center', action=argparse.BooleanOptionalAction,
                    help='remove the mean feature (default: only of the '
                    'twin, whose features share an offset)')
parser.add_argument('--thresholds', type=int, default=10,
                    help='how many thresholds are tried')
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--out', type=str, default=path)
args = parser.parse_args()

PUBLISHED = .88  # the cosine of face-cluster-by-infomap for DeepFashion


def knn_graph(images, center):
    data = images.to_data()
    k = min(args.k, data.num_nodes)
    neighbors = None
    if isinstance(images, FeatureFiles) and not center:
        neighbors = images.neighbors(k)  # The published table, if it is there.
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
    val, test = read(parser, args, 'deepfashion', 'DeepFashion')
with stages('compile'):
    # numba compiles on first use, which is no method's own time.
    TopKJaccardClustering(k=10).fit(test.x[:200])

# The thresholds come from the validation split, whose items are others.
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
    print(f'Chosen on {val.num_nodes:,} images of other items: cosines '
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

title = args.name if args.root else 'DeepFashion twin'
report(args.out, f'{title}, {test.num_nodes:,} images', stages, found, test.y,
       neighbors, model.k_, curve)
