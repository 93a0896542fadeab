import math

import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.datasets import SyntheticFaces
from torch_sdt.ops import estimate_background, knn, normalize_features
from torch_sdt.ops.search import CellSearch, cell_search


def unit(n, d=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize_features(torch.randn(n, d, generator=generator))


def faces(n=3000):
    return normalize_features(SyntheticFaces('ms1m', num_images=n, dim=64).x)


def results(search, k):
    n = search.x.size(0)
    index = torch.full((n, k), -2, device=search.x.device)
    similarity = torch.zeros(n, k, device=search.x.device)
    for block in range(len(search)):
        rows = search.rows(block)
        similarity[rows], index[rows] = search(block, k)
    return similarity, index


@withCUDA
@pytest.mark.parametrize('n', [1, 2, 50, 2000])
def test_every_row_is_in_one_block(n, device):
    search = CellSearch(unit(n).to(device), 5, .9, 0)
    rows = torch.cat([search.rows(block) for block in range(len(search))])
    assert torch.equal(rows.sort()[0], torch.arange(n, device=device))
    assert 1 <= search.num_probes <= search.num_cells


def test_results_are_the_best_of_what_was_seen():
    x = faces(2000)
    search = CellSearch(x, 10, .9, 0)
    similarity, index = results(search, 10)
    assert torch.allclose(similarity, (x[index] * x.unsqueeze(1)).sum(dim=2),
                          atol=1e-6)
    assert bool((index[:, 0] == torch.arange(2000)).all())
    cosine = x @ x.t()
    assert bool((similarity <= cosine.topk(10)[0] + 1e-6).all())
    # Each row is the exact answer among the cells nearest to it.
    cell = torch.empty(2000, dtype=torch.long)
    cell[search.member] = torch.arange(
        search.num_cells).repeat_interleave(search.size)
    near = (x @ search.centroids.t()).argsort(dim=1, descending=True)
    assert torch.equal(cell, near[:, 0])
    place = near.argsort(dim=1)[:, cell]
    few = cosine.masked_fill(place >= search.num_probes, -torch.inf)
    many = cosine.masked_fill(place >= search.num_lone_probes, -torch.inf)
    lone = few.topk(2)[0][:, 1:] <= search.trust
    assert 0 < int(lone.sum()) < 1000
    want = torch.where(lone, many, few).topk(10)[0]
    assert torch.allclose(similarity, want, atol=1e-6)
    assert bool((many > few)[lone.view(-1)].any())


def test_lone_samples_are_looked_for_in_more_cells(monkeypatch):
    # A noisy image lies in whichever cell chance leads it to.
    x = faces(6000)
    exact = (x @ x.t()).topk(20)[1]

    def found():
        search = CellSearch(x, 20, .9, 0)
        index = results(search, 20)[1]
        lone = (x.unsqueeze(1) * x[index[:, 1:]]).sum(dim=2)[:, 0]
        same = (exact.unsqueeze(2) == index.unsqueeze(1)).any(dim=2)
        return lone <= search.trust, same.double().mean(dim=1)

    _, now = found()
    monkeypatch.setattr(cell_search, '_MORE', 1)
    lone, before = found()
    assert bool((now >= before).all())
    assert torch.equal(now[~lone], before[~lone])
    assert now[lone].mean() > before[lone].mean() + .2


@pytest.mark.parametrize('found,recall,probes', [
    ([0] * 8, .99, 1),
    ([50, 90, 98, 99, 100], .5, 1),
    ([50, 90, 98, 99, 100], .9, 2),
    ([50, 90, 98, 99, 100], .99, 4),
    ([50, 90, 98, 99, 100], 1., 5),
    # Two cells find .9801; the last two in a hundred are strewn over 1,000.
    ([900, 981, *range(982, 1001)] + [1000] * 979, .985, 6),
    ([9000, 9810, *range(9811, 10001)], .99, 32),
    ([9000, 9810, *range(9811, 10001)], 1., 192),
])
def test_the_last_of_the_neighbours_may_cost_so_much(found, recall, probes):
    assert cell_search._num_probes(torch.tensor(found), recall) == probes


def test_all_cells_are_an_exact_search(monkeypatch):
    monkeypatch.setattr(cell_search, '_num_probes', lambda *_: 700)
    x = unit(700)
    search = CellSearch(x, 10, 1., 0)
    assert search.num_probes == search.num_cells < 700
    assert search.recall == search.recall_all == 1
    assert torch.allclose(results(search, 10)[0], (x @ x.t()).topk(10)[0],
                          atol=1e-6)


@pytest.mark.parametrize('recall', [.8, .95, 1.])
def test_recall_is_what_was_asked_for_and_what_it_says(recall, monkeypatch):
    # All rows are the sample here.
    x = faces(1024)
    search = CellSearch(x, 30, recall, 0)
    cosine, exact = (x @ x.t()).topk(30)
    index = results(search, 30)[1]
    found = (exact.unsqueeze(2) == index.unsqueeze(1)).any(dim=2)
    location, scale = estimate_background(x, 0)
    trust = location + scale * math.sqrt(2 * math.log(1024))
    assert search.trust == pytest.approx(trust)
    trusted = cosine > trust
    other = exact != torch.arange(1024).view(-1, 1)
    measured = found[trusted & other].double().mean()
    assert measured >= recall
    assert search.recall == pytest.approx(float(measured), abs=1e-3)
    assert search.recall_all == pytest.approx(
        float(found[other].double().mean()), abs=2e-3)
    # Not more cells than that takes.
    fewer = search.num_probes - 1
    monkeypatch.setattr(cell_search, '_num_probes', lambda *_: fewer)
    search = CellSearch(x, 30, recall, 0)
    if search.num_probes == fewer:
        index = results(search, 30)[1]
        found = (exact.unsqueeze(2) == index.unsqueeze(1)).any(dim=2)
        assert float(found[trusted & other].double().mean()) < recall


def test_identities_need_few_cells():
    # That is where the time is won.
    search = CellSearch(faces(), 20, .95, 0)
    assert search.num_probes < search.num_cells / 8
    assert search.recall >= .95
    assert search.pays


def test_samples_that_have_nobody_need_an_exact_search():
    search = CellSearch(unit(3000), 20, .95, 0)
    assert not search.pays
    x = unit(3000)
    assert torch.equal(knn(x, 20, 'cells').index, knn(x, 20, 'flat').index)


def test_as_many_cells_as_hold_the_neighbours():
    # However few it takes to find those that are trusted.
    search = CellSearch(faces(), 200, .1, 0)
    per_cell = 3000 / search.num_cells
    assert 2 * 201 <= search.num_probes * per_cell < 2 * 201 + per_cell
    assert bool((results(search, 200)[1] >= 0).double().mean() > .99)


def test_missing_neighbours(monkeypatch):
    monkeypatch.setattr(cell_search, '_MORE', 1)
    x = unit(60)
    search = CellSearch(x, 5, .5, 0)
    similarity, index = results(search, 60)
    assert bool((index[:, -1] == -1).any())
    for row in index:
        found = row[row >= 0]
        assert found.unique().numel() == found.numel() > 0


def test_duplicates_and_large_cells(monkeypatch):
    # Two hundred copies of one sample fill a cell; blocks of few rows.
    monkeypatch.setattr(cell_search, '_BYTES', 2**12)
    x = torch.cat([unit(1).expand(200, -1), unit(300, seed=1)])
    search = CellSearch(x, 5, .99, 0)
    assert len(search) > 100
    similarity, _ = results(search, 5)
    assert bool((similarity[:200] > 1 - 1e-6).all())


def test_seed():
    x = faces(2000)
    first, again, other = (results(CellSearch(x, 8, .8, seed), 8)[1]
                           for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
