from typing import Optional

import torch
from torch import Tensor
from torch_geometric.nn.pool.connect import Connect, ConnectOutput
from torch_geometric.nn.pool.select import SelectOutput
from torch_geometric.utils import coalesce

REDUCE = ('sum', 'mean', 'min', 'max', 'mul')


class MergeEdges(Connect):
    r"""Joins two clusters by one edge wherever edges run between their nodes.

    .. math::
        \mathbf{A}^{\prime} = \mathbf{C}^{\top} \mathbf{A} \mathbf{C},

    where :math:`\mathbf{C} \in \{ 0, 1 \}^{N \times C}` assigns nodes to
    clusters; computed on the edges alone. The diagonal of
    :math:`\mathbf{A}^{\prime}`, the flow that stays in a cluster, becomes
    self-loops. An undirected edge inside a cluster counts there in both its
    directions, so that every cluster has the summed strength of its nodes.
    Gradients flow to :obj:`edge_attr`.

    Args:
        reduce (str, optional): How the attributes of merged edges are
            reduced (:obj:`"sum"`, :obj:`"mean"`, :obj:`"min"`,
            :obj:`"max"`, :obj:`"mul"`). (default: :obj:`"sum"`)
        keep_self_loops (bool, optional): If :obj:`False`, edges inside
            clusters are dropped. The map equation of the pooled graph needs
            them. (default: :obj:`True`)

    Raises:
        ValueError: If :obj:`reduce` is unknown.
    """
    def __init__(
        self,
        reduce: str = 'sum',
        keep_self_loops: bool = True,
    ) -> None:
        super().__init__()
        check_reduce(reduce)
        self.reduce = reduce
        self.keep_self_loops = keep_self_loops

    def forward(
        self,
        select_output: SelectOutput,
        edge_index: Tensor,
        edge_attr: Optional[Tensor] = None,
        batch: Optional[Tensor] = None,
    ) -> ConnectOutput:
        r"""Forward pass.

        Args:
            select_output (SelectOutput): The clusters. Edges of nodes that
                are in none are dropped.
            edge_index (torch.Tensor): The edges, shape ``[2, E]``.
            edge_attr (torch.Tensor, optional): Edge weights or features,
                shape ``[E]`` or ``[E, D]``. (default: all 1, so that a sum
                counts the merged edges)
            batch (torch.Tensor, optional): The graph of each node, shape
                ``[N]``. (default: :obj:`None`)

        Returns:
            ConnectOutput: ``edge_index`` of shape ``[2, E']``, sorted and
            without parallel edges, ``edge_attr`` of shape ``[E']`` or
            ``[E', D]``, and ``batch`` of shape ``[C]`` if it was given.

        Raises:
            ValueError: If a node is in several clusters.
        """
        cluster = _assignment(select_output)
        if edge_attr is None:
            edge_attr = torch.ones(edge_index.size(1),
                                   device=edge_index.device)
        edge_index = cluster[edge_index.as_subclass(Tensor)]
        keep = (edge_index >= 0).all(dim=0)
        if not self.keep_self_loops:
            keep &= edge_index[0] != edge_index[1]
        edge_index, edge_attr = coalesce(
            edge_index[:, keep], edge_attr[keep],
            num_nodes=select_output.num_clusters, reduce=self.reduce)
        batch = self.get_pooled_batch(select_output, batch)
        return ConnectOutput(edge_index, edge_attr, batch)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(reduce={self.reduce!r}, '
                f'keep_self_loops={self.keep_self_loops})')


def check_reduce(reduce: str) -> None:
    r"""Raises a :class:`ValueError` for a reduction that does not exist."""
    if reduce not in REDUCE:
        raise ValueError(f"'reduce' must be one of {list(REDUCE)} (got "
                         f"{reduce!r})")


def _assignment(select_output: SelectOutput) -> Tensor:
    node, cluster = select_output.node_index, select_output.cluster_index
    count = node.bincount(minlength=select_output.num_nodes)
    if bool((count > 1).any()):
        raise ValueError(f"Node {int((count > 1).nonzero()[0])} is in "
                         f"several clusters; 'MergeEdges' takes a hard "
                         f"assignment")
    out = node.new_full((select_output.num_nodes, ), -1)
    out[node] = cluster
    return out
