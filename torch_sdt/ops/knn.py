r"""Cosine k-nearest-neighbour search: faiss, torch-cluster, or plain torch."""
from __future__ import annotations

from math import sqrt
from typing import Any, Callable, Iterator, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

import torch_sdt.typing
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.normalize import normalize_features
from torch_sdt.typing import require

# Below this size an exact search on a CPU costs minutes at most.
_EXACT_BELOW = 150_000
_QUERIES = 4096
# Cosines in float32 are right to less than this, so that any two that are
# closer may be equal.
_TIE = 2e-6
_Search = Callable[[Tensor, int], Tuple[Tensor, Tensor]]


def knn(
    x: Union[np.ndarray, Tensor],
    k: int,
    index: str = 'auto',
    device: Optional[Union[str, torch.device]] = None,
    seed: int = 0,
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
            it was not built for); a faiss factory string such as
            :obj:`"IVF1024,Flat"` or :obj:`"HNSW32"` approximately, followed
            by exact cosines of what it found; :obj:`"torch"` and
            :obj:`"torch_cluster"` choose those backends; :obj:`"auto"` is
            exact while that is cheap (up to 150,000 samples on a CPU) and
            an inverted file beyond. (default: :obj:`"auto"`)
        device (str or torch.device, optional): Where to search.
            (default: that of :obj:`x`)
        seed (int, optional): Seed of an approximate index's training.
            (default: :obj:`0`)

    Returns:
        Neighbors: ``index`` (int64) and ``similarity`` (float32), both of
        shape ``[N, k]``, on the device of :obj:`x`.

    Raises:
        ValueError: If :obj:`k` is not in 1..N, :obj:`index` is no factory
            string, or the features are bad
            (:meth:`~torch_sdt.ops.normalize_features`).
        ImportError: If a factory string is given and faiss is absent.
    """
    return Neighbors.search(normalize_features(x), k, index, device, seed)


def default_k(num_nodes: int) -> int:
    r"""The table's default width: 80, or all samples where there are less."""
    return min(80, num_nodes)


def knn_blocks(
    x: Tensor,
    k: int,
    index: str = 'auto',
    device: Optional[Union[str, torch.device]] = None,
    seed: int = 0,
) -> Iterator[Tuple[int, Tensor, Tensor]]:
    r"""Yields ``(start, index, similarity)`` for blocks of rows, so that a
    caller can show progress or write them to disk.

    Takes unit rows (:meth:`~torch_sdt.ops.normalize_features`), otherwise
    the arguments of :meth:`knn`.
    """
    n = x.size(0)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ValueError(f"'k' must be an integer (got {k!r})")
    if not 1 <= k <= n:
        raise ValueError(f"'k' must be between 1 and the number of samples "
                         f"{n} (got {k})")
    x = x.to(device) if device is not None else x
    search = _searcher(x, index, seed)
    return _finish(x, int(k), search)


