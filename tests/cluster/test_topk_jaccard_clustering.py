import os.path as osp

import numpy as np
import pytest
import torch

from torch_sdt.cluster import CosineMapEquation, TopKJaccardClustering
from torch_sdt.cluster._selection import (
    Partition,
    judge,
    likelihoods,
    nested,
    select,
    silhouettes,
)
from torch_sdt.datasets import FeatureFiles, SyntheticFaces
from torch_sdt.metrics import bcubed_scores, pairwise_scores
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import normalize_features
from torch_sdt.ops.background import estimate_background

SHARED = osp.join(osp.dirname(osp.realpath(__file__)), '..', '..', '..',
                  'shared', 'data')


def small_world(images=(5, 30), identities=60, seed=0):
    data = SyntheticFaces('ms1m', num_identities=identities, seed=seed,
                          split='test', images_per_identity=images)
    return normalize_features(data.x, center=True), data.y


def test_beats_tuned_cosine_on_small_identities():
    x, y = small_world((1, 6), 300)
    neighbors = Neighbors.build(x)
    ours = pairwise_scores(
        y, TopKJaccardClustering().fit_predict(x, neighbors=neighbors)).fscore
    tuned = max(
        pairwise_scores(y, CosineMapEquation(t).fit_predict(
            x, neighbors=neighbors)).fscore for t in np.arange(.1, .8, .05))
    assert ours > tuned


@pytest.mark.parametrize('images,identities', [
    ((1, 6), 300), ((20, 40), 40), ((150, 200), 8), ((500, 700), 5)])
def test_small_and_large_identities(images, identities):
    x, y = small_world(images, identities)
    labels = TopKJaccardClustering().fit_predict(x)
    assert bcubed_scores(y, labels).fscore > .8


@pytest.mark.skipif(not osp.isdir(SHARED), reason='needs ../shared/data')
def test_real_faces():
    data = FeatureFiles(SHARED, 'facenet_lfw', dim=128)
    labels = TopKJaccardClustering(center=True).fit_predict(np.array(data.x))
    assert pairwise_scores(data.y, labels).fscore > .97
    assert bcubed_scores(data.y, labels).fscore > .98


def test_what_it_reports():
    x, _ = small_world()
    fitted = TopKJaccardClustering().fit(x)
    assert fitted.k_.shape == fitted.threshold_.shape == (x.size(0), )
    assert fitted.k_.min() >= 1 and fitted.k_.max() <= 80
    thresholds = [level.threshold for level in fitted.levels_]
    assert thresholds == sorted(thresholds)
    assert set(fitted.threshold_.tolist()) <= set(
        torch.tensor(thresholds).tolist())
    assert fitted.background_.scale > 0


@pytest.mark.parametrize('identities', [2, 3, 4])
def test_few_identities(identities):
    # Where a third of all pairs and more are of one identity.
    x, y = small_world((100, 150), identities, seed=1)
    labels = TopKJaccardClustering().fit_predict(x)
    assert pairwise_scores(y, labels).fscore > .9
    assert bcubed_scores(y, labels).fscore > .9


def test_silhouettes_agree_with_their_definition():
    x, _ = small_world((3, 8), 20)
    neighbors = Neighbors.build(x)
    background = estimate_background(x, 0)
    cluster = torch.arange(x.size(0)) % 7
    cluster[0] = 7  # a singleton
    found = silhouettes(x, neighbors, Partition.of(x, cluster), background)
    cosine = x @ x.t()
    for i in range(x.size(0)):
        others = [m for m in range(8) if m != cluster[i]]
        to = sorted((float(cosine[i, cluster == m].mean()) for m in others),
                    reverse=True)
        to = [max(value, background.location) for value in to]
        own = (cluster == cluster[i]).nonzero().view(-1)
        own = own[own != i]
        if own.numel() == 0:
            expected = -(to[0] - to[1]) / (1 - to[1])
        else:
            a = float(cosine[i, own].mean())
            expected = (a - to[0]) / (1 - min(a, to[0]))
        assert float(found[i]) == pytest.approx(expected, abs=1e-4)


