# When do two attention maps help, and when the k best edges? Nodes are
# classified on two graphs with more and more random edges, without a download:
# a planted partition with noisy features, and the cosine kNN graph of
# scikit-learn's digits. All layers stand in the same network and get the same
# width, depth, epochs, seeds, and learning rates to choose from on validation
# nodes. Since choosing edges by the cosine of features is open to any layer,
# TransformerConv gets the same k best edges too. Prints the accuracy on test
# nodes and writes accuracy.csv and accuracy.png to out/sparse_diff_attention/.
import argparse
import csv
import os
import os.path as osp
import time

import torch
import torch.nn.functional as F
from _report import COLORS, GREY, STYLE, name_points, plt, save
from sklearn.datasets import load_digits
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, GCNConv, TransformerConv
from torch_geometric.utils import stochastic_blockmodel_graph

from torch_sdt.nn import SparseDiffAttentionConv
from torch_sdt.ops import topk_edge_mask
from torch_sdt.transforms import CosineKNNGraph

path = osp.join(osp.dirname(osp.realpath(__file__)), '..', 'out',
                'sparse_diff_attention')
parser = argparse.ArgumentParser()
parser.add_argument('--noise', type=float, nargs='+',
                    default=[0., .3, .6, .8],
                    help='shares of random edges among all edges')
parser.add_argument('--k', type=int, default=8)
parser.add_argument('--hidden', type=int, default=64)
parser.add_argument('--heads', type=int, default=4)
parser.add_argument('--lr', type=float, nargs='+', default=[.003, .01])
parser.add_argument('--epochs', type=int, default=50)
parser.add_argument('--seeds', type=int, default=3)
parser.add_argument('--out', default=path)
parser.add_argument('--quick', action='store_true', help='a smoke test')
args = parser.parse_args()
if args.quick:
    args.noise, args.lr, args.epochs, args.seeds = [.5], [.01], 5, 2
# Graphs this small gain nothing from threads.
torch.set_num_threads(1)


def planted_partition(classes=6, size=100, inside=8., noise=1.5):
    # About eight edges of a node to its own class.
    probs = torch.eye(classes) * inside / (size - 1)
    y = torch.arange(classes).repeat_interleave(size)
    x = torch.randn(classes, 32)[y] + noise * torch.randn(y.numel(), 32)
    return Data(x=x, y=y, edge_index=stochastic_blockmodel_graph(
        [size] * classes, probs))


def digits():
    x, y = load_digits(return_X_y=True)
    data = Data(x=torch.from_numpy(x).float(), y=torch.from_numpy(y))
    edge_index = CosineKNNGraph(k=9)(data).edge_index
    data.x = data.x / 16 - .3
    data.edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    return data


def add_noise(data, share):
    num_edges = data.num_edges
    count = int(num_edges * share / (1 - share))
    data.edge_index = torch.cat([
        data.edge_index, torch.randint(data.num_nodes, (2, count))], dim=1)
    source, target = data.edge_index
    data.edge_score = F.cosine_similarity(data.x[source], data.x[target])
    # Ten labelled nodes of each class to learn from, as many to choose by.
    order = torch.randperm(data.num_nodes)
    of_class = F.one_hot(data.y[order]).cumsum(dim=0)
    rank = torch.empty_like(order)
    rank[order] = of_class.gather(1, data.y[order].view(-1, 1)).view(-1)
    data.train_mask, data.val_mask = rank <= 10, (rank > 10) & (rank <= 20)
    data.test_mask = rank > 20
    return data


class Net(torch.nn.Module):
    # Two layers, each beside a linear one for the node itself, which the
    # attention layers leave to others.
    def __init__(self, conv, in_channels, hidden, out_channels):
        super().__init__()
        self.dropout = torch.nn.Dropout(.3)
        self.conv1 = conv(in_channels, hidden)
        self.lin1 = torch.nn.Linear(in_channels, hidden)
        self.conv2 = conv(hidden, hidden)
        self.lin2 = torch.nn.Linear(hidden, hidden)
        self.head = torch.nn.Linear(hidden, out_channels)

    def forward(self, x, *edges):
        x = self.dropout(x)
        x = (self.conv1(x, *edges) + self.lin1(x)).relu()
        x = self.dropout(x)
        x = (self.conv2(x, *edges) + self.lin2(x)).relu()
        return self.head(x)


class NoConv(torch.nn.Module):
    def forward(self, x, edge_index):
        return 0.


