import numpy as np
import pytest
import torch
from sklearn.base import clone

import torch_sdt.typing
from torch_sdt.cluster.edges import mean_fscore
from torch_sdt.cluster.ltc import LTC, ProposalRule
from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import normalize_features
from torch_sdt.ops.proposals import de_overlap, proposal_overlap

SMALL = dict(k=8, merges=((2, 8), (3, 5)), epochs=2, batch_size=16)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    # They take longer than the rest.
    monkeypatch.setattr(torch_sdt.typing, 'WITH_MATPLOTLIB', False)


def world(split='train'):
    data = SyntheticFaces('ms1m', num_identities=20, dim=16,
                          images_per_identity=(3, 6), split=split)
    return data.x, data.y


class Oracle(torch.nn.Module):
    # Knows the quality of every proposal.
    def __init__(self, iou, iop):
        super().__init__()
        self.quality = torch.stack([iou, iop], dim=1)

    def forward(self, batch):
        return self.quality[batch.node]


class Segmenter(torch.nn.Module):
    # Knows who is of the identity of a proposal's first member.
    def __init__(self, y):
        super().__init__()
        self.y, self.asked = y, []

    def forward(self, batch):
        self.asked += batch.node.tolist()
        label = self.y[batch.n_id]
        first = torch.tensor([int((batch.batch == b).nonzero()[0])
                              for b in range(batch.node.numel())])
        return (label == label[first][batch.batch]).float() - .5


def told(**kwargs):
    # A model without training, whose networks know everything.
    x, y = world('test')
    model = LTC(**{**SMALL, 'thresholds': (.2, .4, .6), **kwargs})
    model.k_, model._largest = SMALL['k'], 12
    table = model._table(normalize_features(x))
    y = torch.as_tensor(y)
    proposals = model._proposals(table, 12)
    iou, iop = proposal_overlap(proposals, y)
    model.detect_, model.segment_ = Oracle(iou, iop), None
    if model.segment:
        model.segment_ = Segmenter(y)
    return model, table, y, proposals, iou, iop


def test_without_segmentation():
    model, table, y, proposals, iou, _ = told(segment=False)
    scored = model._measure(table)
    assert torch.equal(scored.node, proposals.node)
    assert torch.equal(scored.proposal, proposals.batch)
    for tau in (-1., .5, 2.):
        cluster = model._partition(scored, ProposalRule(tau, 12))
        wanted = de_overlap(proposals.node, proposals.batch, iou, y.numel(),
                            tau)
        assert torch.equal(cluster, wanted)
    # Proposals by their size or at random are worse than by their quality.
    best = model._partition(scored, ProposalRule(-1., 12))
    random = torch.rand(iou.numel(), generator=torch.Generator())
    other = de_overlap(proposals.node, proposals.batch, random, y.numel())
    assert mean_fscore(y.numpy(), best.numpy()) > mean_fscore(
        y.numpy(), other.numpy()) + .05


def test_segmentation_splits_what_it_is_asked():
    model, table, y, proposals, iou, iop = told()
    scored = model._measure(table)
    asked = (iop >= .1) & (iop <= .9)
    assert 0 < int(asked.sum()) < asked.numel()
    assert model.segment_.asked == asked.nonzero().view(-1).tolist()
    parts = [scored.node[scored.proposal == p].tolist()
             for p in range(scored.score.numel())]
    wanted, score = [], []
    for members, ask, quality in zip(
            proposals.node.split(proposals.size.tolist()), asked, iou):
        kept = torch.ones_like(members, dtype=torch.bool)
        if bool(ask):
            kept = y[members] == y[members[0]]
        for half in (members[kept], members[~kept]):
            if half.numel() > 0:
                wanted.append(half.tolist())
                score.append(float(quality))
    assert [sorted(part) for part in parts] == wanted
    assert scored.score.tolist() == score
    # Split by the labels, proposals make better clusters.
    plain, *_ = told(segment=False)
    before, after = (
        mean_fscore(y.numpy(), m._partition(
            m._measure(table), ProposalRule(-1., 12)).numpy())
        for m in (plain, model))
    assert after > before


def test_what_is_segmented():
    model, table, _, proposals, _, iop = told(segmented=(.5, .6))
    model._measure(table)
    asked = (iop >= .5) & (iop <= .6)
    assert model.segment_.asked == asked.nonzero().view(-1).tolist()
    model, table, _, proposals, iou, _ = told(segmented=(-1., -1.))
    scored = model._measure(table)
    assert model.segment_.asked == []
    assert torch.equal(scored.score, iou)


