import pytest
import torch

from torch_sdt.loader.proposal_graphs import ProposalGraphs
from torch_sdt.ops import knn, normalize_features
from torch_sdt.ops.proposals import (
    Proposals,
    cluster_proposals,
    proposal_overlap,
)

N, K, D = 40, 6, 5


def world():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 8
    x = torch.randn(8, D, generator=generator)[y]
    x = normalize_features(x + .6 * torch.randn(N, D, generator=generator))
    table = knn(x, K)
    proposals = cluster_proposals(table, x, (K, ), (-.5, .7, .8, .9),
                                  ((2, 3), ), min_size=2)
    assert proposals.num_proposals > 6
    return table, x, y, proposals


def naive(table, members):
    # Row-normalised, with a loop each.
    n = len(members)
    adj = torch.eye(n)
    for a, i in enumerate(members):
        for b, j in enumerate(members):
            for p, q in ((i, j), (j, i)):
                row = table.index[p].tolist()
                if p != q and q in row:
                    cosine = float(table.similarity[p, row.index(q)])
                    adj[a, b] = max(float(adj[a, b]), cosine, 0.)
    return adj / adj.sum(dim=1, keepdim=True)


def dense(batch):
    n = batch.n_id.numel()
    adj = torch.zeros(n, n)
    source, target = batch.edge_index
    assert (target * n + source).unique().numel() == source.numel()
    # Sorted by target, and by source within.
    assert torch.equal((target * n + source).sort()[0], target * n + source)
    adj[target, source] = batch.edge_weight
    return adj


@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_graphs(batch_size):
    table, x, y, proposals = world()
    parts = proposals.node.split(proposals.size.tolist())
    iou, iop = proposal_overlap(proposals, y)
    seen = []
    for batch in ProposalGraphs(table, x, proposals, batch_size, y=y):
        adj = dense(batch)
        for b, p in enumerate(batch.node.tolist()):
            own = batch.batch == b
            members = batch.n_id[own]
            assert torch.equal(members, parts[p])
            assert torch.equal(batch.x[own], x[members])
            assert torch.equal(batch.y[own], y[members])
            assert torch.allclose(adj[own][:, own],
                                  naive(table, members.tolist()), atol=1e-6)
            # No proposal hears of another.
            assert float(adj[own][:, ~own].abs().sum()) == 0
            assert batch.iou[b] == iou[p] and batch.iop[b] == iop[p]
        seen += batch.node.tolist()
    assert seen == list(range(proposals.num_proposals))


def test_negative_cosines_are_no_links():
    x = normalize_features(torch.tensor([[1., 0.], [-1., .1], [.9, .1]]))
    proposals = Proposals(torch.tensor([0, 1]), torch.tensor([0, 2]))
    batch = next(iter(ProposalGraphs(knn(x, 3), x, proposals)))
    assert torch.equal(dense(batch), torch.eye(2))


def test_chosen_proposals_and_order():
    table, x, _, proposals = world()
    chosen = torch.tensor([5, 2, 3])
    loader = ProposalGraphs(table, x, proposals, 2, chosen)
    assert torch.cat([b.node for b in loader]).tolist() == [5, 2, 3]
    assert next(iter(loader)).y is None and next(iter(loader)).iou is None
    loader = ProposalGraphs(table, x, proposals, 3, shuffle=True)
    first = torch.cat([b.node for b in loader])
    loader.set_epoch(1)
    second = torch.cat([b.node for b in loader])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort()[0], second.sort()[0])


def test_bad_arguments():
    table, x, y, proposals = world()
    with pytest.raises(ValueError, match="'x'"):
        ProposalGraphs(table, x[1:], proposals)
    with pytest.raises(ValueError, match="'y'"):
        ProposalGraphs(table, x, proposals, y=y[1:])
    with pytest.raises(ValueError, match="'batch_size'"):
        ProposalGraphs(table, x, proposals, 0)
    for bad in (-1, proposals.num_proposals):
        with pytest.raises(ValueError, match="'nodes'"):
            ProposalGraphs(table, x, proposals, nodes=torch.tensor([bad]))
    with pytest.raises(ValueError, match="'proposals'"):
        ProposalGraphs(table, x, Proposals(torch.tensor([0, N]),
                                           torch.tensor([0, 2])))


def test_repr():
    table, x, _, proposals = world()
    count = proposals.num_proposals
    assert repr(ProposalGraphs(table, x, proposals, 7)) == (
        f'ProposalGraphs(Neighbors(num_nodes=40, k=6), batch_size=7, '
        f'num_proposals={count})')


def test_members_must_be_ascending():
    table, x, y, proposals = world()
    node = proposals.node.clone()
    node[:2] = node[:2].flip(0)
    with pytest.raises(ValueError, match='must be ascending'):
        ProposalGraphs(table, x, Proposals(node, proposals.ptr))


def test_an_empty_proposal_overlaps_with_nothing():
    proposals = Proposals(torch.tensor([0, 1]), torch.tensor([0, 2, 2]))
    iou, iop = proposal_overlap(proposals, torch.tensor([0, 0, 1]))
    assert iou.tolist() == [1, 0] and iop.tolist() == [1, 0]


def test_features_in_half_precision_are_loaded_in_single():
    table, x, y, proposals = world()
    batch = next(iter(ProposalGraphs(table, x.half(), proposals)))
    assert batch.x.dtype == torch.float32
