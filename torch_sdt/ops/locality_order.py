import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.components import connected_components


def locality_order(neighbors: Neighbors) -> Tensor:
    r"""An order of the samples in which neighbours stand close together.

    Samples that are linked by first neighbours, the components from which
    FINCH starts (`Sarfraz et al., 2019 <https://arxiv.org/abs/1902.11266>`_),
    follow each other. In a table brought into this order
    (:meth:`~torch_sdt.neighbors.Neighbors.permute`) the rows that an algorithm
    on the graph reads together lie together in memory: from some 100,000
    samples on that, and not arithmetic, is what its time depends on.

    Args:
        neighbors (Neighbors): The table, shape ``[N, K]``.

    Returns:
        torch.Tensor: The samples in that order, int64, shape ``[N]``.
    """
    node = torch.arange(neighbors.num_nodes, device=neighbors.index.device)
    if neighbors.k == 1:
        return node
    edge_index = torch.stack([neighbors.index[:, 1], node])
    component = connected_components(edge_index, neighbors.num_nodes)
    return component.argsort(stable=True)
