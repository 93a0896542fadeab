import warnings

import pytest
import torch

from torch_sdt.ops import normalize_features
from torch_sdt.ops.search import CellSearch, ExactSearch
from torch_sdt.ops.search.halves import in_halves


def small(search, most):
    r"""As a search whose GPU holds so many rows."""
    def call(rows):
        if rows.numel() > most:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return search(rows)

    return call


def test_in_halves():
    def search(rows):
        return rows * .5, rows

    rows = torch.arange(37)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(in_halves(search, rows)[1], rows)
    with pytest.warns(UserWarning, match='too little memory'):
        similarity, index = in_halves(small(search, 3), rows)
    assert torch.equal(index, rows)
    assert torch.equal(similarity, rows * .5)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        in_halves(small(search, 0), rows)


@pytest.mark.parametrize('cells', [False, True])
def test_searches_survive_a_small_gpu(monkeypatch, cells):
    generator = torch.Generator().manual_seed(0)
    x = normalize_features(torch.randn(500, 8, generator=generator))
    search = CellSearch(x, 5, .9, 0) if cells else ExactSearch(x)
    expected = search(0, 5)
    topk = torch.Tensor.topk

    def short(self, *args, **kwargs):
        if self.size(0) > 4:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, 'topk', short)
    with pytest.warns(UserWarning, match='too little memory'):
        out = search(0, 5)
    assert torch.equal(out[1], expected[1])
    assert torch.allclose(out[0], expected[0], atol=1e-6)
