from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn import TopKPredictor
from torch_sdt.nn.models.topk_predictor import relative_huber
from torch_sdt.ops import expected_topk, knn, normalize_features, topk_target

N, K, D = 36, 8, 6
SMALL = dict(hidden_channels=16, ffn_channels=24, num_layers=1, heads=2)


def world(width=K, **kwargs):
    # Six identities of six, which overlap. All nodes, in one batch.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, D, generator=generator)[y]
    x = normalize_features(x + .7 * torch.randn(N, D, generator=generator))
    neighbors = knn(x, width)
    loader = NeighborSubgraphs(neighbors, x, N, y=y, **kwargs)
    return next(iter(loader)), neighbors, y


def predictor(head='rank', seed=0, **kwargs):
    torch.manual_seed(seed)
    return TopKPredictor(K, head, **{**SMALL, **kwargs}).eval()


@pytest.mark.parametrize('width', [1, 3, K])
def test_shapes(width):
    batch, _, _ = world(width)
    assert predictor('rank')(batch).shape == (N, width)
    share = predictor('regression')(batch)
    assert share.shape == (N, )
    assert bool(((share > 0) & (share < 1)).all())
    for head in ('rank', 'regression'):
        k = predictor(head).predict(batch)
        assert k.shape == (N, ) and k.dtype == torch.long
        assert int(k.min()) >= 1 and int(k.max()) <= width


def test_rank_head_predicts_the_expected_best():
    batch, _, _ = world()
    model = predictor()
    for beta in (.3, 1.):
        k = model.predict(batch, beta)
        assert torch.equal(k, expected_topk(model(batch).sigmoid(), beta))
    assert bool((model.predict(batch, .01) == 1).all())
    assert bool((model.predict(batch, 100.) == K).all())
    # A model that knows says what is best.
    torch.nn.init.zeros_(model.out.lin_out.weight)
    for bias, k in ((-50., 1), (50., K)):
        torch.nn.init.constant_(model.out.lin_out.bias, bias)
        assert bool((model.predict(batch) == k).all())


@pytest.mark.parametrize('width', [3, K])
def test_regression_head_predicts_shares_of_the_width_it_was_built_for(width):
    batch, _, _ = world(width)
    model = predictor('regression')
    torch.nn.init.zeros_(model.out.weight)
    # From the smallest share to the largest: never nobody, never more than
    # there are.
    for share in (1e-6, .05, .1, .3, .5, .9, 1 - 1e-6):
        torch.nn.init.constant_(model.out.bias, torch.tensor(
            share, dtype=torch.double).logit().item())
        k = min(max(round(share * K), 1), width)
        assert bool((model.predict(batch) == k).all())


def test_loss_of_ranks_is_that_of_all_neighbours_but_oneself():
    batch, _, _ = world()
    model = predictor()
    logits, same = model(batch)[:, 1:], batch.same[:, 1:]
    p = torch.where(same, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(model.loss(batch), -p.log().mean(), atol=1e-6)
    assert not bool(same.all()) and bool(same.any())
    # The node itself is no question.
    assert torch.equal(model.loss(replace(
        batch, same=batch.same.index_fill(1, torch.tensor([0]), False))),
        model.loss(batch))


def test_loss_of_regression_is_relative():
    batch, neighbors, y = world(beta=2.)
    assert torch.equal(batch.topk, topk_target(neighbors, y, 2.))
    model = predictor('regression')
    loss = []
    for share, k in zip(model(batch).tolist(), batch.topk.tolist()):
        error = abs(share * K / k - 1)
        loss.append(error**2 / 2 if error < 1 else error - .5)
    assert model.loss(batch).item() == pytest.approx(sum(loss) / N, abs=1e-6)
    # Both sides of the Huber loss.
    assert max(loss) > .5 > min(loss)


@pytest.mark.parametrize('head', ['rank', 'regression'])
def test_loss_of_experts(head):
    batch, _, _ = world()
    model = predictor(head, experts=3)
    loss = model.loss(batch)
    if head == 'rank':
        plain = F.binary_cross_entropy_with_logits(
            model(batch)[:, 1:], batch.same[:, 1:].float())
    else:
        plain = F.huber_loss(model(batch) * K / batch.topk, torch.ones(N))
    assert torch.allclose(loss - plain, .01 * model.encoder.balance_loss(),
                          atol=1e-6)
    assert model.encoder.balance_loss().item() > 0


@pytest.mark.parametrize('head', ['rank', 'regression'])
@pytest.mark.parametrize('kind', [
    dict(attention='vanilla'), dict(attention='diff'),
    dict(attention='diff', lambda_form='reparam'),
    dict(attention='diff', experts=3), dict(in_channels=D),
], ids=str)
def test_it_learns(head, kind):
    batch, _, _ = world()
    model = predictor(head, **kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    model.eval()
    # Less than the best constant costs.
    if head == 'rank':
        share = batch.same[:, 1:].float().mean()
        constant = -share * share.log() - (1 - share) * (1 - share).log()
    else:
        constant = min(relative_huber(torch.full((N, ), share), batch.topk, K)
                       for share in torch.linspace(0, 1, 50).tolist())
    assert model.loss(batch) < .7 * constant


def test_arguments_reach_the_encoder():
    model = predictor(attention='sparse-diff', margin=3, mask='logits')
    assert (model.encoder.attention, model.encoder.margin) == ('sparse-diff',
                                                               3)
    with pytest.raises(TypeError, match='layers'):
        predictor(layers=3)
    with pytest.raises(ValueError, match="'head' must be .*'rank'.*'mean'"):
        predictor('mean')


@pytest.mark.parametrize('head', ['rank', 'regression'])
def test_batch_without_targets(head):
    batch, _, _ = world()
    with pytest.raises(ValueError, match="no targets .*'y'"):
        predictor(head).loss(replace(batch, same=None, topk=None))
