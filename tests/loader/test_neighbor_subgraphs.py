import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.nn import GATv2Conv, GCNConv
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import SparseDiffAttentionConv
from torch_sdt.ops import (
    knn,
    normalize_features,
    reverse_values,
    topk_target,
)

N, K, D = 43, 6, 8


def world(device='cpu', seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (N, ), generator=generator)
    x = torch.randn(5, D, generator=generator)[y]
    x = normalize_features(x + torch.randn(N, D, generator=generator))
    neighbors = Neighbors(*(part.to(device) for part in knn(x, K)))
    value = torch.rand(N, K, generator=generator).to(device)
    k = torch.randint(1, K + 1, (N, ), generator=generator).to(device)
    return neighbors, x.to(device), y.to(device), value, k


def visited(loader):
    return torch.cat([batch.node for batch in loader])


@withCUDA
@pytest.mark.parametrize('batch_size', [1, 7, 43, 100])
def test_batches_are_a_direct_gather(batch_size, device):
    neighbors, x, y, value, k = world(device)
    loader = NeighborSubgraphs(neighbors, x, batch_size, relations=[value],
                               k=k, y=y, beta=2.)
    dense = torch.zeros(N, N, device=device)
    dense.scatter_(1, neighbors.index, value)
    target, count = topk_target(neighbors, y, 2.), 0
    for batch in loader:
        for b, i in enumerate(batch.node.tolist()):
            near = neighbors.index[i]
            assert torch.equal(batch.index[b], near)
            assert torch.equal(batch.x[b], x[near])
            assert torch.allclose(batch.similarity[b], x[near] @ x[near].t(),
                                  atol=1e-6)
            assert torch.equal(batch.relation[b, 0], dense[near][:, near])
            assert torch.equal(batch.same[b], y[near] == y[i])
            assert (int(batch.topk[b]), int(batch.k[b])) == (int(target[i]),
                                                             int(k[i]))
            count += 1
    assert count == N and len(loader) == len(list(loader))
    assert str(loader) == (f'NeighborSubgraphs(Neighbors(num_nodes=43, k=6), '
                           f'batch_size={batch_size}, num_nodes=43, '
                           f'relations=1)')


def test_what_is_not_given_is_not_there():
    neighbors, x, y, _, _ = world()
    batch = next(iter(NeighborSubgraphs(neighbors, x)))
    assert batch.relation is None and batch.k is None
    assert batch.same is None and batch.topk is None
    assert torch.equal(batch.similarity[:, 0], batch.similarity[..., 0])
    assert torch.allclose(batch.similarity[:, 0], neighbors.similarity,
                          atol=1e-6)


def test_relations_come_forth_and_back():
    neighbors, x, _, value, _ = world()
    other = reverse_values(neighbors.index, value)
    loader = NeighborSubgraphs(neighbors, x, relations=[value, other])
    relation = next(iter(loader)).relation
    assert relation.shape == (N, 4, K, K)
    assert torch.equal(relation[:, 1], relation[:, 0].transpose(1, 2))
    assert torch.equal(relation[:, 3], relation[:, 2].transpose(1, 2))
    # The values and those of the other direction, where both rows list each
    # other, are each other's transposes.
    mutual = (relation[:, 0] > 0) & (relation[:, 2] > 0)
    assert int(mutual.sum()) > N * K
    assert torch.equal(relation[:, 0][mutual], relation[:, 3][mutual])


def test_both_paths_agree(monkeypatch):
    pytest.importorskip('numba')
    neighbors, x, _, value, _ = world()
    loader = NeighborSubgraphs(neighbors, x, relations=[value])
    expected = next(iter(loader)).relation
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    assert torch.equal(next(iter(loader)).relation, expected)


def test_background():
    neighbors, x, _, _, _ = world()
    plain = next(iter(NeighborSubgraphs(neighbors, x))).similarity
    loader = NeighborSubgraphs(neighbors, x, background=(.2, .1))
    assert torch.allclose(next(iter(loader)).similarity, (plain - .2) / .1,
                          atol=1e-5)
    # Standardised, embeddings compare: a common direction, which shrinks all
    # differences of cosines, makes no difference.
    far = torch.cat([x * .6, torch.full((N, 1), .8)], dim=1)
    loader = NeighborSubgraphs(neighbors, far,
                               background=(.2 * .36 + .64, .1 * .36))
    assert torch.allclose(next(iter(loader)).similarity, (plain - .2) / .1,
                          atol=1e-4)


# Order #######################################################################


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('nodes', [None, torch.arange(30, 4, -2)])
def test_each_node_once_an_epoch(shuffle, nodes):
    neighbors, x, _, _, _ = world()
    loader = NeighborSubgraphs(neighbors, x, 5, nodes, shuffle=shuffle)
    wanted = torch.arange(N) if nodes is None else nodes
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen = visited(loader)
        assert torch.equal(seen.sort()[0], wanted.sort()[0])
        assert torch.equal(seen, wanted) != shuffle


