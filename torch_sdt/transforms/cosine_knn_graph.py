from numbers import Integral
from typing import Optional, Tuple, Union

from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import BaseStorage
from torch_geometric.transforms import BaseTransform

from torch_sdt.neighbors import Neighbors


@functional_transform('cosine_knn_graph')
class CosineKNNGraph(BaseTransform):
    r"""Connects every node to its nearest neighbours by cosine of
    :obj:`data.x` (functional name: :obj:`cosine_knn_graph`).

    Edges point from the neighbour (source) to the node (target); they are
    sorted by target, and by descending similarity within a target. There are
    no self-loops. The cosine :math:`x_i^{\top} x_j / (\|x_i\| \|x_j\|)` is
    written to :obj:`attr`.

    .. note::
        :obj:`k` counts the node itself, as it does everywhere in this
        library: every node has exactly :math:`k - 1` incoming edges.
        :class:`torch_geometric.transforms.KNNGraph` does not count it.

    The edges that :obj:`data` had before are replaced, and their attributes
    with them. For :class:`~torch_geometric.data.HeteroData`, every node type
    that has features gets a graph of its own,
    ``data[node_type, 'knn', node_type]``.

    Args:
        k (int, optional): Neighbours per node, the node itself included.
            (default: :obj:`min(80, N)`)
        index (str, optional): How to search, see :meth:`torch_sdt.ops.knn`.
            (default: :obj:`"auto"`)
        center (bool, optional): If :obj:`True`, the mean feature is removed
            first: embeddings that share an offset need it.
            (default: :obj:`False`)
        attr (str, optional): The name of the edge attribute that takes the
            cosines, float32, shape ``[E]``. (default: :obj:`"edge_weight"`)
        seed (int, optional): Seed of an approximate index.
            (default: :obj:`0`)

    Raises:
        ValueError: If :obj:`k` is no positive integer or exceeds the number
            of nodes, if there are no features or they are bad
            (:meth:`torch_sdt.ops.normalize_features` names the row), or if
            :obj:`data` is a batch of several graphs: neighbours would be
            taken from other graphs.
    """
    def __init__(
        self,
        k: Optional[int] = None,
        index: str = 'auto',
        center: bool = False,
        attr: str = 'edge_weight',
        seed: int = 0,
    ) -> None:
        if k is not None and (not isinstance(k, Integral)
                              or isinstance(k, bool) or int(k) < 1):
            raise ValueError(f"'k' must be a positive integer (got {k!r})")
        self.k = k
        self.index = index
        self.center = center
        self.attr = attr
        self.seed = seed

    def forward(
        self,
        data: Union[Data, HeteroData],
    ) -> Union[Data, HeteroData]:
        r"""Returns the graph of :obj:`data.x`; the caller's object stays as
        it is.
        """
        stores = [store for store in data.node_stores if 'x' in store]
        if len(stores) == 0:
            raise ValueError(f"'{self.__class__.__name__}' needs node "
                             f"features 'x', but there are none")
        for store in stores:
            edge_index, weight = self._connect(store)
            if isinstance(data, HeteroData):
                store = data[store._key, 'knn', store._key]
            _remove_edges(store)
            store.edge_index = edge_index
            store[self.attr] = weight
        return data

    def _connect(self, store: BaseStorage) -> Tuple[Tensor, Tensor]:
        batch = store.get('batch', None)
        if batch is not None and bool((batch != batch[:1]).any()):
            raise ValueError(f"'{self.__class__.__name__}' would connect the "
                             f"different graphs of a batch; apply it to each "
                             f"graph before batching")
        neighbors = Neighbors.build(store.x, self.k, self.index, self.center,
                                    seed=self.seed)
        return neighbors.to_edge_index()

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(k={self.k}, '
                f'index={self.index!r}, center={self.center}, '
                f'attr={self.attr!r}, seed={self.seed})')


def _remove_edges(store: BaseStorage) -> None:
    old = [key for key in store.keys()
           if key in {'adj', 'adj_t'} or store.is_edge_attr(key)]
    for key in old:
        del store[key]
