import pytest
import torch

from torch_sdt.training.float32 import float32_by_default


def test_float32_by_default():
    with float32_by_default():
        assert torch.get_default_dtype() == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(KeyError):
            with float32_by_default():
                assert torch.ones(1).dtype == torch.float32
                raise KeyError
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
