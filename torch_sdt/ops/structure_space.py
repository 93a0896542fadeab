r"""Neighbours ranked by whom they share, not by how near they are alone."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.reverse import reverse_values

# Sets that are compared with all others at once.
_ROWS = 2048


def structure_space(
    neighbors: Neighbors,
    weight: float = .7,
    expansion: float = .5,
    overlap: float = 2 / 3,
) -> Neighbors:
    r"""Ranks neighbours anew in the structure space of `"Adaptive Neighbour
    Discovery for Face Clustering" <https://arxiv.org/abs/2202.03800>`_
    (Ada-NETS), where samples are near whose neighbourhoods are alike.

    Of the neighbours :math:`\mathcal{N}_i` in the row of :math:`i`, those are
    trusted that list :math:`i` in return,

    .. math::
        \mathcal{R}_i = \{ j \in \mathcal{N}_i : i \in \mathcal{N}_j \},

    and what most of those agree on is added. With :math:`\mathcal{R}'` the
    same sets in the table's first :math:`\lfloor \mathrm{expansion} \cdot K
    \rfloor` ranks,

    .. math::
        \mathcal{R}^{\ast}_i = \mathcal{R}_i \cup \bigcup \left\{
        \mathcal{R}'_j : j \in \mathcal{R}_i, \; |\mathcal{R}'_j \cap
        \mathcal{R}_i| \geq \mathrm{overlap} \cdot |\mathcal{R}'_j| \right\}.

    The distance mixes the Jaccard distance of these sets with the cosine
    distance,

    .. math::
        d_{ij} = w \left( 1 - \frac{|\mathcal{R}^{\ast}_i \cap
        \mathcal{R}^{\ast}_j|}{|\mathcal{R}^{\ast}_i \cup
        \mathcal{R}^{\ast}_j|} \right) + (1 - w) (1 - a_{ij}),

    and each row is sorted by it. The sets are those of `"Re-ranking Person
    Re-identification with k-reciprocal Encoding"
    <https://arxiv.org/abs/1701.08398>`_, without its weights and its query
    expansion.

    How it differs from the released code: a sample stands before its exact
    duplicates in its own row.

    Sets are compared on the CPU, wherever the table is: by a numba kernel, or
    without numba, and many times slower, as sparse matrices.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``; published is
            :math:`K = 80`.
        weight (float, optional): The share :math:`w` of the Jaccard distance,
            in [0, 1]. (default: :obj:`.7`, as published)
        expansion (float, optional): Width of the sets that are added, as a
            share of :math:`K`, in [0, 1]; 0 adds none.
            (default: :obj:`.5`, as published)
        overlap (float, optional): See above, in [0, 1].
            (default: :obj:`2 / 3`, as published)

    Returns:
        Neighbors: The same neighbours in the order of :math:`d`, with
        similarities :math:`1 - d_{ij}`, float32, shape ``[N, K]``; rank 0 is
        the sample itself at 1.

    Raises:
        ValueError: If an argument is not in [0, 1].
    """
    for name, value in (('weight', weight), ('expansion', expansion),
                        ('overlap', overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f"'{name}' must be in [0, 1] (got {value})")
    index = neighbors.index.cpu()
    trusted = _mutual(index)
    sets = _as_matrix(index, trusted)
    half = int(expansion * neighbors.k)
    if half > 0:
        near = index[:, :half].contiguous()
        added = _as_matrix(near, _mutual(near))
        agree = _common(sets, added, index) >= (
            overlap * _size(added)[index.numpy()])
        sets = sets + _as_matrix(
            index, trusted & torch.from_numpy(agree)) @ added
        sets.data[:] = 1  # However many there were that agree on it.
    both, size = _common(sets, sets, index), _size(sets)
    jaccard = both / (size.reshape(-1, 1) + size[index.numpy()] - both)
    jaccard = torch.from_numpy(jaccard.astype(np.float32))
    similarity = neighbors.similarity
    return neighbors.reranked(weight * jaccard.to(similarity.device)
                              + (1 - weight) * similarity.float())


def _mutual(index: Tensor) -> Tensor:
    # Which entries stand in the other row as well.
    return reverse_values(index, torch.ones(index.shape)) > 0


def _as_matrix(index: Tensor, mask: Tensor) -> Any:
    # A set a row, of the entries that are kept.
    start = torch.zeros(index.size(0) + 1, dtype=torch.long)
    start[1:] = mask.sum(dim=1).cumsum(0)
    col = index[mask].numpy()
    return csr_array((np.ones(col.size, dtype=np.int32), col, start.numpy()),
                     (index.size(0), index.size(0)))


def _size(sets: Any) -> np.ndarray:
    return np.diff(sets.indptr)


def _common(first: Any, second: Any, index: Tensor) -> np.ndarray:
    # At the entry of j in row i, how many the first set of i and the second
    # set of j have in common.
    if torch_sdt.typing.WITH_NUMBA:
        from torch_sdt.ops._structure_space_kernel import common_kernel

        out = np.empty(index.shape, dtype=np.int32)
        common_kernel(index.numpy(), first.indptr, first.indices,
                      second.indptr, second.indices, out,
                      torch.get_num_threads())
        return out
    n, flipped, parts = index.size(0), second.T.tocsr(), []
    for start in range(0, n, _ROWS):
        count = first[start:start + _ROWS] @ flipped
        count.sort_indices()
        row = np.arange(count.shape[0])
        key = np.repeat(row * n, _size(count)) + count.indices
        wanted = (row * n).reshape(-1, 1) + index[
            start:start + _ROWS].numpy()
        # Every set has its own sample: there is something to be found.
        place = np.searchsorted(key, wanted).clip(max=key.size - 1)
        parts.append(np.where(key[place] == wanted, count.data[place], 0))
    return np.concatenate(parts)
