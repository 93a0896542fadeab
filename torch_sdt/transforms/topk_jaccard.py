from numbers import Integral
from typing import Optional, Tuple, Union

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.storage import BaseStorage
from torch_geometric.index import index2ptr
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import lexsort
from torch_geometric.utils.num_nodes import maybe_num_nodes

from torch_sdt.ops import edge_probability, topk_jaccard_csr
from torch_sdt.ops.edge_probability import check_transform


@functional_transform('topk_jaccard')
class TopKJaccard(BaseTransform):
    r"""Weights every edge by how much the best neighbours of its two ends
    overlap (functional name: :obj:`topk_jaccard`).

    A noisy edge may join two nodes that look alike, but rarely two nodes
    whose neighbours are the same. Node :math:`i`'s list holds the sources of
    its incoming edges in descending order of the similarity
    :math:`a_{ij}` (ties by source index), with :math:`i` itself first at
    similarity 1. Of it, :math:`\mathcal{N}_i` are the first :math:`k_i`.
    With the :meth:`~torch_sdt.ops.edge_probability` :math:`p_{ij}` of
    :math:`a_{ij}` and
    :math:`\hat p_{ih} = p_{ih} / \sum_{h' \in \mathcal{N}_i} p_{ih'}`, the
    edge :math:`(j, i)` gets

    .. math::
        \tilde p_{ij} = \frac{
        \sum_{h \in \mathcal{N}_i \cap \mathcal{N}_j}
        (\hat p_{ih} + \hat p_{jh})}{
        \sum_{h \in \mathcal{N}_i} \hat p_{ih} +
        \sum_{h \in \mathcal{N}_j} \hat p_{jh}} \in [0, 1]

    if :math:`j \in \mathcal{N}_i`, and 0 if it stands beyond the first
    :math:`k_i`: no edge is removed, and :obj:`edge_index` with all its other
    attributes stays as it is. From `"Enhancing Noise Resilience in Face
    Clustering via Sparse Differential Transformer"
    <https://arxiv.org/abs/2512.22612>`_, here for any graph: weighted or not,
    directed or not, with lists of different lengths.

    For :class:`~torch_geometric.data.HeteroData`, every edge type whose
    source and destination are the same node type is weighted; others are
    left alone. Gradients flow from the result to the similarities.

    Args:
        k (int or str, optional): How many entries of its list each node
            trusts, itself included where :obj:`add_self`: one integer for
            all nodes, or the name of a node attribute that holds integers of
            shape ``[N]``. A list shorter than that is trusted whole.
            (default: all)
        transform (str, optional): How a similarity becomes a probability,
            :obj:`"sigmoid"` or :obj:`"exponential"`; see
            :meth:`torch_sdt.ops.edge_probability`.
            (default: :obj:`"sigmoid"`)
        delta (float, optional): Steepness of the sigmoid.
            (default: :obj:`7.5`)
        epsilon (float, optional): Offset of the sigmoid.
            (default: :obj:`-5.`)
        tau (float, optional): Scale of the exponential. (default: :obj:`.5`)
        add_self (bool, optional): If :obj:`True`, every node counts as its
            own first neighbour; without that, two adjacent nodes that share
            no neighbour get 0. A self-loop of the graph is this very entry:
            it is not counted again, and gets 1. If :obj:`False`, a list
            holds what the graph holds. (default: :obj:`True`)
        attr (str, optional): The name of the edge attribute, floating point,
            shape ``[E]``, that holds cosines and takes the probabilities.
            If the graph has none, all similarities are 1, which gives the
            plain overlap :math:`|\mathcal{N}_i \cap \mathcal{N}_j|
            (1 / |\mathcal{N}_i| + 1 / |\mathcal{N}_j|) / 2`.
            (default: :obj:`"edge_weight"`)

    Raises:
        ValueError: If an argument is wrong, there is no :obj:`edge_index`
            (a sparse :obj:`adj_t` is not supported), two edges are parallel,
            a similarity is not finite or outside [-1, 1], or the attribute
            :obj:`k` is absent, of another shape, not of integers, or below 1.
    """
    def __init__(
        self,
        k: Optional[Union[int, str]] = None,
        transform: str = 'sigmoid',
        delta: float = 7.5,
        epsilon: float = -5.,
        tau: float = .5,
        add_self: bool = True,
        attr: str = 'edge_weight',
    ) -> None:
        check_transform(transform, tau)
        if isinstance(k, bool) or not isinstance(
                k, (Integral, str, type(None))):
            raise ValueError(f"'k' must be an integer, the name of a node "
                             f"attribute, or None (got {k!r})")
        if isinstance(k, Integral) and int(k) < 1:
            raise ValueError(f"'k' must be positive (got {k})")
        self.k = k
        self.transform = transform
        self.delta = delta
        self.epsilon = epsilon
        self.tau = tau
        self.add_self = add_self
        self.attr = attr

    def forward(
        self,
        data: Union[Data, HeteroData],
    ) -> Union[Data, HeteroData]:
        r"""Returns the graph with its new weights; the caller's object stays
        as it is.
        """
        for store in data.edge_stores:
            if store.is_bipartite():
                continue
            if 'edge_index' not in store:
                raise ValueError(f"'{self.__class__.__name__}' needs "
                                 f"'edge_index' (a sparse 'adj_t' is not "
                                 f"supported), but there is none")
            hetero = isinstance(data, HeteroData)
            nodes = data[store._key[0]] if hetero else store
            num_nodes = store.size(0)
            if num_nodes is None:  # Nothing but edges tells.
                num_nodes = maybe_num_nodes(store.edge_index)
            edge_index, similarity = self._similarity(store, num_nodes)
            k = self._trusted(nodes, num_nodes, edge_index.device)
            store[self.attr] = self._weight(edge_index, similarity, k,
                                              num_nodes)
        return data

    def _similarity(self, store: BaseStorage, num_nodes: int
                    ) -> Tuple[Tensor, Tensor]:
        # A plain tensor, should it be an `EdgeIndex`.
        edge_index = store.edge_index.as_subclass(Tensor)
        _check_edges(edge_index, num_nodes)
        num_edges = edge_index.size(1)
        similarity = store.get(self.attr, None)
        if similarity is None:
            similarity = torch.ones(num_edges, device=edge_index.device)
        if (similarity.shape != (num_edges, )
                or not similarity.is_floating_point()):
            raise ValueError(
                f"'{self.attr}' must be floating point of shape "
                f"[{num_edges}] (got {similarity.dtype} of shape "
                f"{list(similarity.shape)})")
        # Cosines may exceed 1 by rounding.
        bad = ~(similarity.detach().abs() <= 1 + 1e-3)
        _raise_at(bad, edge_index, f"has a similarity '{self.attr}' that is "
                  f"not finite or no cosine in [-1, 1]")
        return edge_index, similarity

    def _trusted(self, nodes: BaseStorage, num_nodes: int,
                 device: torch.device) -> Optional[Tensor]:
        if self.k is None:
            return None
        if not isinstance(self.k, str):
            return torch.full((num_nodes, ), int(self.k), device=device)
        k = nodes.get(self.k, None)
        if (not isinstance(k, Tensor) or k.shape != (num_nodes, )
                or k.is_floating_point() or k.dtype == torch.bool):
            got = (f'{k.dtype} of shape {list(k.shape)}' if isinstance(
                k, Tensor) else repr(k))
            raise ValueError(f"The node attribute '{self.k}' must hold "
                             f"integers of shape [{num_nodes}] (got {got})")
        if bool((k < 1).any()):
            node = int((k < 1).nonzero()[0])
            raise ValueError(f"The node attribute '{self.k}' must be positive "
                             f"(got {int(k[node])} at node {node})")
        return k.to(device=device, dtype=torch.long)

    def _weight(self, edge_index: Tensor, similarity: Tensor,
                k: Optional[Tensor], num_nodes: int) -> Tensor:
        source, target = edge_index
        if not self.add_self:
            return self._jaccard(source, target, similarity,
                                 -similarity.detach(), k, num_nodes)
        other = (source != target).nonzero().view(-1)
        node = torch.arange(num_nodes, device=source.device)
        source = torch.cat([node, source[other]])
        target = torch.cat([node, target[other]])
        one = similarity.new_ones(num_nodes)
        # First in its list, even before an exact duplicate.
        key = torch.cat([-torch.inf * one, -similarity.detach()[other]])
        weight = self._jaccard(source, target,
                               torch.cat([one, similarity[other]]), key, k,
                               num_nodes)
        # What is not among the others is a self-loop.
        loops = torch.ones_like(similarity)
        return loops.index_copy(0, other, weight[num_nodes:])

    def _jaccard(self, source: Tensor, target: Tensor, similarity: Tensor,
                 key: Tensor, k: Optional[Tensor], num_nodes: int) -> Tensor:
        order = lexsort([source, key, target])
        rowptr = index2ptr(target[order], num_nodes)
        length = rowptr[1:] - rowptr[:-1]
        if k is not None:
            length = torch.minimum(length, k)
        probability = edge_probability(similarity[order], self.transform,
                                       self.delta, self.epsilon, self.tau)
        weight = topk_jaccard_csr(rowptr, source[order], length, probability)
        position = torch.empty_like(order)
        position[order] = torch.arange(order.numel(), device=order.device)
        return weight[position]

    def __repr__(self) -> str:
        return (f'{self.__class__.__name__}(k={self.k!r}, '
                f'transform={self.transform!r}, delta={self.delta}, '
                f'epsilon={self.epsilon}, tau={self.tau}, '
                f'add_self={self.add_self}, attr={self.attr!r})')


def _check_edges(edge_index: Tensor, num_nodes: int) -> None:
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"'edge_index' must have shape [2, E] (got "
                         f"{list(edge_index.shape)})")
    bad = ((edge_index < 0) | (edge_index >= num_nodes)).any(dim=0)
    _raise_at(bad, edge_index, f"names a node outside 0..{num_nodes - 1}")
    edge, order = (edge_index[0] * num_nodes + edge_index[1]).sort(stable=True)
    bad = torch.zeros_like(order, dtype=torch.bool)
    bad[order[1:]] = edge[1:] == edge[:-1]
    _raise_at(bad, edge_index, "repeats an earlier one; merge parallel edges "
              "first ('data.coalesce()')")


def _raise_at(bad: Tensor, edge_index: Tensor, what: str) -> None:
    if bool(bad.any()):
        e = int(bad.nonzero()[0])
        raise ValueError(f"Edge {e} ({int(edge_index[0, e])}, "
                         f"{int(edge_index[1, e])}) {what}")
