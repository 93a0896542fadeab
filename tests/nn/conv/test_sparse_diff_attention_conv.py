import copy
import inspect
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.explain import (
    AttentionExplainer,
    Explainer,
    GNNExplainer,
    ModelConfig,
)
from torch_geometric.nn import Sequential, TransformerConv, to_hetero
from torch_geometric.testing import assert_module, withCUDA
from torch_geometric.utils import (
    coalesce,
    degree,
    scatter,
    to_torch_coo_tensor,
    to_torch_csc_tensor,
)

from torch_sdt.nn import DenseDiffAttentionConv, SparseDiffAttentionConv
from torch_sdt.ops import naive

# PyTorch's words on its own sparse tensors.
pytestmark = [pytest.mark.filterwarnings(f'ignore:.*{text}.*') for text in [
    'Sparse CS. tensor support', 'Sparse invariant checks',
    'torch.jit.script']]


def random_graph(num_sources=10, num_targets=10, num_edges=40, seed=0,
                 duplicates=False):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.stack([
        torch.randint(n, (num_edges, ), generator=generator)
        for n in (num_sources, num_targets)])
    return edge_index if duplicates else coalesce(edge_index)


def definition(conv, x, edge_index, edge_attr=None, edge_score=None, k=None):
    # The layer on paper, by :mod:`torch_sdt.ops.naive`.
    x = (x, x) if isinstance(x, torch.Tensor) else x
    H, C = conv.heads, conv.out_channels
    query = (x[1] @ conv.lin_query.weight.t()).view(-1, 2, H, C)
    key = (x[0] @ conv.lin_key.weight.t()).view(-1, 2, H, C)
    value = (x[0] @ conv.lin_value.weight.t()).view(-1, H, C)
    edge = None
    if edge_attr is not None:
        edge = (edge_attr @ conv.lin_edge.weight.t()).view(-1, H, C)
    k = conv.k if k is None else k
    if k is not None:
        k = [k] * x[1].size(0) if isinstance(k, int) else k.tolist()
    if edge_score is not None:
        edge_score = edge_score.tolist()
    if conv.lambda_form == 'scalar':
        lam = conv.lam
    else:
        dot = (conv.lam_query * conv.lam_key).sum(dim=1)
        lam = dot[0].exp() - dot[1].exp() + conv.lambda_init
    out, weight = naive.diff_attention(query, key, value,
                                       edge_index.t().tolist(), lam, k,
                                       edge_score, edge)
    if conv.lambda_form == 'reparam':
        scale = (out.pow(2).mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
        out = (1 - conv.lambda_init) * out * scale * conv.norm.weight
    out = out.flatten(1) if conv.concat else out.mean(dim=1)
    return out if conv.bias is None else out + conv.bias, weight


def randomize(conv):
    # Also what starts at zero or one.
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=.5)
    return conv


def test_sparse_diff_attention_conv_repr_and_arguments():
    conv = SparseDiffAttentionConv(8, 16, heads=2)
    assert str(conv) == 'SparseDiffAttentionConv(8, 16, heads=2)'
    conv = SparseDiffAttentionConv((8, 4), 16)
    assert str(conv) == 'SparseDiffAttentionConv((8, 4), 16, heads=1)'
    assert list(inspect.signature(type(conv)).parameters) == [
        'in_channels', 'out_channels', 'heads', 'concat', 'k', 'lambda_init',
        'lambda_form', 'edge_dim', 'dropout', 'bias', 'kwargs']
    assert list(inspect.signature(conv.forward).parameters) == [
        'x', 'edge_index', 'edge_attr', 'edge_score', 'k',
        'return_attention_weights']
    # PyG writes code for each layer, and falls back without a word where it
    # cannot.
    for function in (conv.propagate, conv.edge_updater):
        assert 'SparseDiffAttentionConv' in function.__module__.split('_')


def test_sparse_diff_attention_conv_parameters():
    conv = SparseDiffAttentionConv((8, 4), 16, heads=2, edge_dim=3,
                                   lambda_init=.3)
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        'lam': (), 'bias': (32, ), 'lin_key.weight': (64, 8),
        'lin_query.weight': (64, 4), 'lin_value.weight': (32, 8),
        'lin_edge.weight': (32, 3)}
    assert conv.lam.item() == pytest.approx(.3)
    assert conv.compute_lambda().item() == pytest.approx(.3)
    conv = SparseDiffAttentionConv(8, 16, heads=2, lambda_form='reparam',
                                   concat=False, bias=False)
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        'lam_query': (2, 16), 'lam_key': (2, 16), 'norm.weight': (16, ),
        'lin_key.weight': (64, 8), 'lin_query.weight': (64, 8),
        'lin_value.weight': (32, 8)}
    assert .02 < conv.lam_query.std().item() < .2
    before = copy.deepcopy(conv.state_dict())
    randomize(conv).reset_parameters()
    for name, value in conv.state_dict().items():
        assert torch.equal(value, before[name]) == (name == 'norm.weight')


