import pytest
import torch

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import GCNE, GCNV
from torch_sdt.ops import normalize_features


def setup(n=40, k=6, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = normalize_features(torch.randn(n, dim, generator=generator))
    y = torch.randint(4, (n, ), generator=generator)
    torch.manual_seed(seed)
    return Neighbors.search(x, k), x, y


def whole_graph(neighbors):
    # With the self-loops of rank 0.
    n, k = neighbors.index.shape
    target = torch.arange(n).repeat_interleave(k)
    return (torch.stack([neighbors.index.reshape(-1), target]),
            neighbors.similarity.reshape(-1))


def test_confidence_of_a_graph_and_of_batches():
    neighbors, x, _ = setup()
    model = GCNV(8, 16).eval()
    confidence, hidden = model(x, *whole_graph(neighbors))
    loader = NeighborSubgraphs(neighbors, x, 7, pairs=False)
    parts = [model(*batch.to_bipartite()) for batch in loader]
    assert torch.allclose(torch.cat([p[0] for p in parts]), confidence,
                          atol=1e-5)
    assert torch.allclose(torch.cat([p[1] for p in parts]), hidden, atol=1e-5)


def test_confidence_definition():
    neighbors, x, _ = setup()
    model = GCNV(8, 16)
    weight = neighbors.similarity.clamp(min=0)
    a = torch.zeros(40, 40).scatter(1, neighbors.index, weight)
    a = a / a.sum(dim=1, keepdim=True)
    conv = model.conv
    expected = (x @ conv.lin_root.weight.t() +
                a @ x @ conv.lin_rel.weight.t() + conv.lin_rel.bias).relu()
    assert torch.allclose(model.embed(x, *whole_graph(neighbors)), expected,
                          atol=1e-5)


def test_confidence_target():
    neighbors, x, y = setup()
    batch = next(iter(NeighborSubgraphs(neighbors, x, 40, y=y, pairs=False)))
    model = GCNV(8, 16)
    sign = torch.where(y[neighbors.index] == y.view(-1, 1), 1., -1.)
    wanted = (sign * neighbors.similarity).mean(dim=1)
    found, _ = model(*batch.to_bipartite())
    expected = (found - wanted).square().mean()
    assert torch.allclose(model.loss(batch), expected, rtol=1e-4)


def candidates(neighbors, x, y=None):
    density = torch.arange(40.)
    denser = (density[neighbors.index] > density.view(-1, 1)).float()
    return NeighborSubgraphs(neighbors, x, 40, y=y, pairs=False,
                             relations=[neighbors.similarity, denser])


def test_candidates_are_the_denser_neighbours():
    neighbors, x, _ = setup()
    logits, candidate = GCNE(8, 16)(next(iter(candidates(neighbors, x))))
    assert logits.shape == candidate.shape == (40, 6)
    assert torch.equal(candidate,
                       neighbors.index > torch.arange(40).view(-1, 1))


def test_only_candidates_speak():
    neighbors, x, y = setup()
    model = GCNE(8, 16).eval()
    batch = next(iter(candidates(neighbors, x, y)))
    before, candidate = model(batch)
    loss = model.loss(batch)
    # Whatever the features of the others are.
    other = ~candidate
    other[:, 0] = False  # The node itself is what features are relative to.
    batch.x = torch.where(other.unsqueeze(-1), batch.x + 1., batch.x)
    after, _ = model(batch)
    assert torch.allclose(before[candidate], after[candidate], atol=1e-5)
    assert torch.allclose(loss, model.loss(batch), atol=1e-5)
    batch.x = batch.x + 1.  # Shifts all: relative features are the same.
    assert torch.allclose(model(batch)[0], after, atol=1e-4)


def test_order_of_neighbours_does_not_matter():
    neighbors, x, _ = setup()
    model = GCNE(8, 16).eval()
    batch = next(iter(candidates(neighbors, x)))
    before, _ = model(batch)
    order = torch.tensor([0, 3, 1, 5, 2, 4])
    batch.x = batch.x[:, order]
    batch.relation = batch.relation[:, :, order][:, :, :, order]
    assert torch.allclose(model(batch)[0], before[:, order], atol=1e-5)


def test_no_candidate_is_no_loss():
    neighbors, x, y = setup()
    batch = next(iter(candidates(neighbors, x, y)))
    batch.relation[:, 2:] = 0
    loss = GCNE(8, 16).loss(batch)
    assert loss.requires_grad and float(loss.detach()) == 0


def test_relations_are_needed():
    neighbors, x, _ = setup()
    batch = next(iter(NeighborSubgraphs(neighbors, x, 40)))
    with pytest.raises(ValueError, match='two relations'):
        GCNE(8)(batch)
    with pytest.raises(ValueError, match="identities 'y'"):
        GCNV(8).loss(batch)
