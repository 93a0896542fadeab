import pytest
import torch
import torch.nn.functional as F

from torch_sdt.ops import connected_components, knn, normalize_features
from torch_sdt.ops.proposals import (
    Proposals,
    cluster_proposals,
    de_overlap,
    proposal_overlap,
    super_vertices,
)

N, K, D = 60, 8, 6


def world(seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(N) % 10
    x = torch.randn(10, D, generator=generator)[y]
    x = normalize_features(x + .3 * torch.randn(N, D, generator=generator))
    return knn(x, K), x, y


def sets(proposals):
    parts = proposals.node.split(proposals.size.tolist())
    return [tuple(part.tolist()) for part in parts]


def clusters(label, low, high):
    groups = [tuple((label == c).nonzero().view(-1).tolist())
              for c in label.unique()]
    return {group for group in groups if low <= len(group) <= high}


# Super-vertices #############################################################


@pytest.mark.parametrize('k', [2, 5, K, 100])
@pytest.mark.parametrize('threshold', [.3, .8])
def test_without_bound_they_are_components(k, threshold):
    table, _, _ = world()
    pairs = [(i, j) for i in range(N) for j, a in zip(
        table.index[i, :k].tolist(), table.similarity[i, :k].tolist())
        if a >= threshold]
    wanted = connected_components(torch.tensor(pairs).t(), N)
    assert torch.equal(super_vertices(table, k, threshold, N), wanted)


def test_bound():
    table, _, _ = world()
    whole = super_vertices(table, K, .1, N)
    assert int(whole.bincount().max()) > 12
    part = super_vertices(table, K, .1, 12)
    assert int(part.bincount().max()) <= 12
    # What was small enough stays as it was.
    small = whole.bincount()[whole] <= 12
    assert clusters(whole[small], 1, 12) == clusters(part[small], 1, 12)


def test_nothing_is_similar_enough():
    table, _, _ = world()
    assert torch.equal(super_vertices(table, K, 1.), torch.arange(N))


# Proposals ##################################################################


def naive(table, x, widths, thresholds, merges, merge_threshold, low, most,
          merged):
    out = set()
    for width in widths:
        for threshold in thresholds:
            part = super_vertices(table, width, threshold, most)
            out |= clusters(part, low, most)
            mean = torch.stack([F.normalize(x[part == c].mean(dim=0), dim=0)
                                for c in range(int(part.max()) + 1)])
            for k, limit in merges:
                near = knn(mean, min(k, mean.size(0)))
                union = super_vertices(near, k, merge_threshold, limit)
                out |= clusters(union[part], low, merged)
    return out


@pytest.mark.parametrize('widths', [(4, ), (3, K)])
@pytest.mark.parametrize('merges', [(), ((2, 3), (3, 5))])
@pytest.mark.parametrize('low, most, merged', [(2, 20, 30), (3, 6, 4)])
def test_every_set_once(widths, merges, low, most, merged):
    table, x, _ = world()
    proposals = cluster_proposals(table, x, widths, (.6, .9), merges, .3, low,
                                  most, merged)
    found = sets(proposals)
    assert len(set(found)) == len(found) == proposals.num_proposals > 0
    assert set(found) == naive(table, x, widths, (.6, .9), merges, .3, low,
                               most, merged)
    assert all(list(part) == sorted(part) for part in found)


def test_unions_hold_a_bounded_number_of_super_vertices():
    table, x, _ = world()
    part = super_vertices(table, K, .7, 20)
    first = clusters(part, 1, N)
    unions = set(sets(cluster_proposals(
        table, x, (K, ), (.7, ), ((3, 4), ), .2, 1, 20, N))) - first
    assert len(unions) > 0
    for union in unions:
        pieces = {part[node].item() for node in union}
        assert 2 <= len(pieces) <= 4
        # And whole ones.
        assert len(union) == sum(int((part == c).sum()) for c in pieces)


def test_order_of_samples_makes_no_difference():
    table, x, _ = world()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    kwargs = dict(widths=(5, ), thresholds=(.7, .9), merges=((2, 4), ),
                  min_size=2)
    plain = set(sets(cluster_proposals(table, x, **kwargs)))
    other = cluster_proposals(knn(x[order], K), x[order], **kwargs)
    back = {tuple(sorted(order[list(part)].tolist()))
            for part in sets(other)}
    assert back == plain and len(plain) > 5


def test_no_proposals():
    table, x, _ = world()
    proposals = cluster_proposals(table, x, (K, ), (1., ), ())
    assert proposals.num_proposals == 0
    assert proposals.node.dtype == proposals.ptr.dtype == torch.long
    assert proposals.ptr.tolist() == [0]
    assert proposals.batch.numel() == 0


def test_opposite_features():
    # Their mean is nothing.
    x = torch.tensor([[1., 0.], [-1., 0.], [0., 1.]])
    table = knn(x, 3)
    proposals = cluster_proposals(table, x, (3, ), (-1., ), ((2, 2), ),
                                  min_size=2)
    assert sets(proposals) == [(0, 1, 2)]


def test_membership():
    proposals = Proposals(torch.tensor([3, 5, 0, 1, 2]),
                          torch.tensor([0, 2, 5]))
    assert proposals.num_proposals == 2
    assert proposals.size.tolist() == [2, 3]
    assert proposals.batch.tolist() == [0, 0, 1, 1, 1]


# Overlap ####################################################################


def test_overlap():
    table, x, y = world()
    proposals = cluster_proposals(table, x, (K, ), (.5, .7, .9), ((2, 5), ),
                                  min_size=2)
    iou, iop = proposal_overlap(proposals, y)
    members = [set((y == c).nonzero().view(-1).tolist()) for c in range(10)]
    mixed = 0
    for b, part in enumerate(sets(proposals)):
        part = set(part)
        most = max(len(part & other) for other in members)
        best = max(len(part & other) / len(part | other) for other in members
                   if len(part & other) == most)
        assert float(iou[b]) == pytest.approx(best)
        assert float(iop[b]) == pytest.approx(most / len(part))
        mixed += most < len(part)
    assert mixed > 0


def test_overlap_of_the_majority():
    # Two of three are of an identity of eight: a third would fit better.
    y = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 0, 2])
    proposals = Proposals(torch.tensor([0, 1, 2, 3, 9]),
                          torch.tensor([0, 3, 5]))
    iou, iop = proposal_overlap(proposals, y)
    assert torch.allclose(iou, torch.tensor([2 / 9, 1 / 2]))
    assert torch.allclose(iop, torch.tensor([2 / 3, 1 / 2]))


