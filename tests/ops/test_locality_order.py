import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops import knn, locality_order


@withCUDA
@pytest.mark.parametrize('k', [1, 2, 9])
def test_locality_order(k, device):
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    neighbors = Neighbors(*(part.to(device) for part in knn(x, k)))
    order = locality_order(neighbors)
    assert order.device == neighbors.index.device
    assert order.sort()[0].tolist() == list(range(200))


def test_first_neighbors_stand_together():
    # Identities of three, far apart and scattered: each first neighbour is of
    # the same identity, so that identities follow each other.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(20).repeat(3)
    x = torch.eye(20)[y] + .01 * torch.randn(60, 20, generator=generator)
    ordered = y[locality_order(knn(x, 3))]
    assert int((ordered[1:] != ordered[:-1]).sum()) == 19