CASES = [
    # heads, concat, lambda_form, edge_dim, k, by score, duplicates
    (1, True, 'scalar', None, None, False, False),
    (2, True, 'scalar', 3, None, False, False),
    (3, False, 'reparam', None, None, False, True),
    (2, True, 'reparam', 1, 1, False, False),
    (1, False, 'scalar', None, 2, False, False),
    (3, True, 'scalar', 3, 2, True, True),
    (2, False, 'reparam', None, 3, True, False),
    (2, True, 'scalar', None, 'each', False, False),
    (2, True, 'scalar', None, 'each', True, False),
]


@withCUDA
@pytest.mark.parametrize(
    'heads,concat,lambda_form,edge_dim,k,by_score,duplicates', CASES)
@pytest.mark.parametrize('num_sources,num_targets,num_edges', [
    (7, 5, 23), (1, 1, 1), (1, 3, 2)])
def test_sparse_diff_attention_conv_is_its_definition(
        device, heads, concat, lambda_form, edge_dim, k, by_score, duplicates,
        num_sources, num_targets, num_edges):
    torch.manual_seed(0)
    conv = randomize(SparseDiffAttentionConv(
        (4, 3), 5, heads, concat, lambda_form=lambda_form,
        edge_dim=edge_dim)).to(device, torch.double)
    edge_index = random_graph(num_sources, num_targets, num_edges,
                              duplicates=duplicates).to(device)
    num_edges = edge_index.size(1)
    x = [torch.randn(n, c, device=device, dtype=torch.double,
                     requires_grad=True)
         for n, c in [(num_sources, 4), (num_targets, 3)]]
    edge_attr = edge_score = None
    if edge_dim is not None:
        edge_attr = torch.randn(num_edges, edge_dim, device=device,
                                dtype=torch.double, requires_grad=True)
    if by_score:
        edge_score = torch.rand(num_edges, device=device)
    if k == 'each':
        k = torch.randint(1, 6, (num_targets, ), device=device)

    out, (index, alpha) = conv(x, edge_index, edge_attr, edge_score, k, True)
    expected, weight = definition(conv, x, edge_index, edge_attr, edge_score,
                                  k)
    assert index is edge_index
    assert out.shape == (num_targets, 5 * (heads if concat else 1))
    assert torch.allclose(out, expected)
    assert torch.allclose(alpha, weight)
    assert torch.equal(alpha == 0, weight == 0)

    inputs = [*x, *conv.parameters()]
    if edge_attr is not None:
        inputs.append(edge_attr)
    by = torch.randn_like(out)
    grads, wanted = [
        torch.autograd.grad(value, inputs, by, allow_unused=True,
                            materialize_grads=True)
        for value in (out, expected)]
    for grad, want in zip(grads, wanted):
        assert torch.isfinite(grad).all()
        assert torch.allclose(grad, want)
    if num_edges > 1:
        assert any(float(grad.abs().sum()) > 0 for grad in grads)


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
@pytest.mark.parametrize('k', [None, 1, 3])
def test_sparse_diff_attention_conv_weights_sum_to_one_minus_lambda(
        lambda_form, k):
    torch.manual_seed(0)
    edge_index = random_graph(10, 10, 80)
    conv = randomize(SparseDiffAttentionConv(8, 4, 3, dropout=.5, k=k,
                                             lambda_form=lambda_form))
    alpha = conv(torch.randn(10, 8), edge_index,
                 return_attention_weights=True)[1][1]
    count = degree(edge_index[1], 10)
    assert alpha.shape == (edge_index.size(1), 3) and (count > 3).any()
    total = scatter(alpha, edge_index[1], dim_size=10)
    expected = (1 - conv.compute_lambda()) * (count > 0).view(-1, 1)
    assert torch.allclose(total, expected.expand(10, 3), atol=1e-6)
    kept = scatter((alpha != 0).long(), edge_index[1], dim_size=10)
    wanted = count if k is None else count.clamp(max=k)
    assert torch.equal(kept, wanted.long().view(-1, 1).expand(10, 3))