def attention(layer, **kwargs):
    return lambda in_channels, out_channels: layer(
        in_channels, out_channels // args.heads, heads=args.heads, **kwargs)


SDA, BEST = 'SparseDiffAttentionConv', f'{args.k} best edges'
NORM = f'{SDA}, norm'
LAYERS = {
    'no edges': lambda in_channels, out_channels: NoConv(),
    'GCNConv': GCNConv,
    'GATv2Conv': attention(GATv2Conv),
    'TransformerConv': attention(TransformerConv, root_weight=False),
    SDA: attention(SparseDiffAttentionConv),
    # As in the Differential Transformer: its form of lambda, and a norm of each
    # head, which undoes that the weights sum to 1 - lambda.
    NORM: attention(SparseDiffAttentionConv, lambda_form='reparam'),
    f'TransformerConv, {BEST}': attention(TransformerConv, root_weight=False),
    # The mask is the same in every epoch. To pass `edge_score` and `k` to the
    # layer does the same, and takes it longer.
    f'{SDA}, {BEST}': attention(SparseDiffAttentionConv),
    f'{NORM}, {BEST}': attention(SparseDiffAttentionConv,
                                 lambda_form='reparam'),
}


def run(name, data, lr, seed):
    edge_index = data.edge_index
    if name.endswith(BEST):
        edge_index = edge_index[:, topk_edge_mask(
            data.edge_score, edge_index, args.k, data.num_nodes)]
    torch.manual_seed(seed)
    model = Net(LAYERS[name], data.num_features, args.hidden,
                int(data.y.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    best = 0., 0.
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        out = model(data.x, edge_index)
        F.cross_entropy(out[data.train_mask],
                        data.y[data.train_mask]).backward()
        optimizer.step()
        if epoch % 5 == 4:
            model.eval()
            with torch.no_grad():
                right = model(data.x, edge_index).argmax(dim=-1) == data.y
            val, test = [float(right[mask].float().mean())
                         for mask in (data.val_mask, data.test_mask)]
            best = max(best, (val, test), key=lambda pair: pair[0])
    return best


def evaluate(graph, share):
    rows = []
    for name in LAYERS:
        choices = []
        for lr in args.lr:
            scores = []
            for seed in range(args.seeds):
                # The same graph for every layer, another for every seed.
                torch.manual_seed(seed)
                data = add_noise(GRAPHS[graph](), share)
                scores.append(run(name, data, lr, seed))
            val, test = torch.tensor(scores).t()
            choices.append((float(val.mean()), lr, test))
        _, lr, test = max(choices, key=lambda choice: choice[0])
        rows.append({'graph': graph, 'noise': share, 'layer': name, 'lr': lr,
                     'accuracy': float(test.mean()),
                     'deviation': float(test.std()), 'seeds': args.seeds})
    return rows


GRAPHS = {'planted partition': planted_partition, 'digits': digits}


def plot(rows):
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(2, 1, figsize=(10, 9), sharex=True)
        colors = [GREY, *COLORS[1:4], COLORS[0], COLORS[4],
                  COLORS[3], COLORS[0], COLORS[4]]
        for ax, graph in zip(axes, GRAPHS):
            ends = []
            for name, color in zip(LAYERS, colors):
                points = [(row['noise'], row['accuracy'], row['deviation'])
                          for row in rows
                          if (row['graph'], row['layer']) == (graph, name)]
                x, y, error = zip(*points)
                ax.errorbar(x, y, error, color=color, capsize=3,
                            linestyle='--' if name.endswith(BEST) else '-')
                ends.append((x[-1], y[-1]))
            ax.set(title=graph.capitalize(), ylabel='Accuracy on test nodes')
            ax.yaxis.set_major_formatter('{x:.0%}')
            fig.subplots_adjust(left=.1, right=.57, top=.95, bottom=.07)
            name_points(fig, ax, ends, list(LAYERS), colors, 'right')
        axes[-1].set_xlabel('Share of random edges')
        axes[-1].xaxis.set_major_formatter('{x:.0%}')
        save(fig, osp.join(args.out, 'accuracy.png'))


start, rows = time.perf_counter(), []
width = max(map(len, LAYERS))
print(f'Accuracy on test nodes, mean and deviation over {args.seeds} seeds')
for graph in GRAPHS:
    results = [evaluate(graph, share) for share in args.noise]
    print(f'\n{graph:{width}}' + ''.join(f'{share:>13.0%}'
                                         for share in args.noise), flush=True)
    for line in zip(*results):
        print(f"{line[0]['layer']:{width}}" + ''.join(
            f"{100 * row['accuracy']:7.1f} ±{100 * row['deviation']:4.1f}"
            for row in line))
    rows += [row for result in results for row in result]
os.makedirs(args.out, exist_ok=True)
with open(osp.join(args.out, 'accuracy.csv'), 'w', newline='') as f:
    writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
plot(rows)
print(f"\n{time.perf_counter() - start:.0f} s. Table and plot: "
      f"'{osp.relpath(args.out)}'")
