from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborPairs
from torch_sdt.nn.models.pair_transformer import PairTransformer
from torch_sdt.ops import knn, normalize_features

N, K, D = 40, 5, 12
SMALL = dict(hidden_channels=16, head_channels=24, ffn_channels=24,
             num_layers=2, heads=2)


def world(width=K, dim=D, num_pairs=60):
    # Eight identities of five, which overlap. All pairs, in one batch.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 8
    x = torch.randn(8, dim, generator=generator)[y]
    x = normalize_features(x + torch.randn(N, dim, generator=generator))
    neighbors = knn(x, width)
    pairs = torch.randint(N, (2, num_pairs), generator=generator)
    return next(iter(NeighborPairs(neighbors, x, pairs, num_pairs, y)))


def network(seed=0, k=K, dim=D, **kwargs):
    torch.manual_seed(seed)
    return PairTransformer(k, dim, **{**SMALL, **kwargs}).eval()


@torch.no_grad()
def test_is_what_it_is_defined_to_be():
    batch, model = world(), network()
    encoder = model.encoder
    out = model(batch)
    # Where each side's ranks are found among the rows of weights.
    place = [2 * r for r in range(K)] + [2 * r + 1 for r in range(K)]
    for b in range(0, 60, 7):
        x = torch.cat([batch.x[b, 0], batch.x[b, 1]])
        tokens = []
        for r in range(2 * K):
            token = encoder.lin_feature(x[r]) + encoder.rank[place[r]]
            for s in range(2 * K):
                if s != r:
                    token = token + (float(x[r] @ x[s]) *
                                     encoder.relation_weight[0, place[s]])
            tokens.append(token)
        z = torch.stack(tokens).unsqueeze(0)
        for layer in encoder.layers:
            z = layer(z, None, None)
        z = encoder.norm(z)[0]
        both = torch.cat([x[0], model.lin(z[0]), x[K], model.lin(z[K])])
        assert torch.allclose(model.mlp(both)[0], out[b], atol=1e-5)


@pytest.mark.parametrize('width', [1, 2, K])
@pytest.mark.parametrize('dim', [3, 7, 32])
def test_shapes(width, dim):
    out = network(dim=dim)(world(width, dim))
    assert out.shape == (60, ) and bool(out.isfinite().all())


def test_pairs_are_independent():
    batch, model = world(), network()
    out = model(batch)
    for b in (3, 17):
        one = replace(batch, node=batch.node[b:b + 1],
                      index=batch.index[b:b + 1], x=batch.x[b:b + 1])
        assert torch.allclose(model(one)[0], out[b], atol=1e-5)


def test_what_a_narrower_table_does_not_have_is_not_read():
    batch, model = world(3), network()
    expected = model(batch)
    with torch.no_grad():
        model.encoder.relation_weight[:, 6:].normal_()
        model.encoder.rank[6:].normal_()
    assert torch.equal(model(batch), expected)
    # All that it has, is.
    with torch.no_grad():
        model.encoder.rank[5].normal_()
    assert not torch.allclose(model(batch), expected, atol=1e-3)


@pytest.mark.parametrize('side', [0, 1])
@pytest.mark.parametrize('rank', [0, 2, K - 1])
def test_every_neighbour_of_both_sides_is_heard(side, rank):
    batch, model = world(), network()
    x = batch.x.clone()
    x[:, side, rank] = normalize_features(torch.randn(
        60, D, generator=torch.Generator().manual_seed(1)))
    changed = (model(replace(batch, x=x)) - model(batch)).abs() > 1e-5
    assert float(changed.float().mean()) > .9


def test_without_features_only_cosines_count():
    batch, model = world(), network()
    rotation = torch.linalg.qr(torch.randn(
        D, D, generator=torch.Generator().manual_seed(1)))[0]
    other = replace(batch, x=batch.x @ rotation)
    assert not torch.allclose(model(other), model(batch), atol=1e-3)
    with torch.no_grad():
        model.encoder.lin_feature.weight.zero_()
        model.mlp[0].weight[:, :D].zero_()
        model.mlp[0].weight[:, 2 * D:3 * D].zero_()
    assert torch.allclose(model(other), model(batch), atol=1e-5)


def test_loss():
    batch, model = world(), network()
    p = model(batch).sigmoid()
    expected = -torch.where(batch.same, p, 1 - p).log().mean()
    assert torch.allclose(model.loss(batch), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no targets .*'y'"):
        model.loss(replace(batch, same=None))


def test_too_wide():
    with pytest.raises(ValueError, match=r'at most 5 neighbours \(got 6\)'):
        network()(world(6))


def test_it_learns():
    batch, model = world(), network(dropout=0.).train()
    share = batch.same.float().mean().expand(60)
    constant = F.binary_cross_entropy(share, batch.same.float())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    assert model.eval().loss(batch).item() < .5 * constant.item()