def test_sparse_diff_attention_conv_lambda_zero_is_transformer_conv():
    torch.manual_seed(0)
    x = (torch.randn(9, 8), torch.randn(6, 4))
    edge_index, edge_attr = random_graph(9, 6, 30), torch.randn(30, 3)
    edge_attr = edge_attr[:edge_index.size(1)]
    conv = SparseDiffAttentionConv((8, 4), 5, heads=2, edge_dim=3, bias=False)
    other = TransformerConv((8, 4), 5, heads=2, edge_dim=3, bias=False,
                            root_weight=False)
    with torch.no_grad():
        conv.lam.zero_()
        other.lin_query.weight.copy_(conv.lin_query.weight[:10])
        other.lin_key.weight.copy_(conv.lin_key.weight[:10])
        other.lin_value.weight.copy_(conv.lin_value.weight)
        other.lin_edge.weight.copy_(conv.lin_edge.weight)
    out, (_, alpha) = conv(x, edge_index, edge_attr,
                           return_attention_weights=True)
    expected, (_, weight) = other(x, edge_index, edge_attr,
                                  return_attention_weights=True)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(alpha, weight, atol=1e-6)


def test_sparse_diff_attention_conv_equal_maps_cancel():
    # What both maps attend to is taken away: at lambda = 1 nothing is left.
    torch.manual_seed(0)
    conv = SparseDiffAttentionConv(8, 4, heads=2, lambda_init=1.)
    with torch.no_grad():
        for lin in (conv.lin_query, conv.lin_key):
            lin.weight[8:] = lin.weight[:8]
    out = conv(torch.randn(10, 8), random_graph())
    assert torch.allclose(out, conv.bias.expand_as(out), atol=1e-6)


def test_sparse_diff_attention_conv_k():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    score = torch.rand(edge_index.size(1))
    most = int(degree(edge_index[1]).max())
    conv = SparseDiffAttentionConv(8, 4, heads=2)
    full = conv(x, edge_index)
    for edge_score in (None, score):
        for k in (most, torch.full((10, ), most)):
            assert torch.equal(conv(x, edge_index, None, edge_score, k), full)
        assert not torch.allclose(
            conv(x, edge_index, None, edge_score, 2), full)
    # The argument of `forward` goes first.
    assert torch.equal(SparseDiffAttentionConv.forward(
        _with_k(conv, 2), x, edge_index, k=most), full)
    assert torch.equal(_with_k(conv, 2)(x, edge_index),
                       conv(x, edge_index, k=2))
    # One edge: its weight is 1 - lambda, whatever its logits.
    alpha = conv(x, edge_index, None, score, 1, True)[1][1]
    best = scatter(score, edge_index[1], dim_size=10, reduce='max')
    first = score == best[edge_index[1]]
    assert torch.allclose(alpha[first], 1 - conv.lam)
    assert (alpha[~first] == 0).all()
    # Edges left out beforehand.
    alpha = conv(x, edge_index, None, score, 2, True)[1][1]
    kept = (alpha != 0).all(dim=1)
    assert torch.allclose(conv(x, edge_index[:, kept]),
                          conv(x, edge_index, None, score, 2), atol=1e-6)


def _with_k(conv, k):
    conv = copy.deepcopy(conv)
    conv.k = k
    return conv


def test_sparse_diff_attention_conv_is_equivariant():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    num_edges = edge_index.size(1)
    edge_attr, score = torch.randn(num_edges, 3), torch.rand(num_edges)
    perm, edges = torch.randperm(10), torch.randperm(num_edges)
    position = torch.empty_like(perm)
    position[perm] = torch.arange(10)
    k = torch.randint(1, 5, (10, ))
    conv = SparseDiffAttentionConv(8, 4, heads=2, edge_dim=3)
    for edge_score in (None, score):
        out, (_, alpha) = conv(x, edge_index, edge_attr, edge_score, k, True)
        moved, (_, weight) = conv(
            x[perm], position[edge_index][:, edges], edge_attr[edges],
            None if edge_score is None else edge_score[edges], k[perm], True)
        assert torch.allclose(moved, out[perm], atol=1e-6)
        assert torch.allclose(weight, alpha[edges], atol=1e-6)


def test_sparse_diff_attention_conv_ties_go_by_source():
    # The sources are all alike, so that every logit is the same.
    conv = SparseDiffAttentionConv(8, 4)
    x = (torch.randn(8).expand(6, 8), torch.randn(1, 8))
    edge_index = torch.stack([torch.randperm(6), torch.zeros(6).long()])
    for score in (None, torch.ones(6)):
        alpha = conv(x, edge_index, None, score, 2, True)[1][1].view(-1)
        assert torch.equal(alpha != 0, edge_index[0] < 2)


