from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn.models.local_connectivity import LocalConnectivity
from torch_sdt.ops import knn, normalize_features

N, K, D = 40, 8, 12
SMALL = dict(hidden_channels=16, ffn_channels=24, num_layers=2, heads=2)


def world(width=K, dim=D):
    # Eight identities of five, which overlap. All nodes, in one batch.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 8
    x = torch.randn(8, dim, generator=generator)[y]
    x = normalize_features(x + torch.randn(N, dim, generator=generator))
    return next(iter(NeighborSubgraphs(knn(x, width), x, N, y=y)))


def network(seed=0, dim=D, **kwargs):
    torch.manual_seed(seed)
    return LocalConnectivity(K, dim, **{**SMALL, **kwargs}).eval()


@torch.no_grad()
def test_is_what_it_is_defined_to_be():
    batch, model = world(), network()
    encoder, head = model.encoder, model.head
    out = model(batch)
    for b in range(0, N, 7):
        x, tokens = batch.x[b], []
        for r in range(K):
            token = encoder.lin_feature(x[r]) + encoder.rank[r]
            for s in range(K):
                if s != r:
                    token = token + (float(x[r] @ x[s]) *
                                     encoder.relation_weight[0, s])
            tokens.append(token)
        z = torch.stack(tokens).unsqueeze(0)
        for layer in encoder.layers:
            z = layer(z, None, None)
        z = encoder.norm(z)[0]
        for r in range(K):
            hidden = F.gelu(head.lin_center(z[0]) + head.lin_token(z[r]))
            assert torch.allclose(head.lin_out(hidden)[0], out[b, r],
                                  atol=1e-5)


@pytest.mark.parametrize('width', [1, 2, K])
@pytest.mark.parametrize('dim', [3, 7, 32])
def test_shapes(width, dim):
    out = network(dim=dim)(world(width, dim))
    assert out.shape == (N, width) and bool(out.isfinite().all())


def test_without_features_only_cosines_count():
    batch, model = world(), network()
    rotation = torch.linalg.qr(torch.randn(
        D, D, generator=torch.Generator().manual_seed(1)))[0]
    other = replace(batch, x=batch.x @ rotation)
    assert not torch.allclose(model(other), model(batch), atol=1e-3)
    with torch.no_grad():
        model.encoder.lin_feature.weight.zero_()
    assert torch.allclose(model(other), model(batch), atol=1e-5)


def test_the_batch_stays_as_it_is():
    batch = world()
    x = batch.x.clone()
    network()(batch)
    assert torch.equal(batch.x, x)


def test_loss_is_of_the_others():
    batch, model = world(), network()
    p = model(batch).sigmoid()
    expected = -torch.where(batch.same, p, 1 - p).log()[:, 1:].mean()
    assert torch.allclose(model.loss(batch), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no targets .*'y'"):
        model.loss(replace(batch, same=None))


def test_too_wide():
    with pytest.raises(ValueError, match=r'at most 8 neighbours .got 9'):
        network()(world(9))


def test_it_learns():
    batch, model = world(), network(dropout=0.).train()
    same = batch.same[:, 1:].float()
    constant = F.binary_cross_entropy(same.mean().expand(same.shape), same)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    assert model.eval().loss(batch).item() < .6 * constant.item()
