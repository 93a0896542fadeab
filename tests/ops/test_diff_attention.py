from importlib import import_module
from math import exp, sqrt

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch_geometric.testing import withCUDA

from torch_sdt.ops import diff_attention, naive, topk_edge_mask
from torch_sdt.ops.diff_attention import (
    diff_lambda,
    diff_softmax,
    edge_logits,
    edge_sum,
    topk_mask,
)


def random_edges(num_sources, num_targets, num_edges, seed=0):
    # With duplicates, and with targets of degree 0 if there are few edges.
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([
        torch.randint(n, (num_edges, ), generator=generator)
        for n in (num_sources, num_targets)])


# Differential attention ######################################################

@pytest.mark.parametrize('heads,queries,keys,width,value_width', [
    (1, 1, 1, 1, 1),
    (2, 5, 5, 4, 4),
    (3, 7, 63, 5, 5),
    (2, 63, 7, 6, 11),
])
@pytest.mark.parametrize('masked', [False, True])
def test_diff_attention(heads, queries, keys, width, value_width, masked):
    torch.manual_seed(0)
    query = torch.randn(2, heads, queries, width, dtype=torch.double)
    key = torch.randn(2, heads, keys, width, dtype=torch.double)
    value = torch.randn(heads, keys, value_width, dtype=torch.double)
    lam = torch.tensor(.7, dtype=torch.double)
    inputs = [query, key, value, lam]
    for tensor in inputs:
        tensor.requires_grad_()
    mask = None
    if masked:
        mask = torch.rand(queries, keys) > .3
        mask[0] = True
    out = diff_attention(query, key, value, lam, mask)
    assert out.shape == (heads, queries, value_width)

    # The definition, by rows.
    rows = []
    for h in range(heads):
        for i in range(queries):
            weight = 0.
            for m, sign in [(0, 1.), (1, -lam)]:
                e = (key[m, h] @ query[m, h, i] / sqrt(width)).exp()
                if masked:
                    e = e * mask[i]
                weight = weight + sign * e / e.sum().clamp(min=1e-300)
            rows.append(weight @ value[h])
    expected = torch.stack(rows).view_as(out)
    assert torch.allclose(out, expected)
    pair = diff_attention(tuple(query), tuple(key), value, lam, mask)
    assert torch.equal(out, pair)

    by = torch.randn_like(out)
    for grad, wanted in zip(torch.autograd.grad(out, inputs, by),
                            torch.autograd.grad(expected, inputs, by)):
        assert torch.allclose(grad, wanted)


def test_diff_attention_is_zero_where_there_is_nothing_to_attend_to():
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 4, 8)
    value = torch.randn(2, 4, 8)
    for tensor in (query, key, value):
        tensor.requires_grad_()
    mask = torch.rand(4, 4) > .2
    mask[1] = False
    out = diff_attention(query, key, value, .8, mask)
    assert (out[:, 1] == 0).all() and (out[:, 0] != 0).all()
    out.sum().backward()
    assert (query.grad[:, :, 1] == 0).all()
    for tensor in (query, key, value):
        assert torch.isfinite(tensor.grad).all()
        tensor.grad = None
    # Neither is there anything to attend to.
    mask = torch.zeros(4, 4, dtype=torch.bool)
    diff_attention(query, key, value, .8, mask).sum().backward()
    assert all((t.grad == 0).all() for t in (query, key, value))


def test_diff_attention_relies_on_no_kernel_for_empty_rows(monkeypatch):
    def kernel(query, key, value, mask):
        # NaN where all is masked, as kernels may have it.
        logits = query @ key.transpose(-1, -2) / sqrt(query.size(-1))
        return logits.masked_fill(~mask, float('-inf')).softmax(-1) @ value

    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 1, 4, 8).requires_grad_()
    mask = torch.rand(4, 4) > .2
    mask[1] = False
    expected = diff_attention(query, key, key[0], .8, mask)
    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention',
                        kernel)
    out = diff_attention(query, key, key[0], .8, mask)
    assert torch.allclose(out, expected, atol=1e-6)
    grad, = torch.autograd.grad(out.sum(), query)
    assert torch.isfinite(grad).all()


def test_diff_softmax():
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 5, 6)
    mask = torch.rand(5, 6) > .4
    mask[0], mask[1] = True, False
    alpha = diff_softmax(first, second, .3, mask)
    assert alpha.shape == (3, 5, 6)
    assert (alpha[:, ~mask] == 0).all() and (alpha[:, mask] != 0).all()
    total = alpha.sum(dim=-1)
    assert (total[:, 1] == 0).all()
    total = total[:, [0, 2, 3, 4]]
    assert torch.allclose(total, torch.full_like(total, .7))
    value = torch.randn(3, 6, 2)
    # Rows without scale: the identity as keys.
    eye = sqrt(6) * torch.eye(6).expand(3, 6, 6)
    out = diff_attention((first, second), (eye, eye), value, .3, mask)
    assert torch.allclose(alpha @ value, out, atol=1e-6)


