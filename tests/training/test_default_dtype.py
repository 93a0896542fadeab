import pytest
import torch

from torch_sdt.training.default_dtype import default_dtype


def test_default_dtype():
    with default_dtype(torch.float32):
        assert torch.get_default_dtype() == torch.float32
    with default_dtype(torch.float64):
        with pytest.raises(KeyError):
            with default_dtype(torch.float32):
                assert torch.ones(1).dtype == torch.float32
                raise KeyError
        assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_dtype() == torch.float32
