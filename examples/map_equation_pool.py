# Pooling by the map equation, on two small graphs without a download:
# Zachary's karate club, drawn before and after to out/map_equation_pool.png,
# and a network that counts the communities of random graphs.
import argparse
import os
import os.path as osp

import matplotlib.pyplot as plt
import networkx as nx
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.datasets import KarateClub
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MLP, GCNConv, global_add_pool
from torch_geometric.utils import stochastic_blockmodel_graph, to_networkx

from torch_sdt.nn import MapEquationPool
from torch_sdt.ops import map_equation

path = osp.join(osp.dirname(osp.realpath(__file__)), '..', 'out',
                'map_equation_pool.png')
parser = argparse.ArgumentParser()
parser.add_argument('--epochs', type=int, default=10)
parser.add_argument('--out', type=str, default=path)
args = parser.parse_args()
os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
torch.manual_seed(0)
# Graphs this small gain nothing from threads.
torch.set_num_threads(1)


def draw_graph(graph, place, ax, color, size, width, edge_color, labels):
    nx.draw_networkx_edges(graph, place, width=width, edge_color=edge_color,
                           ax=ax)
    nx.draw_networkx_nodes(graph, place, node_color=color, node_size=size,
                           edgecolors='white', ax=ax)
    nx.draw_networkx_labels(graph, place, labels, font_size=9, ax=ax)


def draw(data, out):
    data.cluster = out.cluster
    graph = to_networkx(data, node_attrs=['cluster'], to_undirected=True)
    pooled = Data(edge_index=out.edge_index, weight=out.edge_attr,
                  size=out.cluster.bincount(), num_nodes=out.x.size(0))
    pooled = to_networkx(pooled, node_attrs=['size'], edge_attrs=['weight'],
                         to_undirected=True, remove_self_loops=True)
    cluster, size = dict(graph.nodes('cluster')), dict(pooled.nodes('size'))
    color = [plt.get_cmap('Set2')(m % 8) for m in pooled]
    place = nx.kamada_kawai_layout(graph)
    # A cluster stands where its nodes do.
    center = {m: sum(place[i] for i in graph if cluster[i] == m) / size[m]
              for m in pooled}
    weight = nx.get_edge_attributes(pooled, 'weight')
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 5))
    draw_graph(graph, place, left, [color[cluster[i]] for i in graph], 260,
               1.2, [color[cluster[i]] if cluster[i] == cluster[j] else '.8'
                     for i, j in graph.edges], None)
    draw_graph(pooled, center, right, color, [260 * s for s in size.values()],
               list(weight.values()), '.8', size)
    nx.draw_networkx_edge_labels(
        pooled, center, {e: f'{w:g}' for e, w in weight.items()}, ax=right)
    left.set_title(f'Karate club: {len(graph)} nodes')
    right.set_title(f'Pooled: {len(pooled)} clusters, with their sizes')
    right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
    left.axis('off')
    right.axis('off')
    fig.tight_layout()
    fig.savefig(args.out, dpi=150)


data = KarateClub()[0]
out = MapEquationPool()(data.x, data.edge_index)
before = map_equation(torch.zeros_like(out.cluster), data.edge_index)
after = map_equation(out.cluster, data.edge_index)
print(f'{len(out.cluster)} nodes, {before:.3f} bits -> {len(out.x)} clusters, '
      f'{after:.3f} bits')
draw(data, out)


def random_graph():
    # 36 nodes of about 9 edges each, in 2, 3 or 4 communities.
    count = int(torch.randint(2, 5, ()))
    probs = torch.full((count, count), 2 * count / (36 * (count - 1)))
    probs.fill_diagonal_(7 * count / 36)
    edge_index = stochastic_blockmodel_graph([36 // count] * count, probs)
    return Data(x=torch.ones(36, 1), edge_index=edge_index, y=count - 2)


class Net(torch.nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(1, 16), GCNConv(16, 16)
        self.pool = pool
        self.mlp = MLP([16, 32, 3], norm=None)

    def forward(self, x, edge_index, batch):
        x = self.conv1(x, edge_index).relu()
        out = (x, edge_index, None, batch)
        if self.pool is not None:
            out = self.pool(*out)
        x, edge_index, weight, batch = out[:4]
        x = self.conv2(x, edge_index, weight).relu()
        return self.mlp(global_add_pool(x, batch))


graphs = [random_graph() for _ in range(300)]
for pool in [None, MapEquationPool()]:
    model = Net(pool)
    optimizer = torch.optim.Adam(model.parameters(), lr=.01)
    for _ in range(args.epochs):
        for batch in DataLoader(graphs[:200], batch_size=20, shuffle=True):
            optimizer.zero_grad()
            logits = model(batch.x, batch.edge_index, batch.batch)
            F.cross_entropy(logits, batch.y).backward()
            optimizer.step()
    test = next(iter(DataLoader(graphs[200:], batch_size=100)))
    pred = model(test.x, test.edge_index, test.batch).argmax(dim=-1)
    print(f'{(pred == test.y).float().mean():.3f} test accuracy, {pool}')
