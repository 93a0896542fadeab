from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from torch_sdt.nn.pool.merge_edges import MergeEdges, check_reduce
from torch_sdt.nn.pool.select_map_equation import SelectMapEquation
from torch_sdt.ops.map_equation import MarkovTime


class PoolOutput(NamedTuple):
    r"""The output of :class:`MapEquationPool`.

    Args:
        x (torch.Tensor): The features of the :math:`C` clusters, shape
            ``[C, F]``.
        edge_index (torch.Tensor): The edges between them, shape ``[2, E']``.
        edge_attr (torch.Tensor): Their summed weights or features, shape
            ``[E']`` or ``[E', D]``.
        batch (torch.Tensor, optional): The graph of each cluster, shape
            ``[C]``; :obj:`None` if no :obj:`batch` was given.
        cluster (torch.Tensor): The cluster of each node, int64, shape
            ``[N]``; ``out.x[out.cluster]`` brings features back to the
            nodes.
    """
    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor
    batch: Optional[Tensor]
    cluster: Tensor


class MapEquationPool(torch.nn.Module):
    r"""The pooling operator that merges the communities in which a random
    walk stays longest.

    Nodes are partitioned by the two-level map equation from `"Maps of Random
    Walks on Complex Networks Reveal Community Structure"
    <https://arxiv.org/abs/0707.0609>`_: the partition into modules
    :math:`m` minimises

    .. math::
        L = q \, H(\mathcal{Q}) + \sum_m \circlearrowright_m \,
        H(\mathcal{P}_m),

    the bits per step that it takes to describe a random walk, where
    :math:`q = \sum_m q_m` is the rate at which the walk changes modules,
    :math:`H(\mathcal{Q})` the entropy of the modules' names,
    :math:`\circlearrowright_m = q_m + \sum_{i \in m} p_i` the rate at which
    the code book of :math:`m` is used, and :math:`H(\mathcal{P}_m)` the
    entropy of its nodes' visit rates :math:`p_i` and its exit
    (:meth:`torch_sdt.ops.map_equation` writes it out). The number of clusters
    follows from the graph. Then

    .. math::
        \mathbf{x}^{\prime}_m = \frac{1}{|m|} \sum_{i \in m} \mathbf{x}_i,
        \qquad
        \mathbf{A}^{\prime} = \mathbf{C}^{\top} \mathbf{A} \mathbf{C},

    where :math:`\mathbf{C} \in \{ 0, 1 \}^{N \times C}` is the partition,
    never formed: all work and memory is linear in nodes and edges.
    Gradients flow to :obj:`x` and :obj:`edge_attr`; the partition itself is
    hard and takes none. There is nothing to learn and nothing random but
    :obj:`seed`.

    It is composed as `"Understanding Pooling in Graph Neural Networks"
    <https://arxiv.org/abs/1905.05178>`_ has it: ``self.select`` is a
    :class:`~torch_sdt.nn.pool.SelectMapEquation`, ``self.connect`` a
    :class:`~torch_sdt.nn.pool.MergeEdges`, which may be replaced by one that
    reduces edge features otherwise.

    .. note::
        PyG's own operators end in ``Pooling``; this one is named
        :class:`MapEquationPool`. `"The Map Equation Goes Neural"
        <https://arxiv.org/abs/2310.01144>`_ (NeurIPS 2024) makes the map
        equation a loss of a soft assignment with a fixed number of columns
        to one graph that is given beforehand. Here the assignment is hard
        and sparse, the number of clusters open, and the graph an input, so
        that batches and graphs with many thousands of clusters pass.

    Args:
        backend (str, optional): :obj:`"networkit"`, :obj:`"infomap"` or
            another of :meth:`torch_sdt.ops.map_equation_communities`.
            (default: :obj:`"networkit"`)
        markov_time (float, str or tuple, optional): The resolution: below 1
            more clusters, above 1 fewer; see there. (default: :obj:`1.`)
        seed (int, optional): Same seed, same clusters. (default: :obj:`0`)
        reduce (str, optional): How the features of a cluster's nodes are
            reduced (:obj:`"mean"`, :obj:`"sum"`, :obj:`"min"`,
            :obj:`"max"`, :obj:`"mul"`). (default: :obj:`"mean"`)
        keep_self_loops (bool, optional): If :obj:`True`, what stays inside a
            cluster becomes its self-loop, so that every cluster keeps the
            strength of its nodes and the pooled graph can be pooled again.
            (default: :obj:`True`)

    Raises:
        ValueError: If the backend cannot do what is asked, or
            :obj:`reduce` is unknown.
        ImportError: If the backend's package is absent.
    """
    def __init__(
        self,
        backend: str = 'networkit',
        markov_time: MarkovTime = 1.,
        seed: int = 0,
        reduce: str = 'mean',
        keep_self_loops: bool = True,
    ) -> None:
        super().__init__()
        check_reduce(reduce)
        self.backend = backend
        self.markov_time = markov_time
        self.seed = seed
        self.reduce = reduce
        self.keep_self_loops = keep_self_loops

        self.select = SelectMapEquation(backend, markov_time, seed)
        self.connect = MergeEdges('sum', keep_self_loops)

    def reset_parameters(self) -> None:
        r"""Resets all learnable parameters of the module."""
        self.select.reset_parameters()
        self.connect.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Optional[Tensor] = None,
        batch: Optional[Tensor] = None,
    ) -> PoolOutput:
        r"""Forward pass.

        Args:
            x (torch.Tensor): The node features, shape ``[N, F]``.
            edge_index (torch.Tensor): The edges, int64, shape ``[2, E]``. An
                undirected edge stands in both directions; other graphs are
                partitioned as if it did, at the larger of the two weights.
            edge_attr (torch.Tensor, optional): If of shape ``[E]``, the
                non-negative edge weights. Features of shape ``[E, D]`` are
                summed along, and all edges weigh 1. (default: all 1, so that
                the pooled :obj:`edge_attr` counts edges)
            batch (torch.Tensor, optional): The graph of each node, shape
                ``[N]``. Graphs are never merged, and each is pooled as if it
                were alone. (default: one graph)

        Returns:
            PoolOutput: The pooled ``x``, ``edge_index``, ``edge_attr`` and
            ``batch``, and the ``cluster`` of each node. A node without edges
            is a cluster of its own.

        Raises:
            ValueError: If a shape is wrong, a node id is out of range, a
                weight is negative or not finite, or an edge joins two graphs
                of the batch.
        """
        if edge_attr is not None and (edge_attr.dim() == 0 or
                                      edge_attr.size(0) != edge_index.size(1)):
            raise ValueError(f"'edge_attr' must have {edge_index.size(1)} "
                             f"rows, one an edge (got shape "
                             f"{list(edge_attr.shape)})")
        weight = edge_attr
        if edge_attr is not None and edge_attr.dim() > 1:
            weight = None
        select = self.select(edge_index, weight, x.size(0), batch)
        connect = self.connect(select, edge_index, edge_attr, batch)
        cluster = select.cluster_index
        out = scatter(x, cluster, dim=0, dim_size=select.num_clusters,
                      reduce=self.reduce)
        return PoolOutput(out, connect.edge_index, connect.edge_attr,
                          connect.batch, cluster)

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(backend={self.backend!r}, '
                f'markov_time={self.markov_time!r}, seed={self.seed}, '
                f'reduce={self.reduce!r}, '
                f'keep_self_loops={self.keep_self_loops})')
