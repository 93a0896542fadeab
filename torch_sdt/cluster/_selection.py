r"""Which of many partitions fits features best, judged without labels."""
from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.aligned import aligned_empty
from torch_sdt.ops.background import Background

_RIVALS = 16
# All around a smaller cluster is in its samples' neighbours.
_SMALL = 16
# A share of samples that is taken for all.
_MOST = .8
_PART = 16384


class Partition(NamedTuple):
    r"""Clusters numbered from 0, int64 ``[N]``, their sizes, int64 ``[C]``,
    and the sums of their features, float32 ``[C, D]``.
    """
    cluster: Tensor
    size: Tensor
    total: Tensor

    @classmethod
    def of(cls, x: Tensor, cluster: Tensor) -> Partition:
        r"""The partition of unit features, float32, shape ``[N, D]``."""
        size = torch.bincount(cluster)
        total = x.new_zeros(size.numel(), x.size(1))
        return cls(cluster, size, total.index_add_(0, cluster, x))


class Scores(NamedTuple):
    r"""Silhouettes summed and log-likelihood, of every cluster of a
    partition, float64 ``[C]`` each.
    """
    separation: Tensor
    likelihood: Tensor

    def mean(self, num_samples: int) -> Tuple[float, float]:
        r"""Both, of the whole partition, per sample."""
        return (float(self.separation.sum()) / num_samples,
                float(self.likelihood.sum()) / num_samples)

    def quality(self, num_samples: int) -> float:
        r"""Both, of the whole partition, in one figure."""
        return quality(*self.mean(num_samples))


def quality(separation: float, likelihood: float) -> float:
    r"""Separation times root of likelihood."""
    return max(separation, 0.) * max(likelihood, 0.)**.5


def silhouettes(x: Tensor, neighbors: Neighbors, partition: Partition,
                background: Background, asked: Optional[Tensor] = None
                ) -> Tensor:
    r"""The silhouette of every sample (`Rousseeuw, 1987
    <https://doi.org/10.1016/0377-0427(87)90125-7>`_) in mean cosines.

    With :math:`a_i` the mean cosine of sample :math:`i` to the others of its
    cluster and :math:`b_i` that to the best other cluster,

    .. math::
        s_i = \frac{a_i - b_i}{1 - \min(a_i, b_i)}.

    A singleton has no :math:`a_i`. It loses what joining its best cluster
    would have won over the second best: nothing if it resembles none more
    than others. Other clusters are those of the sample's neighbours and, for
    clusters of sixteen and more, the sixteen whose means are nearest to its
    own; where there is none, the background stands in.

    Args:
        x (torch.Tensor): Unit features on the CPU, float32, ``[N, D]``.
        neighbors (Neighbors): Their table.
        partition (Partition): Their clusters.
        background (Background): See :meth:`estimate_background`.
        asked (torch.Tensor, optional): The clusters whose samples' are
            wanted, bool, ``[C]``; others get 0. (default: all)

    Returns:
        torch.Tensor: float32, shape ``[N]``.
    """
    from torch_sdt.cluster._silhouette_kernel import silhouette_kernel

    cluster, size, total = partition
    if asked is None:
        asked = torch.ones_like(size, dtype=torch.bool)
    rival = _rivals(partition, asked)
    return torch.from_numpy(silhouette_kernel(
        x.numpy(), neighbors.index.numpy(), cluster.numpy(), total.numpy(),
        size.numpy(), rival.numpy(), asked.numpy(), background.location))


def likelihoods(partition: Partition, background: Background) -> Tensor:
    r"""The log-likelihood of every cluster, over that of its samples alone.

    The model is two-covariance PLDA (`Brümmer and de Villiers, 2010
    <https://www.isca-archive.org/odyssey_2010/brummer10_odyssey.html>`_):
    an identity is a Gaussian draw, its images are Gaussian draws around it.
    Both are spherical, in the :math:`1 / \sigma^2` dimensions that the spread
    :math:`\sigma` of background cosines amounts to, with the ratio of
    variances that suits the partition best.

    Returns:
        torch.Tensor: float64, one value a cluster.
    """
    _, size, total = partition
    mean = total.sum(dim=0, dtype=torch.double) / size.sum()
    length = float(mean.square().sum())
    size, variance = size.double(), 1. - length
    if variance < 1e-6 or background.scale < 1e-6:
        return torch.zeros_like(size)
    dim = (variance / background.scale)**2
    # Squared distances from the mean of all: of the samples, which have unit
    # length, summed over the cluster, and of its mean, times size. In parts,
    # since there may be as many clusters as samples.
    dot = (total @ mean.float()).double()
    of_samples = (size - 2 * dot + size * length) / variance
    square = torch.cat([part.double().square().sum(dim=1)
                        for part in total.split(_PART)])
    of_mean = (square / size - 2 * dot + size * length) / variance
    best = torch.full_like(size, -torch.inf)
    # rho is the cosine of two images of one identity in this model.
    for rho in torch.linspace(.02, .98, 33, dtype=torch.double):
        between, within = rho / dim, (1 - rho) / dim
        spread = within + size * between
        log_det = (size - 1) * within.log() + spread.log()
        log_det += size * np.log(dim)
        distance = (of_samples - of_mean) / within + of_mean / spread
        value = -.5 * (dim * log_det + distance - of_samples * dim)
        if value.sum() > best.sum():
            best = value
    return best


