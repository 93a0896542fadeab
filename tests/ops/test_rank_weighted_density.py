import torch

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import rank_weighted_density


def test_rank_weighted_density():
    similarity = torch.tensor([[1., .9, .5, .1], [1., .6, .6, .6],
                               [1., .4, 0., -.2], [1., .8, .8, .8]])
    index = (torch.arange(4).view(-1, 1) + torch.arange(4)) % 4
    density = rank_weighted_density(Neighbors(index, similarity))
    # Weights 3, 2, 1 of 6.
    expected = [(2.7 + 1. + .1) / 6, .6, (1.2 - .2) / 6, .8]
    assert torch.allclose(density, torch.tensor(expected))
    # The mean cosine of all would have the first below the second.
    assert float(density[0]) > float(density[1])


def test_rank_weighted_density_of_nobody():
    table = Neighbors(torch.arange(3).view(-1, 1), torch.ones(3, 1))
    assert rank_weighted_density(table).tolist() == [0, 0, 0]
