from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import zeros

from torch_sdt.ops.diff_attention import check_k, diff_lambda


class DiffAttention:
    # What the sparse layer and its dense twin share, beside being a module:
    # the parameters under the same names, so that either loads the other's,
    # and what is done to the heads once they have attended.
    out_channels: int
    heads: int
    concat: bool
    k: Optional[int]
    lambda_init: float
    lambda_form: str
    edge_dim: Optional[int]
    dropout: float

    def _check_arguments(self) -> None:
        if self.lambda_form not in {'scalar', 'reparam'}:
            raise ValueError(f"'lambda_form' must be 'scalar' or 'reparam' "
                             f"(got '{self.lambda_form}')")
        if self.k is not None:
            check_k(self.k, [])
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"'dropout' must be between 0 and 1 (got "
                             f"{self.dropout})")

    def _create_parameters(self, in_channels: Tuple[int, int],
                           bias: bool) -> None:
        width = self.heads * self.out_channels
        self.lin_key = Linear(in_channels[0], 2 * width, bias=False)
        self.lin_query = Linear(in_channels[1], 2 * width, bias=False)
        self.lin_value = Linear(in_channels[0], width, bias=False)
        self.lin_edge: Optional[Linear] = None
        if self.edge_dim is not None:
            self.lin_edge = Linear(self.edge_dim, width, bias=False)

        self.norm: Optional[torch.nn.RMSNorm] = None
        if self.lambda_form == 'scalar':
            self.lam = Parameter(torch.empty(()))
        else:
            self.lam_query = Parameter(torch.empty(2, self.out_channels))
            self.lam_key = Parameter(torch.empty(2, self.out_channels))
            self.norm = torch.nn.RMSNorm(self.out_channels, eps=1e-5)

        self.bias: Optional[Parameter] = None
        if bias:
            self.bias = Parameter(
                torch.empty(width if self.concat else self.out_channels))

    def _reset_parameters(self) -> None:
        self.lin_key.reset_parameters()
        self.lin_query.reset_parameters()
        self.lin_value.reset_parameters()
        if self.lin_edge is not None:
            self.lin_edge.reset_parameters()
        if self.norm is None:
            torch.nn.init.constant_(self.lam, self.lambda_init)
        else:
            torch.nn.init.normal_(self.lam_query, std=.1)
            torch.nn.init.normal_(self.lam_key, std=.1)
            self.norm.reset_parameters()
        zeros(self.bias)

    def compute_lambda(self) -> Tensor:
        r"""Computes :math:`\lambda`, a scalar in at least single
        precision.
        """
        if self.lambda_form == 'scalar':
            dtype = torch.promote_types(self.lam.dtype, torch.float)
            return self.lam.to(dtype)
        return diff_lambda(self.lam_query, self.lam_key, self.lambda_init)

    def _merge_heads(self, out: Tensor) -> Tensor:
        # [*, H, C] -> [*, H * C] or [*, C]
        if self.norm is not None:
            normed = self.norm(out.to(self.norm.weight.dtype))
            out = (1. - self.lambda_init) * normed.to(out.dtype)
        out = out.flatten(-2) if self.concat else out.mean(dim=-2)
        return out if self.bias is None else out + self.bias