# De-overlap #################################################################


def test_best_proposal_wins():
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(1, 6, (12, ), generator=generator)
    node = torch.cat([torch.randperm(30, generator=generator)[:s].sort()[0]
                      for s in size.tolist()])
    proposal = torch.arange(12).repeat_interleave(size)
    score = torch.rand(12, generator=generator)
    score[5] = score[2]
    for threshold in (None, .4, 2.):
        cluster = de_overlap(node, proposal, score, 30, threshold)
        taken = {}
        for p in sorted(range(12), key=lambda p: (-float(score[p]), p)):
            if threshold is None or float(score[p]) >= threshold:
                for i in node[proposal == p].tolist():
                    taken.setdefault(i, p)
        wanted = torch.tensor([taken.get(i, 100 + i) for i in range(30)])
        pairs = set(zip(cluster.tolist(), wanted.tolist()))
        assert len(pairs) == wanted.unique().numel()
        assert int(cluster.max()) + 1 == len(pairs)
        first = [cluster.tolist().index(c) for c in range(len(pairs))]
        assert first == sorted(first)


def test_no_proposal_no_cluster():
    none = torch.empty(0, dtype=torch.long)
    cluster = de_overlap(none, none, torch.empty(0), 4)
    assert torch.equal(cluster, torch.arange(4))
