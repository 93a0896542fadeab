from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import (
    Any,
    Deque,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor

from torch_sdt.cluster._selection import (
    Scores,
    judge,
    nested,
    quality,
    select,
)
from torch_sdt.cluster.base import NeighborClustering
from torch_sdt.neighbors import Neighbors
from torch_sdt.ops.background import Background, estimate_background
from torch_sdt.ops.jaccard import topk_jaccard
from torch_sdt.ops.local_scaling import local_scaling
from torch_sdt.ops.locality_order import locality_order
from torch_sdt.ops.map_equation import (
    check_backend,
    ladder_csr,
    number_by_appearance,
    symmetric_csr,
)
from torch_sdt.progress import progress

# The first threshold and the step to the next, in spreads of the background.
_FIRST, _STEP, _LEVELS = 1.5, .5, 10
# Of the loosest; what it takes grows with the size of an identity over K.
_MARKOV_TIMES = (1., 1.5, 2., 3., 4.5, 7., 10., 15., 23.)
_LIKELIHOOD = .5
_MARGIN = .2
_BASES = 3


class Level(NamedTuple):
    r"""One of the partitions that were compared.

    Args:
        threshold (float): The scaled cosine up to which neighbours were
            trusted.
        markov_time (float): The resolution of the map equation.
        num_clusters (int): Clusters found.
        separation (float): Mean silhouette, in [-1, 1].
        likelihood (float): Log-likelihood per sample, over singletons.
    """
    threshold: float
    markov_time: float
    num_clusters: int
    separation: float
    likelihood: float

    @property
    def quality(self) -> float:
        r"""Both in one figure: separation times root of likelihood."""
        return quality(self.separation, self.likelihood)


class _Ladder(NamedTuple):
    # Of one threshold: settings, coarse to fine, and partitions in the making,
    # fine to coarse.
    settings: List[Tuple[float, float]]
    found: Future[List[Tensor]]

    def levels(self) -> Iterable[Tuple[Tuple[float, float], Tensor]]:
        return zip(self.settings, reversed(self.found.result()))


class TopKJaccardClustering(NeighborClustering):
    r"""Clusters without training and without a threshold to tune.

    How many neighbours a sample may trust, and at which resolution to cut, is
    read off the features themselves:

    1. Cosines are made relative to how crowded the surroundings of both
       samples are (:meth:`~torch_sdt.ops.local_scaling`).
    2. The background, cosines of samples that have nothing in common, is
       measured on random pairs: median and spread. Ten thresholds from 1.5
       to 6 spreads above the median (closer together where that exceeds 1)
       each give every sample its own number :math:`k_i` of trusted
       neighbours.
    3. For each, :meth:`~torch_sdt.ops.topk_jaccard` weighs the edges and the
       map equation clusters them; the loosest is also merged at longer
       Markov times (:meth:`~torch_sdt.ops.map_equation_ladder`), up to 23,
       for identities much larger than :math:`K`.
    4. Partitions are compared by :math:`S \, \sqrt{P}`, with the mean
       silhouette :math:`S` and the log-likelihood :math:`P` of a Gaussian
       model of identities. Around each of the three best the others form a
       tree, from which clusters are taken at whichever level suits them: a
       cluster stands unless it scores 20 % less than its parts. The score of
       a cluster is its share of :math:`S` plus half its share of :math:`P`.
       Clusters of the level in the middle are cut, and united only where they
       are wider than the table and four fifths of their samples trust all of
       it: there unless they score 30 % less together than apart. Of the three
       results the one of the largest :math:`S \, \sqrt{P}` is returned.

    So small and large, compact and spread identities are cut each at their
    own level. What to know: an identity whose images fall into modes that
    hardly resemble each other is split into them; features that share an
    offset need ``center=True``, but not where most samples are of one
    identity, which the mean then is; and if all are, they are cut like
    others.

    Args:
        k (int, optional): Neighbours per sample, itself included.
            (default: :obj:`min(80, N)`)
        center (bool, optional): If :obj:`True`, removes the mean feature: the
            first thing to try on new features. (default: :obj:`False`)
        index (str, optional): The search index, see
            :meth:`~torch_sdt.ops.knn`. (default: :obj:`"auto"`)
        seed (int, optional): Same seed, same labels. (default: :obj:`0`)
        device (str or torch.device, optional): Where to search neighbours.
            (default: that of the features)
        workdir (str, optional): A folder for the finished part of a search
            for neighbours, which goes on there after a kill.
            (default: nothing is written)
        verbose (bool, optional): If :obj:`True`, shows progress bars.
            (default: :obj:`False`)

    Attributes:
        labels_ (numpy.ndarray): Cluster of each sample, int64, ``[N]``.
        n_clusters_ (int): The number of clusters.
        k_ (numpy.ndarray): Trusted neighbours of each sample, itself
            included, at the level that its cluster was taken from; int64,
            ``[N]``.
        threshold_ (numpy.ndarray): The threshold of that level, in scaled
            cosines; float32, ``[N]``.
        levels_ (list of Level): The partitions that were compared, coarse to
            fine.
        background_ (Background): Median and spread of background cosines.
    """
    labels_: Any
    levels_: List[Level]
    background_: Background

    def __init__(
        self,
        k: Optional[int] = None,
        center: bool = False,
        index: str = 'auto',
        seed: int = 0,
        device: Any = None,
        workdir: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.center = center
        self.index = index
        self.seed = seed
        self.device = device
        self.workdir = workdir
        self.verbose = verbose

    def _check_arguments(self) -> None:
        check_backend('numba')

    def _fit_table(self, x: Tensor, neighbors: Neighbors) -> Tensor:
        self.background_ = estimate_background(x, self.seed)
        # All that follows is in an order that suits the cache.
        neighbors = neighbors.to('cpu')
        order = locality_order(neighbors)
        x, table = x.cpu()[order], local_scaling(neighbors.permute(order))
        self.levels_, partitions, scores = [], [], []
        for setting, cluster in self._partitions(table):
            score = judge(x, table, cluster, self.background_)
            self.levels_.append(Level(*setting, len(score.separation),
                                      *score.mean(len(order))))
            partitions.append(cluster)
            scores.append(score)
        threshold = torch.tensor([level.threshold for level in self.levels_])
        # Rows are sorted: who trusts the last neighbour trusts all.
        last = table.similarity[:, -1]
        bases = sorted(range(len(partitions)), reverse=True,
                       key=lambda i: self.levels_[i].quality)
        cluster, level = max(
            (self._around(x, table, partitions, base, scores[base],
                          last >= threshold[base])
             for base in bases[:_BASES]),
            key=lambda found: judge(x, table, found[0], self.background_
                                    ).quality(len(order)))

        threshold = threshold[level]
        place = order.argsort()
        trusted = table.similarity >= threshold.view(-1, 1)
        self.k_ = trusted.sum(dim=1)[place].numpy()
        self.threshold_ = threshold[place].numpy()
        return number_by_appearance(cluster[place])

    def _partitions(self, table: Neighbors
                    ) -> Iterator[Tuple[Tuple[float, float], Tensor]]:
        # Settings (threshold, Markov time) and their partitions, coarse to
        # fine.
        ladders: Deque[_Ladder] = deque()
        thresholds = self._thresholds()
        # The map equation runs on one core: as many levels at once as there
        # are cores, and no more, since each holds its graph in memory.
        workers = torch.get_num_threads()
        with progress(_LEVELS, 'levels', self.verbose, 'levels') as bar, \
                ThreadPoolExecutor(workers) as pool:
            for threshold in thresholds:
                k = (table.similarity >= threshold).sum(dim=1).clamp(min=1)
                jaccard = topk_jaccard(table, k)
                full = len(ladders) == workers
                ready = ladders.popleft().levels() if full else ()
                graph = symmetric_csr(table, jaccard)
                num_edges = graph.nnz
                first = threshold == thresholds[0]
                times = _MARKOV_TIMES if first else (1., )
                ladders.append(_Ladder(
                    [(threshold, time) for time in reversed(times)],
                    pool.submit(ladder_csr, graph, times, self.seed)))
                del graph, jaccard
                bar.update()
                yield from ready  # Judged while the new one is made.
                if num_edges == 0:
                    break
            for ladder in ladders:
                yield from ladder.levels()

    def _thresholds(self) -> List[float]:
        # Equal steps, but never more than half of the way to 1: in few
        # dimensions the background itself reaches that far.
        location, scale = self.background_
        out = []
        threshold, step = location, _FIRST * scale
        for _ in range(_LEVELS):
            threshold = min(threshold + step, (threshold + 1) / 2)
            # Rounding must not part what is identical.
            out.append(threshold - 1e-6)
            step = _STEP * scale
        return out

    def _around(self, x: Tensor, neighbors: Neighbors,
                partitions: List[Tensor], base: int, scores: Scores,
                full: Tensor) -> Tuple[Tensor, Tensor]:
        # Each sample's cluster, from whichever level, and that level. Scores
        # are relative to the base, so that units cancel.
        best = self.levels_[base]

        def score(depth: int, asked: Tensor) -> Tensor:
            separation, likelihood = scores if depth == base else judge(
                x, neighbors, tree[depth], self.background_, asked)
            return (separation / max(best.separation, 1e-6) +
                    _LIKELIHOOD * likelihood / max(best.likelihood, 1e-6))

        tree = nested(partitions, base)
        cluster, level = select(tree, score, base, full, neighbors.k, _MARGIN)
        return cluster.unique(return_inverse=True)[1], level
