import copy
import inspect
import pickle

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch_geometric.testing import withCUDA

from torch_sdt.nn import DenseDiffAttentionConv, SparseDiffAttentionConv


def twins(*args, dtype=torch.double, device='cpu', **kwargs):
    dense = DenseDiffAttentionConv(*args, **kwargs).to(device, dtype)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=.5)
    sparse = SparseDiffAttentionConv(*args, **kwargs).to(device, dtype)
    sparse.load_state_dict(dense.state_dict())
    return dense, sparse


def as_graph(size, mask, edge_attr, score, k, device='cpu'):
    # The arguments of the sparse layer that say the same.
    B, L = size
    pairs = torch.ones(B, L, L, dtype=torch.bool, device=device)
    if mask is not None:
        pairs = pairs & mask.view(B, -1, L)
    b, query, key = pairs.nonzero().t()
    edge_index = torch.stack([b * L + key, b * L + query])
    if edge_attr is not None:
        edge_attr = edge_attr[b, query, key]
    if score is not None:
        score = score.view(B, -1, L).expand(B, L, L)[b, query, key]
    if isinstance(k, torch.Tensor):
        k = k.view(B, -1).expand(B, L).reshape(-1)
    return edge_index, edge_attr, score, k, (b, query, key)


def random_mask(kind, B, L):
    if kind is None:
        return None
    mask = torch.rand((B, L) if kind == 'keys' else (B, L, L)) > .3
    mask[0, 0] = False
    mask[-1] = False
    return mask


def test_dense_diff_attention_conv_repr_and_arguments():
    conv = DenseDiffAttentionConv(8, 16, heads=2)
    assert str(conv) == 'DenseDiffAttentionConv(8, 16, heads=2)'
    wanted = list(inspect.signature(SparseDiffAttentionConv).parameters)
    assert list(inspect.signature(type(conv)).parameters) == wanted[:-1]
    assert list(inspect.signature(conv.forward).parameters) == [
        'x', 'mask', 'edge_attr', 'score', 'k', 'return_attention_weights']


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
@pytest.mark.parametrize('edge_dim', [None, 3])
@pytest.mark.parametrize('bias', [False, True])
def test_dense_diff_attention_conv_shares_its_state(lambda_form, edge_dim,
                                                    bias):
    dense, sparse = [
        cls(8, 4, 2, edge_dim=edge_dim, lambda_form=lambda_form, bias=bias)
        for cls in (DenseDiffAttentionConv, SparseDiffAttentionConv)]
    assert list(dense.state_dict()) == list(sparse.state_dict())
    dense.load_state_dict(sparse.state_dict())
    sparse.load_state_dict(copy.deepcopy(dense).state_dict())
    torch.manual_seed(0)
    dense.reset_parameters()
    torch.manual_seed(0)
    sparse.reset_parameters()
    for name, value in dense.state_dict().items():
        assert torch.equal(value, sparse.state_dict()[name])


CASES = [
    # heads, concat, lambda_form, mask, edge_dim, score, k
    (1, True, 'scalar', None, None, None, None),
    (2, True, 'scalar', 'keys', None, None, None),
    (3, False, 'reparam', 'pairs', None, None, None),
    (2, True, 'reparam', 'keys', 3, None, None),
    (2, True, 'scalar', None, None, 'keys', 2),
    (2, False, 'scalar', 'keys', None, 'keys', 'graph'),
    (2, True, 'scalar', 'pairs', None, 'keys', 'query'),
    (1, True, 'reparam', 'keys', None, 'pairs', 'query'),
    (2, True, 'scalar', 'pairs', 1, 'pairs', 3),
    (2, True, 'scalar', None, None, None, 2),
    (3, True, 'reparam', 'pairs', None, None, 'query'),
    (2, True, 'scalar', 'keys', 2, None, 'graph'),
]


