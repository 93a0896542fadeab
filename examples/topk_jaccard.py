# Which edges can be trusted? Top-K Jaccard weights each edge by the overlap
# of its two ends' best neighbours. Two graphs with known communities, no
# download: an unweighted stochastic block model with more and more noise
# edges, and cosine kNN graphs of scikit-learn's digits. Before and after,
# prints the ROC AUC of the weight as a test for "inside a community", and the
# NMI of the communities of shortest map equation with the known ones.
import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from torch_geometric.data import Data
from torch_geometric.utils import stochastic_blockmodel_graph

from torch_sdt.ops import map_equation_communities
from torch_sdt.transforms import CosineKNNGraph, TopKJaccard

parser = argparse.ArgumentParser()
parser.add_argument('--blocks', type=int, default=40)
parser.add_argument('--block_size', type=int, default=25)
parser.add_argument('--inside', type=float, default=10.,
                    help='expected edges of a node inside its block')
parser.add_argument('--outside', type=float, nargs='+',
                    default=[10., 20., 30., 40., 50.],
                    help='expected edges of a node to other blocks')
parser.add_argument('--k', type=int, nargs='+', default=[10, 20, 40, 80],
                    help='neighbours of a digit, itself included')
parser.add_argument('--seed', type=int, default=0)
args = parser.parse_args()


def block_model(outside):
    torch.manual_seed(args.seed)
    num_nodes = args.blocks * args.block_size
    probs = torch.full((args.blocks, args.blocks),
                       outside / (num_nodes - args.block_size))
    probs.fill_diagonal_(args.inside / (args.block_size - 1))
    size = torch.full((args.blocks, ), args.block_size)
    return Data(edge_index=stochastic_blockmodel_graph(size, probs),
                y=torch.arange(args.blocks).repeat_interleave(size),
                num_nodes=num_nodes)


def scores(data):
    source, target = data.edge_index
    weight = data.edge_weight
    if weight is None:
        weight = torch.ones(data.num_edges)
    # The map equation takes no negative weights.
    weight = weight.clamp(min=0)
    auc = roc_auc_score(data.y[source] == data.y[target], weight)
    cluster = map_equation_communities(data.edge_index, weight,
                                       data.num_nodes, seed=args.seed)
    nmi = normalized_mutual_info_score(data.y, cluster)
    return auc, nmi, int(cluster.max()) + 1


def report(name, data):
    source, target = data.edge_index
    inside = float((data.y[source] == data.y[target]).float().mean())
    before, after = scores(data), scores(TopKJaccard()(data))
    print(f'{name}, Edges inside: {inside:.3f}, '
          f'AUC: {before[0]:.3f} -> {after[0]:.3f}, '
          f'NMI: {before[1]:.3f} -> {after[1]:.3f}, '
          f'Communities: {before[2]} -> {after[2]}')


print(f'Block model: {args.blocks} communities of {args.block_size} nodes, '
      f'{args.inside:g} edges a node inside')
for outside in args.outside:
    report(f'Outside: {outside:2g}', block_model(outside))

x, y = load_digits(return_X_y=True)
digits = Data(x=torch.from_numpy(x).float(), y=torch.from_numpy(y))
print(f'Digits: 10 classes, {digits.num_nodes} images')
for k in args.k:
    report(f'k: {k:2d}', CosineKNNGraph(k=k)(digits))