def test_sparse_diff_attention_conv_without_edges():
    for lambda_form in ['scalar', 'reparam']:
        for k in [None, 2]:
            conv = SparseDiffAttentionConv(8, 4, heads=2, k=k,
                                           lambda_form=lambda_form)
            torch.nn.init.normal_(conv.bias)
            edge_index = torch.empty(2, 0, dtype=torch.long)
            for num_nodes in [0, 1, 3]:
                x = torch.randn(num_nodes, 8, requires_grad=True)
                out, (_, alpha) = conv(x, edge_index,
                                       return_attention_weights=True)
                assert torch.equal(out, conv.bias.expand(num_nodes, 8))
                assert alpha.shape == (0, 2)
                out.sum().backward()
                assert (x.grad == 0).all()
            # One isolated target among others.
            edge_index = torch.tensor([[0, 1, 2], [0, 0, 2]])
            out = conv(x, edge_index)
            assert torch.equal(out[1], conv.bias)
            assert not torch.allclose(out[0], conv.bias)
            out.sum().backward()
            assert all(torch.isfinite(p.grad).all()
                       for p in conv.parameters() if p.grad is not None)


def test_sparse_diff_attention_conv_extreme_logits():
    # A softmax without its maximum taken off would overflow.
    conv = SparseDiffAttentionConv(8, 4, k=3)
    x = (1e4 * torch.randn(10, 8)).requires_grad_()
    out = conv(x, random_graph())
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
def test_sparse_diff_attention_conv_gradcheck(lambda_form):
    torch.manual_seed(0)
    conv = SparseDiffAttentionConv(3, 2, heads=2, edge_dim=2,
                                   lambda_form=lambda_form).double()
    edge_index = random_graph(4, 4, 9, duplicates=True)
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    edge_attr = torch.randn(9, 2, dtype=torch.double, requires_grad=True)

    def function(x, edge_attr, *parameters):
        names = [name for name, _ in conv.named_parameters()]
        return torch.func.functional_call(
            conv, dict(zip(names, parameters)), (x, edge_index, edge_attr))

    assert torch.autograd.gradcheck(function, (x, edge_attr,
                                               *conv.parameters()))


def test_sparse_diff_attention_conv_dropout():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    conv = SparseDiffAttentionConv(8, 4, heads=2, dropout=.5)
    out, (_, alpha) = conv(x, edge_index, return_attention_weights=True)
    assert not torch.allclose(conv(x, edge_index), out)
    conv.eval()
    expected, (_, weight) = conv(x, edge_index, return_attention_weights=True)
    assert torch.equal(conv(x, edge_index), expected)
    assert torch.equal(alpha, weight)
    assert not torch.allclose(out, expected)
    adj = to_torch_coo_tensor(edge_index, size=(10, 10)).t().coalesce()
    for training in (False, True):
        conv.train(training)
        weight = conv(x, adj, return_attention_weights=True)[1][0].to_dense()
        assert torch.allclose(weight[edge_index[1], edge_index[0]], alpha,
                              atol=1e-6)
    # Right in the mean.
    mean = sum(conv(x, edge_index) for _ in range(2000)) / 2000
    assert (mean - expected).abs().max().item() < .15
    conv.dropout = 1.
    assert torch.equal(conv(x, edge_index), conv.bias.expand(10, 8))


# Everything that PyG's layers work with ######################################

@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
@pytest.mark.parametrize('k', [None, 2])
def test_sparse_diff_attention_conv_layouts(lambda_form, k):
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    conv = SparseDiffAttentionConv(8, 16, heads=2, k=k,
                                   lambda_form=lambda_form)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = assert_module(conv, x, edge_index, expected_size=(10, 32),
                            atol=1e-6)
    for edges in [EdgeIndex(edge_index), EdgeIndex(edge_index,
                                                   sparse_size=(10, 10))]:
        assert torch.allclose(conv(x, edges), out, atol=1e-6)
    # `coalesce` sorts by source; here by target.
    edges, perm = EdgeIndex(edge_index,
                            sparse_size=(10, 10)).sort_by('col')
    assert edges.is_sorted_by_col
    found, (index, alpha) = conv(x, edges, return_attention_weights=True)
    assert torch.allclose(found, out, atol=1e-6) and index is edges
    weight = conv(x, edge_index, return_attention_weights=True)[1][1]
    assert torch.allclose(alpha, weight[perm], atol=1e-6)

    for size, message in [((10, 11), "11 targets, 'x' of 10"),
                          ((12, 10), "12 sources, 'x' of 10")]:
        for edges in [EdgeIndex(edge_index, sparse_size=size),
                      to_torch_csc_tensor(edge_index, size=size).t()]:
            with pytest.raises(ValueError, match=message):
                conv(x, edges)
    # Either way round.
    assert torch.allclose(conv(x, to_torch_csc_tensor(
        edge_index.flip(0), size=(10, 10))), out, atol=1e-6)

    # The flow turned around, and with it the edges.
    conv.flow = 'target_to_source'
    assert torch.allclose(conv(x, edge_index.flip(0)), out, atol=1e-6)
    edges = EdgeIndex(edge_index.flip(0), sparse_size=(11, 10))
    with pytest.raises(ValueError, match="11 targets, 'x' of 10"):
        conv(x, edges)
    adj = to_torch_csc_tensor(edge_index, size=(10, 10)).t()
    with pytest.raises(ValueError, match="leave 'flow' at 'source_to_target'"):
        conv(x, adj)


