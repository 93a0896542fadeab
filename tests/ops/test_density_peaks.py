import pytest
import torch

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import density_peaks


def table(n=40, k=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    neighbors = Neighbors.build(torch.randn(n, 6, generator=generator), k)
    # Few values, so that some are equal.
    density = torch.randint(5, (n, ), generator=generator).float()
    distance = torch.rand(n, k, generator=generator)
    return neighbors, density, distance


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('given', [False, True])
def test_definition(ties, given):
    neighbors, density, distance = table()
    if not given:
        distance = 1 - neighbors.similarity
    peaks = density_peaks(neighbors, density, distance if given else None,
                          ties)
    for i, row in enumerate(neighbors.index.tolist()):
        follow = [(float(distance[i, r]), r) for r, j in enumerate(row)
                  if r > 0 and (density[j] > density[i] or
                                ties and density[j] == density[i])]
        if len(follow) == 0:
            assert peaks.parent[i] == i and peaks.distance[i] == torch.inf
        else:
            far, rank = min(follow)
            assert peaks.parent[i] == row[rank]
            assert peaks.distance[i] == far


def test_links_lead_uphill():
    neighbors, density, _ = table()
    parent, distance = density_peaks(neighbors, density)
    linked = distance.isfinite()
    assert bool((density[parent] > density)[linked].all())
    assert not bool(linked.all())


def test_cut_on_a_hand_made_graph():
    # A line 0 - 1 - 2 - 3 with two peaks, 1 and 3.
    index = torch.tensor([[0, 1], [1, 2], [2, 1], [3, 2]])
    similarity = torch.tensor([[1., .9], [1., .8], [1., .8], [1., .5]])
    neighbors = Neighbors(index, similarity)
    peaks = density_peaks(neighbors, torch.tensor([1., 3., 2., 4.]))
    assert peaks.parent.tolist() == [1, 1, 1, 3]
    assert peaks.cut(.3).tolist() == [0, 0, 0, 1]
    assert peaks.cut(.15).tolist() == [0, 0, 1, 2]
    assert peaks.cut(torch.inf).tolist() == [0, 0, 0, 1]
    assert peaks.cut(0.).tolist() == [0, 1, 2, 3]


def test_bad_input():
    neighbors, density, distance = table()
    with pytest.raises(ValueError, match="'density'"):
        density_peaks(neighbors, density[1:])
    with pytest.raises(ValueError, match="'distance'"):
        density_peaks(neighbors, density, distance[:, 1:])
    density[3] = torch.nan
    with pytest.raises(ValueError, match='Row 3'):
        density_peaks(neighbors, density)
