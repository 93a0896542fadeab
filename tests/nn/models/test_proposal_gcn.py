from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GCNConv

from torch_sdt.loader.proposal_graphs import ProposalGraphs
from torch_sdt.nn.models.proposal_gcn import GCND, GCNS, ProposalGCN
from torch_sdt.ops import knn, normalize_features
from torch_sdt.ops.proposals import cluster_proposals

N, K, D, C = 40, 6, 5, 16


def proposal_graphs():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 8
    x = torch.randn(8, D, generator=generator)[y]
    x = normalize_features(x + .6 * torch.randn(N, D, generator=generator))
    table = knn(x, K)
    proposals = cluster_proposals(table, x, (K, ), (-.5, .7, .8, .9),
                                  ((2, 3), ), min_size=2)
    return ProposalGraphs(table, x, proposals, 100, y=y)


def world():
    return next(iter(proposal_graphs()))


def network(cls, seed=0, **kwargs):
    torch.manual_seed(seed)
    return cls(D, hidden_channels=C, **kwargs).eval()


def dense(batch):
    n = batch.n_id.numel()
    adj = torch.zeros(n, n)
    adj[batch.edge_index[1], batch.edge_index[0]] = batch.edge_weight
    return adj


def test_trunk_is_two_graph_convolutions():
    batch, model = world(), network(GCND)
    adj = dense(batch)
    hidden = (adj @ batch.x @ model.lin1.weight.t()).relu()
    hidden = (adj @ hidden @ model.lin2.weight.t()).relu()
    out = model.embed(batch, batch.x)
    assert out.shape == (batch.n_id.numel(), C // 8)
    assert torch.allclose(out, hidden, atol=1e-5)
    # The layer of PyG says the same.
    conv = GCNConv(D, C, add_self_loops=False, normalize=False, bias=False)
    conv.lin.weight = model.lin1.weight
    first = conv(batch.x, batch.edge_index, batch.edge_weight)
    assert torch.allclose(first, adj @ batch.x @ model.lin1.weight.t(),
                          atol=1e-5)


def test_dropout_between_the_two():
    batch = world()
    model = network(GCND, dropout=.999999).train()
    assert not bool(model.embed(batch, batch.x).any())
    assert bool(model.eval().embed(batch, batch.x).any())
    model = network(ProposalGCN, out_channels=1, dropout=0.).train()
    assert torch.equal(model.embed(batch, batch.x),
                       model.eval().embed(batch, batch.x))


def test_quality_is_of_the_maximum():
    batch, model = world(), network(GCND)
    hidden = model.embed(batch, batch.x)
    out = model(batch)
    assert out.shape == (batch.node.numel(), 2)
    for b in range(batch.node.numel()):
        most = hidden[batch.batch == b].max(dim=0)[0]
        assert torch.allclose(out[b], model.lin_out(most), atol=1e-5)


@pytest.mark.parametrize('cls', [GCND, GCNS])
def test_each_proposal_alone(cls):
    loader, model = proposal_graphs(), network(cls)
    batch = next(iter(loader))
    out = model(batch)
    for b in range(batch.node.numel()):
        alone = model(loader.gather(torch.tensor([b])))
        own = out[b:b + 1] if cls is GCND else out[batch.batch == b]
        assert torch.allclose(alone, own, atol=1e-5)


def test_loss_of_the_detector():
    batch, model = world(), network(GCND)
    out = model(batch)
    wanted = (F.mse_loss(out[:, 0], batch.iou) +
              F.mse_loss(out[:, 1], batch.iop)) / 2
    assert torch.allclose(model.loss(batch), wanted)
    with pytest.raises(ValueError, match="'y'"):
        model.loss(replace(batch, iou=None))


def test_seed_is_a_channel():
    batch, model = world(), network(GCNS)
    assert model.lin1.in_features == D + 1
    first = torch.tensor([int((batch.batch == b).nonzero()[0])
                          for b in range(batch.node.numel())])
    mask = torch.zeros(batch.n_id.numel(), 1)
    mask[first] = 1
    hidden = model.embed(batch, torch.cat([batch.x, mask], dim=1))
    assert torch.allclose(model(batch, first),
                          model.lin_out(hidden).view(-1), atol=1e-5)
    assert not torch.allclose(model(batch, first), model(batch, first + 1),
                              atol=1e-4)


def test_seed_in_the_middle():
    batch, model = world(), network(GCNS)
    seeds = []
    for b in range(batch.node.numel()):
        own = (batch.batch == b).nonzero().view(-1)
        x = batch.x[own]
        seeds.append(int(own[(x @ x.mean(dim=0)).argmax()]))
    assert torch.allclose(model(batch), model(batch, torch.tensor(seeds)),
                          atol=1e-6)


def test_loss_of_the_segmenter():
    batch, model = world(), network(GCNS)
    seen = []
    forward = model.forward

    def spy(batch, seed=None):
        seen.append(seed)
        return forward(batch, seed)

    model.forward = spy
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model.loss(batch).detach())
    # Random seeds, one in each proposal.
    for seed in seen:
        assert torch.equal(batch.batch[seed],
                           torch.arange(batch.node.numel()))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    # Who is of the seed's identity?
    logits = forward(batch, seen[0])
    wanted = batch.y == batch.y[seen[0][batch.batch]]
    assert 0 < int(wanted.sum()) < wanted.numel()
    assert torch.allclose(losses[0], F.binary_cross_entropy_with_logits(
        logits, wanted.float()))
    with pytest.raises(ValueError, match="'y'"):
        model.loss(replace(batch, y=None))


def test_seeds_of_identical_members():
    # One seed a proposal, of equals the first.
    batch, model = world(), network(GCNS)
    batch.x = torch.ones_like(batch.x)
    first = torch.tensor([int((batch.batch == b).nonzero()[0])
                          for b in range(batch.node.numel())])
    assert torch.allclose(model(batch), model(batch, first), atol=1e-6)


@pytest.mark.parametrize('cls', [GCND, GCNS])
def test_learns(cls):
    batch = world()
    torch.manual_seed(0)
    model = cls(D, hidden_channels=64, dropout=0.)
    optimizer = torch.optim.Adam(model.parameters(), lr=.01)
    before = float(model.loss(batch).detach())
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < .8 * before
    assert all(bool((p.grad != 0).any()) for p in model.parameters())