def test_silhouettes_look_beyond_the_table():
    # A table that holds all samples leaves no cluster out; one that holds
    # nothing but the sample itself leaves it to the nearest means.
    x, y = small_world((32, 48), 60)
    background = estimate_background(x, 0)
    partition = Partition.of(x, torch.from_numpy(y))
    expected, found = (
        silhouettes(x, Neighbors.build(x, k), partition, background)
        for k in (x.size(0), 1))
    assert float((found - expected).abs().mean()) < .01


def test_likelihood_prefers_the_truth():
    x, y = small_world()
    background = estimate_background(x, 0)
    truth = torch.from_numpy(y)
    generator = torch.Generator().manual_seed(0)
    shuffled = truth[torch.randperm(truth.numel(), generator=generator)]
    alone = torch.arange(truth.numel())
    value = {name: float(
        likelihoods(Partition.of(x, c), background).sum())
             for name, c in (('truth', truth), ('alone', alone),
                             ('shuffled', shuffled),
                             ('pairs', truth // 2))}
    assert value['alone'] == pytest.approx(0, abs=1e-2)
    assert value['truth'] > max(value['pairs'], value['shuffled'], 0)


def test_nested_partitions():
    partitions = [torch.tensor([0, 0, 0, 1, 1, 1]),
                  torch.tensor([0, 0, 1, 1, 2, 2]),
                  torch.tensor([0, 1, 2, 2, 2, 3])]
    tree = nested(partitions, 1)
    assert tree[1].tolist() == [0, 0, 1, 1, 2, 2]
    for coarse, fine in zip(tree, tree[1:]):
        for m in fine.unique():
            assert coarse[fine == m].unique().numel() == 1


def test_select_takes_each_cluster_at_its_best_level():
    tree = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])]
    scores = [torch.tensor([1., 5.]).double(),
              torch.tensor([2., 2., 1., 1.]).double()]
    some = torch.zeros(4, dtype=torch.bool)

    def score(depth, asked):
        assert asked.all()
        return scores[depth]

    cluster, level = select(tree, score, 0, some, 80, .2)
    assert level.tolist() == [1, 1, 0, 0]
    assert cluster[0] != cluster[1] and cluster[2] == cluster[3]
    # The margin: parts that gain less than it do not part.
    scores[1] = torch.tensor([.55, .55, 1., 1.]).double()
    assert select(tree, score, 0, some, 80, .2)[1].tolist() == [0, 0, 0, 0]
    assert select(tree, score, 0, some, 80, .0)[1].tolist() == [1, 1, 0, 0]
    # Unions do not stand, however much they score, and nobody asks.
    scores[0] = None
    assert select(tree, score, 1, some, 80, .0)[1].tolist() == [1, 1, 1, 1]


def test_select_keeps_together_what_the_table_cannot_show_as_one():
    tree = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 3])]
    scores = [torch.tensor([1., 1.]).double(),
              torch.tensor([.65, .65, .65, .65]).double()]
    full = torch.tensor([True, True, True, False])
    wanted = []

    def score(depth, asked):
        wanted.append((depth, asked.tolist()))
        return scores[depth]

    # Parts that are no wider than the table are seen, and so is what does
    # not trust all of it: there a gain of 20 % is enough.
    for base in (0, 1):
        found = select(tree, score, base, full, 80, .2)[1]
        assert found.tolist() == [1, 1, 1, 1]
        found = select(tree, score, base, full, 1, .2)[1]
        assert found.tolist() == [0, 0, 1, 1]
    # Of unions those that may stand are asked for, and no others.
    assert wanted[-2:] == [(1, [True] * 4), (0, [True, False])]


def test_clusters_that_are_not_asked_for_change_nothing_for_those_that_are():
    x, y = small_world((5, 40), 30)
    neighbors, background = Neighbors.build(x), estimate_background(x, 0)
    cluster = torch.from_numpy(y)
    every = judge(x, neighbors, cluster, background)
    asked = torch.arange(30) % 3 == 1
    some = judge(x, neighbors, cluster, background, asked)
    assert torch.equal(some.likelihood, every.likelihood)
    assert torch.allclose(some.separation[asked], every.separation[asked])
    assert int(some.separation.count_nonzero()) == int(asked.sum())