def test_diff_lambda():
    query = torch.tensor([[.1, .2], [.3, -.4]], dtype=torch.double)
    key = torch.tensor([[.5, -.6], [.7, .8]], dtype=torch.double)
    lam = diff_lambda(query, key, .8)
    assert lam.shape == () and lam.dtype == torch.double
    assert float(lam) == pytest.approx(exp(-.07) - exp(-.11) + .8, abs=1e-12)
    # Equal vectors cancel.
    assert float(diff_lambda(query[:1].expand(2, 2), key[:1].expand(2, 2),
                             .25)) == .25
    # Of half-precision vectors it is still a precise number.
    half = diff_lambda(query.bfloat16(), key.bfloat16(), .8)
    assert half.dtype == torch.float
    assert half.item() == pytest.approx(lam.item(), abs=1e-2)


# Top-K masks #################################################################

@withCUDA
def test_topk_edge_mask(device):
    edge_index = torch.tensor([[0, 1, 2, 3, 0, 1], [2, 2, 2, 2, 0, 1]],
                              device=device)
    score = torch.tensor([.1, .4, .3, .4, -9., .0], device=device)
    for k, expected in [
        (1, [0, 1, 0, 0, 1, 1]),
        (2, [0, 1, 0, 1, 1, 1]),
        (3, [0, 1, 1, 1, 1, 1]),
        (4, [1, 1, 1, 1, 1, 1]),
    ]:
        mask = topk_edge_mask(score, edge_index, k)
        assert mask.dtype == torch.bool and mask.device == device
        assert mask.int().tolist() == expected
        mask = topk_edge_mask(score, edge_index, torch.tensor(
            [1, 1, k, 1], device=device), num_nodes=4)
        assert mask.int().tolist() == expected


def naive_topk(score, edge_index, k):
    keep = set()
    for i in edge_index[1].unique().tolist():
        incoming = (edge_index[1] == i).nonzero().view(-1).tolist()
        incoming.sort(key=lambda e: (-float(score[e]), int(edge_index[0, e])))
        keep |= set(incoming[:int(k[i])])
    return torch.tensor([e in keep for e in range(score.numel())])


@pytest.mark.parametrize('dtype', [torch.float, torch.double, torch.bfloat16,
                                   torch.uint8, torch.long])
def test_topk_edge_mask_agrees_with_sorting(dtype):
    torch.manual_seed(0)
    edge_index = random_edges(9, 13, 200)
    # Few values, many ties.
    score = torch.randint(4, (200, 3)).to(dtype)
    k = torch.randint(1, 30, (13, ))
    mask = topk_edge_mask(score, edge_index, k, 13)
    assert mask.shape == score.shape
    for column in range(3):
        assert torch.equal(mask[:, column],
                           naive_topk(score[:, column], edge_index, k))
        assert torch.equal(mask[:, column], topk_edge_mask(
            score[:, column], edge_index, k, 13))


def test_topk_edge_mask_does_not_depend_on_the_order_of_edges():
    torch.manual_seed(0)
    edge_index = random_edges(50, 7, 200).unique(dim=1)
    score = torch.randint(3, (edge_index.size(1), )).float()
    mask = topk_edge_mask(score, edge_index, 5)
    assert 7 < int(mask.sum()) <= 35
    perm = torch.randperm(score.numel())
    assert torch.equal(topk_edge_mask(score[perm], edge_index[:, perm], 5),
                       mask[perm])


def test_topk_edge_mask_of_infinite_scores():
    edge_index = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0]])
    score = torch.tensor([float('-inf'), 0., float('inf'), float('-inf')])
    assert topk_edge_mask(score, edge_index, 3).tolist() == [
        True, True, True, False]


@pytest.mark.parametrize('shape', [(0, ), (0, 3)])
def test_topk_edge_mask_without_edges(shape):
    edge_index = torch.empty(2, 0, dtype=torch.long)
    assert topk_edge_mask(torch.empty(shape), edge_index, 2).shape == shape
    assert topk_edge_mask(torch.empty(shape), edge_index,
                          torch.ones(5, dtype=torch.long), 5).shape == shape


