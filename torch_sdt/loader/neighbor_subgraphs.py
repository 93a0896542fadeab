from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data

from torch_sdt.loader.batch_loader import BatchLoader
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.subgraph import subgraph_values
from torch_sdt.ops.topk import topk_target


@dataclass  # Not frozen: Fabric casts its tensors.
class SubgraphBatch:
    r"""The ego subgraphs of :math:`B` nodes, each of its :math:`K` neighbours
    in the order of their rank, the node itself at rank 0.

    Args:
        node (torch.Tensor): The nodes in the middle, int64, shape ``[B]``.
        index (torch.Tensor): Their neighbours, int64, shape ``[B, K]``.
        similarity (torch.Tensor): The cosines of all pairs of neighbours,
            relative to the background if one is given, float32, shape
            ``[B, K, K]``.
        x (torch.Tensor): The neighbours' features, float32, shape
            ``[B, K, D]``.
        relation (torch.Tensor, optional): What the neighbours' own rows say
            about each other, float32, shape ``[B, R, K, K]``: see
            :meth:`~torch_sdt.ops.subgraph_values`.
        k (torch.Tensor, optional): How many of its neighbours each node
            trusts, int64, shape ``[B]``.
        same (torch.Tensor, optional): Whether each neighbour is of the node's
            identity, bool, shape ``[B, K]``.
        topk (torch.Tensor, optional): How many of its neighbours each node
            had better trust (:meth:`~torch_sdt.ops.topk_target`), int64,
            shape ``[B]``.
    """
    node: Tensor
    index: Tensor
    similarity: Tensor
    x: Tensor
    relation: Optional[Tensor] = None
    k: Optional[Tensor] = None
    same: Optional[Tensor] = None
    topk: Optional[Tensor] = None

    def to_bipartite(self) -> Tuple[Tuple[Tensor, Tensor], Tensor, Tensor]:
        r"""The nodes in the middle as targets of all their neighbours: what a
        PyG layer needs to compute them, and only them.

        Returns:
            ((torch.Tensor, torch.Tensor), torch.Tensor, torch.Tensor):
            Features of sources, shape ``[B * K, D]``, and targets, shape
            ``[B, D]``; the edges, int64, shape ``[2, B * K]``, sorted by
            target; and their cosines, shape ``[B * K]``.
        """
        size, k = self.index.shape
        source = torch.arange(size * k, device=self.index.device)
        edge_index = torch.stack([source, source // k])
        return ((self.x.flatten(0, 1), self.x[:, 0]), edge_index,
                self.similarity[:, 0].reshape(-1))

    def to_batch(self) -> Batch:
        r"""The same subgraphs for any GNN, as a PyG
        :class:`~torch_geometric.data.Batch`.

        Each is a graph of :math:`K` nodes in which every node is a source of
        every other (and of none twice), with ``x``, ``edge_weight`` (the
        cosine), ``edge_attr`` (the relations, shape ``[E, R]``, if there are
        any), ``rank``, and ``n_id``, the node's index in the whole graph.
        Edges are sorted by target.

        Raises:
            ValueError: If the subgraphs were loaded with ``pairs=False``.
        """
        (size, k), device = self.index.shape, self.index.device
        if self.similarity.size(1) != k:
            raise ValueError("A graph of the neighbours needs the cosines "
                             "among them; load subgraphs with pairs=True")
        off = ~torch.eye(k, dtype=torch.bool, device=device)
        target, source = off.nonzero(as_tuple=True)
        rank = torch.arange(k, device=device)
        graphs = []
        for b in range(size):
            data = Data(
                x=self.x[b], edge_index=torch.stack([source, target]),
                edge_weight=self.similarity[b, target, source], rank=rank,
                n_id=self.index[b])
            if self.relation is not None:
                data.edge_attr = self.relation[b][:, target, source].t()
            graphs.append(data)
        return Batch.from_data_list(graphs)


class NeighborSubgraphs(BatchLoader[SubgraphBatch]):
    r"""A loader of ego subgraphs: each node with its :math:`K` neighbours.

    Everything is gathered, batch by batch, on the device of the table:
    features of :math:`B \cdot K` rows, the cosines among each node's
    neighbours, and on request what the neighbours' rows say about each other.
    Nothing is held for all nodes but the table and the features.

    .. code-block:: python

        neighbors = Neighbors.build(x, k=80)
        for batch in NeighborSubgraphs(neighbors, x, batch_size=128):
            model(batch.similarity)           # dense, [128, 80, 80]
            gnn(batch.to_batch())             # or as a PyG Batch

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.
        x (torch.Tensor): Unit features
            (:meth:`~torch_sdt.ops.normalize_features`), shape ``[N, D]``, on
            the device of the table.
        batch_size (int, optional): Subgraphs :math:`B` in a batch.
            (default: :obj:`128`)
        nodes (torch.Tensor, optional): The nodes whose subgraphs are wanted,
            int64. (default: all, in order)
        relations (sequence of torch.Tensor, optional): Values of the table's
            entries, each of shape ``[N, K]``, such as the Top-K Jaccard: each
            gives two of the :math:`R` relations, forth and back.
            (default: none)
        k (torch.Tensor, optional): How many of its neighbours each node
            trusts, int64, shape ``[N]``. (default: :obj:`None`)
        y (torch.Tensor, optional): Identities, int64, shape ``[N]``, from
            which the targets of training follow. (default: :obj:`None`)
        beta (float, optional): The :math:`\beta` of the target
            :meth:`~torch_sdt.ops.topk_target`. (default: :obj:`.5`)
        background ((float, float), optional): Location and scale of cosines
            of samples that have nothing in common; cosines then come as
            :math:`(a - \mathrm{location}) / \mathrm{scale}`, which
            compares across embeddings. (default: :obj:`(0, 1)`)
        pairs (bool, optional): If :obj:`False`, only the node's own cosines
            are computed, and ``similarity`` has shape ``[B, 1, K]``.
            (default: :obj:`True`)
        shuffle (bool, optional): If :obj:`True`, nodes come in another order
            in each epoch. (default: :obj:`False`)
        seed (int, optional): Seed of that order; epoch :math:`e` has the same
            order whatever came before. (default: :obj:`0`)
        rank (int, optional): Of :obj:`world_size` processes, which one this
            is: each gets its own share of every epoch. (default: :obj:`0`)
        world_size (int, optional): The number of processes.
            (default: :obj:`1`)

    Raises:
        ValueError: If a shape or a number is wrong.
    """

    def __init__(
        self,
        neighbors: Neighbors,
        x: Tensor,
        batch_size: int = 128,
        nodes: Optional[Tensor] = None,
        relations: Sequence[Tensor] = (),
        k: Optional[Tensor] = None,
        y: Optional[Tensor] = None,
        beta: float = .5,
        background: Tuple[float, float] = (0., 1.),
        pairs: bool = True,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if x.dim() != 2 or x.size(0) != neighbors.num_nodes:
            raise ValueError(f"'x' must have a row for each of the table's "
                             f"{neighbors.num_nodes} (got shape "
                             f"{list(x.shape)})")
        for value in relations:
            if value.shape != neighbors.index.shape:
                raise ValueError(
                    f"'relations' must have the table's shape "
                    f"{list(neighbors.index.shape)} (got "
                    f"{list(value.shape)})")
        if nodes is None:
            nodes = torch.arange(neighbors.num_nodes)
        if nodes.dim() != 1 or nodes.dtype != torch.long:
            raise ValueError(f"'nodes' must be int64 of shape [B] (got "
                             f"{nodes.dtype} of shape {list(nodes.shape)})")
        bad = nodes[(nodes < 0) | (nodes >= neighbors.num_nodes)]
        if bad.numel() > 0:
            raise ValueError(f"'nodes' must be in 0.."
                             f"{neighbors.num_nodes - 1} (got {int(bad[0])})")
        super().__init__(nodes, batch_size, shuffle, seed, rank, world_size)
        for name, vector in (('k', k), ('y', y)):
            if vector is not None and vector.shape != (x.size(0), ):
                raise ValueError(f"'{name}' must have shape [{x.size(0)}] "
                                 f"(got {list(vector.shape)})")
        if not background[1] > 0:
            raise ValueError(f"The scale of 'background' must be positive "
                             f"(got {background[1]})")
        self.neighbors = neighbors
        self.x = x
        self.pairs = pairs
        self.relations = list(relations)
        self.k = k
        self.y = y
        self.topk = None if y is None else topk_target(neighbors, y, beta)
        self.background = background

    def gather(self, nodes: Tensor) -> SubgraphBatch:
        r"""The subgraphs of some nodes, int64, shape ``[B]``."""
        nodes = nodes.to(self.neighbors.index.device)
        index = self.neighbors.index[nodes]
        # Picks whole rows, several times as fast as x[index] on a CPU.
        x = F.embedding(index, self.x).float()
        relation = None
        if len(self.relations) > 0:
            parts = []
            for value in self.relations:
                forth = subgraph_values(self.neighbors.index, value, nodes)
                parts += [forth, forth.transpose(1, 2)]
            relation = torch.stack(parts, dim=1)
        location, scale = self.background
        query = x if self.pairs else x[:, :1]
        similarity = (query @ x.transpose(1, 2) - location) / scale
        same = topk = None
        if self.y is not None and self.topk is not None:
            same = self.y[index] == self.y[nodes].view(-1, 1)
            topk = self.topk[nodes]
        k = None if self.k is None else self.k[nodes]
        return SubgraphBatch(nodes, index, similarity, x, relation, k, same,
                             topk)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}({self.neighbors}, '
                f'batch_size={self.batch_size}, '
                f'num_nodes={self.nodes.numel()}, '
                f'relations={len(self.relations)})')
