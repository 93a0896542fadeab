r"""Cosine k-nearest-neighbour search, exact or approximate."""
from __future__ import annotations

from typing import Iterator, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.ops.search import (
    CellSearch,
    ExactSearch,
    FaissSearch,
    Search,
    ShardedSearch,
    TorchClusterSearch,
)
from torch_sdt.typing import Devices, check_integer, check_seed, require

# Below these sizes an exact search costs minutes on a CPU, and less than cells
# on a GPU.
_EXACT_BELOW, _EXACT_BELOW_ON_GPU = 150_000, 500_000
# Cosines in float32 are right to less than this, so that any two that are
# closer may be equal.
_TIE = 2e-6
# The share of trusted neighbours that an approximate search finds.
RECALL = .995


def knn(
    x: Union[np.ndarray, Tensor],
    k: int,
    index: str = 'auto',
    device: Optional[Devices] = None,
    seed: int = 0,
    recall: float = RECALL,
) -> Neighbors:
    r"""Finds the :obj:`k` nearest neighbours of every sample by cosine.

    Every row of the result has exactly :obj:`k` different neighbours: the
    sample itself at rank 0 with similarity 1, then descending similarity,
    ties by index. Rows that an approximate index leaves incomplete are
    searched again exactly.

    Args:
        x (numpy.ndarray or torch.Tensor): Features, shape ``[N, D]``;
            normalised inside.
        k (int): Neighbours per row, the sample itself included.
        index (str, optional): :obj:`"flat"` searches exactly (with faiss, or
            in torch where faiss is absent or the features are on a GPU that
            it was not built for); :obj:`"cells"` approximately, many times
            faster (:class:`~torch_sdt.ops.search.CellSearch`), or exactly
            where that costs no more; a faiss
            factory string such as :obj:`"IVF1024,Flat"` or :obj:`"HNSW32"`
            approximately, followed by exact cosines of what it found;
            :obj:`"torch"` and :obj:`"torch_cluster"` choose those backends;
            :obj:`"auto"` is :obj:`"flat"` up to 150,000 samples (500,000 on
            a GPU) and :obj:`"cells"` beyond. (default: :obj:`"auto"`)
        device (str, torch.device or sequence, optional): Where to search;
            several devices share the blocks of a search in torch, each with
            a copy of all features. (default: that of :obj:`x`)
        seed (int, optional): Seed of an approximate index's training.
            (default: :obj:`0`)
        recall (float, optional): Of :obj:`"cells"`, the share of neighbours
            nearer than chance would bring them that is found, within reason
            (:class:`~torch_sdt.ops.search.CellSearch`).
            (default: :obj:`.995`)

    Returns:
        Neighbors: ``index`` (int64) and ``similarity`` (float32), both of
        shape ``[N, k]``, on the device of :obj:`x`.

    Raises:
        ValueError: If :obj:`k` is not in 1..N, :obj:`index` is no factory
            string, :obj:`recall` is not in (0, 1], or the features are bad
            (:meth:`~torch_sdt.ops.normalize_features`).
        ImportError: If a factory string is given and faiss is absent.
    """
    return Neighbors.search(normalize_features(x), k, index, device, seed,
                            recall=recall)


def default_k(num_nodes: int) -> int:
    r"""The table's default width: 80, or all samples where there are less."""
    return min(80, num_nodes)


def knn_blocks(
    x: Tensor,
    k: int,
    index: str = 'auto',
    device: Optional[Devices] = None,
    seed: int = 0,
    recall: float = RECALL,
) -> KNNBlocks:
    r"""The search in blocks of rows, so that a caller can show progress or
    keep finished blocks.

    Takes unit rows, float32 or float16, in memory or mapped from a file
    (:meth:`~torch_sdt.ops.normalize_features`), otherwise the arguments of
    :meth:`knn`.
    """
    n = x.size(0)
    check_seed(seed)
    check_integer('k', k)
    if not 1 <= k <= n:
        raise ValueError(f"'k' must be between 1 and the number of samples "
                         f"{n} (got {k})")
    if not 0 < recall <= 1:
        raise ValueError(f"'recall' must be in (0, 1] (got {recall})")
    devices = [x.device] if device is None else (
        [device] if isinstance(device, (str, torch.device)) else list(device))
    if len(devices) == 0:
        raise ValueError("'device' must name at least one device (got none)")
    x = x.to(devices[0])
    search = _index(x, int(k), index, seed, recall, len(devices) > 1)
    if len(devices) > 1:
        search = ShardedSearch(search, devices)
    return KNNBlocks(x, int(k), search)