def test_topk_edge_mask_errors():
    edge_index, score = torch.tensor([[0, 1], [0, 0]]), torch.ones(2)
    for k in [0, -3]:
        with pytest.raises(ValueError, match="'k' must be at least 1"):
            topk_edge_mask(score, edge_index, k)
    for k in [2., True, 'all', None]:
        with pytest.raises(ValueError, match="'k' must be an integer"):
            topk_edge_mask(score, edge_index, k)
    for k in [torch.ones(1), torch.ones(2, dtype=torch.long),
              torch.ones(1, dtype=torch.bool), torch.tensor(1)]:
        with pytest.raises(ValueError, match=r'integers of shape \[1\]'):
            topk_edge_mask(score, edge_index, k)
    with pytest.raises(ValueError, match=r'got 0 at \[1\]'):
        topk_edge_mask(score, edge_index, torch.tensor([1, 0]), 2)
    for shape in [(3, ), (), (2, 1, 1)]:
        with pytest.raises(ValueError, match="'score' must have 2 rows"):
            topk_edge_mask(torch.ones(shape), edge_index, 1)
    with pytest.raises(ValueError, match=r"not a number at \[1\]"):
        topk_edge_mask(torch.tensor([0., float('nan')]), edge_index, 1)


def test_topk_mask():
    torch.manual_seed(0)
    score = torch.randint(4, (3, 5, 9)).float()
    allowed = torch.rand(3, 1, 9) > .3
    k = torch.randint(1, 9, (1, 5, 1))
    mask = topk_mask(score, k, allowed)
    free = topk_mask(score, k)
    assert mask.shape == free.shape == score.shape
    for b in range(3):
        for i in range(5):
            order = sorted(range(9), key=lambda j: (-score[b, i, j], j))
            rows = [(free, order),
                    (mask, [j for j in order if allowed[b, 0, j]])]
            for found, order in rows:
                assert found[b, i].nonzero().view(-1).tolist() == sorted(
                    order[:int(k[0, i])])
    # An excluded entry counts for nothing, whatever its score.
    score = torch.tensor([float('inf'), float('-inf'), 1.])
    mask = topk_mask(score, 2, torch.tensor([False, True, True]))
    assert mask.tolist() == [False, True, True]


# Logits on edges #############################################################

@pytest.mark.parametrize('num_edges', [0, 1, 13])
@pytest.mark.parametrize('with_edge', [False, True])
def test_edge_logits(monkeypatch, num_edges, with_edge):
    # Chunks of two edges and a rest.
    module = import_module('torch_sdt.ops.diff_attention')
    monkeypatch.setattr(module, '_CHUNK', 32)
    torch.manual_seed(0)
    query = torch.randn(3, 2, 2, 4, dtype=torch.double, requires_grad=True)
    key = torch.randn(5, 2, 2, 4, dtype=torch.double, requires_grad=True)
    source, target = random_edges(5, 3, num_edges)
    edge = None
    if with_edge:
        edge = torch.randn(num_edges, 2, 4, dtype=torch.double,
                           requires_grad=True)
    out = edge_logits(query, key, source, target, edge)
    assert out.shape == (num_edges, 2, 2)
    for e in range(num_edges):
        for m in range(2):
            for h in range(2):
                row = key[source[e], m, h].detach()
                if with_edge:
                    row = row + edge[e, h].detach()
                expected = (query[target[e], m, h].detach() @ row).item() / 2
                assert out[e, m, h].item() == pytest.approx(expected)
    if num_edges > 0:
        inputs = (query, key, source, target, edge)
        assert gradcheck(edge_logits, inputs)
        assert gradgradcheck(edge_logits, inputs)


def test_edge_logits_of_half_precision_are_precise():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 2, 1, 64).bfloat16()
    query.requires_grad_()
    index = torch.arange(4)
    out = edge_logits(query, key, index, index)
    assert out.dtype == torch.float
    exact = edge_logits(query.double(), key.double(), index, index)
    assert torch.allclose(out.double(), exact, atol=1e-5)
    grad, = torch.autograd.grad(out.sum(), query)
    assert grad.dtype == torch.bfloat16
    assert torch.allclose(grad, key / 8)


@pytest.mark.parametrize('needs', [(True, False), (False, True)])
def test_edge_logits_asks_for_no_more_gradients_than_needed(needs):
    query, key = torch.randn(2, 4, 2, 1, 8)
    inputs = [t.requires_grad_() for t, need in zip((query, key), needs)
              if need]
    index = torch.arange(4)
    out = edge_logits(query, key, index, index)
    grad, = torch.autograd.grad(out.sum(), inputs)
    other = key if needs[0] else query
    assert torch.allclose(grad, other / sqrt(8))


