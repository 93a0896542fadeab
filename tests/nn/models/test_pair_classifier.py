from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from torch_sdt.loader import NeighborPairs
from torch_sdt.nn.models.pair_classifier import PairClassifier, join_pair
from torch_sdt.ops import knn, normalize_features

N, K, D = 36, 8, 12


def world(width=K, n=N, dim=D, identities=6, seed=0, noise=.7):
    # Pairs of a sample and its neighbours, of identities that overlap.
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % identities
    x = torch.randn(identities, dim, generator=generator)[y]
    noise = noise * torch.randn(n, dim, generator=generator)
    x = normalize_features(x + noise)
    table = knn(x, width)
    node = torch.arange(n).repeat_interleave(K - 1)
    pairs = torch.stack([node, knn(x, K).index[:, 1:].reshape(-1)])
    # Entries of unit variance, from which it learns faster.
    loader = NeighborPairs(table, dim**.5 * x, pairs, pairs.size(1), y)
    return next(iter(loader))


def model(pair='concat', seed=0, dim=D, **kwargs):
    torch.manual_seed(seed)
    return PairClassifier(dim, 16, pair, **kwargs).eval()


def swapped(batch):
    return replace(batch, node=batch.other, other=batch.node,
                   index=batch.index.flip(1), x=batch.x.flip(1))


@pytest.mark.parametrize('pair', ['concat', 'product'])
@pytest.mark.parametrize('dim', [2, 5, D, 256])
@pytest.mark.parametrize('width', [1, 2, K])
def test_shapes(width, dim, pair):
    batch = world(width, dim=dim)
    logits = model(pair, dim=dim)(batch)
    assert logits.shape == (N * (K - 1), )
    assert bool(logits.isfinite().all())


def test_join_pair():
    first, second = torch.tensor([[1., -2.]]), torch.tensor([[3., 5.]])
    assert join_pair(first, second).tolist() == [[1, -2, 3, 5]]
    assert join_pair(first, second, 'product').tolist() == [[2, 7, 3, -10]]


@pytest.mark.parametrize('pair', ['concat', 'product'])
def test_forward_is_a_perceptron_on_what_stands_for_a_sample(pair):
    batch, net = world(), model(pair)
    for b in (0, 5, 77):
        i, j = batch.x[b, :, 0]
        both = [i, j] if pair == 'concat' else [(i - j).abs(), i * j]
        expected = net.mlp(torch.cat(both).view(1, -1)).view(())
        assert torch.allclose(net(batch)[b], expected, atol=1e-6)
    # The rest of the table is not read.
    other = replace(batch, x=batch.x[:, :, :1])
    assert torch.equal(net(other), net(batch))


def test_order_of_a_pair():
    batch = world()
    assert torch.allclose(model('product')(swapped(batch)),
                          model('product')(batch), atol=1e-5)
    assert not torch.allclose(model('concat')(swapped(batch)),
                              model('concat')(batch), atol=1e-3)


def test_loss():
    batch, net = world(), model()
    p = net(batch).sigmoid()
    expected = -torch.where(batch.same, p, 1 - p).log().mean()
    assert torch.allclose(net.loss(batch), expected, atol=1e-6)
    with pytest.raises(ValueError, match="no targets .*'y'"):
        net.loss(replace(batch, same=None))


def trained(pair, batch, steps=60):
    net = model(pair, dim=batch.x.size(-1)).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = net.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@pytest.mark.parametrize('pair', ['concat', 'product'])
def test_it_learns(pair):
    batch = world()
    net = trained(pair, batch)
    before = model(pair).loss(batch)
    assert net.loss(batch).item() < before.item() / 4


def test_only_products_compare_strangers_after_few_identities():
    auc = {}
    for pair in ('concat', 'product'):
        kwargs = dict(n=80, dim=32, identities=16, noise=.5)
        net = trained(pair, world(**kwargs))
        other = world(**kwargs, seed=1)
        auc[pair] = roc_auc_score(other.same, net(other).detach())
    assert auc['product'] > .9 > auc['concat'] + .1


def test_bad_arguments():
    with pytest.raises(ValueError, match="'pair' must be one of"):
        PairClassifier(D, pair='sum')
