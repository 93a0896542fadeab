from typing import Optional

import torch
from torch import Tensor
from torch_geometric.nn.pool.select import Select, SelectOutput
from torch_geometric.utils.num_nodes import maybe_num_nodes

from torch_sdt.ops import map_equation_communities
from torch_sdt.ops.map_equation import (
    MarkovTime,
    check_backend,
    check_graph,
)


class SelectMapEquation(Select):
    r"""Assigns every node to its community of shortest map equation, see
    :class:`~torch_sdt.nn.pool.MapEquationPool`.

    Every graph of a batch is partitioned by itself, so that its communities
    do not depend on the graphs that share its batch. The assignment is hard;
    no gradient flows through it.

    Args:
        backend (str, optional): See
            :meth:`torch_sdt.ops.map_equation_communities`.
            (default: :obj:`"networkit"`)
        markov_time (float, str or tuple, optional): The resolution, see
            there. (default: :obj:`1.`)
        seed (int, optional): Same seed, same communities.
            (default: :obj:`0`)

    Raises:
        ValueError: If the backend cannot do what is asked.
        ImportError: If the backend's package is absent.
    """
    def __init__(
        self,
        backend: str = 'networkit',
        markov_time: MarkovTime = 1.,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_backend(backend, markov_time)
        self.backend = backend
        self.markov_time = markov_time
        self.seed = seed

    @torch.no_grad()
    def forward(
        self,
        edge_index: Tensor,
        edge_weight: Optional[Tensor] = None,
        num_nodes: Optional[int] = None,
        batch: Optional[Tensor] = None,
    ) -> SelectOutput:
        r"""Forward pass.

        Args:
            edge_index (torch.Tensor): The edges, int64, shape ``[2, E]``;
                both directions of an undirected edge.
            edge_weight (torch.Tensor, optional): Non-negative weights, shape
                ``[E]``. (default: all 1)
            num_nodes (int, optional): The number of nodes :math:`N`.
                (default: that of :obj:`batch`, else
                :obj:`max(edge_index) + 1`)
            batch (torch.Tensor, optional): The graph of each node, int64,
                shape ``[N]``. (default: one graph)

        Returns:
            SelectOutput: All nodes with their clusters, numbered graph by
            graph, within a graph by first appearance.

        Raises:
            ValueError: If a shape is wrong, a node id is out of range, a
                weight is negative or not finite, or an edge joins two graphs
                of the batch.
        """
        if batch is not None and num_nodes is None:
            num_nodes = batch.numel()
        num_nodes = maybe_num_nodes(edge_index, num_nodes)
        device = edge_index.device
        edge_index = edge_index.as_subclass(Tensor)
        if self.backend != 'torch' or batch is not None:
            # Most backends work on the CPU; moved once, not once a graph.
            edge_index = edge_index.cpu()
            edge_weight = None if edge_weight is None else edge_weight.cpu()
        if batch is None:
            cluster = self._communities(edge_index, edge_weight, num_nodes)
        else:
            batch = batch.cpu()
            _check_batch(edge_index, edge_weight, num_nodes, batch)
            cluster = self._by_graph(edge_index, edge_weight, batch)
        return SelectOutput(
            node_index=torch.arange(num_nodes, device=device),
            num_nodes=num_nodes,
            cluster_index=cluster.to(device),
            num_clusters=int(cluster.max()) + 1 if num_nodes > 0 else 0,
        )

    def _communities(self, edge_index: Tensor, edge_weight: Optional[Tensor],
                     num_nodes: int) -> Tensor:
        return map_equation_communities(edge_index, edge_weight, num_nodes,
                                        self.backend, self.markov_time,
                                        self.seed)

    def _by_graph(self, edge_index: Tensor, edge_weight: Optional[Tensor],
                  batch: Tensor) -> Tensor:
        _, graph, num_nodes = batch.unique(return_inverse=True,
                                           return_counts=True)
        edge_graph = graph[edge_index[0]]
        num_edges = edge_graph.bincount(minlength=num_nodes.numel())
        node_parts = graph.argsort(stable=True).split(num_nodes.tolist())
        edge_parts = edge_graph.argsort(stable=True).split(num_edges.tolist())

        cluster, local = torch.empty_like(graph), torch.empty_like(graph)
        first = 0
        for nodes, edges in zip(node_parts, edge_parts):
            local[nodes] = torch.arange(nodes.numel())
            part = self._communities(
                local[edge_index[:, edges]],
                None if edge_weight is None else edge_weight[edges],
                nodes.numel())
            cluster[nodes] = first + part
            first += int(part.max()) + 1
        return cluster

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(backend={self.backend!r}, '
                f'markov_time={self.markov_time!r}, seed={self.seed})')


def _check_batch(edge_index: Tensor, edge_weight: Optional[Tensor],
                 num_nodes: int, batch: Tensor) -> None:
    # The whole graph first, so that a message counts its nodes and edges,
    # not those of one part.
    check_graph(edge_index, edge_weight, num_nodes)
    if batch.shape != (num_nodes, ):
        raise ValueError(f"'batch' must have shape [{num_nodes}] (got "
                         f"{list(batch.shape)})")
    row, col = edge_index
    bad = batch[row] != batch[col]
    if bool(bad.any()):
        e = int(bad.nonzero()[0])
        raise ValueError(f"Edge {e} ({int(row[e])}, {int(col[e])}) joins the "
                         f"graphs {int(batch[row[e]])} and "
                         f"{int(batch[col[e]])} of the batch")
