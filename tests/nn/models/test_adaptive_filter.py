from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn import AdaptiveFilter
from torch_sdt.nn.models.topk_predictor import relative_huber
from torch_sdt.ops import knn, normalize_features

N, K, D = 36, 8, 12


def world(width=K):
    # Six identities of six, which overlap. All nodes, in one batch.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, D, generator=generator)[y]
    x = normalize_features(x + .7 * torch.randn(N, D, generator=generator))
    loader = NeighborSubgraphs(knn(x, width), x, N, y=y)
    return next(iter(loader))


def model(seed=0, **kwargs):
    torch.manual_seed(seed)
    return AdaptiveFilter(K, D, **{'hidden_channels': 16, **kwargs}).eval()


@pytest.mark.parametrize('width', [1, 3, K])
def test_shapes(width):
    batch = world(width)
    assert model()(batch).shape == (N, )
    k = model().predict(batch)
    assert k.shape == (N, ) and k.dtype == torch.long
    assert int(k.min()) >= 1 and int(k.max()) <= width


@pytest.mark.parametrize('width', [3, K])
def test_predictions_are_shares_of_the_width_it_was_built_for(width):
    batch, filter = world(width), model()
    torch.nn.init.zeros_(filter.out.weight)
    # The share has no bounds of its own, what is predicted has.
    for share in (-2., 0., .05, .1, .3, .5, .9, 1., 5.):
        torch.nn.init.constant_(filter.out.bias, share)
        k = min(max(round(share * K), 1), width)
        assert bool((filter.predict(batch) == k).all())
        assert bool((filter.predict(batch, beta=2.) == k).all())


def test_it_reads_features_in_order():
    batch, filter = world(), model()
    expected = filter(batch)
    other = replace(batch, similarity=torch.zeros(N, K, K))
    assert torch.equal(filter(other), expected)
    rotation = torch.linalg.qr(torch.randn(D, D))[0]
    for x in (batch.x @ rotation, batch.x.flip(1)):
        assert not torch.allclose(filter(replace(batch, x=x)), expected,
                                  atol=1e-3)
    # Both directions: the last is heard by the first, and the first by the
    # last.
    step, _ = filter.lstm(batch.x)
    for rank, heard in ((0, K - 1), (K - 1, 0)):
        x = batch.x.clone()
        x[:, heard] *= -1
        assert not torch.allclose(filter.lstm(x)[0][:, rank], step[:, rank])


def test_loss_is_relative():
    batch, filter = world(), model()
    ratio = filter(batch) * K / batch.topk
    expected = F.huber_loss(ratio, torch.ones(N))
    assert torch.allclose(filter.loss(batch), expected, atol=1e-6)
    with pytest.raises(ValueError, match="no targets .*'y'"):
        filter.loss(replace(batch, same=None, topk=None))


def test_it_learns():
    batch, filter = world(), model(dropout=0.).train()
    optimizer = torch.optim.AdamW(filter.parameters(), lr=1e-2)
    for _ in range(120):
        loss = filter.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in filter.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    filter.eval()
    # Less than the best constant costs.
    assert filter.loss(batch).item() < .7 * min(
        relative_huber(torch.full((N, ), share), batch.topk, K).item()
        for share in torch.linspace(0, 1, 50).tolist())
