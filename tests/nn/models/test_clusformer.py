from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn.models.clusformer import ClusformerModel
from torch_sdt.ops import knn, normalize_features

N, K, D = 30, 6, 5


def world(k=K):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 5
    x = torch.randn(5, D, generator=generator)[y]
    x = normalize_features(x + .8 * torch.randn(N, D, generator=generator))
    return next(iter(NeighborSubgraphs(knn(x, k), x, N, y=y)))


def network(k=K, seed=0):
    torch.manual_seed(seed)
    return ClusformerModel(D, k, 16, 2, 4, 24).eval()


def test_one_logit_a_neighbour():
    batch, model = world(), network()
    logits = model(batch)
    assert logits.shape == (N, K)
    # Each node alone says the same.
    one = replace(batch, node=batch.node[3:4], index=batch.index[3:4],
                  similarity=batch.similarity[3:4], x=batch.x[3:4])
    assert torch.allclose(model(one), logits[3:4], atol=1e-5)


def test_tokens_are_a_set():
    # A token's rank is known by its cosines only.
    batch, model = world(), network()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = replace(batch, x=batch.x[:, order],
                    similarity=batch.similarity[:, order])
    assert torch.allclose(model(other), model(batch), atol=1e-5)
    # Their columns are ranks.
    other = replace(batch, similarity=batch.similarity[:, :, order])
    assert not torch.allclose(model(other), model(batch), atol=1e-3)


@pytest.mark.parametrize('part', ['x', 'similarity'])
def test_reads_features_and_cosines(part):
    batch, model = world(), network()
    value = getattr(batch, part).clone()
    value[:, 2] *= -1
    # All neighbours hear of one that is another.
    change = (model(replace(batch, **{part: value})) - model(batch)).abs()
    assert bool((change.amax(dim=0) > 1e-4).all())


def test_queries_are_ranks():
    batch, model = world(), network()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    logits = model(batch)
    with torch.no_grad():
        model.query.weight.copy_(model.query.weight[order].clone())
    assert torch.allclose(model(batch), logits[:, order], atol=1e-5)


def test_narrow_tables():
    batch, model = world(3), network()
    logits = model(batch)
    assert logits.shape == (N, 3)
    # Cosines with those who are not there are 0.
    wide = network(3)
    state = model.state_dict()
    state['lin.weight'] = state['lin.weight'][:, :D + 3]
    state['query.weight'] = state['query.weight'][:3]
    wide.load_state_dict(state)
    assert torch.allclose(wide(batch), logits, atol=1e-5)
    with pytest.raises(ValueError, match='6 neighbours'):
        model(world(7))


def test_loss():
    batch, model = world(), network()
    wanted = F.binary_cross_entropy_with_logits(
        model(batch)[:, 1:], batch.same[:, 1:].float())
    assert torch.allclose(model.loss(batch), wanted)
    with pytest.raises(ValueError, match="'y'"):
        model.loss(replace(batch, same=None))


def test_learns():
    batch, model = world(), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    before = float(model.loss(batch).detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < .7 * before
