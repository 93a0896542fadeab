import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.ops import normalize_features
from torch_sdt.ops.search import ExactSearch
from torch_sdt.ops.search.exact_search import ERROR, exact_cosines


def unit(n, d=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize_features(torch.randn(n, d, generator=generator))


def expected(x, k):
    return (x @ x.t()).topk(k)


@withCUDA
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize('tile', [1, 700, None])
def test_finds_the_best(dtype, tile, device):
    x = unit(300).to(device)
    search = ExactSearch(x, dtype, tile)
    similarity, index = search(0, 9)
    want, place = expected(x, 9)
    assert torch.equal(search.rows(0), torch.arange(300, device=device))
    assert torch.allclose(similarity, want, atol=1e-6)
    assert torch.equal(index.sort(dim=1)[0], place.sort(dim=1)[0])
    similarity, index = search.best(torch.tensor([7, 2], device=device), 3)
    assert index[:, 0].tolist() == [7, 2]


def test_bfloat16_that_cannot_tell_is_searched_again(monkeypatch):
    # Differences far below what bfloat16 resolves, in no order.
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(500, 8)
    x[:, 0] = 1
    x[:, 1:] = .001 * torch.randn(500, 7, generator=generator)
    x = normalize_features(x)
    rough = (x.bfloat16() @ x.bfloat16().t()).topk(5)[1]
    want, place = expected(x.double(), 5)
    assert not torch.equal(rough.sort(dim=1)[0], place.sort(dim=1)[0])
    found = ExactSearch(x, torch.bfloat16)(0, 5)[0]
    assert torch.allclose(found.double(), want, atol=3e-7)


def test_error_of_bfloat16_stays_below_what_is_assumed():
    # The worst case: all products of one sign, and rounded the same way.
    for d in [2, 16, 256, 1024]:
        x = normalize_features(torch.rand(400, d) + 1.)
        low = (x.bfloat16() @ x.bfloat16().t()).float()
        assert float((low - x @ x.t()).abs().max()) < ERROR


def test_blocks():
    x = unit(9000, 4)
    search = ExactSearch(x)
    rows = torch.cat([search.rows(block) for block in range(len(search))])
    assert torch.equal(rows, torch.arange(9000)) and len(search) == 3
    similarity, index = search(2, 4)
    assert index.shape == (9000 - 2 * 4096, 4)
    assert index[0, 0] == 2 * 4096


def test_exact_cosines():
    x = unit(600)
    rows = torch.arange(599, -1, -1)
    index = torch.randint(0, 600, (600, 7))
    index[3, 2] = -1
    out = exact_cosines(x, rows, index)
    full = x @ x.t()
    assert torch.allclose(out, full[rows.view(-1, 1), index.clamp(min=0)],
                          atol=1e-6)
