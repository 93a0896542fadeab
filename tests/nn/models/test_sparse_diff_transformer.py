from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn import SparseDiffTransformer
from torch_sdt.ops import knn, normalize_features

N, K, D = 36, 8, 6
SMALL = dict(hidden_channels=16, ffn_channels=24, num_layers=1, heads=2)
KINDS = [
    dict(attention='vanilla'),
    dict(attention='diff'),
    dict(attention='sparse-diff', margin=1),
    dict(attention='sparse-diff', margin=1, mask='logits'),
    dict(attention='sparse-diff', margin=1, lambda_form='reparam'),
    dict(attention='sparse-diff', margin=1, experts=3),
]
all_kinds = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: '-'.join(
    str(value) for value in kind.values()))


def world(width=K):
    # Six identities of six, which overlap, and what a first model might say.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, D, generator=generator)[y]
    x = normalize_features(x + .7 * torch.randn(N, D, generator=generator))
    neighbors = knn(x, width)
    verdict = .5 * torch.rand(N, width, generator=generator)
    verdict += .4 * (y[neighbors.index] == y.view(-1, 1))
    k = torch.randint(1, width + 1, (N, ), generator=generator)
    loader = NeighborSubgraphs(neighbors, x, N, relations=[verdict], k=k, y=y)
    return next(iter(loader))


def transformer(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SparseDiffTransformer(
        K, **{**SMALL, 'relations': 2, **kwargs}).eval()


@all_kinds
@pytest.mark.parametrize('width', [1, 3, K])
def test_shapes(kind, width):
    out = transformer(**kind)(world(width))
    assert out.shape == (N, width) and bool(out.isfinite().all())


def test_head_judges_pairs():
    # A multilayer perceptron on both tokens, side by side.
    model, batch = transformer(), world()
    z = model.encoder(batch)
    head = model.out
    weight = torch.cat([head.lin_center.weight, head.lin_token.weight], dim=1)
    pair = torch.cat([z[:, :1].expand_as(z), z], dim=-1)
    hidden = F.gelu(pair @ weight.t() + head.lin_token.bias)
    expected = (hidden @ head.lin_out.weight[0]) + head.lin_out.bias
    assert torch.allclose(model(batch), expected, atol=1e-5)


def test_sparse_by_default():
    model, batch = transformer(margin=0), world()
    assert model.encoder.attention == 'sparse-diff'
    with pytest.raises(ValueError, match="'k'"):
        model(replace(batch, k=None))
    # How many are attended to makes a difference.
    k = torch.full((N, ), 2)
    assert not torch.allclose(model(replace(batch, k=k)),
                              model(replace(batch, k=3 * k)), atol=1e-3)


def test_all_neighbours_are_judged_those_masked_by_their_own_token():
    # Nodes trust two. What a node beyond is told of itself changes the
    # verdict on it alone.
    model, batch = transformer(margin=0), world()
    batch = replace(batch, k=torch.full((N, ), 2))
    similarity = batch.similarity.clone()
    similarity[:, 5] = 0.
    change = (model(replace(batch, similarity=similarity)) -
              model(batch)).abs().amax(dim=0)
    assert change[5].item() > 1e-3
    assert change[[0, 1, 2, 3, 4, 6, 7]].max().item() < 1e-5


@all_kinds
def test_it_learns(kind):
    batch, model = world(), transformer(**kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.loss(batch).item()
    for _ in range(30):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    model.eval()
    assert model.loss(batch).item() < .7 * first
    # And more of its verdicts are right than of "all are" or "none is".
    same = batch.same[:, 1:]
    right = ((model(batch)[:, 1:] > 0) == same).float().mean()
    share = same.float().mean()
    assert right > max(share, 1 - share) + .05


def test_loss():
    batch = world()
    model = transformer(experts=3)
    loss = model.loss(batch)
    logits, same = model(batch)[:, 1:], batch.same[:, 1:]
    p = torch.where(same, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -p.log().mean() + .01 * model.encoder.balance_loss()
    assert torch.allclose(loss, expected, atol=1e-6)
    assert model.encoder.balance_loss().item() > 0
    with pytest.raises(ValueError, match="no targets .*'y'"):
        model.loss(replace(batch, same=None, topk=None))


def test_autocast():
    model, batch = transformer(), world()
    expected = model(batch)
    with torch.autocast('cpu', torch.bfloat16):
        out, loss = model(batch), model.loss(batch)
    assert torch.allclose(out.float(), expected, atol=.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model.loss(batch).item(), abs=.02)
