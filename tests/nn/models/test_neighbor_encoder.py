from dataclasses import replace

import pytest
import torch

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import MixtureOfExperts, NeighborEncoder
from torch_sdt.ops import knn, normalize_features

N, K, D = 30, 8, 6
SMALL = dict(hidden_channels=16, ffn_channels=24, num_layers=2, heads=2)
KINDS = [
    dict(attention='vanilla'),
    dict(attention='diff'),
    dict(attention='diff', lambda_form='reparam'),
    dict(attention='sparse-diff', margin=1),
    dict(attention='sparse-diff', mask='logits', margin=1),
    dict(attention='sparse-diff', lambda_form='reparam', margin=0),
    dict(attention='diff', experts=3),
]
all_kinds = pytest.mark.parametrize('kind', KINDS, ids=lambda kind: '-'.join(
    str(value) for value in kind.values()))


def features(seed=0, dim=D):
    generator = torch.Generator().manual_seed(seed)
    return normalize_features(torch.randn(N, dim, generator=generator))


def gather(x, width=K, relations=1, neighbors=None, value=None, k=None):
    # All nodes, in one batch.
    generator = torch.Generator().manual_seed(1)
    if value is None:
        value = torch.rand(N, width, generator=generator)
    if k is None:
        k = torch.randint(1, width + 1, (N, ), generator=generator)
    neighbors = knn(x, width) if neighbors is None else neighbors
    loader = NeighborSubgraphs(neighbors, x, N, k=k,
                               relations=[value] * (relations // 2))
    return next(iter(loader))


def encoder(seed=0, **kwargs):
    torch.manual_seed(seed)
    return NeighborEncoder(K, **{**SMALL, **kwargs}).eval()


# Shapes ######################################################################


@all_kinds
@pytest.mark.parametrize('relations', [0, 2])
@pytest.mark.parametrize('in_channels', [None, D])
@pytest.mark.parametrize('width', [1, 2, K])
def test_shapes(kind, relations, in_channels, width):
    model = encoder(relations=relations, in_channels=in_channels, **kind)
    batch = gather(features(), width, relations)
    before = batch.similarity.clone()
    out = model(batch)
    assert out.shape == (N, width, 16) and out.dtype == torch.float32
    assert bool(out.isfinite().all())
    # Each token is normalised, whatever the subgraph.
    assert torch.allclose(out.mean(dim=-1), torch.zeros(N, width), atol=1e-5)
    assert torch.equal(batch.similarity, before)
    # A subgraph does not know what else is in its batch.
    alone = NeighborSubgraphs(
        knn(features(), width), features(), k=batch.k).gather(
            torch.tensor([7]))
    if relations > 0:
        alone = replace(alone, relation=batch.relation[7:8])
    assert torch.allclose(model(alone), out[7:8], atol=1e-5)


@all_kinds
@pytest.mark.parametrize('first', [1, 2, K, K + 1])
@pytest.mark.parametrize('num_layers', [1, 2])
def test_the_first_tokens_are_the_same_without_the_others(kind, first,
                                                          num_layers):
    model = encoder(relations=2, num_layers=num_layers, **kind)
    batch = gather(features(), relations=2)
    out, some = model(batch)[:, :first], model(batch, first)
    assert some.shape == out.shape
    assert torch.allclose(some, out, atol=1e-5)
    weights = (model.relation_weight, model.layers[0].norm1.weight)
    grad, same = (torch.autograd.grad(tokens[..., 0].square().sum(), weights)
                  for tokens in (out, some))
    for a, b in zip(grad, same):
        assert torch.allclose(a, b, atol=1e-4) and float(a.norm()) > 0


def test_cosines_to_oneself_do_not_count():
    model, batch = encoder(relations=2), gather(features(), relations=2)
    other = batch.similarity.clone()
    other.diagonal(dim1=1, dim2=2).fill_(7.)
    expected = model(batch)
    assert torch.equal(model(replace(batch, similarity=other)), expected)
    # What a model says of a node itself does.
    other = batch.relation.clone()
    other.diagonal(dim1=2, dim2=3).fill_(7.)
    assert not torch.allclose(model(replace(batch, relation=other)), expected)


def test_all_that_it_is_given_counts():
    model = encoder(relations=2, in_channels=D)
    batch = gather(features(), relations=2)
    expected = model(batch)
    for name in ('similarity', 'x', 'relation'):
        other = replace(batch, **{name: getattr(batch, name) + torch.rand(
            getattr(batch, name).shape)})
        assert not torch.allclose(model(other), expected, atol=1e-2)
    # Both directions, each with weights of its own.
    swapped = replace(batch, relation=batch.relation.flip(1))
    assert not torch.allclose(model(swapped), expected, atol=1e-2)


# What it does not depend on ##################################################


@all_kinds
def test_without_features_only_angles_count(kind):
    model, x = encoder(relations=2, **kind), features()
    expected = model(gather(x, relations=2))
    rotation = torch.linalg.qr(torch.randn(D, D))[0]
    wide = torch.cat([torch.zeros(N, 5), x, torch.zeros(N, 3)], dim=1)
    for other in (x @ rotation, -x, wide):
        # The same table: ties of rounding errors are another matter.
        batch = gather(other, neighbors=knn(x, K), relations=2)
        assert torch.allclose(model(batch), expected, atol=1e-4)
    # With features, coordinates count.
    model = encoder(in_channels=D, **kind)
    table = knn(x, K)
    turned = model(gather(x @ rotation, neighbors=table, relations=0))
    assert not torch.allclose(
        turned, model(gather(x, neighbors=table, relations=0)), atol=1e-2)


@all_kinds
@pytest.mark.parametrize('in_channels', [None, D])
def test_names_of_nodes_do_not_count(kind, in_channels):
    model = encoder(relations=2, in_channels=in_channels, **kind)
    x, neighbors = features(), knn(features(), K)
    generator = torch.Generator().manual_seed(3)
    value = torch.rand(N, K, generator=generator)
    k = torch.randint(1, K + 1, (N, ), generator=generator)
    expected = model(gather(x, K, 2, neighbors, value, k))
    perm = torch.randperm(N, generator=generator)
    renamed = Neighbors(perm.argsort()[neighbors.index[perm]],
                        neighbors.similarity[perm])
    out = model(gather(x[perm], K, 2, renamed, value[perm], k[perm]))
    assert torch.allclose(out, expected[perm], atol=1e-5)


def test_order_of_ranks_counts():
    model, batch = encoder(), gather(features(), relations=0)
    perm = torch.tensor([0, 2, 1, *range(3, K)])
    other = replace(batch, similarity=batch.similarity[:, perm][:, :, perm])
    out = model(other)[:, perm.argsort()]
    assert not torch.allclose(out, model(batch), atol=1e-2)


# The mask ####################################################################


def test_allowed_by_rank():
    model = encoder(attention='sparse-diff', margin=2)
    allowed, keep = model._allowed(torch.tensor([1, 3, 8]), K)
    assert keep is None and allowed.shape == (3, K, K)
    for b, size in enumerate([3, 5, 8]):
        for query in range(K):
            for key in range(K):
                assert bool(allowed[b, query, key]) == (key < size
                                                        or key == query)
    allowed, keep = encoder(attention='sparse-diff', margin=2, mask='logits'
                            )._allowed(torch.tensor([1, 3, 8]), K)
    assert allowed is None and keep.tolist() == [3, 5, 8]
    for attention in ('vanilla', 'diff'):
        assert encoder(attention=attention)._allowed(None, K) == (None, None)


@pytest.mark.parametrize('num_layers', [1, 3])
@pytest.mark.parametrize('attention', ['sparse-diff', 'diff'])
def test_beyond_the_mask_nobody_is_heard(attention, num_layers):
    # Node by node k + margin = 3, and the token at rank 5 is told something
    # else: its row, which no other token reads.
    model = encoder(attention=attention, margin=1, num_layers=num_layers)
    batch = replace(gather(features(), relations=0),
                    k=torch.full((N, ), 2))
    expected = model(batch)

    def change(rank):
        similarity = batch.similarity.clone()
        similarity[:, rank] = torch.rand(
            N, K, generator=torch.Generator().manual_seed(0))
        out = model(replace(batch, similarity=similarity))
        return (out - expected).abs().amax(dim=(0, 2)) > 1e-4

    heard = change(5)
    assert bool(heard[5])
    assert heard.tolist() == [rank == 5 or attention == 'diff'
                              for rank in range(K)]
    # Within it, everybody is heard by all.
    assert change(2).tolist() == [True] * K


def test_wide_margin_is_no_mask():
    dense = encoder(attention='diff')
    batch = gather(features(), relations=0)
    expected = dense(batch)
    for mask in ('rank', 'logits'):
        sparse = encoder(attention='sparse-diff', mask=mask, margin=K)
        sparse.load_state_dict(dense.state_dict())
        assert torch.allclose(sparse(batch), expected, atol=1e-5)
        narrow = encoder(attention='sparse-diff', mask=mask, margin=0)
        narrow.load_state_dict(dense.state_dict())
        assert not torch.allclose(narrow(batch), expected, atol=1e-2)


def test_by_logits_each_query_keeps_as_many():
    model = encoder(attention='sparse-diff', mask='logits', margin=1)
    batch = gather(features(), relations=0)
    seen = []

    def watch(module, args, kwargs):
        _, alpha = type(module).forward(module, *args, **kwargs,
                                        return_attention_weights=True)
        seen.append((alpha != 0).sum(dim=-1))

    model.layers[0].attention.register_forward_pre_hook(watch,
                                                        with_kwargs=True)
    model(batch)
    kept = (batch.k + 1).clamp(max=K).view(-1, 1, 1)
    assert torch.equal(seen[0], kept.expand(N, 2, K))


def test_narrower_table_is_the_same_without_the_rest():
    # Nobody beyond the third is heard, and what rows say of them is 0: as if
    # they were not there.
    model = encoder(attention='sparse-diff', margin=0)
    wide = gather(features(), relations=0)
    similarity = wide.similarity.clone()
    similarity[:, :, 3:] = 0.
    k = torch.full((N, ), 3)
    out = model(replace(wide, similarity=similarity, k=k))
    narrow = replace(gather(features(), 3, relations=0), k=k)
    assert torch.allclose(model(narrow), out[:, :3], atol=1e-5)


# Lambda and experts ##########################################################


def test_lambda_forms():
    batch = gather(features(), relations=0)
    for form, layers in (('scalar', 2), ('reparam', 3)):
        model = encoder(attention='diff', lambda_form=form,
                        num_layers=layers, lambda_init=.3).train()
        values = [layer.attention.compute_lambda() for layer in model.layers]
        assert len(values) == layers
        if form == 'scalar':
            assert torch.stack(values).tolist() == pytest.approx([.3] * 2)
        # One that starts there, learns.
        model(batch)[:, 0, 0].square().sum().backward()
        names = [name for name, _ in model.named_parameters()
                 if '.lam' in name]
        assert len(names) == layers * (1 if form == 'scalar' else 2)
        for name in names:
            grad = model.get_parameter(name).grad
            assert bool(grad.isfinite().all()) and float(grad.norm()) > 0


@pytest.mark.parametrize('lambda_init', [0., .8])
def test_lambda_is_the_weight_of_the_second_map(lambda_init):
    model = encoder(attention='diff', lambda_init=lambda_init, num_layers=1)
    batch = gather(features(), relations=0)
    expected = model(batch)
    with torch.no_grad():
        # The second half of the keys' rows are those of the second map.
        model.layers[0].attention.lin_key.weight[16:].normal_()
    assert torch.allclose(model(batch), expected,
                          atol=1e-6) == (lambda_init == 0)


def test_balance_loss():
    batch = gather(features(), relations=0)
    dense = encoder()
    dense(batch)
    assert dense.balance_loss().item() == 0.
    model = encoder(experts=3)
    # Nothing to say before the first pass.
    assert model.balance_loss().item() == 0.
    model(batch)
    parts = [module.balance_loss for module in model.modules()
             if isinstance(module, MixtureOfExperts)]
    assert len(parts) == 2 and parts[0].item() != parts[1].item()
    assert torch.allclose(model.balance_loss(), sum(parts) / 2)
    model.balance_loss().backward()
    assert float(model.layers[0].ffn.router.weight.grad.norm()) > 0


# Training and errors #########################################################


@all_kinds
def test_gradients(kind):
    model = encoder(relations=2, in_channels=D, **kind).train()
    model(gather(features(), relations=2))[..., 0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    for used in (model.relation_weight, model.rank,
                 model.lin_feature.weight):
        assert float(used.grad.norm()) > 0


def test_dropout_is_of_training_only():
    model, batch = encoder(dropout=.5), gather(features(), relations=0)
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.allclose(model(batch), model(batch))
    model = encoder(dropout=0.).train()
    assert torch.equal(model(batch), model(batch))


def test_same_seed_same_weights():
    first, second, third = encoder(), encoder(), encoder(seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.rank, third.rank)


@pytest.mark.parametrize('kwargs,message', [
    ({'attention': 'dense'}, r"'attention' must be .*'sparse-diff'.*'dense'"),
    ({'mask': 'score'}, "'mask' must be one of .*'score'"),
    ({'lambda_form': 'vector'}, "'lambda_form' must be"),
    ({'hidden_channels': 15}, "multiple of the 2 heads .got 15"),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        encoder(**kwargs)


def test_bad_batches():
    x = features()
    with pytest.raises(ValueError, match=f"at most {K} neighbours .got 9"):
        encoder()(gather(x, 9, relations=0))
    with pytest.raises(ValueError, match="for 0 relations .got 2"):
        encoder()(gather(x, relations=2))
    with pytest.raises(ValueError, match="for 2 relations .got 0"):
        encoder(relations=2)(gather(x, relations=0))
    with pytest.raises(ValueError, match="Sparse attention needs .*'k'"):
        encoder(attention='sparse-diff')(
            replace(gather(x, relations=0), k=None))
