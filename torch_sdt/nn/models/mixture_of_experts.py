from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from torch_sdt.ops.grouped_linear import grouped_linear


class MixtureOfExperts(torch.nn.Module):
    r"""A feed-forward block made of experts, of which each token takes a few.

    A router scores :math:`E` experts by
    :math:`\mathbf{g} = \mathrm{softmax}(\mathbf{W}_r \mathbf{x})` and the
    token goes through the best :math:`T`, with their scores scaled to sum to
    1:

    .. math::
        \mathbf{y} = \sum_{e \in \mathrm{top}_T(\mathbf{g})}
        \frac{g_e}{\sum_{f \in \mathrm{top}_T(\mathbf{g})} g_f} \,
        \left( \mathbf{W}^{(2)}_e \,
        \mathrm{GELU}(\mathbf{W}^{(1)}_e \mathbf{x} + \mathbf{b}^{(1)}_e) +
        \mathbf{b}^{(2)}_e \right).

    So that no expert idles, :attr:`balance_loss` is that of `"Switch
    Transformers" <https://arxiv.org/abs/2101.03961>`_:
    :math:`E \sum_e f_e \bar g_e` with the share :math:`f_e` of routes that
    went to expert :math:`e` and its mean score :math:`\bar g_e`; 1 where all
    are used alike, up to :math:`E / T` where :math:`T` of them take
    everything.

    Args:
        channels (int): Size of each token.
        hidden_channels (int): Width of each expert's hidden layer.
        experts (int, optional): The number :math:`E`. (default: :obj:`4`)
        top_k (int, optional): How many experts :math:`T` a token takes.
            (default: :obj:`2`)

    Shapes:
        - **input:** tokens :math:`(*, C)`
        - **output:** tokens :math:`(*, C)`

    Raises:
        ValueError: If :obj:`top_k` is not in 1..E.
    """

    def __init__(self, channels: int, hidden_channels: int, experts: int = 4,
                 top_k: int = 2) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"'top_k' must be between 1 and the number of "
                             f"experts {experts} (got {top_k})")
        self.channels = channels
        self.hidden_channels = hidden_channels
        self.experts = experts
        self.top_k = top_k
        self.router = torch.nn.Linear(channels, experts, bias=False)
        self.weight1 = Parameter(
            torch.empty(experts, hidden_channels, channels))
        self.bias1 = Parameter(torch.empty(experts, hidden_channels))
        self.weight2 = Parameter(
            torch.empty(experts, channels, hidden_channels))
        self.bias2 = Parameter(torch.empty(experts, channels))
        self.balance_loss: Optional[Tensor] = None
        self.reset_parameters()

    def __getstate__(self) -> Dict[str, Any]:
        # With its history a loss can be neither copied nor pickled.
        return {**self.__dict__, 'balance_loss': None}

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.router.reset_parameters()
        for weight, bias in ((self.weight1, self.bias1),
                             (self.weight2, self.bias2)):
            bound = weight.size(-1)**-.5
            torch.nn.init.uniform_(weight, -bound, bound)
            torch.nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        token = x.reshape(-1, self.channels)
        score = self.router(token).softmax(dim=-1, dtype=torch.float)
        best, expert = score.topk(self.top_k, dim=-1)
        gate = best / best.sum(dim=-1, keepdim=True)

        # Routes sorted by expert, so that each expert is one product.
        expert, order = expert.flatten().sort(stable=True)
        source = order.div(self.top_k, rounding_mode='floor')
        count = torch.bincount(expert, minlength=self.experts)
        share = count.float() / max(expert.numel(), 1)
        mean = score.sum(dim=0) / max(score.size(0), 1)
        self.balance_loss = self.experts * (share * mean).sum()

        sizes = count.tolist()
        hidden = F.gelu(grouped_linear(token[source], self.weight1,
                                       self.bias1, sizes))
        routed = grouped_linear(hidden, self.weight2, self.bias2, sizes)
        routed = routed * gate.flatten()[order].unsqueeze(1).to(routed.dtype)
        out = torch.zeros_like(token, dtype=routed.dtype)
        return out.index_add(0, source, routed).view(x.shape)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.channels}, '
                f'{self.hidden_channels}, experts={self.experts}, '
                f'top_k={self.top_k})')
