r"""Tables for scikit-learn's estimators, and their labels for ours."""
import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.map_equation import number_by_appearance

# A stored 0 would be no edge.
_LEAST = 1e-12


def distance_graph(neighbors: Neighbors) -> csr_matrix:
    r"""The cosine distances of a table as a sparse matrix, each sample's row
    in ascending order.
    """
    n, k = neighbors.index.shape
    distance = 1 - neighbors.similarity.cpu().double().numpy()
    # In place of 0 the least, and of rounding errors below it as well.
    distance = np.maximum(distance, _LEAST)
    return csr_matrix(
        (distance.ravel(), neighbors.index.cpu().numpy().ravel(),
         np.arange(0, n * k + 1, k)), (n, n))


def number_labels(labels: np.ndarray) -> Tensor:
    r"""Labels numbered by first appearance, each -1 as one of its own."""
    labels = labels.astype(np.int64)
    alone = labels < 0
    labels[alone] = labels.max() + 1 + np.arange(alone.sum())
    return number_by_appearance(torch.from_numpy(labels))
