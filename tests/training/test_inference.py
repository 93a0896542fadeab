import pytest
import torch
from torch_geometric.testing import withCUDA

from torch_sdt.loader import NeighborSubgraphs
from torch_sdt.neighbors import Neighbors
from torch_sdt.nn import TopKPredictor
from torch_sdt.ops import knn, normalize_features
from torch_sdt.training import infer

N, K = 42, 6


def subgraphs(batch_size=10, device='cpu', **kwargs):
    generator = torch.Generator().manual_seed(0)
    x = normalize_features(torch.randn(N, 5, generator=generator))
    neighbors = Neighbors(*(part.to(device) for part in knn(x, K)))
    return NeighborSubgraphs(neighbors, x.to(device), batch_size, **kwargs)


def predictor():
    torch.manual_seed(0)
    return TopKPredictor(K, hidden_channels=8, ffn_channels=8, num_layers=1,
                         heads=2)


@withCUDA
@pytest.mark.parametrize('batch_size', [1, 10, N, 100])
def test_infer(batch_size, device):
    model = predictor().to(device)
    loader = subgraphs(batch_size, device)
    expected = model.eval()(loader.gather(torch.arange(N)))
    model.train()
    out = infer(model, loader, model)
    assert out.device == device and out.shape == (N, K)
    assert torch.allclose(out, expected, atol=1e-5)
    # Without dropout, and without a graph of gradients.
    assert not model.training and not out.requires_grad


def test_rows_of_any_kind():
    model, loader = predictor(), subgraphs()
    k = infer(model, loader, model.predict)
    assert k.dtype == torch.long and k.shape == (N, )
    assert torch.equal(k, model.predict(loader.gather(torch.arange(N))))
    out = infer(model, loader, lambda batch: batch.similarity.double())
    assert out.dtype == torch.float32 and out.shape == (N, K, K)
    out = infer(model, loader, lambda batch: batch.index > 5)
    assert torch.equal(out, loader.neighbors.index > 5)


def test_some_nodes():
    model = predictor()
    nodes = torch.tensor([30, 2, 17])
    out = infer(model, subgraphs(2, nodes=nodes), model)
    assert torch.allclose(out, infer(model, subgraphs(), model)[nodes],
                          atol=1e-5)


def test_bf16():
    model, loader = predictor(), subgraphs()
    expected = infer(model, loader, model)
    seen = []

    def call(batch):
        seen.append(model(batch))
        return seen[-1]

    out = infer(model, loader, call, 'bf16-mixed')
    assert seen[-1].dtype == torch.bfloat16 and out.dtype == torch.float32
    assert torch.allclose(out, expected, atol=.1)
    assert not torch.equal(out, expected)


def test_no_nodes():
    model = predictor()
    with pytest.raises(ValueError, match='no nodes'):
        infer(model, subgraphs(nodes=torch.arange(0)), model)


def test_unknown_precision():
    with pytest.raises(ValueError, match="'precision' must be one of"):
        infer(predictor(), subgraphs(), predictor(), 'bf16')


def test_a_loader_that_shuffles_is_refused():
    # Rows would come in another order than the nodes.
    with pytest.raises(ValueError, match='shuffles'):
        infer(predictor(), subgraphs(shuffle=True), predictor())


def test_what_is_not_a_number_is_an_error():
    model = predictor()
    with torch.no_grad():
        model.encoder.rank.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="TopKPredictor says is not"):
        infer(model, subgraphs(), model)