@pytest.mark.parametrize('flow', ['source_to_target', 'target_to_source'])
def test_sparse_diff_attention_conv_bipartite(flow):
    torch.manual_seed(0)
    x = (torch.randn(6, 8), torch.randn(3, 4))
    edge_index, edge_attr = random_graph(6, 3, 12), torch.randn(12, 5)
    edge_attr = edge_attr[:edge_index.size(1)]
    conv = SparseDiffAttentionConv((8, 4), 16, heads=2, edge_dim=5, flow=flow)
    expected, _ = definition(conv, x, edge_index, edge_attr)
    if flow == 'target_to_source':
        edge_index = edge_index.flip(0)
    for edges in (edge_index, EdgeIndex(edge_index)):
        for k in (None, torch.full((3, ), 12)):
            out = conv(x, edges, edge_attr, k=k)
            assert out.shape == (3, 32)
            assert torch.allclose(out, expected, atol=1e-6)
    if flow == 'source_to_target':
        conv = SparseDiffAttentionConv((8, 4), 16, heads=2, concat=False)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert_module(conv, x, edge_index, expected_size=(3, 16),
                          atol=1e-6)


def test_sparse_diff_attention_conv_lazy():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph()
    conv = SparseDiffAttentionConv(-1, 4, heads=2)
    assert str(conv) == 'SparseDiffAttentionConv(-1, 4, heads=2)'
    out = conv(x, edge_index)
    assert conv.lin_query.weight.shape == (16, 8)
    assert torch.allclose(out, definition(conv, x, edge_index)[0], atol=1e-6)
    conv = SparseDiffAttentionConv((-1, -1), 4, heads=2)
    assert conv((x, torch.randn(10, 3)), edge_index).shape == (10, 8)
    assert conv.lin_query.weight.shape == (16, 3)
    assert conv.lin_value.weight.shape == (8, 8)


def test_sparse_diff_attention_conv_returns_weights_as_gatv2_does():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph()
    conv = SparseDiffAttentionConv(8, 4, heads=2)
    out = conv(x, edge_index)
    # It obeys the value.
    for value in (None, False):
        assert isinstance(conv(x, edge_index, return_attention_weights=value),
                          torch.Tensor)
    found, (index, alpha) = conv(x, edge_index, return_attention_weights=True)
    assert torch.equal(found, out) and index is edge_index
    dense = torch.zeros(10, 10, 2)
    dense[edge_index[1], edge_index[0]] = alpha
    for adj in [to_torch_csc_tensor(edge_index, size=(10, 10)).t(),
                to_torch_coo_tensor(edge_index,
                                    size=(10, 10)).t().coalesce()]:
        found, (adj_t, alpha) = conv(x, adj, return_attention_weights=True)
        assert torch.allclose(found, out, atol=1e-6)
        assert adj_t.layout == adj.layout
        assert alpha.shape == (edge_index.size(1), 2)
        values = adj_t.values()
        assert torch.equal(values, alpha)
        if adj.layout == torch.sparse_coo:
            assert torch.allclose(adj_t.to_dense(), dense, atol=1e-6)


def test_sparse_diff_attention_conv_edge_features_in_a_sparse_matrix():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph()
    edge_attr = torch.randn(edge_index.size(1), 3)
    conv = SparseDiffAttentionConv(8, 4, heads=2, edge_dim=3)
    out = conv(x, edge_index, edge_attr)
    adj = to_torch_coo_tensor(edge_index, edge_attr, size=(10, 10))
    adj = adj.transpose(0, 1).coalesce()
    assert torch.allclose(conv(x, adj), out, atol=1e-6)
    # A single feature may come without a dimension of its own.
    conv = SparseDiffAttentionConv(8, 4, edge_dim=1)
    assert torch.equal(conv(x, edge_index, edge_attr[:, 0]),
                       conv(x, edge_index, edge_attr[:, :1]))


