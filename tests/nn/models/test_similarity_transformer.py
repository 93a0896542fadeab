import pytest
import torch

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import SimilarityTransformer
from torch_sdt.nn.models.similarity_transformer import positions
from torch_sdt.ops import normalize_features


def setup(n=30, k=6, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = normalize_features(torch.randn(n, dim, generator=generator))
    y = torch.randint(4, (n, ), generator=generator)
    torch.manual_seed(seed)
    return NeighborSubgraphs(Neighbors.search(x, k), x, n, y=y, pairs=False)


@pytest.mark.parametrize('width', [None, 8])
def test_nodes_do_not_see_their_batch(width):
    loader = setup()
    model = SimilarityTransformer(16, width, ffn_channels=32).eval()
    whole = model(loader.gather(torch.arange(30)))
    assert whole.shape == (30, 6)
    for node in (0, 7, 29):
        alone = model(loader.gather(torch.tensor([node])))
        assert torch.allclose(alone[0], whole[node], atol=1e-5)
    turned = model(loader.gather(torch.arange(29, -1, -1)))
    assert torch.allclose(turned.flip(0), whole, atol=1e-5)


def test_neighbours_see_each_other_and_their_order():
    loader = setup()
    model = SimilarityTransformer(16, ffn_channels=32).eval()
    batch = loader.gather(torch.arange(30))
    before = model(batch)
    batch.x = batch.x.clone()
    batch.x[:, 5] = -batch.x[:, 5]
    after = model(batch)
    assert not torch.allclose(after[:, 1], before[:, 1], atol=1e-5)
    batch = loader.gather(torch.arange(30))
    order = torch.tensor([0, 5, 4, 3, 2, 1])
    batch.x = batch.x[:, order]
    assert not torch.allclose(model(batch), before[:, order], atol=1e-5)


def test_positions():
    out = positions(7, 6, torch.device('cpu'))
    assert out.shape == (7, 6) and positions(3, 5, out.device).shape == (3, 5)
    place = torch.arange(7.)
    assert torch.allclose(out[:, 0], place.sin())
    assert torch.allclose(out[:, 1], place.cos())
    assert torch.allclose(out[:, 2], (place * 10_000.**(-2 / 6)).sin())


def test_learns():
    loader = setup()
    model = SimilarityTransformer(16, ffn_channels=32, dropout=0.)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = loader.gather(torch.arange(30))
    first = float(model.loss(batch))
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert float(model.loss(batch)) < .5 * first


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match='multiple of the 8 heads'):
        SimilarityTransformer(10)