@withCUDA
@pytest.mark.parametrize('heads,concat,lambda_form,kind,edge_dim,by,k', CASES)
@pytest.mark.parametrize('size', [(3, 7), (2, 33), (1, 1)])
def test_dense_diff_attention_conv_is_the_sparse_layer(
        device, heads, concat, lambda_form, kind, edge_dim, by, k, size):
    torch.manual_seed(0)
    B, L = size
    dense, sparse = twins(6, 5, heads, concat, lambda_form=lambda_form,
                          edge_dim=edge_dim, device=device)
    x = torch.randn(B, L, 6, device=device, dtype=torch.double,
                    requires_grad=True)
    mask = random_mask(kind, B, L)
    edge_attr = score = None
    if edge_dim is not None:
        edge_attr = torch.randn(B, L, L, edge_dim, device=device,
                                dtype=torch.double, requires_grad=True)
    if by is not None:
        # Few values, many ties.
        shape = (B, L) if by == 'keys' else (B, L, L)
        score = torch.randint(4, shape, device=device).float()
    if isinstance(k, str):
        shape = (B, ) if k == 'graph' else (B, L)
        k = torch.randint(1, 5, shape, device=device)
    mask = None if mask is None else mask.to(device)

    edge_index, attr, edge_score, each, place = as_graph(
        size, mask, edge_attr, score, k, device)
    expected, (_, weight) = sparse(x.view(B * L, 6), edge_index, attr,
                                   edge_score, each, True)
    inputs = [x, *dense.parameters()]
    others = [x, *sparse.parameters()]
    if edge_attr is not None:
        inputs.append(edge_attr)
        others.append(edge_attr)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, others, direction)

    out, alpha = dense(x, mask, edge_attr, score, k, True)
    assert alpha.shape == (B, heads, L, L)
    b, query, key = place
    assert torch.allclose(alpha[b, :, query, key], weight)
    assert (alpha != 0).sum() == (weight != 0).sum()
    # Fused where it can be, and not.
    for found in (out, dense(x, mask, edge_attr, score, k)):
        assert found.shape == (B, L, 5 * (heads if concat else 1))
        assert torch.allclose(found.reshape(expected.shape), expected)
        grads = torch.autograd.grad(found, inputs, direction.view_as(found),
                                    retain_graph=True)
        for grad, want in zip(grads, wanted):
            assert torch.isfinite(grad).all()
            assert torch.allclose(grad, want)


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
@pytest.mark.parametrize('k', [None, 4])
def test_dense_diff_attention_conv_in_single_precision(lambda_form, k):
    # 81 tokens of width 64, as it is used.
    torch.manual_seed(0)
    dense, sparse = twins(64, 16, 4, dtype=torch.float, k=k,
                          lambda_form=lambda_form)
    for conv in (dense, sparse):
        conv.reset_parameters()
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(2, 81, 64, requires_grad=True)
    mask, score = torch.rand(2, 81) > .2, torch.rand(2, 81)
    edge_index, _, edge_score, _, _ = as_graph((2, 81), mask, None, score, k)
    expected = sparse(x.view(162, 64), edge_index, edge_score=edge_score)
    out = dense(x, mask, score=score)
    assert torch.allclose(out.view(162, 64), expected, atol=1e-5)
    wanted, = torch.autograd.grad(expected.square().sum(), x)
    grad, = torch.autograd.grad(out.square().sum(), x)
    assert torch.allclose(grad, wanted, atol=1e-5)


def test_dense_diff_attention_conv_lambda_zero_is_multihead_attention():
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2, lambda_init=0.)
    other = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([
            conv.lin_query.weight[:8], conv.lin_key.weight[:8],
            conv.lin_value.weight]))
        other.out_proj.weight.copy_(torch.eye(8))
    x, mask = torch.randn(3, 9, 8), torch.rand(3, 9) > .3
    expected, weight = other(x, x, x, key_padding_mask=~mask,
                             average_attn_weights=False)
    out, alpha = conv(x, mask, return_attention_weights=True)
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.allclose(alpha, weight, atol=1e-6)


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
@pytest.mark.parametrize('fused', [False, True])
def test_dense_diff_attention_conv_of_nothing_is_the_bias(lambda_form, fused):
    torch.manual_seed(0)
    conv, _ = twins(8, 4, heads=2, lambda_form=lambda_form, dtype=torch.float)
    for parameter in conv.parameters():
        parameter.grad = None
    x = torch.randn(3, 5, 8, requires_grad=True)
    pairs = torch.rand(3, 5, 5) > .2
    pairs[0, 2], pairs[1] = False, False
    keys = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    for mask, empty in [(pairs, [(0, 2), (1, 0), (1, 4)]),
                        (keys, [(1, 0), (1, 4)])]:
        for k in (None, 2):
            out = conv(x, mask, k=k, score=torch.rand(3, 5),
                       return_attention_weights=not fused)
            out = out if fused else out[0]
            for b, i in empty:
                assert torch.equal(out[b, i], conv.bias)
            assert torch.isfinite(out).all()
            # Errors at such rows must not spoil others either.
            grads = torch.autograd.grad(out.square().sum(),
                                        [x, *conv.parameters()])
            assert all(torch.isfinite(grad).all() for grad in grads)
            assert (grads[0][1] == 0).all() and (grads[0][0] != 0).any()


