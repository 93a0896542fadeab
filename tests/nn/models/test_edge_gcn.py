from dataclasses import replace

import pytest
import torch

from torch_sdt.loader import NeighborPairs
from torch_sdt.nn.models.edge_gcn import EdgeGCN
from torch_sdt.ops import knn, normalize_features

N, K, D, C = 36, 8, 12, 10


def samples(width=K, dim=D):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, dim, generator=generator)[y]
    x = normalize_features(x + torch.randn(N, dim, generator=generator))
    return x, knn(x, width), y


def world(width=K, dim=D):
    # Each sample with each of its neighbours, in one batch.
    x, table, y = samples(width, dim)
    node = torch.arange(N).repeat_interleave(K - 1)
    pairs = torch.stack([node, knn(x, K).index[:, 1:].reshape(-1)])
    return next(iter(NeighborPairs(table, x, pairs, pairs.size(1), y)))


def model(pair='concat', seed=0, dim=D):
    torch.manual_seed(seed)
    return EdgeGCN(dim, C, pair).eval()


@pytest.mark.parametrize('pair', ['concat', 'product'])
@pytest.mark.parametrize('dim', [2, 5, D, 256])
@pytest.mark.parametrize('width', [1, 2, K])
def test_shapes(width, dim, pair):
    logits = model(pair, dim=dim)(world(width, dim))
    assert logits.shape == (N * (K - 1), )
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize('width', [1, K, N])
def test_embed_is_the_convolution_of_the_whole_graph(width):
    # H = ReLU([X ; A X] W + b), A = the row-normalised graph of cosines.
    x, table, _ = samples(width)
    net = model()
    adj = torch.zeros(N, N).scatter_(
        1, table.index, table.similarity.clamp(min=0))
    # Of all samples some cosines are negative, and count 0.
    assert bool((table.similarity < 0).any()) == (width == N)
    adj = adj / adj.sum(dim=1, keepdim=True)
    # The layer's weights, of what comes from neighbours and of oneself.
    near, own = net.conv.lin_rel, net.conv.lin_root
    x = D**.5 * x
    expected = (own(x) + near(adj @ x)).relu()
    out = net.embed(x[table.index] / D**.5)
    assert out.shape == (N, C)
    assert torch.allclose(out, expected, atol=1e-5)
    assert 0 < float((out == 0).float().mean()) < 1


def test_neighbors_come_in_any_order():
    x, table, _ = samples()
    near, net = x[table.index], model()
    order = torch.cat([torch.zeros(1, dtype=torch.long),
                       1 + torch.randperm(K - 1)])
    assert torch.allclose(net.embed(near[:, order]), net.embed(near),
                          atol=1e-5)
    # The sample itself is not one of them.
    assert not torch.allclose(net.embed(near.flip(1)), net.embed(near),
                              atol=1e-2)


@pytest.mark.parametrize('pair', ['concat', 'product'])
def test_score(pair):
    net = model(pair)
    first, second = torch.randn(3, 4, C), torch.randn(3, 4, C)
    out = net.score(first, second)
    assert out.shape == (3, 4)
    for b, r in ((0, 0), (1, 3), (2, 1)):
        i, j = first[b, r], second[b, r]
        both = [i, j] if pair == 'concat' else [(i - j).abs(), i * j]
        expected = net.mlp(torch.cat(both).view(1, -1))
        assert torch.allclose(out[b, r], expected.view(()), atol=1e-6)
    symmetric = torch.allclose(net.score(second, first), out, atol=1e-5)
    assert symmetric == (pair == 'product')


def test_forward_scores_what_it_embeds():
    x, table, _ = samples()
    net, batch = model(), world()
    hidden = net.embed(x[table.index])
    expected = net.score(hidden[batch.node], hidden[batch.other])
    assert torch.allclose(net(batch), expected, atol=1e-5)


def test_loss():
    batch, net = world(), model()
    p = net(batch).sigmoid()
    expected = -torch.where(batch.same, p, 1 - p).log().mean()
    assert torch.allclose(net.loss(batch), expected, atol=1e-6)
    with pytest.raises(ValueError, match="no targets .*'y'"):
        net.loss(replace(batch, same=None))


@pytest.mark.parametrize('pair', ['concat', 'product'])
def test_it_learns(pair):
    batch, net = world(), model(pair).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    before = net.loss(batch).item()
    for _ in range(80):
        loss = net.loss(batch)
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert net.loss(batch).item() < before / 3


def test_bad_arguments():
    with pytest.raises(ValueError, match="'pair' must be one of"):
        EdgeGCN(D, pair='sum')