def _finish(x: Tensor, k: int, search: _Search
            ) -> Iterator[Tuple[int, Tensor, Tensor]]:
    n = x.size(0)
    for start in range(0, n, _QUERIES):
        query = x[start:start + _QUERIES]
        # One more than wanted shows whether a tie crosses the boundary.
        similarity, index = search(query, min(k + 1, n))
        row = torch.arange(start, start + query.size(0), device=x.device)
        similarity[index == row.view(-1, 1)] = torch.inf
        similarity, index = _rank(similarity, index)
        redo = index[:, :k].amin(dim=1) < 0
        redo |= index[:, 0] != row
        if k < n:
            redo |= similarity[:, k - 1] - similarity[:, k] <= _TIE
        similarity, index = _settle_ties(x, query, similarity[:, :k],
                                         index[:, :k], ~redo)
        for part in redo.nonzero().view(-1).split(max(1, 2**26 // n)):
            similarity[part], index[part] = _exact_rows(x, row[part], k)
        similarity = similarity.clamp(-1, 1)
        yield start, index.contiguous(), similarity.contiguous()


def _settle_ties(x: Tensor, query: Tensor, similarity: Tensor, index: Tensor,
                 rows: Tensor) -> Tuple[Tensor, Tensor]:
    # Where in a matrix product two vectors stand can change the last bits of
    # their cosine, and so the order of exact duplicates. What may be a tie is
    # computed again in double precision and rounded.
    near = similarity[:, :-1] - similarity[:, 1:] <= _TIE
    near &= rows.view(-1, 1)
    both = torch.zeros_like(index, dtype=torch.bool)
    both[:, :-1] |= near
    both[:, 1:] |= near
    of, rank = both.nonzero(as_tuple=True)
    for part in torch.arange(of.numel(), device=x.device).split(16384):
        i, r = of[part], rank[part]
        product = query[i].double() * x[index[i, r]].double()
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


# Backends ###################################################################


def _searcher(x: Tensor, index: str, seed: int) -> _Search:
    n = x.size(0)
    if not isinstance(index, str):
        raise ValueError(f"'index' must be a string (got {index!r})")
    if index == 'auto':
        index = 'flat'
        if n > _EXACT_BELOW and not x.is_cuda and torch_sdt.typing.WITH_FAISS:
            num_cells = 2**round(np.log2(4 * sqrt(n)))
            index = f'IVF{num_cells},Flat'
    if index == 'torch' or (index == 'flat' and not _faiss_serves(x)):
        return lambda query, k: (query @ x.t()).topk(k)
    if index == 'torch_cluster':
        require(torch_sdt.typing.WITH_TORCH_CLUSTER, 'knn', 'torch-cluster')
        return lambda query, k: _search_torch_cluster(x, query, k)
    require(torch_sdt.typing.WITH_FAISS, 'knn', 'faiss-cpu')
    return _faiss_searcher(x, 'Flat' if index == 'flat' else index, seed)


def _faiss_serves(x: Tensor) -> bool:
    if not torch_sdt.typing.WITH_FAISS:
        return False
    if not x.is_cuda:
        return True
    import faiss
    return hasattr(faiss, 'StandardGpuResources')


def _search_torch_cluster(x: Tensor, query: Tensor, k: int
                          ) -> Tuple[Tensor, Tensor]:
    from torch_cluster import knn as torch_cluster_knn

    row, col = torch_cluster_knn(x, query, k)
    index = torch.full((query.size(0), k), -1, device=x.device)
    rank = torch.arange(row.numel(), device=x.device)
    first = torch.searchsorted(row.contiguous(), row.contiguous())
    index[row, rank - first] = col
    return _exact_similarity(x, query, index), index


def _faiss_searcher(x: Tensor, factory: str, seed: int) -> _Search:
    import faiss

    index: Any
    try:
        index = faiss.index_factory(x.size(1), factory,
                                    faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as e:
        raise ValueError(f"'index' must be 'auto', 'flat', 'torch', "
                         f"'torch_cluster' or a faiss factory string (got "
                         f"'{factory}')") from e
    data = x.cpu().numpy()
    if x.is_cuda and hasattr(faiss, 'StandardGpuResources'):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(),
                                       x.device.index or 0, index)
    if not index.is_trained:
        _seed_faiss(index, seed)
        try:
            index.train(data)
        except RuntimeError as e:
            raise ValueError(f"The index '{factory}' cannot be trained on "
                             f"{x.size(0)} samples; use a smaller one or "
                             f"'flat'") from e
    index.add(data)
    if hasattr(index, 'nprobe') and index.nprobe == 1:
        index.nprobe = max(1, min(index.nlist, max(64, index.nlist // 16)))
    exact = factory == 'Flat'

    def search(query: Tensor, k: int) -> Tuple[Tensor, Tensor]:
        similarity, ids = index.search(query.cpu().numpy(), k)
        found = torch.from_numpy(ids).to(query.device)
        if exact:
            return torch.from_numpy(similarity).to(query.device), found
        return _exact_similarity(x, query, found), found

    return search


def _seed_faiss(index: Any, seed: int) -> None:
    for part in (index, getattr(index, 'pq', None)):
        clustering: Any = getattr(part, 'cp', None)
        if clustering is not None:
            clustering.seed = seed + 1


def _exact_similarity(x: Tensor, query: Tensor, index: Tensor) -> Tensor:
    out = torch.empty(index.shape, device=x.device)
    for start in range(0, index.size(0), 512):
        found = index[start:start + 512].clamp(min=0)
        out[start:start + 512] = torch.einsum(
            'qd,qkd->qk', query[start:start + 512], x[found])
    return out