def test_order_is_that_of_seed_and_epoch():
    neighbors, x, _, _, _ = world()
    before = torch.get_rng_state()

    def order(seed, *epochs):
        loader = NeighborSubgraphs(neighbors, x, 5, shuffle=True, seed=seed)
        for epoch in epochs:
            loader.set_epoch(epoch)
            seen = visited(loader)
        return seen.tolist()

    # Whatever came before, and whatever the global generator does.
    assert order(0, 3) == order(0, 1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert order(0, 3) == order(0, 3)
    others = [order(0, 1), order(0, 2), order(1, 1), order(1, 2)]
    assert len({tuple(other) for other in others}) == 4


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('num_nodes', [2, 42, 43])
@pytest.mark.parametrize('world_size', [2, 3, 4])
def test_shares_of_processes(world_size, num_nodes, shuffle):
    neighbors, x, _, _, _ = world()
    loaders = [NeighborSubgraphs(
        neighbors, x, 5, torch.arange(num_nodes), shuffle=shuffle, rank=rank,
        world_size=world_size) for rank in range(world_size)]
    shares = [visited(loader) for loader in loaders]
    assert len({share.numel() for share in shares}) == 1
    assert len({len(loader) for loader in loaders}) == 1
    assert len(loaders[0]) == len(list(loaders[0]))
    every = torch.cat(shares)
    assert every.unique().numel() == num_nodes
    # No more than what the last round lacks is seen twice.
    assert every.numel() - num_nodes < world_size


def test_no_nodes():
    neighbors, x, _, _, _ = world()
    for size in (1, 2):
        loader = NeighborSubgraphs(neighbors, x, nodes=torch.arange(0),
                                   shuffle=True, world_size=size)
        assert len(loader) == 0 and list(loader) == []


# As PyG batches ##############################################################


@withCUDA
def test_cosines_of_the_centre_alone(device):
    neighbors, x, *_ = world(device)
    loader = NeighborSubgraphs(neighbors, x, 7, background=(.1, 2.))
    alone = NeighborSubgraphs(neighbors, x, 7, background=(.1, 2.),
                              pairs=False)
    for first, second in zip(loader, alone):
        assert second.similarity.shape == (second.node.numel(), 1, K)
        assert torch.allclose(first.similarity[:, :1], second.similarity,
                              atol=1e-6)
        assert torch.equal(first.x, second.x)


@withCUDA
def test_to_bipartite(device):
    neighbors, x, *_ = world(device)
    conv = GCNConv(D, 3, add_self_loops=False, normalize=False).to(device)
    n_id = torch.arange(N, device=device)
    edge_index = torch.stack([neighbors.index.flatten(),
                              n_id.repeat_interleave(K)])
    expected = conv(x, edge_index, neighbors.similarity.flatten())
    for batch in NeighborSubgraphs(neighbors, x, 10, pairs=False):
        (source, target), edges, weight = batch.to_bipartite()
        assert torch.equal(target, x[batch.node])
        assert bool((edges[1].diff() >= 0).all())
        # A layer finds in the batch what it finds in the whole graph.
        out = torch.zeros(target.size(0), 3, device=device).index_add(
            0, edges[1], weight.view(-1, 1) * conv.lin(source)[edges[0]])
        assert torch.allclose(out + conv.bias, expected[batch.node],
                              atol=1e-5)


@withCUDA
def test_to_batch(device):
    neighbors, x, _, value, _ = world(device)
    loader = NeighborSubgraphs(neighbors, x, 5, relations=[value])
    small = loader.gather(torch.tensor([7, 0, 21]))
    batch = small.to_batch()
    assert isinstance(batch, Batch) and batch.num_graphs == 3
    batch.validate()
    assert batch.num_nodes == 3 * K and batch.num_edges == 3 * K * (K - 1)
    assert not batch.has_self_loops()
    assert batch.edge_index.unique(dim=1).size(1) == batch.num_edges
    source, target = batch.edge_index
    assert bool((target.diff() >= 0).all())
    assert torch.equal(batch.batch[source], batch.batch[target])
    # Edges say what the dense batch says of (target, source).
    n_id, graph = batch.n_id, batch.batch[target]
    cosine = (x[n_id[source]] * x[n_id[target]]).sum(dim=1)
    assert torch.allclose(batch.edge_weight, cosine, atol=1e-6)
    assert batch.edge_attr.shape == (batch.num_edges, 2)
    assert torch.equal(batch.edge_attr, small.relation[
        graph, :, batch.rank[target], batch.rank[source]])
    assert torch.equal(n_id, neighbors.index[small.node].view(-1))
    assert torch.equal(batch.x, x[n_id])
    # Without relations there are no edge features.
    plain = NeighborSubgraphs(neighbors, x, 5).gather(small.node).to_batch()
    assert 'edge_attr' not in plain


def test_any_conv_runs_on_it():
    neighbors, x, _, value, _ = world()
    loader = NeighborSubgraphs(neighbors, x, 5, relations=[value])
    batch = next(iter(loader)).to_batch()
    torch.manual_seed(0)
    out = GCNConv(D, 4)(batch.x, batch.edge_index,
                        batch.edge_weight.clamp(min=0))
    assert out.shape == (5 * K, 4) and bool(out.isfinite().all())
    conv = GATv2Conv(D, 4, edge_dim=2, add_self_loops=False)
    out = conv(batch.x, batch.edge_index, batch.edge_attr)
    assert bool(out.isfinite().all())
    conv = SparseDiffAttentionConv(D, 4, heads=2, k=3, edge_dim=2)
    whole = conv(batch.x, batch.edge_index, batch.edge_attr,
                 batch.edge_weight)
    # Graphs do not see each other.
    for b, graph in enumerate(batch.to_data_list()):
        out = conv(graph.x, graph.edge_index, graph.edge_attr,
                   graph.edge_weight)
        assert torch.allclose(out, whole[b * K:(b + 1) * K], atol=1e-6)


# Memory ######################################################################


@pytest.mark.parametrize('with_numba', [False, True])
def test_memory_is_that_of_a_batch(monkeypatch, with_numba):
    # Nothing has an entry for each of K pairs of each of N nodes.
    if with_numba:
        pytest.importorskip('numba')
    monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', with_numba)
    n, k, size = 3000, 24, 2
    step = torch.arange(k) * (n // k - 1)
    index = (torch.arange(n).view(-1, 1) + step) % n
    neighbors = Neighbors(index, torch.ones(n, k))
    x = torch.nn.functional.normalize(torch.rand(n, 4), dim=1)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for part in torch.utils._pytree.tree_leaves(out):
                if isinstance(part, torch.Tensor):
                    largest.append(part.numel())
            return out

    with Watch():
        loader = NeighborSubgraphs(
            neighbors, x, size, relations=[torch.ones(n, k)], y=index[:, 0],
            shuffle=True)
        built = max(largest)
        largest.clear()
        next(iter(loader))
    assert built <= n * k
    # The table itself may be looked at, beside what the batch holds.
    assert max(largest) <= max(n * k, 2 * size * k * k)


# Errors ######################################################################


@pytest.mark.parametrize('kwargs,message', [
    ({'x': torch.ones(N - 1, D)}, r"'x' must have a row .* 43 .*\[42, 8\]"),
    ({'x': torch.ones(N)}, r"'x' must have a row .*\[43\]"),
    ({'batch_size': 0}, "'batch_size' must be at least 1 .got 0"),
    ({'relations': [torch.ones(N, K), torch.ones(N, K + 1)]},
     r"'relations' must have .*\[43, 6\] .got \[43, 7\]"),
    ({'k': torch.ones(N + 1).long()}, r"'k' must have shape \[43\]"),
    ({'y': torch.ones(N, 1).long()}, r"'y' must have shape \[43\]"),
    ({'y': torch.ones(N).long(), 'beta': 0.}, "'beta' must be positive"),
    ({'nodes': torch.ones(N, dtype=torch.bool)}, "'nodes' must be int64"),
    ({'nodes': torch.ones(1, 2).long()}, r"'nodes' .*shape \[1, 2\]"),
    ({'nodes': torch.tensor([0, N])}, "'nodes' must be in 0..42 .got 43"),
    ({'nodes': torch.tensor([0, -1])}, "'nodes' must be in 0..42 .got -1"),
    ({'background': (0., 0.)}, "scale of 'background' must be positive"),
    ({'rank': 2, 'world_size': 2}, r"'rank' must be in 0\.\.1 .got 2"),
    ({'rank': -1}, r"'rank' must be in 0\.\.0 .got -1"),
])
def test_errors(kwargs, message):
    neighbors, x, _, _, _ = world()
    with pytest.raises(ValueError, match=message):
        NeighborSubgraphs(neighbors, **{'x': x, **kwargs})


def test_features_in_half_precision_are_loaded_in_single():
    neighbors, x, *_ = world()
    for batch in NeighborSubgraphs(neighbors, x.half()):
        exact = NeighborSubgraphs(neighbors, x.half().float()).gather(
            batch.node)
        assert batch.x.dtype == batch.similarity.dtype == torch.float32
        assert torch.equal(batch.similarity, exact.similarity)


def test_a_graph_needs_the_cosines_of_all_pairs():
    neighbors, x, *_ = world()
    batch = next(iter(NeighborSubgraphs(neighbors, x, pairs=False)))
    with pytest.raises(ValueError, match='pairs=True'):
        batch.to_batch()
