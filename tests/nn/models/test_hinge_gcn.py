from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.testing import withCUDA

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.nn.models.hinge_gcn import HingeGCN, hinge_loss
from torch_sdt.ops import knn, normalize_features

N, K, D = 36, 8, 12


def world(width=K, noise=.7):
    # Six identities of six, which overlap. All nodes, in one batch.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 6
    x = torch.randn(6, D, generator=generator)[y]
    x = normalize_features(x + noise * torch.randn(N, D, generator=generator))
    neighbors = knn(x, width)
    loader = NeighborSubgraphs(
        neighbors, x, N, pairs=False,
        relations=[neighbors.similarity, y[neighbors.index].float()])
    return next(iter(loader))


def model(in_channels=D, seed=0, **kwargs):
    torch.manual_seed(seed)
    return HingeGCN(in_channels, **{'hidden_channels': 16, **kwargs})


def graph(n=10, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, D, generator=generator)
    adj = torch.rand(*batch, n, n, generator=generator)
    adj = adj * (torch.rand(*batch, n, n, generator=generator) < .4)
    adj = adj + torch.eye(n)
    return x, adj / adj.sum(dim=-1, keepdim=True)


def naive_loss(z, y, margin=.9, negative_margin=1.):
    total = 0.
    for vectors, ids in zip(z.detach(), y.tolist()):
        short, hardest = [], -negative_margin
        for r, a in enumerate(ids):
            for s, b in enumerate(ids):
                cosine = float(vectors[r] @ vectors[s])
                if a != b:
                    hardest = max(hardest, cosine)
                elif r != s:
                    short.append(max(0., margin - cosine))
        total += sum(short) / max(len(short), 1)
        total += max(0., negative_margin + hardest)
    return total / len(z)


# Features ###################################################################


def test_forward_is_what_the_formula_says():
    net = model()
    torch.nn.init.normal_(net.mlp[1].weight)  # A slope each channel.
    x, adj = graph()
    out = net(x, adj)
    assert out.shape == (10, 16)

    def unit(v):
        return v / v.norm()

    def relu(v):
        return torch.where(v > 0, v, torch.zeros_like(v))

    first = [unit(relu(net.lin1.weight @ sum(
        adj[i, j] * x[j] for j in range(10)) + net.lin1.bias))
        for i in range(10)]
    for i in range(10):
        h = relu(net.lin2.weight @ sum(
            adj[i, j] * first[j] for j in range(10)) + net.lin2.bias)
        h = net.mlp[0].weight @ h + net.mlp[0].bias
        h = torch.where(h > 0, h, net.mlp[1].weight * h)
        assert torch.allclose(out[i], unit(h), atol=1e-5)


@withCUDA
@pytest.mark.parametrize('n', [1, 2, 10])
def test_dense_sparse_and_in_batches(n, device):
    net = model().to(device)
    x, adj = (t.to(device) for t in graph(n, batch=(3, )))
    out = net(x, adj)
    assert out.shape == (3, n, 16)
    assert torch.allclose(out.norm(dim=-1), torch.ones(3, n, device=device))
    for b in range(3):
        for matrix in (adj[b], adj[b].to_sparse()):
            assert torch.allclose(net(x[b], matrix), out[b], atol=1e-5)


def test_order_of_nodes_does_not_matter():
    net, (x, adj) = model(), graph()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    out = net(x[order], adj[order][:, order])
    assert torch.allclose(out, net(x, adj)[order], atol=1e-6)


def test_two_steps_far():
    # A path: what the node at its end is told comes from two steps away.
    adj = torch.eye(5) + torch.diag(torch.ones(4), 1)
    adj = adj / adj.sum(dim=1, keepdim=True)
    net, (x, _) = model(), graph(5)
    out = net(x, adj)[0]
    for node, heard in ((1, True), (2, True), (3, False), (4, False)):
        other = x.clone()
        other[node] += 1
        assert torch.equal(net(other, adj)[0], out) != heard


def test_length_of_hidden_features_does_not_matter():
    # They are normalised in between.
    net, (x, adj) = model(), graph()
    torch.nn.init.zeros_(net.lin1.bias)
    assert torch.allclose(net(3 * x, adj), net(x, adj), atol=1e-5)


# Loss #######################################################################


@pytest.mark.parametrize('margin,negative_margin', [(.9, 1.), (.5, .2),
                                                    (1., 0.)])