# With and without messages ###################################################

@pytest.mark.parametrize('flow', ['source_to_target', 'target_to_source'])
@pytest.mark.parametrize('edge_dim', [None, 3])
def test_sparse_diff_attention_conv_by_messages_is_the_same(flow, edge_dim):
    torch.manual_seed(0)
    conv = SparseDiffAttentionConv((8, 4), 5, 2, edge_dim=edge_dim,
                                   flow=flow).double()
    edge_index = random_graph(7, 3, 15)
    x = [torch.randn(n, c, dtype=torch.double, requires_grad=True)
         for n, c in [(7, 8), (3, 4)]]
    inputs = [*x, *conv.parameters()]
    edge_attr = None
    if edge_dim is not None:
        edge_attr = torch.randn(edge_index.size(1), edge_dim,
                                dtype=torch.double, requires_grad=True)
        inputs.append(edge_attr)
    if flow == 'target_to_source':
        edge_index = edge_index.flip(0)
    out = conv(x, edge_index, edge_attr)
    seen = []
    conv.register_message_forward_hook(
        lambda module, inputs, out: seen.append(out))
    other = conv(x, edge_index, edge_attr)
    assert seen[0].shape == (edge_index.size(1), 2, 5)
    assert torch.allclose(other, out)
    by = torch.randn_like(out)
    for grad, want in zip(torch.autograd.grad(out, inputs, by),
                          torch.autograd.grad(other, inputs, by)):
        assert torch.allclose(grad, want)


def test_sparse_diff_attention_conv_does_without_messages():
    # 20,000 edges of 128 numbers: the layer keeps nothing of that size.
    conv = SparseDiffAttentionConv(128, 128)
    x, edge_index = torch.randn(50, 128), torch.randint(50, (2, 20_000))
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        conv(x, edge_index).sum().backward()
        assert 0 < max(saved) <= 2 * 20_000
        conv.register_message_forward_hook(lambda module, inputs, out: None)
        conv(x, edge_index)
        assert max(saved) == 20_000 * 128


def test_sparse_diff_attention_conv_aggregates_as_it_is_told():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    conv = SparseDiffAttentionConv(8, 4, heads=2, bias=False)
    out = conv(x, edge_index)
    mean = SparseDiffAttentionConv(8, 4, heads=2, bias=False, aggr='mean')
    mean.load_state_dict(conv.state_dict())
    count = degree(edge_index[1], 10).clamp(min=1).view(-1, 1)
    assert torch.allclose(mean(x, edge_index), out / count, atol=1e-6)

    class Twice(SparseDiffAttentionConv):
        def message(self, value_j, alpha):
            return 2 * value_j * alpha.unsqueeze(-1)

    twice = Twice(8, 4, heads=2, bias=False)
    twice.load_state_dict(conv.state_dict())
    assert torch.allclose(twice(x, edge_index), 2 * out, atol=1e-6)


