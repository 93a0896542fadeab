from torch import Tensor


def edge_probability(
    similarity: Tensor,
    transform: str = 'sigmoid',
    delta: float = 7.5,
    epsilon: float = -5.,
    tau: float = .5,
) -> Tensor:
    r"""Turns cosines into the probability that two samples are the same thing.

    With the squared distance of unit vectors
    :math:`d_{ij} = 2 - 2 \max(a_{ij}, 0)`, where :math:`a_{ij}` is the cosine,

    .. math::
        p_{ij} = \frac{1}{1 + \exp(\delta \, d_{ij} + \varepsilon)}
        \quad \textrm{(sigmoid)}, \qquad
        p_{ij} = \exp(-d_{ij} / \tau) \quad \textrm{(exponential)}.

    The sigmoid is the distance transform of `"Enhancing Noise Resilience in
    Face Clustering via Sparse Differential Transformer"
    <https://arxiv.org/abs/2512.22612>`_: a soft step, flat near
    :math:`d = 0` and one half at :math:`d = -\varepsilon / \delta` (cosine
    2/3 by default). The exponential is that of `FC-ESER
    <https://arxiv.org/abs/2408.13431>`_.

    Args:
        similarity (torch.Tensor): Cosines of any shape, floating point.
        transform (str, optional): :obj:`"sigmoid"` or :obj:`"exponential"`.
            (default: :obj:`"sigmoid"`)
        delta (float, optional): Steepness :math:`\delta` of the sigmoid.
            (default: :obj:`7.5`)
        epsilon (float, optional): Offset :math:`\varepsilon` of the sigmoid.
            (default: :obj:`-5.`)
        tau (float, optional): Scale :math:`\tau` of the exponential.
            (default: :obj:`.5`)

    Returns:
        torch.Tensor: Probabilities in [0, 1], same shape and dtype.

    Raises:
        ValueError: If :obj:`transform` is unknown or :obj:`tau` is not
            positive.
    """
    check_transform(transform, tau)
    # One new tensor, not one an operation: a large one costs as much to fetch
    # from the system as to fill.
    distance = similarity.clamp(min=0).mul_(-2).add_(2)
    if transform == 'sigmoid':
        return distance.mul_(delta).add_(epsilon).neg_().sigmoid_()
    return distance.neg_().div_(tau).exp_()


def check_transform(transform: str, tau: float) -> None:
    r"""Raises a :class:`ValueError` for a transform that does not exist."""
    if transform not in {'sigmoid', 'exponential'}:
        raise ValueError(f"'transform' must be 'sigmoid' or 'exponential' "
                         f"(got '{transform}')")
    if not tau > 0:
        raise ValueError(f"'tau' must be positive (got {tau})")
