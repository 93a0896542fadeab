from torch_sdt.neighbors import Neighbors


def local_scaling(
    neighbors: Neighbors,
    strength: float = .5,
    first: int = 2,
    last: int = 4,
) -> Neighbors:
    r"""Re-ranks a neighbour table by similarities that are relative to how
    crowded the two samples' surroundings are.

    With the local density :math:`m_i`, the mean similarity of sample
    :math:`i` to its neighbours of ranks :obj:`first` to :obj:`last`, and its
    mean :math:`\bar m` over all samples,

    .. math::
        a'_{ij} = a_{ij} - \frac{\gamma}{2}
        (m_i - \bar m + m_j - \bar m).

    One threshold on :math:`a'` then is a stricter one on :math:`a` where
    samples lie densely and a milder one where they are spread, half way
    (:math:`\gamma = .5`) between a global and a purely local threshold. The
    idea is that of local scaling (`Zelnik-Manor and Perona, 2004
    <https://papers.nips.cc/paper/2619-self-tuning-spectral-clustering>`_)
    and of the hubness correction CSLS (`Conneau et al., 2018
    <https://arxiv.org/abs/1710.04087>`_), here on cosines.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        strength (float, optional): :math:`\gamma`; 0 changes nothing.
            (default: :obj:`.5`)
        first (int, optional): First rank that counts. (default: :obj:`2`)
        last (int, optional): Last rank that counts; both are cut to the
            table's width. (default: :obj:`4`)

    Returns:
        Neighbors: The same neighbours, sorted by :math:`a'`, which is clamped
        to [-1, 1]; rank 0 stays the sample itself at 1.

    Raises:
        ValueError: If :obj:`first` is less than 1, which is the sample
            itself, or larger than :obj:`last`.
    """
    if not 1 <= first <= last:
        raise ValueError(f"'first' must be between 1 and 'last' {last} (got "
                         f"{first})")
    index, similarity = neighbors
    if neighbors.k == 1:
        return neighbors
    last = min(last, neighbors.k - 1)
    first = min(first, last)
    density = similarity[:, first:last + 1].mean(dim=1)
    offset = density - density.mean()
    scaled = similarity - strength / 2 * (offset.view(-1, 1) + offset[index])
    return neighbors.reranked(scaled.clamp(-1, 1))