def judge(x: Tensor, neighbors: Neighbors, cluster: Tensor,
          background: Background, asked: Optional[Tensor] = None) -> Scores:
    r"""How well clusters, numbered from 0, fit features (the arguments of
    :meth:`silhouettes`): of each its :meth:`silhouettes`, summed, and its
    :meth:`likelihoods`.
    """
    partition = Partition.of(x, cluster)
    of_sample = silhouettes(x, neighbors, partition, background, asked)
    likelihood = likelihoods(partition, background)
    separation = torch.zeros_like(likelihood).index_add_(
        0, cluster, of_sample.double())
    return Scores(separation, likelihood)


def nested(partitions: Sequence[Tensor], base: int) -> List[Tensor]:
    r"""Makes a chain of partitions, coarse to fine, a tree around one of them.

    The one at :obj:`base` stays as it is. Coarser ones become unions of its
    clusters: each goes as a whole where most of its samples are. Finer ones
    become parts: their clusters are cut where those above them are.
    """
    out = [_renumber(partitions[base])]
    for coarse in reversed(partitions[:base]):
        fine = out[0]
        votes = sp.coo_matrix(
            (np.ones(fine.numel()), (fine.numpy(), coarse.numpy()))).tocsr()
        majority = torch.from_numpy(np.asarray(votes.argmax(axis=1)).ravel())
        out.insert(0, _renumber(majority[fine]))
    for fine in partitions[base + 1:]:
        out.append(_renumber(out[-1] * (int(fine.max()) + 1) + fine))
    return out


def select(tree: Sequence[Tensor], score: Callable[[int, Tensor], Tensor],
           base: int, full: Tensor, width: int, margin: float
           ) -> Tuple[Tensor, Tensor]:
    r"""The clusters of a tree, from whichever levels, of the largest total
    score: a cluster stands unless its parts, each at its best, score more by
    :obj:`margin`, a share of their score. Unions of the base's clusters do
    not stand at all.

    But where a cluster's parts are wider than the neighbour table and most of
    its samples trust all that the table lists, they must gain half as much
    again, at any level: what is larger than its number of neighbours comes
    apart in a kNN graph, so that it did says little.

    Args:
        tree (sequence of torch.Tensor): Nested partitions, coarse to fine.
        score (callable): Gives the score of each cluster of a level; only
            those of the given clusters, bool ``[C]``, are read.
        base (int): The best single level.
        full (torch.Tensor): Which samples trust all their neighbours, bool,
            shape ``[N]``.
        width (int): Width of the neighbour table.
        margin (float): See above.

    Returns:
        (torch.Tensor, torch.Tensor): Each sample's cluster and level.
    """
    size = torch.bincount(tree[-1]).double()
    whole = [torch.ones_like(size, dtype=torch.bool)]
    best, square = score(len(tree) - 1, whole[0]), size.square()
    for depth in range(len(tree) - 2, -1, -1):
        parent = torch.empty(best.numel(), dtype=torch.long)
        parent[tree[depth + 1]] = tree[depth]
        size = torch.bincount(tree[depth]).double()
        parts = torch.zeros_like(size).index_add_(0, parent, best)
        squares = torch.zeros_like(size).index_add_(0, parent, square)
        # The size of the part that a sample is in, on average.
        unseen = squares / size >= width
        unseen &= torch.bincount(tree[depth], full) >= _MOST * size
        stands = unseen if depth < base else torch.ones_like(unseen)
        if stands.any():
            own = score(depth, stands)
            gain = torch.where(unseen, 1.5 * margin, margin)
            stands = stands & (own >= parts - gain * parts.abs())
            best = torch.where(stands, own, parts)
        else:
            best = parts
        square = torch.where(stands, size.square(), squares)
        whole.insert(0, stands)
    cluster = torch.full_like(tree[0], -1)
    level = torch.zeros_like(cluster)
    offset = 0
    for depth, (partition, stands) in enumerate(zip(tree, whole)):
        here = stands[partition] & (cluster < 0)
        cluster[here] = partition[here] + offset
        level[here] = depth
        offset += stands.numel()
    return cluster, level


def _rivals(partition: Partition, asked: Tensor) -> Tensor:
    # The clusters with the nearest means, [C, min(16, C - 1)]; of small ones
    # and those not asked for themselves, which are none.
    _, size, total = partition
    mean = total / size.view(-1, 1)
    width = min(_RIVALS, size.numel() - 1)
    rival = torch.arange(size.numel()).view(-1, 1).repeat(1, width)
    large = (asked & (size >= _SMALL)).nonzero().view(-1)
    rows = max(2**24 // size.numel(), 1)
    # One piece of memory for all: new ones are fetched page by page.
    room, mean_t = aligned_empty(rows, size.numel(), mean), mean.t()
    for part in large.split(rows):
        product = torch.mm(mean[part], mean_t, out=room[:part.numel()])
        product[torch.arange(part.numel()), part] = -torch.inf
        rival[part] = product.topk(width, dim=1)[1]
    return rival


def _renumber(cluster: Tensor) -> Tensor:
    return cluster.unique(return_inverse=True)[1]
