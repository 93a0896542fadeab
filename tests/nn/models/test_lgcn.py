from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.loader.pivot_subgraphs import PivotSubgraphs
from torch_sdt.nn.models.lgcn import LGCNModel
from torch_sdt.ops import knn, normalize_features

N, K, D = 40, 6, 5


def world(k=K, batch_size=N, nodes=None, **kwargs):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 5
    x = torch.randn(5, D, generator=generator)[y]
    x = normalize_features(x + .8 * torch.randn(N, D, generator=generator))
    loader = PivotSubgraphs(knn(x, k), x, batch_size, 3, 2, y=y)
    if nodes is not None:
        return loader.gather(torch.tensor(nodes))
    return next(iter(loader))


def network(seed=0):
    torch.manual_seed(seed)
    model = LGCNModel(D, 16)
    # Other statistics than at the start.
    model.norm.running_mean.uniform_(-.2, .2)
    model.norm.running_var.uniform_(.5, 2)
    return model.eval()


def naive(model, batch, b):
    # One subgraph alone, node by node.
    size = int(batch.mask[b].sum())
    x = batch.x[b, :size]
    x = ((x - model.norm.running_mean) /
         (model.norm.running_var + model.norm.eps).sqrt())
    adj = batch.adj[b, :size, :size]
    for conv in model.convs:
        mean = torch.stack([
            x[adj[i] > 0].mean(dim=0) if bool((adj[i] > 0).any())
            else torch.zeros(x.size(1)) for i in range(size)])
        weight = torch.cat([conv.lin_root.weight, conv.lin_rel.weight], dim=1)
        x = (torch.cat([x, mean], dim=1) @ weight.t() +
             conv.lin_rel.bias).relu()
    return model.mlp(x[:batch.k]).view(-1)


def test_each_subgraph_alone():
    batch, model = world(), network()
    assert bool((~batch.mask).any())
    logits = model(batch)
    assert logits.shape == (N, K)
    for b in range(N):
        assert torch.allclose(logits[b], naive(model, batch, b), atol=1e-5)


def test_order_of_far_nodes_makes_no_difference():
    batch, model = world(), network()
    order = torch.arange(batch.index.size(1))
    order[K:] = order[K:].flip(0)
    other = replace(batch, index=batch.index[:, order],
                    mask=batch.mask[:, order], x=batch.x[:, order],
                    adj=batch.adj[:, order][:, :, order])
    assert torch.allclose(model(other), model(batch), atol=1e-5)


def test_far_nodes_are_read():
    batch, model = world(), network()
    other = replace(batch, x=batch.x.clone())
    other.x[:, K:] += 1.
    assert not torch.allclose(model(other), model(batch), atol=1e-3)
    # Padding is not.
    other = replace(batch, x=batch.x + (~batch.mask).unsqueeze(-1).float())
    assert torch.allclose(model(other), model(batch), atol=1e-6)


def test_statistics_without_padding():
    batch = world()
    model = LGCNModel(D, 16).train()
    assert not model.norm.affine
    model(batch)
    nodes = batch.x[batch.mask]
    assert torch.allclose(model.norm.running_mean, .1 * nodes.mean(dim=0),
                          atol=1e-6)
    assert torch.allclose(model.norm.running_var,
                          .9 + .1 * nodes.var(dim=0), atol=1e-6)


def test_loss():
    batch, model = world(), network()
    wanted = F.binary_cross_entropy_with_logits(
        model(batch)[:, 1:], batch.same[:, 1:].float())
    assert torch.allclose(model.loss(batch), wanted)
    with pytest.raises(ValueError, match="'y'"):
        model.loss(replace(batch, same=None))


def test_learns():
    batch = world()
    torch.manual_seed(0)
    model = LGCNModel(D, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=.01)
    before = float(model.loss(batch).detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < .5 * before
    assert all(p.grad is not None and bool((p.grad != 0).any())
               for p in model.parameters())


@pytest.mark.parametrize('k', [2, 3])
def test_narrow_tables(k):
    logits = network()(world(k))
    assert logits.shape == (N, k) and bool(logits.isfinite().all())
    # In training as well, with one pivot in the batch.
    model = network().train()
    assert bool(model.loss(world(k, nodes=[3])).isfinite())