class Net(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.conv1 = SparseDiffAttentionConv(8, 8, heads=2, **kwargs)
        self.conv2 = SparseDiffAttentionConv(16, 3, lambda_form='reparam')

    def forward(self, x, edge_index, **kwargs):
        x = self.conv1(x, edge_index, **kwargs).relu()
        return self.conv2(x, edge_index)


CONFIG = ModelConfig(mode='multiclass_classification', task_level='node',
                     return_type='raw')


def test_sparse_diff_attention_conv_attention_explainer():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph()
    model = Net(k=2)
    explainer = Explainer(model, AttentionExplainer(), 'model',
                          edge_mask_type='object', model_config=CONFIG)
    explanation = explainer(x, edge_index, index=3)
    assert explanation.edge_mask.shape == (edge_index.size(1), )
    assert (explanation.edge_mask > 0).any()
    # What it reads are the signed weights.
    read = []
    handle = model.conv1.register_message_forward_hook(
        lambda module, inputs, out: read.append(inputs[0]['alpha']))
    out, (_, alpha) = model.conv1(x, edge_index,
                                  return_attention_weights=True)
    handle.remove()
    assert torch.equal(read[0], alpha)


def test_sparse_diff_attention_conv_gnn_explainer():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph()
    edge_attr = torch.randn(edge_index.size(1), 3)
    model = Net(edge_dim=3, k=2)
    before = model(x, edge_index, edge_attr=edge_attr)
    explainer = Explainer(model, GNNExplainer(epochs=3), 'model',
                          node_mask_type='attributes',
                          edge_mask_type='object', model_config=CONFIG)
    explanation = explainer(x, edge_index, index=3, edge_attr=edge_attr)
    assert explanation.edge_mask.shape == (edge_index.size(1), )
    assert float(explanation.edge_mask.max()) > 0
    assert torch.allclose(model(x, edge_index, edge_attr=edge_attr), before)


def test_sparse_diff_attention_conv_to_hetero():
    torch.manual_seed(0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SparseDiffAttentionConv((-1, -1), 4, heads=2, k=2)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index).relu()

    data = HeteroData()
    data['author'].x, data['paper'].x = torch.randn(5, 6), torch.randn(7, 8)
    data['author', 'writes', 'paper'].edge_index = random_graph(5, 7)
    data['paper', 'by', 'author'].edge_index = random_graph(7, 5)
    model = to_hetero(Model(), data.metadata())
    out = model(data.x_dict, data.edge_index_dict)
    assert out['author'].shape == (5, 8) and out['paper'].shape == (7, 8)
    out['paper'].sum().backward()
    names = [name for name, p in model.named_parameters()
             if p.grad is not None and 'author__writes__paper' in name]
    assert len(names) == 5


def test_sparse_diff_attention_conv_in_a_sequential():
    conv = SparseDiffAttentionConv(8, 4)
    model = Sequential('x, edge_index', [(conv, 'x, edge_index -> x'),
                                         torch.nn.ReLU()])
    x, edge_index = torch.randn(10, 8), random_graph()
    assert torch.equal(model(x, edge_index), conv(x, edge_index).relu())


def test_sparse_diff_attention_conv_can_be_copied():
    x, edge_index = torch.randn(10, 8), random_graph()
    conv = randomize(SparseDiffAttentionConv(8, 4, heads=2, k=2,
                                             lambda_form='reparam'))
    out = conv(x, edge_index)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x, edge_index), out)
    other = SparseDiffAttentionConv(8, 4, heads=2, k=2,
                                    lambda_form='reparam')
    other.load_state_dict(conv.state_dict())
    assert torch.equal(other(x, edge_index), out)


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
def test_sparse_diff_attention_conv_half_precision(lambda_form):
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 60)
    conv = SparseDiffAttentionConv(8, 4, heads=2, lambda_form=lambda_form,
                                   k=3)
    score = torch.rand(edge_index.size(1))
    expected = conv(x, edge_index, edge_score=score)
    with torch.autocast('cpu', torch.bfloat16):
        out, (_, alpha) = conv(x, edge_index, edge_score=score,
                               return_attention_weights=True)
    assert torch.allclose(out.float(), expected, atol=5e-2)
    # Weights are normalised in single precision.
    total = scatter(alpha, edge_index[1], dim_size=10)
    total = total[degree(edge_index[1], 10) > 0]
    wanted = (1 - conv.compute_lambda()).expand_as(total)
    assert torch.allclose(total, wanted, atol=1e-6)
    out.sum().backward()
    for parameter in conv.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.dtype == torch.float
    conv = conv.bfloat16()
    out = conv(x.bfloat16(), edge_index, edge_score=score)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=5e-2)


def test_sparse_diff_attention_conv_compile():
    torch.manual_seed(0)
    x, edge_index = torch.randn(10, 8), random_graph(10, 10, 40)
    num_edges = edge_index.size(1)
    edge_attr, score = torch.randn(num_edges, 3), torch.rand(num_edges)
    conv = SparseDiffAttentionConv(8, 4, heads=2, edge_dim=3)
    k = torch.randint(1, 4, (10, ))
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, dynamic=True)
    for edge_score in (None, score):
        inputs = x.clone().requires_grad_(), edge_attr.clone()
        out = compiled(inputs[0], edge_index, inputs[1], edge_score, k)
        other = x.clone().requires_grad_()
        expected = conv(other, edge_index, edge_attr, edge_score, k)
        assert torch.allclose(out, expected, atol=1e-5)
        out.square().sum().backward()
        grads = [p.grad.clone() for p in conv.parameters()]
        conv.zero_grad()
        expected.square().sum().backward()
        assert torch.allclose(inputs[0].grad, other.grad, atol=1e-5)
        for parameter, grad in zip(conv.parameters(), grads):
            assert torch.allclose(parameter.grad, grad, atol=1e-4)
        conv.zero_grad()
    # Another graph, the same code.
    with torch._dynamo.config.patch(error_on_recompile=True):
        x = torch.randn(12, 8, requires_grad=True)
        edge_index = random_graph(12, 12, 50, seed=1)
        num_edges = edge_index.size(1)
        edge_attr, score = torch.randn(num_edges, 3), torch.rand(num_edges)
        args = (x, edge_index, edge_attr, score, torch.full((12, ), 2))
        assert torch.allclose(compiled(*args), conv(*args), atol=1e-5)
    with pytest.raises(ValueError, match="'edge_attr' is missing"):
        torch.compile(conv, backend='eager')(x, edge_index)


