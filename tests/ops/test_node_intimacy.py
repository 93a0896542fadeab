import sys

import pytest
import torch
from torch_geometric.testing import withCUDA

import torch_sdt.typing
from torch_sdt.ops import knn, node_intimacy


@pytest.fixture(params=['numba', 'torch'])
def path(request, monkeypatch):
    if request.param == 'numba':
        pytest.importorskip('numba')
    else:
        monkeypatch.setattr(torch_sdt.typing, 'WITH_NUMBA', False)
    return request.param


def graph(n=40, k=7, seed=0, share=.6):
    generator = torch.Generator().manual_seed(seed)
    index = knn(torch.randn(n, 3, generator=generator), k).index
    keep = torch.rand(n, k, generator=generator) < share
    keep[:, 0] = False
    return index, keep


def naive(index, keep):
    # Straight from the definition, on the dense graph.
    n = index.size(0)
    adj = torch.zeros(n, n)
    for i in range(n):
        for r in range(index.size(1)):
            if keep[i, r]:
                adj[i, index[i, r]] = 1
    share, deg = adj @ adj, adj.sum(dim=1)
    out = torch.zeros(index.shape)
    for i in range(n):
        for r, j in enumerate(index[i].tolist()):
            if keep[i, r] and deg[j] > 0:
                out[i, r] = max(share[i, j] / deg[i], share[i, j] / deg[j])
    return out


@withCUDA
@pytest.mark.parametrize('share', [.2, .6, 1.])
@pytest.mark.parametrize('n,k', [(1, 1), (2, 2), (40, 1), (40, 7), (12, 12)])
def test_node_intimacy(n, k, share, path, device):
    index, keep = graph(n, k, share=share)
    out = node_intimacy(index.to(device), keep.to(device))
    assert out.device == device and out.dtype == torch.float32
    assert torch.allclose(out.cpu(), naive(index, keep))
    assert bool((out.cpu()[~keep] == 0).all())


def test_self_loops_count(path):
    index, keep = graph()
    keep[::2, 0] = True
    assert torch.allclose(node_intimacy(index, keep), naive(index, keep))


@pytest.mark.parametrize('n', [2, 3, 4, 9])
def test_a_clique(n, path):
    # All but the two themselves are in common; with self-loops, all are.
    index = (torch.arange(n).view(-1, 1) + torch.arange(n)) % n
    keep = torch.ones(n, n, dtype=torch.bool)
    assert bool((node_intimacy(index, keep) == 1).all())
    keep[:, 0] = False
    expected = torch.full((n, n - 1), (n - 2) / (n - 1))
    out = node_intimacy(index, keep)
    assert torch.allclose(out[:, 1:], expected)
    assert bool((out[:, 0] == 0).all())


def test_a_bridge_has_nothing_in_common(path):
    # Two triangles, and one edge from node 2 to node 3.
    index = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [2, 0, 1, 3],
                          [3, 4, 5, 0], [4, 3, 5, 0], [5, 3, 4, 0]])
    keep = torch.tensor([[False, True, True, False]] * 6)
    keep[2, 3] = True
    out = node_intimacy(index, keep)
    assert float(out[2, 3]) == 0
    assert float(out[3, 1]) == .5
    # Node 2 has one link more, but it is the smaller degree that counts.
    assert float(out[0, 2]) == float(out[2, 1]) == .5


def test_direction_matters(path):
    # 0 -> 1 -> 2 and 0 -> 2: of the latter, 1 is in between.
    index = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 1, 0]])
    keep = torch.tensor([[False, True, True], [False, True, False],
                         [False, True, False]])
    # 2 links to 1 only, so that its one link is shared.
    assert node_intimacy(index, keep).tolist() == [
        [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    # Without a link of its own it has no share.
    keep[2] = False
    assert node_intimacy(index, keep).tolist() == [
        [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_names_of_nodes_do_not_matter(path):
    index, keep = graph()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    out = node_intimacy(place[index[order]], keep[order])
    assert torch.equal(out, node_intimacy(index, keep)[order])


def test_blocks(path, monkeypatch):
    index, keep = graph()
    expected = node_intimacy(index, keep)
    # The function hides its module.
    module = sys.modules['torch_sdt.ops.node_intimacy']
    monkeypatch.setattr(module, '_ROWS', 7)
    assert torch.equal(node_intimacy(index, keep), expected)


@pytest.mark.parametrize('bad', [
    torch.ones(40, 7), torch.ones(40, 6, dtype=torch.bool),
    torch.ones(280, dtype=torch.bool)])
def test_bad_edges(bad):
    with pytest.raises(ValueError, match=r"'keep'.*\[40, 7\]"):
        node_intimacy(graph()[0], bad)
