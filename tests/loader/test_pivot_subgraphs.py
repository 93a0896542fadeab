import pytest
import torch

from torch_sdt.loader.pivot_subgraphs import PivotSubgraphs
from torch_sdt.ops import knn, normalize_features

N, K, D, K2, U = 40, 6, 5, 3, 2


def world(k=K, n=N):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 5
    x = torch.randn(5, D, generator=generator)[y]
    x = normalize_features(x + .8 * torch.randn(n, D, generator=generator))
    return knn(x, k), x, y


def naive(table, pivot, k2, u):
    # Nodes in order, and pairs of linked ones.
    rows = table.index.tolist()
    nodes = list(rows[pivot])
    for neighbor in rows[pivot][1:]:
        for node in rows[neighbor][1:k2 + 1]:
            if node not in nodes:
                nodes.append(node)
    links = {(i, j) for i in nodes for j in nodes
             if j in rows[i][1:u + 1] or i in rows[j][1:u + 1]}
    return nodes, links


@pytest.mark.parametrize('k2, u', [(K2, U), (1, 1), (2, 5), (100, 100)])
def test_nodes_and_links(k2, u):
    table, x, _ = world()
    for batch in PivotSubgraphs(table, x, 7, k2, u):
        for b, pivot in enumerate(batch.node.tolist()):
            nodes, links = naive(table, pivot, k2, u)
            size = len(nodes)
            assert batch.index[b, :size].tolist() == nodes
            assert batch.mask[b].tolist() == [
                place < size for place in range(batch.mask.size(1))]
            assert torch.equal(batch.x[b, :size], x[nodes] - x[pivot])
            wanted = torch.tensor([[float((i, j) in links) for j in nodes]
                                   for i in nodes])
            assert torch.equal(batch.adj[b, :size, :size], wanted)


def test_every_node_once():
    table, x, _ = world()
    for batch in PivotSubgraphs(table, x, N, K - 1, U):
        for ids, mask in zip(batch.index, batch.mask):
            assert ids[mask].unique().numel() == int(mask.sum())


def test_padding_is_nothing():
    table, x, _ = world()
    batch = next(iter(PivotSubgraphs(table, x, N, K2, U)))
    padded = ~batch.mask
    assert bool(padded.any())
    # As wide as the largest only.
    assert bool(batch.mask[:, -1].any())
    assert float(batch.x[padded].abs().max()) == 0
    assert float(batch.adj[padded].abs().max()) == 0
    assert float(batch.adj.transpose(1, 2)[padded].abs().max()) == 0
    pivots = batch.node.view(-1, 1).expand_as(batch.index)
    assert torch.equal(batch.index[padded], pivots[padded])


def test_targets():
    table, x, y = world()
    batch = next(iter(PivotSubgraphs(table, x, N, y=y)))
    assert batch.k == K
    assert torch.equal(batch.same, y[table.index] == y.view(-1, 1))
    assert next(iter(PivotSubgraphs(table, x))).same is None


def test_batches_cover_all_nodes_in_another_order():
    table, x, _ = world()
    plain = torch.cat([b.node for b in PivotSubgraphs(table, x, 7)])
    assert torch.equal(plain, torch.arange(N))
    loader = PivotSubgraphs(table, x, 7, shuffle=True, seed=1)
    first = torch.cat([b.node for b in loader])
    loader.set_epoch(1)
    second = torch.cat([b.node for b in loader])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort()[0], plain)
    assert torch.equal(second.sort()[0], plain)


@pytest.mark.parametrize('k', [1, 2])
def test_narrow_tables(k):
    table, x, _ = world(k)
    batch = next(iter(PivotSubgraphs(table, x, N, K2, U)))
    assert batch.k == k
    assert batch.index[:, :k].equal(table.index)
    assert batch.mask.sum(dim=1).max() <= k + (k - 1) * K2
    # Everybody's only neighbour is linked to it.
    if k == 2:
        assert bool((batch.adj[:, 0, 1] == 1).all())
    else:
        assert float(batch.adj.abs().sum()) == 0


def test_bad_arguments():
    table, x, y = world()
    for kwargs, name in ((dict(k2=0), "'k2'"), (dict(u=0), "'u'"),
                         (dict(batch_size=0), "'batch_size'"),
                         (dict(y=y[1:]), "'y'")):
        with pytest.raises(ValueError, match=name):
            PivotSubgraphs(table, x, **kwargs)
    with pytest.raises(ValueError, match="'x'"):
        PivotSubgraphs(table, x[1:])


def test_repr():
    table, x, _ = world()
    assert repr(PivotSubgraphs(table, x, 7, K2, U)) == (
        'PivotSubgraphs(Neighbors(num_nodes=40, k=6), batch_size=7, k2=3, '
        'u=2)')


def test_features_in_half_precision_are_loaded_in_single():
    table, x = world()[:2]
    batch = next(iter(PivotSubgraphs(table, x.half())))
    assert batch.x.dtype == torch.float32
