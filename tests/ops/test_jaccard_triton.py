r"""The kernel in triton's interpreter (conftest.py), or on a GPU."""
import pytest
import torch

import torch_sdt.typing

if not torch_sdt.typing.WITH_TRITON:
    pytest.skip('triton is absent', allow_module_level=True)
CUDA = torch.cuda.is_available()

from torch_sdt.neighbors import Neighbors  # noqa: E402
from torch_sdt.ops import edge_probability, topk_jaccard  # noqa: E402
from torch_sdt.ops._jaccard_triton import jaccard_triton  # noqa: E402


def table(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Neighbors.build(torch.randn(n, 5, generator=generator), k)


def run(neighbors, k, probability):
    device = 'cuda' if CUDA else 'cpu'
    return jaccard_triton(neighbors.index.to(device), k.to(device),
                          probability.to(device)).cpu()


@pytest.mark.parametrize('n,width', [(1, 1), (2, 2), (30, 7), (50, 16),
                                     (60, 33)])
def test_as_on_the_cpu(n, width):
    neighbors = table(n, width)
    generator = torch.Generator().manual_seed(1)
    k = torch.randint(1, width + 1, (n, ), generator=generator)
    p = edge_probability(neighbors.similarity)
    out = run(neighbors, k, p)
    assert torch.allclose(out, topk_jaccard(neighbors, k, p), atol=1e-5)
    full = torch.full((n, ), width)
    assert torch.allclose(run(neighbors, full, p), topk_jaccard(neighbors),
                          atol=1e-5)


def test_rows_without_weight():
    neighbors = table(20, 6)
    p = edge_probability(neighbors.similarity)
    p[3] = 0
    p[:, 2] = 0
    k = torch.full((20, ), 6)
    assert torch.allclose(run(neighbors, k, p), topk_jaccard(neighbors, k, p),
                          atol=1e-5)


def test_half_precision():
    neighbors = table(20, 6)
    p = edge_probability(neighbors.similarity).half()
    k = torch.full((20, ), 6)
    assert torch.allclose(run(neighbors, k, p), topk_jaccard(
        neighbors, k, p.float()), atol=1e-5)
