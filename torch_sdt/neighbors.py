from __future__ import annotations

import os
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from torch_sdt.io import PathLike, atomic_path, fingerprint
from torch_sdt.typing import Device, Devices

# What reading a damaged archive raises: RuntimeError for flipped flags that
# speak of encryption or a compression nobody knows.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)

# Rows in a file of a search that survives a kill: seconds of work.
_KEPT = 2**18


@dataclass(frozen=True)
class Neighbors:
    r"""A cosine kNN graph as a table: the data structure inside the library.

    Row :math:`i` lists the :math:`K` nearest neighbours of sample :math:`i`
    in descending similarity; rank 0 is :math:`i` itself at similarity 1.
    Unpacks as ``index, similarity = neighbors``.

    Args:
        index (torch.Tensor): Neighbour ids, int64, shape ``[N, K]``.
        similarity (torch.Tensor): Cosines, float32, shape ``[N, K]``.
    """
    index: Tensor
    similarity: Tensor

    @property
    def num_nodes(self) -> int:
        r"""The number of samples :math:`N`."""
        return self.index.size(0)

    @property
    def k(self) -> int:
        r"""The table's width :math:`K`, the sample itself included."""
        return self.index.size(1)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.index, self.similarity))

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(num_nodes={self.num_nodes}, '
                f'k={self.k})')

    # Build ##################################################################

    @classmethod
    def build(
        cls,
        x: Union[np.ndarray, Tensor],
        k: Optional[int] = None,
        index: str = 'auto',
        center: bool = False,
        device: Optional[Devices] = None,
        seed: int = 0,
        verbose: bool = False,
        workdir: Optional[PathLike] = None,
    ) -> Neighbors:
        r"""Normalises features and searches their cosine neighbours, with a
        progress bar.

        Args:
            x (numpy.ndarray or torch.Tensor): Features, floating point,
                shape ``[N, D]``.
            k (int, optional): Neighbours per row, the sample itself
                included. (default: :obj:`min(80, N)`)
            index (str, optional): See :meth:`torch_sdt.ops.knn`.
                (default: :obj:`"auto"`)
            center (bool, optional): If :obj:`True`, the mean feature is
                removed first. (default: :obj:`False`)
            device (str, torch.device or sequence, optional): Where to
                search, see :meth:`torch_sdt.ops.knn`.
                (default: that of :obj:`x`)
            seed (int, optional): Seed of an approximate index.
                (default: :obj:`0`)
            verbose (bool, optional): If :obj:`True`, shows a progress bar
                where the output is a terminal. (default: :obj:`False`)
            workdir (str, optional): A folder for finished blocks, from which
                a killed search goes on. (default: nothing is written)

        Raises:
            ValueError: See :meth:`torch_sdt.ops.normalize_features` and
                :meth:`torch_sdt.ops.knn`.
        """
        from torch_sdt.ops.knn import default_k
        from torch_sdt.ops.normalize import normalize_features

        x = normalize_features(x, center=center)
        k = default_k(x.size(0)) if k is None else k
        return cls.search(x, k, index, device, seed, verbose, workdir=workdir)

    @classmethod
    def search(
        cls,
        x: Tensor,
        k: int,
        index: str = 'auto',
        device: Optional[Devices] = None,
        seed: int = 0,
        verbose: bool = False,
        recall: Optional[float] = None,
        workdir: Optional[PathLike] = None,
    ) -> Neighbors:
        r"""As :meth:`build`, for rows that have unit length already, float32
        or float16, in memory or mapped from a file
        (:meth:`torch_sdt.ops.normalize_features`).

        :obj:`recall` is that of :meth:`torch_sdt.ops.knn`. In a
        :obj:`workdir` finished blocks are kept: the same call goes on where
        a killed one stopped; tables of other features or settings have
        folders of their own there.
        """
        from torch_sdt.ops.knn import RECALL, knn_blocks
        from torch_sdt.progress import progress
        from torch_sdt.resume import keep

        x, n = x.detach(), x.size(0)
        recall = RECALL if recall is None else recall
        blocks = knn_blocks(x, k, index, device, seed, recall)
        parts: Any = blocks
        if workdir is not None:
            name = fingerprint(x, k, index, seed, recall)
            parts = keep(blocks, os.path.join(workdir, f'neighbors-{name}'),
                         max(1, _KEPT * len(blocks) // n))
        out = cls(x.new_full((n, k), -1, dtype=torch.long),
                  x.new_empty(n, k, dtype=torch.float))
        with progress(n, 'kNN', verbose) as bar:
            if not (bar.disable or blocks.search.exact):
                bar.write(f'kNN: {blocks.search}', file=sys.stderr)
            for rows, ids, similarity in parts:
                rows = rows.to(x.device)
                out.index[rows] = ids.to(x.device)
                out.similarity[rows] = similarity.to(x.device)
                bar.update(rows.numel())
        if bool((out.index[:, 0] < 0).any()):
            # Parts of blocks that another machine made up otherwise.
            raise ValueError(f"What is kept in '{workdir}' is of a search on "
                             f"another machine, or by another version of "
                             f"torch: delete the folder "
                             f"'neighbors-{name}' there")
        return out

    def validate(self, num_nodes: Optional[int] = None) -> Neighbors:
        r"""Checks every row and returns the table itself.

        Args:
            num_nodes (int, optional): The number of samples the table should
                describe. (default: :obj:`None`)

        Raises:
            ValueError: For another shape or dtype than documented, a row
                that does not start with its own sample, an id out of range,
                a repeated neighbour, or a similarity that is not finite or
                not in descending order. The message names the first bad row.
        """
        index, similarity = self.index, self.similarity
        if index.dim() != 2 or index.shape != similarity.shape:
            raise ValueError(
                f"'index' and 'similarity' must both have shape [N, K] "
                f"(got {list(index.shape)} and {list(similarity.shape)})")
        if index.dtype != torch.long:
            raise ValueError(f"'index' must be int64 (got {index.dtype})")
        if not similarity.is_floating_point():
            raise ValueError(f"'similarity' must be floating point "
                             f"(got {similarity.dtype})")
        if num_nodes is not None and index.size(0) != num_nodes:
            raise ValueError(f"The table has {index.size(0)} rows, but there "
                             f"are {num_nodes} samples")
        if index.numel() == 0:
            raise ValueError(f"The table is empty (shape "
                             f"{list(index.shape)})")
        n = index.size(0)
        for start in range(0, n, 65536):
            ids = index[start:start + 65536]
            cos = similarity[start:start + 65536]
            row = torch.arange(start, start + ids.size(0),
                               device=ids.device)
            ordered = ids.sort(dim=1)[0]
            _raise_at(((ids < 0) | (ids >= n)).any(dim=1), start,
                      f"has a neighbour outside 0..{n - 1}")
            _raise_at(ids[:, 0] != row, start,
                      "does not start with its own sample")
            _raise_at((ordered[:, 1:] == ordered[:, :-1]).any(dim=1), start,
                      "lists a neighbour twice")
            _raise_at(~cos.isfinite().all(dim=1), start,
                      "has a similarity that is not finite")
            _raise_at((cos[:, 1:] > cos[:, :-1]).any(dim=1), start,
                      "is not in descending order of similarity")
        return self

    def check_features(self, x: Tensor) -> None:
        r"""Warns if the similarities are not the cosines of unit rows
        :obj:`x`, by more than .2 on average over 64 rows: a table of other
        features is no error, but hardly ever meant.
        """
        n = self.num_nodes
        row = torch.arange(0, n, max(n // 64, 1))[:64]
        index = self.index[row.to(self.index.device)].to(x.device)
        cosine = torch.einsum('qd,qkd->qk', x[row.to(x.device)].float(),
                              x[index].float())
        found = self.similarity[row.to(self.similarity.device)].to(cosine)
        if float((cosine - found).abs().mean()) > .2:
            warnings.warn(
                f"The similarities in the table are not the cosines of these "
                f"features (that of row 0 and its last neighbour is "
                f"{float(found[0, -1]):.2f}, and {float(cosine[0, -1]):.2f}): "
                f"is it of others, or of the same with or without their mean "
                f"('center')?", stacklevel=4)

    def to(self, device: Device, dtype: Optional[torch.dtype] = None
           ) -> Neighbors:
        r"""The same table on another device.

        Args:
            device (str or torch.device): Where to.
            dtype (torch.dtype, optional): In what precision similarities
                shall be. (default: as they are)
        """
        return Neighbors(self.index.to(device),
                         self.similarity.to(device, dtype))

    def truncate(self, k: int) -> Neighbors:
        r"""The table of each row's first :obj:`k` neighbours.

        Raises:
            ValueError: If :obj:`k` is not between 1 and :math:`K`.
        """
        if not 1 <= k <= self.k:
            raise ValueError(f"'k' must be between 1 and the table's width "
                             f"{self.k} (got {k})")
        return Neighbors(self.index[:, :k], self.similarity[:, :k])

    def reranked(self, similarity: Tensor) -> Neighbors:
        r"""The same neighbours in descending order of other similarities.

        Ties keep their order, and rank 0 stays the sample itself, at 1,
        whatever the others reach.

        Args:
            similarity (torch.Tensor): One an entry, floating point, shape
                ``[N, K]``.

        Raises:
            ValueError: If the shape or the dtype is another.
        """
        if similarity.shape != self.index.shape or (
                not similarity.is_floating_point()):
            raise ValueError(f"'similarity' must be floating point of shape "
                             f"{list(self.index.shape)} (got "
                             f"{similarity.dtype} of shape "
                             f"{list(similarity.shape)})")
        similarity = similarity.clone()
        similarity[:, 0] = torch.inf
        similarity, order = similarity.sort(dim=1, descending=True,
                                            stable=True)
        similarity[:, 0] = 1.
        return Neighbors(self.index.gather(1, order), similarity)

    def permute(self, order: Tensor) -> Neighbors:
        r"""The table of the samples in another order: row :math:`i` is that
        of sample :obj:`order[i]`, and ids follow.

        Args:
            order (torch.Tensor): A permutation of the samples, int64, shape
                ``[N]``.
        """
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        return Neighbors(place[self.index[order]], self.similarity[order])

    # Graph ##################################################################

    def to_edge_index(
        self,
        weight: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        r"""The table as a PyG graph, without the self-loops of rank 0.

        Edges are sorted by target, and by rank within a target: each row's
        neighbours are the sources, the row's own sample is the target.

        Args:
            weight (torch.Tensor, optional): Edge weights, shape ``[N, K]``.
                (default: the similarities)
            mask (torch.Tensor, optional): Entries to keep, bool, shape
                ``[N, K]``. (default: all)

        Returns:
            (torch.Tensor, torch.Tensor): ``edge_index`` of shape ``[2, E]``
            and ``edge_weight`` of shape ``[E]``.
        """
        weight = self.similarity if weight is None else weight
        for name, value in (('weight', weight), ('mask', mask)):
            if value is not None and value.shape != self.index.shape:
                raise ValueError(
                    f"'{name}' must have the table's shape "
                    f"{list(self.index.shape)} (got {list(value.shape)})")
        if mask is None:
            target = torch.arange(self.num_nodes, device=self.index.device)
            target = target.repeat_interleave(self.k - 1)
            source = self.index[:, 1:].reshape(-1)
            return torch.stack([source, target]), weight[:, 1:].reshape(-1)
        target, rank = mask[:, 1:].nonzero(as_tuple=True)
        source = self.index[target, rank + 1]
        return torch.stack([source, target]), weight[target, rank + 1]

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        similarity: Tensor,
        num_nodes: Optional[int] = None,
    ) -> Neighbors:
        r"""The table of a kNN graph: every target has the same number of
        incoming edges.

        Args:
            edge_index (torch.Tensor): Edges (source, target), int64, shape
                ``[2, E]``, in any order; self-loops are ignored.
            similarity (torch.Tensor): One similarity an edge, shape ``[E]``.
            num_nodes (int, optional): The number of nodes.
                (default: :obj:`max(edge_index) + 1`)

        Raises:
            ValueError: If the targets' degrees differ, there are no nodes,
                or a shape is wrong.
        """
        from torch_geometric.utils import degree
        from torch_geometric.utils.num_nodes import maybe_num_nodes

        n = maybe_num_nodes(edge_index, num_nodes)
        if similarity.shape != (edge_index.size(1), ):
            raise ValueError(f"'similarity' must have shape "
                             f"[{edge_index.size(1)}], one an edge (got "
                             f"{list(similarity.shape)})")
        if n == 0:
            raise ValueError("There are no nodes, of which a table could be "
                             "made")
        keep = edge_index[0] != edge_index[1]
        (source, target), similarity = edge_index[:, keep], similarity[keep]
        deg = degree(target, n, dtype=torch.long)
        if bool((deg != deg[0]).any()):
            row = int((deg != deg[0]).nonzero()[0])
            raise ValueError(
                f"A neighbour table needs the same number of incoming edges "
                f"at every node, but node {row} has another number than "
                f"node 0; use the graph form instead")
        # Order by target, then by descending similarity, then by source.
        order = torch.argsort(source, stable=True)
        order = order[torch.argsort(similarity[order], descending=True,
                                    stable=True)]
        order = order[torch.argsort(target[order], stable=True)]
        self_index = torch.arange(n, device=source.device).view(-1, 1)
        index = torch.cat([self_index, source[order].view(n, -1)], dim=1)
        cosine = similarity[order].float().view(n, -1)
        # Cosines may exceed 1 by rounding.
        cosine = torch.where(cosine <= 1 + 1e-3, cosine.clamp(max=1), cosine)
        one = torch.ones(n, 1, device=source.device)
        return cls(index, torch.cat([one, cosine], dim=1)).validate()

    # Files ##################################################################

    def save(self, path: PathLike) -> None:
        r"""Writes the published layout of learn-to-cluster.

        A compressed ``.npz`` with one key ``data`` of shape ``[N, 2, K]``:
        ids in ``[:, 0]``, distances :math:`1 - a_{ij}` in ``[:, 1]``. It is
        float64, as in the published files. Written to a temporary name and
        renamed.
        """
        data = np.empty((self.num_nodes, 2, self.k))
        data[:, 0] = self.index.cpu().numpy()
        # In double precision, where a cosine survives the way there and back.
        data[:, 1] = 1 - self.similarity.double().cpu().numpy()
        with atomic_path(path) as tmp:
            with open(tmp, 'wb') as f:
                np.savez_compressed(f, data=data)

    @classmethod
    def load(
        cls,
        path: PathLike,
        num_nodes: Optional[int] = None,
        values: str = 'distance',
    ) -> Neighbors:
        r"""Reads a kNN table, whichever of the field's layouts it has.

        Understood are the key ``data`` of shape ``[N, 2, K]``
        (learn-to-cluster) and the key pairs ``knns``/``dists`` (LCE-PCENet)
        and ``idx``/``dist`` (CDP). Where a row does not start with its own
        sample (exact duplicates, or a table without self), it is put there.
        Pickled (ragged) tables are refused: no pickle is ever loaded.

        Args:
            path (str): The ``.npz`` file.
            num_nodes (int, optional): The number of samples the table should
                describe. (default: :obj:`None`)
            values (str, optional): What the file stores beside the ids:
                :obj:`"distance"` (:math:`1 -` cosine) or
                :obj:`"similarity"`. (default: :obj:`"distance"`)

        Raises:
            ValueError: If the file is truncated, of another layout, or holds
                ids out of range, with the first bad row.
        """
        if values not in {'distance', 'similarity'}:
            raise ValueError(f"'values' must be 'distance' or 'similarity' "
                             f"(got '{values}')")
        ids, stored = _read_npz(path)
        if ids.ndim != 2 or ids.shape != stored.shape or ids.size == 0:
            raise ValueError(f"'{path}' does not hold a kNN table: ids of "
                             f"shape {list(ids.shape)}, values of shape "
                             f"{list(stored.shape)}")
        n = ids.shape[0]
        if num_nodes is not None and n != num_nodes:
            raise ValueError(f"'{path}' has {n} rows, but there are "
                             f"{num_nodes} samples")
        # As stored: what is no id has no int64 to be cast to.
        _raise_at(torch.from_numpy((ids != np.floor(ids)).any(axis=1)), 0,
                  "holds an id that is no whole number", path)
        _raise_at(torch.from_numpy(((ids < 0) | (ids >= n)).any(axis=1)), 0,
                  f"has a neighbour outside 0..{n - 1}", path)
        _raise_at(torch.from_numpy(~np.isfinite(stored).all(axis=1)), 0,
                  "has a value that is not finite", path)
        index = torch.from_numpy(ids.astype(np.int64))
        value = (np.subtract(1, stored, dtype=np.float64)
                 if values == 'distance' else stored)
        cosine = torch.from_numpy(value.astype(np.float32))
        if bool((cosine.abs() > 1 + 1e-3).any()) or (
                index.size(1) > 1 and
                bool((cosine[:, 0] < cosine[:, -1] - 1e-3).any())):
            other = 'similarity' if values == 'distance' else 'distance'
            raise ValueError(
                f"The values in '{path}' cannot be a "
                f"{'cosine distance' if values == 'distance' else 'cosine'}; "
                f"if they are a {other}, pass values='{other}'")
        return _self_first(index, cosine.clamp(-1, 1)).validate()


def check_ids(index: Tensor) -> None:
    r"""Raises a :class:`ValueError` where a table names a sample that has no
    row in it: kernels check nothing.
    """
    n = index.size(0)
    if index.numel() == 0:
        return
    low, high = index.aminmax()
    if int(low) < 0 or int(high) >= n:
        _raise_at(((index < 0) | (index >= n)).any(dim=1), 0,
                  f"has a neighbour outside 0..{n - 1}")


def _raise_at(bad: Tensor, start: int, what: str,
              path: Optional[PathLike] = None) -> None:
    if bool(bad.any()):
        row = start + int(bad.nonzero()[0])
        where = f" of '{path}'" if path is not None else ''
        raise ValueError(f"Row {row}{where} {what}")


def _self_first(index: Tensor, similarity: Tensor) -> Neighbors:
    # Puts each row's own sample at rank 0 with similarity 1: moved there if
    # the row lists it, in place of the last neighbour if not.
    row = torch.arange(index.size(0), device=index.device)
    is_self = index == row.view(-1, 1)
    absent = ~is_self.any(dim=1)
    index, similarity = index.clone(), similarity.clone()
    index[absent, -1] = row[absent]
    is_self[absent, -1] = True
    similarity[is_self] = torch.inf
    similarity, order = similarity.sort(dim=1, descending=True, stable=True)
    similarity[:, 0] = 1.
    return Neighbors(index.gather(1, order), similarity)


def _read_npz(path: PathLike) -> Tuple[np.ndarray, np.ndarray]:
    keys = (('data', 'data'), ('knns', 'dists'), ('idx', 'dist'))
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file '{path}'")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"'{path}' is truncated or no .npz file")
    try:
        file = np.load(path, allow_pickle=False)
    except _DAMAGE + (ValueError, ) as e:
        raise ValueError(f"'{path}' is truncated or damaged") from e
    with file:
        found = [pair for pair in keys if set(pair) <= set(file.files)]
        if len(found) == 0:
            raise ValueError(f"'{path}' is no kNN table: it holds the keys "
                             f"{sorted(file.files)}, not 'data'")
        ids, values = (_read_array(file, key, path) for key in found[0])
    if found[0][0] != 'data':
        return ids, values
    if ids.ndim != 3 or ids.shape[1] != 2:
        raise ValueError(f"'data' in '{path}' must have shape [N, 2, K] "
                         f"(got {list(ids.shape)})")
    return ids[:, 0], ids[:, 1]


def _read_array(file: Any, key: str, path: PathLike) -> np.ndarray:
    try:
        array = file[key]
    except _DAMAGE as e:
        raise ValueError(f"'{path}' is truncated or damaged") from e
    except ValueError as e:
        if 'pickle' not in str(e):
            raise ValueError(f"'{path}' is truncated or damaged") from e
        raise ValueError(
            f"'{path}' holds a pickled (ragged) table, and no pickle is "
            f"loaded here; save it as an array of shape [N, 2, K]") from e
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiu':
        raise ValueError(f"'{key}' in '{path}' is no array of numbers")
    return array