def test_members_of_larger_proposals_are_alone():
    model, table, y, _, _, _ = told(segment=False, merges=())
    small = model._proposals(table, 3)
    assert int(small.size.max()) <= 3
    assert int(model._proposals(table, 12).size.max()) > 3
    # Unions may be larger, or not, as is wanted.
    model.set_params(merges=((2, 8), ))
    assert int(model._proposals(table, 3).size.max()) <= 3
    model.set_params(merged_size=20)
    assert int(model._proposals(table, 3).size.max()) > 3


def test_rules(tmp_path):
    x, y = world()
    model = LTC(**SMALL).fit(x, y)
    sizes = np.bincount(y)
    # The largest of the identities that train.
    assert model.rule_.max_size in (2 * sizes).tolist()
    assert model.rule_.max_size <= 2 * sizes.max()
    given = clone(model).set_params(tau=.3, max_size=9).fit(x, y)
    assert given.rule_ == ProposalRule(.3, 9)
    # A model that was read makes the same proposals.
    path = str(tmp_path / 'model.safetensors')
    given.save(path)
    read = LTC.load(path)
    xt, _ = world('test')
    assert np.array_equal(read.predict(xt), given.predict(xt))
    path = str(tmp_path / 'other.safetensors')
    model.save(path)
    read = LTC.load(path)
    assert not hasattr(read, '_largest')
    assert np.array_equal(read.predict(xt), model.predict(xt))
    # And forgets them when it learns anew.
    small = np.isin(y, np.flatnonzero(sizes <= 4))
    read.fit(x[small], y[small])
    assert read.rule_.max_size <= 8 < model.rule_.max_size


def test_segmenter_learns_from_mixed_proposals(monkeypatch):
    x, y = world()
    model = LTC(**SMALL, thresholds=(.2, .5))
    seen = {}
    monkeypatch.setattr(
        model, '_train', lambda name, loader, validate, shown: seen.update(
            {name: loader}))
    monkeypatch.setattr(model, '_choose', lambda *args: None)
    model.fit(x, y)
    _, iop = seen['detect'].overlap
    assert torch.equal(seen['detect'].nodes, torch.arange(iop.numel()))
    mixed = (iop >= .2) & (iop <= .8)
    assert 0 < int(mixed.sum()) < iop.numel()
    assert torch.equal(seen['segment'].nodes, mixed.nonzero().view(-1))


def test_segmenter_learns_from_all_if_all_are_pure():
    # Identities far apart: nothing is mixed.
    y = np.repeat(np.arange(10), 5)
    x = np.eye(10)[y] + .01 * np.random.default_rng(0).normal(size=(50, 10))
    model = LTC(**{**SMALL, 'k': 5, 'merges': ()}, thresholds=(.9, )).fit(x, y)
    assert model.validation_score_ == 1
    assert len(model.history_['segment']) == 2
    assert np.array_equal(model.predict(x), y)


def test_nothing_to_learn_from():
    x, y = world()
    with pytest.raises(ValueError, match="'thresholds'"):
        LTC(**{**SMALL, 'merges': ()}, thresholds=(1., )).fit(x, y)


def test_no_proposals_no_clusters():
    x, y = world()
    model = LTC(**SMALL, merge_threshold=.9).fit(x, y)
    assert np.array_equal(model.predict(np.eye(16)[:6]), np.arange(6))


def test_order_of_samples_makes_no_difference():
    x, y = world()
    model = LTC(**SMALL).fit(x, y)
    order = np.random.default_rng(0).permutation(y.size)
    labels, other = model.predict(x).copy(), model.predict(x[order])
    pairs = set(zip(labels[order].tolist(), other.tolist()))
    assert len(pairs) == labels.max() + 1 == other.max() + 1


def test_bad_arguments():
    x, y = world()
    for name, values in (
            ('thresholds', [(), (1.5, )]), ('widths', [(), (1, ), (9, )]),
            ('merges', [((1, 2), ), ((2, 1), ), ((2, 3, 4), )]),
            ('merge_threshold', [-1.1]), ('min_size', [1]),
            ('max_size', [1]), ('merged_size', [1]),
            ('segmented', [(.9, .1), (.1, ), (0., 2.)])):
        for value in values:
            with pytest.raises(ValueError, match=f"'{name}'"):
                LTC(**{**SMALL, name: value}).fit(x, y)