class KNNBlocks:
    r"""Finished rows of a neighbour table, a block at a time.

    Iterating yields ``(rows, index, similarity)``, of shapes ``[B]``,
    ``[B, k]`` and ``[B, k]``; ``blocks[i]`` is one of them.
    """

    def __init__(self, x: Tensor, k: int, search: Search) -> None:
        self.x = x
        self.k = k
        self.search = search

    def __len__(self) -> int:
        return len(self.search)

    def __iter__(self) -> Iterator[Tuple[Tensor, Tensor, Tensor]]:
        return (self[block] for block in range(len(self)))

    def __getitem__(self, block: int) -> Tuple[Tensor, Tensor, Tensor]:
        x, k, n = self.x, self.k, self.x.size(0)
        rows = self.search.rows(block)
        # One more than wanted shows whether a tie crosses the boundary.
        similarity, index = self.search(block, min(k + 1, n))
        similarity[index == rows.view(-1, 1)] = torch.inf
        similarity, index = _rank(similarity, index)
        redo = index[:, :k].amin(dim=1) < 0
        redo |= index[:, 0] != rows
        if k < n and self.search.exact:
            redo |= similarity[:, k - 1] - similarity[:, k] <= _TIE
        similarity, index = _settle_ties(x, rows, similarity[:, :k],
                                         index[:, :k], ~redo)
        again = redo.nonzero().view(-1)
        for part in again.split(max(1, 2**26 // n)) if again.numel() else ():
            similarity[part], index[part] = _exact_rows(x, rows[part], k)
        return rows, index.contiguous(), similarity.clamp(-1, 1).contiguous()


def _settle_ties(x: Tensor, rows: Tensor, similarity: Tensor, index: Tensor,
                 which: Tensor) -> Tuple[Tensor, Tensor]:
    # Where in a matrix product two vectors stand can change the last bits of
    # their cosine, and so the order of exact duplicates. What may be a tie is
    # computed again in double precision and rounded.
    near = similarity[:, :-1] - similarity[:, 1:] <= _TIE
    near &= which.view(-1, 1)
    both = torch.zeros_like(index, dtype=torch.bool)
    both[:, :-1] |= near
    both[:, 1:] |= near
    of, rank = both.nonzero(as_tuple=True)
    for part in torch.arange(of.numel(), device=x.device).split(16384):
        i, r = of[part], rank[part]
        product = x[rows[i]].double() * x[index[i, r]].double()
        similarity[i, r] = product.sum(dim=1).float()
    return _rank(similarity, index)


def _exact_rows(x: Tensor, row: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    # All cosines of a few rows, rounded from double precision.
    query = x[row].double()
    similarity = torch.cat([(query @ block.double().t()).float()
                            for block in x.split(65536)], dim=1)
    similarity[torch.arange(row.numel(), device=x.device), row] = torch.inf
    last = similarity.topk(k)[0][:, -1:]
    # Of those that tie for the last places, the first by index.
    above, tie = similarity > last, similarity == last
    places = k - above.sum(dim=1, keepdim=True)
    keep = above | (tie & (tie.cumsum(dim=1, dtype=torch.int32) <= places))
    index = keep.nonzero()[:, 1].view(-1, k)
    return _rank(similarity.gather(1, index), index)


def _rank(similarity: Tensor, index: Tensor) -> Tuple[Tensor, Tensor]:
    # Descending similarity, ties by index, missing neighbours (-1) last.
    similarity = similarity.masked_fill(index < 0, -torch.inf)
    index, order = index.sort(dim=1)
    similarity = similarity.gather(1, order)
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    return similarity, index.gather(1, order)


def _index(x: Tensor, k: int, index: str, seed: int, recall: float,
           several: bool) -> Search:
    if not isinstance(index, str):
        raise ValueError(f"'index' must be a string (got {index!r})")
    if index == 'auto':
        most = _EXACT_BELOW_ON_GPU if x.is_cuda else _EXACT_BELOW
        index = 'flat' if x.size(0) <= most else 'cells'
    if index == 'cells':
        cells = CellSearch(x, k, recall, seed)
        return cells if cells.pays else ExactSearch(x)
    if index == 'torch' or (index == 'flat' and (
            several or not _faiss_serves(x))):
        return ExactSearch(x)
    if several:
        raise ValueError(f"Several devices share a search in torch only: "
                         f"'index' must be 'auto', 'flat', 'cells' or 'torch' "
                         f"(got '{index}')")
    if index == 'torch_cluster':
        require(torch_sdt.typing.WITH_TORCH_CLUSTER, 'knn', 'torch-cluster')
        return TorchClusterSearch(x)
    require(torch_sdt.typing.WITH_FAISS, 'knn', 'faiss-cpu')
    return FaissSearch(x, 'Flat' if index == 'flat' else index, seed)


def _faiss_serves(x: Tensor) -> bool:
    # What faiss holds, it holds in float32.
    if not torch_sdt.typing.WITH_FAISS or x.dtype == torch.float16:
        return False
    if not x.is_cuda:
        return True
    import faiss
    return hasattr(faiss, 'StandardGpuResources')
