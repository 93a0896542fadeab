import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from torch_sdt.nn import MixtureOfExperts


def expert(moe, e, x):
    hidden = F.gelu(x @ moe.weight1[e].t() + moe.bias1[e])
    return hidden @ moe.weight2[e].t() + moe.bias2[e]


def definition(moe, tokens):
    # Token by token, and the balance by counting.
    out, routes = [], torch.zeros(moe.experts)
    score = (tokens @ moe.router.weight.t()).softmax(dim=1)
    for x, g in zip(tokens, score):
        best = sorted(range(moe.experts), key=lambda e: -g[e].item())
        best = best[:moe.top_k]
        total = sum(g[e] for e in best)
        out.append(sum(g[e] / total * expert(moe, e, x) for e in best))
        routes[best] += 1
    share = routes / routes.sum()
    return torch.stack(out), moe.experts * (share * score.mean(dim=0)).sum()


def tokens(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def layer(*args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return MixtureOfExperts(*args, **kwargs)


@pytest.mark.parametrize('experts,top_k', [(1, 1), (4, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize('shape', [(1, ), (7, ), (5, 6)])
def test_mixture_of_experts(experts, top_k, shape):
    moe = layer(8, 12, experts=experts, top_k=top_k)
    assert str(moe) == (f'MixtureOfExperts(8, 12, experts={experts}, '
                        f'top_k={top_k})')
    x = tokens(*shape, 8)
    expected, balance = definition(moe, x.view(-1, 8))
    out = moe(x)
    assert out.shape == x.shape
    assert torch.allclose(out, expected.view(x.shape), atol=1e-6)
    assert torch.allclose(moe.balance_loss, balance, atol=1e-6)


def test_one_expert_is_a_dense_block():
    moe = layer(8, 12, experts=1, top_k=1)
    dense = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.GELU(),
                                torch.nn.Linear(12, 8))
    dense.load_state_dict({'0.weight': moe.weight1[0], '0.bias': moe.bias1[0],
                           '2.weight': moe.weight2[0],
                           '2.bias': moe.bias2[0]})
    x = tokens(5, 6, 8)
    assert torch.allclose(moe(x), dense(x), atol=1e-6)
    assert moe.balance_loss.item() == 1.


def test_all_experts_alike_are_one():
    # Scores sum to 1, whichever of them are taken.
    moe = layer(8, 12, experts=4, top_k=2)
    with torch.no_grad():
        for parameter in (moe.weight1, moe.bias1, moe.weight2, moe.bias2):
            parameter.copy_(parameter[:1].expand_as(parameter))
    x = tokens(20, 8)
    assert torch.allclose(moe(x), expert(moe, 0, x), atol=1e-6)


def test_permutation_of_tokens_and_of_experts():
    moe = layer(8, 12)
    x, perm = tokens(20, 8), torch.randperm(20)
    expected = moe(x)
    balance = moe.balance_loss.item()
    assert torch.allclose(moe(x[perm]), expected[perm], atol=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    other = layer(8, 12)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter[order])
    assert torch.allclose(other(x), expected, atol=1e-6)
    assert other.balance_loss.item() == pytest.approx(balance, abs=1e-6)


@pytest.mark.parametrize('top_k', [1, 2])
def test_balance_loss(top_k):
    moe, x = layer(8, 12, top_k=top_k), tokens(200, 8).abs()
    # A router that knows no difference.
    torch.nn.init.zeros_(moe.router.weight)
    moe(x)
    assert moe.balance_loss.item() == pytest.approx(1, abs=1e-6)
    # One to which a single expert is everything. It has one route a token.
    with torch.no_grad():
        moe.router.weight[2] = 100.
    moe(x)
    assert moe.balance_loss.item() == pytest.approx(4 / top_k, abs=1e-4)
    # Each token is sure of another expert: all have as many tokens. With two
    # to a token, the second is anyone's, and its score next to nothing.
    with torch.no_grad():
        moe.router.weight.copy_(100 * torch.eye(4, 8))
    moe(torch.eye(8)[:4].repeat(5, 1))
    assert moe.balance_loss.item() == pytest.approx(1, abs=1e-4)


def test_balance_loss_is_bounded():
    # However unsure the router is: never negative, and never above E.
    for seed in range(20):
        moe = layer(8, 12, seed=seed)
        torch.nn.init.normal_(moe.router.weight, std=seed / 2)
        moe(tokens(30, 8, seed=seed))
        assert 0 < moe.balance_loss.item() <= 4


def test_lowering_the_balance_loss_balances():
    moe, x = layer(8, 12, top_k=1), tokens(200, 8)
    with torch.no_grad():
        moe.router.weight[2] += .5 * x.mean(dim=0).sign()
    x = x + x.mean(dim=0).sign()
    optimizer = torch.optim.SGD(moe.router.parameters(), lr=.5)

    def largest_share():
        best = moe.router(x).argmax(dim=1)
        return float(best.bincount(minlength=4).max() / 200)

    before = largest_share()
    for _ in range(50):
        moe(x)
        optimizer.zero_grad()
        moe.balance_loss.backward()
        optimizer.step()
    assert largest_share() < before


@pytest.mark.parametrize('experts,top_k', [(4, 2), (4, 4), (2, 2)])
def test_gradients(experts, top_k):
    moe = layer(8, 12, experts=experts, top_k=top_k)
    x = tokens(40, 8).requires_grad_()
    moe(x).square().mean().backward()
    for parameter in [x, *moe.parameters()]:
        assert bool(parameter.grad.isfinite().all())
    used = moe.router(x).topk(top_k, dim=1)[1].unique()
    assert used.numel() == experts
    assert bool((moe.router.weight.grad.abs().amax(dim=1) > 0).all())
    for parameter in (moe.weight1, moe.bias1, moe.weight2, moe.bias2):
        assert bool((parameter.grad.abs().flatten(1).amax(dim=1) > 0).all())


def test_experts_that_are_not_used_learn_nothing():
    moe = layer(8, 12)
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.router.weight[[0, 3]] = 1.
    moe(tokens(40, 8).abs()).square().mean().backward()
    for parameter in (moe.weight1, moe.bias1, moe.weight2, moe.bias2):
        learns = parameter.grad.abs().flatten(1).amax(dim=1) > 0
        assert learns.tolist() == [True, False, False, True]


def test_gradients_are_those_of_the_definition():
    moe, x = layer(4, 6).double(), tokens(9, 4).double().requires_grad_()
    parameters = [x, *moe.parameters()]
    weight = tokens(9, 4, seed=1).double()
    grads = torch.autograd.grad((moe(x) * weight).sum(), parameters)
    expected = torch.autograd.grad(
        (definition(moe, x)[0] * weight).sum(), parameters)
    for grad, other in zip(grads, expected):
        assert torch.allclose(grad, other, atol=1e-5)


def test_autocast():
    moe, x = layer(8, 12), tokens(40, 8)
    expected = moe(x)
    with torch.autocast('cpu', torch.bfloat16):
        out = moe(x)
    # Tokens on the edge between two experts may go elsewhere.
    close = (out.float() - expected).abs().amax(dim=1) < .05
    assert int(close.sum()) >= 38


@pytest.mark.parametrize('top_k', [0, 5])
def test_errors(top_k):
    with pytest.raises(ValueError, match=f"number of experts 4 .got {top_k}"):
        MixtureOfExperts(8, 12, experts=4, top_k=top_k)


def test_a_trained_mixture_can_be_copied():
    moe, x = layer(8, 12), tokens(7, 8)
    expected = moe(x)
    for copied in [copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))]:
        assert copied.balance_loss is None
        assert torch.equal(copied(x), expected)
        assert copied.balance_loss is not None
    assert moe.balance_loss.requires_grad


def test_nobody_is_balanced():
    moe = layer(8, 12)
    assert moe(tokens(0, 8)).shape == (0, 8)
    assert float(moe.balance_loss.detach()) == 0