@pytest.mark.parametrize('size', [(0, 4), (3, 0), (2, 1)])
def test_dense_diff_attention_conv_without_nodes(size):
    conv = DenseDiffAttentionConv(8, 4, heads=2)
    x = torch.randn(*size, 8, requires_grad=True)
    for mask in (None, torch.ones(size, dtype=torch.bool),
                 torch.ones(*size, size[1], dtype=torch.bool)):
        for k in (None, 2):
            for score in (None, torch.rand(size)):
                out = conv(x, mask, score=score, k=k)
                assert out.shape == (*size, 8)
                out.sum().backward()


def test_dense_diff_attention_conv_nodes_that_do_not_exist():
    # Neither their number nor their features make a difference.
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2)
    x, score = torch.randn(2, 5, 8), torch.rand(2, 9)
    padded = torch.cat([x, 1e3 * torch.randn(2, 4, 8)], dim=1)
    mask = torch.arange(9).expand(2, 9) < 5
    for k in (None, 3):
        for by in (None, score):
            out = conv(x, score=None if by is None else by[:, :5], k=k)
            other = conv(padded, mask, score=by, k=k)
            assert torch.allclose(other[:, :5], out, atol=1e-5)


def test_dense_diff_attention_conv_is_equivariant():
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2)
    x, score, mask = torch.randn(2, 7, 8), torch.rand(2, 7), torch.ones(2, 7)
    mask = mask.bernoulli(.8).bool()
    perm = torch.randperm(7)
    for k in (None, 2):
        for by in (None, score):
            out = conv(x, mask, score=by, k=k)
            by = None if by is None else by[:, perm]
            moved = conv(x[:, perm], mask[:, perm], score=by, k=k)
            assert torch.allclose(moved, out[:, perm], atol=1e-6)


def test_dense_diff_attention_conv_k():
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2, k=3)
    x, score = torch.randn(2, 7, 8), torch.rand(2, 7)
    for by in (None, score):
        full = conv(x, score=by, k=7)
        for k in (8, torch.tensor([7, 9]), torch.full((2, 7), 7)):
            assert torch.equal(conv(x, score=by, k=k), full)
        assert torch.allclose(full, _without_k(conv)(x), atol=1e-6)
        assert not torch.allclose(conv(x, score=by), full)
        alpha = conv(x, score=by, return_attention_weights=True)[1]
        assert ((alpha != 0).sum(dim=-1) == 3).all()
    best = score.argmax(dim=1)
    alpha = conv(x, score=score, k=1, return_attention_weights=True)[1]
    assert torch.allclose(alpha[range(2), :, :, best], 1 - conv.lam)
    # One that the mask excludes is no candidate.
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[range(2), best] = False
    second = score.masked_fill(~mask, -1.).argmax(dim=1)
    alpha = conv(x, mask, None, score, 1, True)[1]
    assert torch.allclose(alpha[range(2), :, :, second], 1 - conv.lam)


def _without_k(conv):
    conv = copy.deepcopy(conv)
    conv.k = None
    return conv


@pytest.mark.parametrize('kind', [None, 'keys', 'pairs'])
@pytest.mark.parametrize('k', [None, 3])
def test_dense_diff_attention_conv_runs_the_fused_kernel(kind, k):
    conv = DenseDiffAttentionConv(32, 8, heads=4, k=k, dropout=.1).eval()
    x = torch.randn(3, 11, 32, requires_grad=True)
    mask, score = random_mask(kind, 3, 11), torch.rand(3, 11)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        conv(x, mask, score=score).sum().backward()
    count = {event.key: event.count for event in profiler.key_averages()}
    name = 'aten::_scaled_dot_product_flash_attention_for_cpu'
    assert count[name] == count[f'{name}_backward'] == 2
    assert 'aten::_scaled_dot_product_attention_math' not in count
    assert 'aten::softmax' not in count


def test_dense_diff_attention_conv_dropout():
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2, dropout=.5)
    x = torch.randn(3, 6, 8)
    out, alpha = conv(x, return_attention_weights=True)
    assert not torch.allclose(conv(x), conv(x))
    conv.eval()
    expected, weight = conv(x, return_attention_weights=True)
    assert torch.equal(alpha, weight)
    assert torch.allclose(conv(x), expected, atol=1e-6)
    assert not torch.allclose(out, expected)
    conv.train()
    mean = sum(conv(x) for _ in range(1000)) / 1000
    assert (mean - expected).abs().max().item() < .15


