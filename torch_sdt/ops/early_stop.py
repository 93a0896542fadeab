from torch import Tensor


def early_stop(probability: Tensor, theta: float) -> Tensor:
    r"""Which entries of a neighbour table are linked if each row is walked in
    its order and ends at the first edge probability below a threshold.

    .. math::
        \ell_{ir} = \left[ \min_{r' \leq r} \tilde p_{ir'} \geq \theta
        \right],

    the early stopping of `"Face Clustering via Early Stopping and Edge
    Recall" <https://arxiv.org/abs/2408.13431>`_.

    Args:
        probability (torch.Tensor): Edge probabilities :math:`\tilde p` in the
            order of the ranks, shape ``[N, K]``.
        theta (float): The threshold :math:`\theta`.

    Returns:
        torch.Tensor: bool, shape ``[N, K]``.
    """
    return (probability >= theta).cummin(dim=1)[0]