def test_hinge_loss(margin, negative_margin):
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(6, 7, 3, generator=generator), dim=-1)
    y = torch.randint(3, (6, 7), generator=generator)
    # No pair of two identities, and none of one.
    y[0], y[1] = 2, torch.arange(7)
    loss = hinge_loss(z, y, margin, negative_margin)
    expected = naive_loss(z, y, margin, negative_margin)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    order = torch.randperm(7, generator=generator)
    assert torch.allclose(
        hinge_loss(z[:, order], y[:, order], margin, negative_margin), loss)


def test_hinge_loss_of_what_is_known():
    y = torch.tensor([[5, 5, 7, 7]])
    a, b = torch.tensor([1., 0.]), torch.tensor([0., 1.])
    for z, value in (([a, a, -a, -a], 0.),    # All that is asked for.
                     ([a, a, b, b], 1.),      # The others one too near.
                     ([a, a, a, a], 2.),
                     ([a, b, -a, -b], 1.9),   # .9 of all pairs, and 1.
                     ([a, -a, a, -a], 3.9)):
        loss = hinge_loss(torch.stack(z).unsqueeze(0), y)
        assert loss.item() == pytest.approx(value, abs=1e-6)


def test_hinge_loss_looks_at_the_hardest_only():
    z = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0))
    z = F.normalize(z, dim=-1).requires_grad_()
    hinge_loss(z, torch.arange(5).view(1, 5)).backward()
    hardest = (z[0] @ z[0].t()).fill_diagonal_(-1).argmax()
    moved = z.grad[0].abs().sum(dim=1) > 0
    assert moved.nonzero().view(-1).tolist() == sorted(
        divmod(int(hardest), 5))


@pytest.mark.parametrize('width', [1, 2, 5, K])
def test_loss_of_a_batch(width):
    batch, net = world(width), model(margin=.8, negative_margin=.5)
    weight = batch.relation[:, :2].amax(dim=1).clamp(min=0)
    z = net(batch.x, weight / weight.sum(dim=2, keepdim=True))
    y = batch.index % 6
    assert net.loss(batch).item() == pytest.approx(
        naive_loss(z, y, .8, .5), abs=1e-5)


def test_loss_reads_edges_in_both_directions_and_none_below_0():
    batch, net = world(), model()
    loss = net.loss(batch)
    edges, identity = batch.relation[:, :2], batch.relation[:, 2:]
    flipped = torch.cat([edges.flip(1), identity], dim=1)
    assert torch.allclose(net.loss(replace(batch, relation=flipped)), loss)
    one_way = edges.clone()
    one_way[:, 1] = 0
    one_way = torch.cat([one_way, identity], dim=1)
    assert not torch.allclose(net.loss(replace(batch, relation=one_way)),
                              loss, atol=1e-4)
    # What is not there, and what speaks against a pair, are the same.
    below = torch.cat([torch.where(edges < .3, -edges, edges), identity], 1)
    none = torch.cat([torch.where(edges < .3, 0., edges), identity], 1)
    assert torch.equal(net.loss(replace(batch, relation=below)),
                       net.loss(replace(batch, relation=none)))


def test_loss_knows_the_identities_of_everybody():
    batch, net = world(), model()
    loss = net.loss(batch)
    # By their names, of which only equality counts.
    other = batch.relation.clone()
    other[:, 2:] = 100 - other[:, 2:]
    assert torch.equal(net.loss(replace(batch, relation=other)), loss)
    # Those that are not of the identity in the middle, all apart.
    y = batch.relation[:, 2, 0]
    apart = torch.where(y == y[:, :1], y, 50. + torch.arange(K))
    other[:, 2, 0] = apart
    assert not torch.allclose(net.loss(replace(batch, relation=other)), loss,
                              atol=1e-4)


def test_loss_without_identities():
    batch, net = world(), model()
    for relation in (None, batch.relation[:, :2]):
        with pytest.raises(ValueError, match='two relations'):
            net.loss(replace(batch, relation=relation))


def test_it_learns():
    batch, net = world(), model()
    adj = batch.relation[:, :2].amax(dim=1).clamp(min=0)
    adj = adj / adj.sum(dim=2, keepdim=True)
    y = batch.index % 6
    same = y.unsqueeze(1) == y.unsqueeze(2)

    def distance():
        z = net(batch.x, adj).detach()
        cosine = z @ z.transpose(1, 2)
        return (cosine[same].mean() - cosine[~same].mean()).item()

    before = distance()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    first = net.loss(batch).item()
    for _ in range(100):
        loss = net.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        optimizer.step()
    # Features that are all the same cost 2, which is where it begins.
    assert loss.item() < .7 * first
    assert distance() > before + .5