def test_dense_diff_attention_conv_gradcheck():
    torch.manual_seed(0)
    conv, _ = twins(4, 3, heads=2, lambda_form='reparam')
    mask = torch.tensor([[True, True, False], [False, False, False]])
    x = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)

    def function(x, *parameters):
        names = [name for name, _ in conv.named_parameters()]
        return torch.func.functional_call(
            conv, dict(zip(names, parameters)), (x, mask))

    assert torch.autograd.gradcheck(function, (x, *conv.parameters()))


@pytest.mark.parametrize('lambda_form', ['scalar', 'reparam'])
def test_dense_diff_attention_conv_half_precision(lambda_form):
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2, lambda_form=lambda_form)
    x, mask = torch.randn(3, 6, 8), torch.rand(3, 6) > .3
    expected = conv(x, mask)
    with torch.autocast('cpu', torch.bfloat16):
        out = conv(x, mask)
        other, alpha = conv(x, mask, return_attention_weights=True)
    assert torch.allclose(out.float(), expected, atol=5e-2)
    assert torch.allclose(other.float(), expected, atol=5e-2)
    assert alpha.dtype == torch.float
    (out.sum() + other.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters())
    out = conv.bfloat16()(x.bfloat16(), mask)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=5e-2)


def test_dense_diff_attention_conv_can_be_copied_and_lazy():
    x = torch.randn(2, 5, 8)
    conv = DenseDiffAttentionConv(-1, 4, heads=2, lambda_form='reparam')
    assert str(conv) == 'DenseDiffAttentionConv(-1, 4, heads=2)'
    out = conv(x)
    assert conv.lin_key.weight.shape == (16, 8)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(other(x), out)


def test_dense_diff_attention_conv_compile():
    torch.manual_seed(0)
    conv = DenseDiffAttentionConv(8, 4, heads=2)
    x, mask = torch.randn(2, 5, 8), torch.rand(2, 5) > .3
    score, k = torch.rand(2, 5), torch.tensor([2, 3])
    torch._dynamo.reset()
    # That no graph breaks does not depend on what is done with it.
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for args in [(x, mask), (x, mask, None, score, k),
                 (x, mask, None, None, k)]:
        out = compiled(*args)
        assert torch.allclose(out, conv(*args), atol=1e-6)
        out.sum().backward()


def test_dense_diff_attention_conv_errors():
    with pytest.raises(ValueError, match="'scalar' or 'reparam'"):
        DenseDiffAttentionConv(8, 4, lambda_form='vector')
    with pytest.raises(ValueError, match="'k' must be at least 1"):
        DenseDiffAttentionConv(8, 4, k=0)
    conv, x = DenseDiffAttentionConv(8, 4), torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"'x' must have shape \[B, L, F\]"):
        conv(x[0])
    for mask in [torch.ones(2, 5), torch.ones(5, dtype=torch.bool),
                 torch.ones(2, 4, dtype=torch.bool),
                 torch.ones(2, 1, 5, dtype=torch.bool)]:
        with pytest.raises(ValueError, match="'mask' must be boolean of"):
            conv(x, mask)
    for shape in [(2, ), (2, 4), (2, 5, 4), (5, )]:
        with pytest.raises(ValueError, match="'score' must have shape"):
            conv(x, score=torch.rand(shape), k=2)
    score = torch.rand(2, 5)
    score[1, 3] = float('nan')
    with pytest.raises(ValueError, match=r'not a number at \[1, 3\]'):
        conv(x, score=score, k=2)
    for k, message in [
        (0, "'k' must be at least 1"),
        (1.5, "'k' must be an integer"),
        (torch.ones(2), r'integers of shape \[2\] or \[2, 5\]'),
        (torch.ones(5, dtype=torch.long), r'got torch.int64 of shape \[5\]'),
        (torch.tensor([1, 0]), r'got 0 at \[1\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            conv(x, k=k)
    with pytest.raises(ValueError, match="'edge_attr' is not expected"):
        conv(x, edge_attr=torch.rand(2, 5, 5, 3))
    conv = DenseDiffAttentionConv(8, 4, edge_dim=3)
    with pytest.raises(ValueError, match="'edge_attr' is missing"):
        conv(x)
    with pytest.raises(ValueError, match=r'shape \[2, 5, 5, 3\]'):
        conv(x, edge_attr=torch.rand(2, 5, 5))
