import os
import os.path as osp
import re
from contextlib import ExitStack
from typing import (
    IO,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from torch_sdt.io import PathLike, atomic_path
from torch_sdt.neighbors import Neighbors
from torch_sdt.typing import ArrayLike

from .files import (
    check_labels,
    read_features,
    read_labels,
    write_lines,
)

_ROWS = 65536

# Exact tables come before approximate ones of the same width.
_METHODS = {'faiss': 0, 'faiss_gpu': 1, 'hnsw': 2}


class _Layout(NamedTuple):
    # Where the files of one name lie: the paths without their suffixes, and
    # the folder of the kNN tables.
    features: str
    labels: str
    knns: str

    @property
    def feature_files(self) -> List[str]:
        return [self.features + '.bin', self.features + '.npy']

    @property
    def label_files(self) -> List[str]:
        return [self.labels + '.meta', self.labels + '.npy']

    def knn_files(self) -> Dict[str, int]:
        # The tables, the preferred one of a width first, and their widths.
        names = os.listdir(self.knns) if osp.isdir(self.knns) else []
        matches = filter(None, (re.fullmatch(r'(.+)_k_(\d+)\.npz', name)
                                for name in names))
        found = sorted((int(match[2]), _METHODS.get(match[1], len(_METHODS)),
                        match[0]) for match in matches)
        return {osp.join(self.knns, name): k for k, _, name in found}


def _published(root: str, name: str) -> _Layout:
    return _Layout(osp.join(root, 'features', name),
                   osp.join(root, 'labels', name),
                   osp.join(root, 'knns', name))


def _flat(root: str, name: str) -> _Layout:
    folder = osp.join(root, name)
    return _Layout(osp.join(folder, 'features'), osp.join(folder, 'labels'),
                   folder)


class FeatureFiles:
    r"""Features, labels and kNN tables in the files that the field exchanges:
    the layout of `learn-to-cluster
    <https://github.com/yl-1993/learn-to-cluster>`_.

    .. code-block:: none

        root/features/<name>.bin       raw little-endian float32, row by row
        root/labels/<name>.meta        one integer a line (optional)
        root/knns/<name>/<method>_k_<k>.npz            kNN tables (optional)

    Features and labels may also be ``.npy`` files. Where there is no such
    feature file, ``root/<name>/features.bin``, ``root/<name>/labels.meta``
    and ``root/<name>/<method>_k_<k>.npz`` are read likewise.

    The features are mapped into memory, not read, so that sets larger than
    memory can be opened; they are as stored, not normalised.

    Args:
        root (str): The folder.
        name (str): The name of the set, for example :obj:`"part1_test"`.
        dim (int, optional): The width :math:`D` of a ``.bin`` file, which
            does not state it: 256 in the published files. A ``.npy`` file
            states its own. (default: :obj:`256`)

    Raises:
        FileNotFoundError: If there are no features; the message lists the
            paths that were tried.
        ValueError: If a file is empty, truncated, pickled or of another
            type, if the size of a ``.bin`` file is no multiple of a row's,
            if a line of the labels is no integer, or if there are not as
            many labels as rows.

    Example:
        >>> data = FeatureFiles('data', 'part1_test')  # doctest: +SKIP
        >>> data.x.shape, data.neighbors(k=80)         # doctest: +SKIP
        ((584013, 256), Neighbors(num_nodes=584013, k=80))
    """
    def __init__(self, root: PathLike, name: str, dim: int = 256) -> None:
        self.root = osp.expanduser(os.fspath(root))
        self.name = name
        self._layout, path = self._find()
        self.x: np.ndarray = read_features(path, dim)
        self.y: Optional[np.ndarray] = None
        for label_path in filter(osp.isfile, self._layout.label_files):
            self.y = read_labels(label_path)
            self._check_num_labels(path, label_path)
            break

    @property
    def num_nodes(self) -> int:
        r"""The number of samples :math:`N`."""
        return self.x.shape[0]

    @property
    def dim(self) -> int:
        r"""The width :math:`D` of the features."""
        return self.x.shape[1]

    def neighbors(
        self,
        k: int = 80,
        values: str = 'distance',
    ) -> Optional[Neighbors]:
        r"""Reads the stored kNN table, if there is one.

        Of the tables with at least :math:`\min(k, N)` columns, the narrowest
        is read and truncated; of equally wide ones an exact one.

        Args:
            k (int, optional): Neighbours per row, the sample itself
                included. (default: :obj:`80`)
            values (str, optional): What the file stores beside the ids:
                :obj:`"distance"` (:math:`1 -` cosine) or
                :obj:`"similarity"`. (default: :obj:`"distance"`)

        Returns:
            Neighbors or None: The table, or :obj:`None` where no file is
            wide enough.

        Raises:
            ValueError: If :obj:`k` is not positive, or the file is
                truncated, pickled, of another width than its name says or of
                another number of rows than the features, or holds what
                cannot be a neighbour (see
                :meth:`torch_sdt.neighbors.Neighbors.load`).
        """
        if k < 1:
            raise ValueError(f"'k' must be positive (got {k})")
        k = min(k, self.num_nodes)
        for path, width in self._layout.knn_files().items():
            if width < k:
                continue
            neighbors = Neighbors.load(path, self.num_nodes, values)
            if neighbors.k != width:
                raise ValueError(f"'{path}' holds {neighbors.k} neighbours "
                                 f"per row, not the {width} of its name; "
                                 f"rename it")
            return neighbors.truncate(k)
        return None

    def to_data(self) -> Data:
        r"""The samples as nodes without edges, read into memory.

        Returns:
            torch_geometric.data.Data: With :obj:`x` of shape ``[N, D]`` and,
            where there are labels, :obj:`y`, int64, of shape ``[N]``.
        """
        # Copies: the map is read-only, and `y` stays independent of it.
        data = Data(x=torch.from_numpy(np.array(self.x)))
        if self.y is not None:
            data.y = torch.from_numpy(self.y.copy())
        return data

    @staticmethod
    def write(
        root: PathLike,
        name: str,
        x: Union[ArrayLike, Iterable[ArrayLike]],
        y: Optional[Union[Sequence[int], ArrayLike]] = None,
        neighbors: Optional[Neighbors] = None,
    ) -> 'FeatureFiles':
        r"""Writes the published layout.

        All files are written to temporary names and renamed together at the
        end, so that an interruption leaves what was there before.

        Args:
            root (str): The folder, made if needed.
            name (str): The name of the set.
            x (numpy.ndarray or torch.Tensor or iterator): Features, floating
                point, shape ``[N, D]``, or blocks of their rows in order,
                for sets larger than memory. The layout is float32: float64
                features are rounded.
            y (list, numpy.ndarray or torch.Tensor, optional): Labels,
                integers, shape ``[N]``. (default: :obj:`None`)
            neighbors (Neighbors, optional): The kNN table, written as
                ``faiss_k_<k>.npz``. (default: :obj:`None`)

        Returns:
            FeatureFiles: The files just written.

        Raises:
            FileExistsError: If the name has other files, which would not
                belong to the new features.
            ValueError: If the features are empty, of another type or shape,
                or hold NaN or infinity (the message names the row), or if
                the labels or the table are of another length.
        """
        root = osp.expanduser(os.fspath(root))
        layout = _published(root, name)
        paths = [layout.features + '.bin']
        if y is not None:
            y = check_labels(y)
            paths.append(layout.labels + '.meta')
        if neighbors is not None:
            neighbors.validate()
            paths.append(osp.join(layout.knns, f'faiss_k_{neighbors.k}.npz'))
        _check_no_others(layout, paths)
        if isinstance(x, (np.ndarray, Tensor)):
            if x.ndim != 2:
                raise ValueError(f"Features must have shape [N, D] (got "
                                 f"{list(x.shape)})")
            _check_lengths(x.shape[0], y, neighbors)
            x = _split(x)

        for path in paths:
            os.makedirs(osp.dirname(path), exist_ok=True)
        with ExitStack() as stack:
            tmp = {path: stack.enter_context(atomic_path(path))
                   for path in paths}
            with open(tmp[paths[0]], 'wb') as f:
                num_nodes, dim = _write_blocks(f, x)
            _check_lengths(num_nodes, y, neighbors)
            if y is not None:
                write_lines(tmp[layout.labels + '.meta'], y)
            if neighbors is not None:
                neighbors.save(tmp[paths[-1]])
        return FeatureFiles(root, name, dim)

    def __repr__(self) -> str:
        return (f"{self.__class__.__name__}('{self.name}', "
                f"num_nodes={self.num_nodes}, dim={self.dim})")

    def _find(self) -> Tuple[_Layout, str]:
        tried = []
        for layout in (_published(self.root, self.name),
                       _flat(self.root, self.name)):
            for path in layout.feature_files:
                if osp.isfile(path):
                    return layout, path
                tried.append(path)
        published = _published(self.root, self.name)
        raise FileNotFoundError(
            f"There are no features named '{self.name}': tried "
            f"{', '.join(map(repr, tried))}. Put the published features at "
            f"'{published.features}.bin', their labels at "
            f"'{published.labels}.meta' and their kNN table at "
            f"'{osp.join(published.knns, 'faiss_k_80.npz')}'")

    def _check_num_labels(self, path: str, label_path: str) -> None:
        assert self.y is not None
        if self.y.size == self.num_nodes:
            return
        text = (f"'{path}' has {self.num_nodes} rows of dim={self.dim}, but "
                f"'{label_path}' has {self.y.size} labels")
        if path.endswith('.bin') and self.x.size % self.y.size == 0:
            text += (f"; the sizes would agree at "
                     f"dim={self.x.size // self.y.size}")
        raise ValueError(text)


def _check_no_others(layout: _Layout, paths: Sequence[str]) -> None:
    present = filter(osp.isfile, layout.feature_files + layout.label_files +
                     list(layout.knn_files()))
    others = [path for path in present if path not in paths]
    if len(others) > 0:
        raise FileExistsError(
            f"{', '.join(map(repr, others))} would not belong to the new "
            f"features: remove what is there or write under another name")


def _check_lengths(num_nodes: int, y: Optional[np.ndarray],
                   neighbors: Optional[Neighbors]) -> None:
    if y is not None and y.size != num_nodes:
        raise ValueError(f"There are {num_nodes} rows of features, but "
                         f"{y.size} labels")
    if neighbors is not None and neighbors.num_nodes != num_nodes:
        raise ValueError(f"There are {num_nodes} rows of features, but the "
                         f"kNN table has {neighbors.num_nodes}")


def _split(x: ArrayLike) -> Iterator[ArrayLike]:
    for start in range(0, x.shape[0], _ROWS):
        yield x[start:start + _ROWS]


def _write_blocks(
    f: IO[bytes],
    blocks: Iterable[ArrayLike],
) -> Tuple[int, int]:
    num_nodes = dim = 0
    for block in map(_to_float32, blocks):
        if dim not in {0, block.shape[1]}:
            raise ValueError(f"The features of row {num_nodes} have "
                             f"dim={block.shape[1]}, those before it "
                             f"dim={dim}")
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise ValueError(f"Row {num_nodes + int(bad.argmax())} of the "
                             f"features holds NaN or infinity, in float32")
        f.write(block.data)
        num_nodes, dim = num_nodes + block.shape[0], block.shape[1]
    if num_nodes == 0:
        raise ValueError("There are no features to write")
    return num_nodes, dim


def _to_float32(block: ArrayLike) -> np.ndarray:
    if isinstance(block, Tensor):
        if not block.is_floating_point():
            raise ValueError(f"Features must be floating point (got "
                             f"{block.dtype})")
        # float() first: numpy does not know bfloat16.
        block = block.detach().float().cpu().numpy()
    block = np.asarray(block)
    if block.dtype.kind != 'f' or block.ndim != 2 or block.size == 0:
        raise ValueError(f"Features must be floating point of shape [N, D], "
                         f"or blocks of it (got {block.dtype} of shape "
                         f"{list(block.shape)})")
    with np.errstate(over='ignore'):  # Becomes infinite and is refused.
        return np.ascontiguousarray(block, dtype='<f4')
