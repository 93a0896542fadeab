# From features to a graph: scikit-learn's handwritten digits (1,797 images of
# 8 x 8 pixels, no download) become a cosine kNN graph. Prints how pure the
# neighbourhoods are by k, and how well label propagation on the graph
# classifies all images from a few labelled ones.
import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch_geometric.data import Data
from torch_geometric.nn import LabelPropagation
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.transforms import Compose, ToUndirected

from torch_sdt.transforms import CosineKNNGraph

parser = argparse.ArgumentParser()
parser.add_argument('--labels', type=int, default=5,
                    help='labelled images of each digit')
parser.add_argument('--runs', type=int, default=3,
                    help='draws of the labelled images')
args = parser.parse_args()

x, y = load_digits(return_X_y=True)
digits = Data(x=torch.from_numpy(x).float(), y=torch.from_numpy(y))


def purity(data):
    r"""The share of edges that join images of the same digit."""
    source, target = data.edge_index
    return float((data.y[source] == data.y[target]).float().mean())


def draw_train_mask(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(digits.num_nodes, dtype=torch.bool)
    for digit in range(10):
        index = (digits.y == digit).nonzero().view(-1)
        perm = torch.randperm(index.numel(), generator=generator)
        mask[index[perm[:args.labels]]] = True
    return mask


@torch.no_grad()
def accuracy(data, train_mask):
    # With weights given, the model leaves it to us to normalise them.
    edge_index, edge_weight = gcn_norm(data.edge_index, data.edge_weight,
                                       data.num_nodes, add_self_loops=False)
    model = LabelPropagation(num_layers=20, alpha=.9)
    out = model(data.y, edge_index, train_mask, edge_weight)
    pred = out.argmax(dim=-1)
    return float((pred == data.y)[~train_mask].float().mean())


masks = [draw_train_mask(seed) for seed in range(args.runs)]
print(f'{digits}, {args.labels} labels a digit, {args.runs} draws')
for k in [2, 6, 11, 21, 41]:
    start = time.perf_counter()
    # `k` counts the image itself: each has k - 1 incoming edges.
    data = CosineKNNGraph(k=k)(digits)
    seconds = time.perf_counter() - start
    # An undirected edge has the same cosine both ways: 'max', not the sum.
    graph = ToUndirected(reduce='max')(data)
    scores = torch.tensor([accuracy(graph, mask) for mask in masks])
    print(f'k: {k:2d}, Edges: {data.num_edges:6d}, Purity: {purity(data):.4f},'
          f' Accuracy: {scores.mean():.4f} ± {scores.std():.4f}, '
          f'Search: {seconds:.3f}s')

# Both steps as one transform, as a dataset's `pre_transform` would take it.
print(Compose([CosineKNNGraph(k=11), ToUndirected(reduce='max')])(digits))