def test_edge_logits_hold_no_rows():
    # 40,000 edges of two maps of 256 numbers would be 80 MB for the queries
    # alone; the largest tensor saved is that of the logits.
    query, key = torch.randn(2, 10, 2, 1, 256).requires_grad_()
    source, target = random_edges(10, 10, 40_000)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        edge_logits(query, key, source, target)
    assert len(saved) > 0 and max(saved) <= 40_000


@pytest.mark.parametrize('num_edges', [0, 1, 13])
@pytest.mark.parametrize('with_edge', [False, True])
def test_edge_sum(monkeypatch, num_edges, with_edge):
    module = import_module('torch_sdt.ops.diff_attention')
    monkeypatch.setattr(module, '_CHUNK', 16)
    torch.manual_seed(0)
    value = torch.randn(5, 2, 4, dtype=torch.double, requires_grad=True)
    alpha = torch.randn(num_edges, 2, dtype=torch.double, requires_grad=True)
    source, target = random_edges(5, 3, num_edges)
    edge = None
    if with_edge:
        edge = torch.randn(num_edges, 2, 4, dtype=torch.double,
                           requires_grad=True)
    # One target more than any edge names.
    inputs = (value, alpha, source, target, 4, edge)
    out = edge_sum(*inputs)
    expected = torch.zeros(4, 2, 4, dtype=torch.double)
    for e in range(num_edges):
        row = value[source[e]] + (edge[e] if with_edge else 0.)
        expected[target[e]] += (alpha[e].unsqueeze(1) * row).detach()
    assert torch.allclose(out, expected)
    if num_edges > 0:
        assert gradcheck(edge_sum, inputs)
        assert gradgradcheck(edge_sum, inputs)


def test_edge_sum_of_half_precision_is_precise():
    # 4,000 ones, which counted in bfloat16 are 256.
    value = torch.ones(1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    alpha = torch.ones(4000, 1, requires_grad=True)
    index = torch.zeros(4000, dtype=torch.long)
    out = edge_sum(value, alpha, index, index, 1)
    assert out.dtype == torch.bfloat16 and out.item() == 4000
    out.sum().backward()
    assert value.grad.dtype == torch.bfloat16 and value.grad.item() == 4000
    assert alpha.grad.dtype == torch.float and (alpha.grad == 1).all()


# The definition ##############################################################

def test_naive_by_hand():
    # Equal logits: uniform over the edges kept.
    query, key = torch.zeros(2, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    value = torch.tensor([1., 10., 100.]).view(3, 1, 1)
    edges = [(0, 0), (1, 0), (2, 0)]
    out, weight = naive.diff_attention(query, key, value, edges, .5)
    assert out.view(-1).tolist() == [pytest.approx(111 / 6), 0.]
    assert weight.view(-1).tolist() == [pytest.approx(1 / 6)] * 3
    out, weight = naive.diff_attention(query, key, value, edges, .5, [2, 1])
    assert out.view(-1).tolist() == [pytest.approx(11 / 4), 0.]
    assert weight.view(-1).tolist() == [.25, .25, 0.]
    out, weight = naive.diff_attention(query, key, value, edges, .5, [1, 1],
                                       [0., 1., 2.])
    assert out.view(-1).tolist() == [pytest.approx(50.), 0.]
    # Maps that attend to different sources.
    key[0, 0], key[1, 1] = 1e3, 1e3
    query[:] = 1.
    out, weight = naive.diff_attention(query, key, value, edges, .5)
    assert weight.view(-1).tolist() == [1., -.5, 0.]
    assert out.view(-1).tolist() == [-4., 0.]


def test_naive_agrees_with_the_dense_form():
    torch.manual_seed(0)
    query, key = torch.randn(2, 6, 2, 3, 4, dtype=torch.double)
    value = torch.randn(6, 3, 4, dtype=torch.double)
    edges = [(j, i) for i in range(6) for j in range(6)]
    out, weight = naive.diff_attention(query, key, value, edges, .4)
    dense = diff_attention(query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3),
                           value.transpose(0, 1), .4)
    assert torch.allclose(out, dense.transpose(0, 1))
    assert torch.allclose(weight.view(6, 6, 3).sum(dim=1),
                          torch.full((6, 3), .6, dtype=torch.double))


@pytest.mark.parametrize('batch', [(), (3, ), (2, 3)])
def test_diff_attention_of_keys_that_all_queries_share(batch):
    query, key = torch.randn(2, *batch, 5, 4), torch.randn(2, *batch, 6, 4)
    value, mask = torch.randn(*batch, 6, 4), torch.arange(6) < 4
    out = diff_attention(query, key, value, .3, mask)
    expected = diff_attention(query, key, value, .3, mask.expand(5, 6))
    assert torch.allclose(out, expected)