# Errors ######################################################################

def test_sparse_diff_attention_conv_errors():
    for form in ['vector', None]:
        with pytest.raises(ValueError, match="'scalar' or 'reparam'"):
            SparseDiffAttentionConv(8, 4, lambda_form=form)
    for k in [2., True, '3', torch.tensor([1, 2])]:
        with pytest.raises(ValueError, match="'k' must be"):
            SparseDiffAttentionConv(8, 4, k=k)
    with pytest.raises(ValueError, match="'k' must be at least 1"):
        SparseDiffAttentionConv(8, 4, k=0)
    with pytest.raises(ValueError, match="'dropout' must be between 0 and 1"):
        SparseDiffAttentionConv(8, 4, dropout=-.1)

    x, edge_index = torch.randn(10, 8), random_graph()
    num_edges = edge_index.size(1)
    conv = SparseDiffAttentionConv(8, 4)
    for k, message in [
        (0, "'k' must be at least 1"),
        (1.5, "'k' must be an integer"),
        (torch.ones(10), "'k' must be integers of shape"),
        (torch.ones(9, dtype=torch.long), r'shape \[10\] .* shape \[9\]'),
        (torch.arange(10), r'got 0 at \[0\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            conv(x, edge_index, k=k)
    with pytest.raises(ValueError, match=r'integers of shape \[3\]'):
        conv((x, x[:3]), random_graph(10, 3), k=torch.ones(10).long())
    for score in [torch.rand(num_edges + 1), torch.rand(num_edges, 1),
                  torch.rand(())]:
        with pytest.raises(ValueError, match="'edge_score' must have shape"):
            conv(x, edge_index, edge_score=score, k=2)
    score = torch.rand(num_edges)
    score[3] = float('nan')
    with pytest.raises(ValueError, match=r"not a number at \[3\]"):
        conv(x, edge_index, edge_score=score)
    with pytest.raises(ValueError, match="'edge_attr' is not expected"):
        conv(x, edge_index, torch.randn(num_edges, 3))
    conv = SparseDiffAttentionConv(8, 4, edge_dim=3)
    with pytest.raises(ValueError, match="'edge_attr' is missing"):
        conv(x, edge_index)
    for attr in [torch.randn(num_edges - 1, 3), torch.randn(()),
                 torch.randn(num_edges, 1, 3)]:
        with pytest.raises(ValueError, match="'edge_attr' must have"):
            conv(x, edge_index, attr)
    with pytest.raises(IndexError):
        SparseDiffAttentionConv(8, 4)(x[:5], edge_index)


def test_sparse_diff_attention_conv_learns_to_ignore_noise():
    # A node's label is the sign that most of its neighbours carry; half of
    # its edges come from nodes marked as noise. The maps can tell.
    torch.manual_seed(0)
    edge_index = random_graph(200, 200, 4000)
    sign = torch.randint(2, (200, )) * 2. - 1
    noise = torch.rand(200) < .5
    x = torch.stack([sign + 2 * torch.randn(200) * noise, noise.float(),
                     torch.ones(200)], dim=1)
    source, target = edge_index
    y = (scatter(sign[source] * ~noise[source], target, dim_size=200) > 0)
    conv = SparseDiffAttentionConv(3, 2, heads=1)
    optimizer = torch.optim.Adam(conv.parameters(), lr=.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(conv(x, edge_index), y.long())
        loss.backward()
        optimizer.step()
    accuracy = (conv(x, edge_index).argmax(dim=1) == y).float().mean()
    assert float(accuracy) > .85


@pytest.mark.parametrize('value', [float('nan'), 1e30, float('inf')])
def test_what_is_not_a_number_comes_out_so(value):
    # Also by way of the mask, as from the dense twin.
    conv = SparseDiffAttentionConv(4, 3, heads=2, k=2)
    x = torch.randn(5, 4)
    x[1, 2] = value
    edge_index = torch.ones(5, 5).nonzero().t()
    out = conv(x, edge_index)
    expected = DenseDiffAttentionConv(4, 3, heads=2, k=2)
    expected.load_state_dict(conv.state_dict())
    assert torch.equal(out.isfinite(), expected(x[None])[0].isfinite())
    assert not out.isfinite().all()
