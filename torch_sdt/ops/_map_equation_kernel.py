r"""Louvain-style minimisation of the two-level map equation, with Markov time.

Apart so that numba is imported at the first call only. Graphs are symmetric
CSR matrices with sorted or unsorted rows; a self-loop stands once and counts
once in its node's strength.
"""
# mypy: ignore-errors
import numba
import numpy as np

# Entries of a graph that a cache holds, and in how many parts the nodes of a
# larger one come.
_CACHE, _PARTS = 2**22, 16
# Bits a step of the walk, of a code of ten and more.
_NOTHING = 1e-7
# Of each cluster, side by side in memory since they are read together: the
# flow P_m of its nodes, the rate q_m at which it is left, the flow into it from
# the node at hand, P(q_m) and P(q_m + P_m).
_INSIDE, _LEAVE, _TO, _TERM_LEAVE, _TERM_BOTH = range(5)


@numba.njit(cache=True)
def _plogp(x):
    return x * np.log2(x) if x > 0 else 0.


@numba.njit(cache=True)
def _set_terms(of, m):
    # What the codelength holds of a cluster.
    of[m, _TERM_LEAVE] = _plogp(of[m, _LEAVE])
    of[m, _TERM_BOTH] = _plogp(of[m, _LEAVE] + of[m, _INSIDE])


@numba.njit(cache=True)
def _move_nodes(indptr, indices, weight, scale, node_flow, cluster, order,
                min_gain, queued):
    r"""Moves single nodes to neighbouring clusters while that shortens the
    code, those that are :obj:`queued` and whatever their moves touch; changes
    :obj:`cluster` and the queue in place and returns the gain in bits.
    """
    n = node_flow.size
    of = np.zeros((n, 5))
    size = np.zeros(n, dtype=np.int64)
    for i in range(n):
        m = cluster[i]
        of[m, _INSIDE] += node_flow[i]
        size[m] += 1
        for e in range(indptr[i], indptr[i + 1]):
            if cluster[indices[e]] != m:
                of[m, _LEAVE] += scale * weight[e]
    total_leave = of[:, _LEAVE].sum()
    for m in range(n):
        _set_terms(of, m)
    empty = np.empty(n, dtype=np.int64)  # free cluster names, as a stack
    num_empty = 0
    for m in range(n):
        if size[m] == 0:
            empty[num_empty] = m
            num_empty += 1

    seen = np.empty(n, dtype=np.int64)
    gain = 0.
    for _ in range(1000):
        moved = 0
        for i in order:
            if not queued[i]:
                continue
            queued[i] = False
            old = cluster[i]
            num_seen = 0
            out = 0.
            for e in range(indptr[i], indptr[i + 1]):
                j = indices[e]
                if j == i:
                    continue
                flow = scale * weight[e]
                out += flow
                m = cluster[j]
                if of[m, _TO] == 0.:
                    seen[num_seen] = m
                    num_seen += 1
                of[m, _TO] += flow
            # The old cluster without i.
            old_leave = of[old, _LEAVE] - out + 2. * of[old, _TO]
            if size[old] == 1:
                old_leave = 0.
            old_inside = of[old, _INSIDE] - node_flow[i]
            rest = total_leave - of[old, _LEAVE] + max(old_leave, 0.)
            base = (2. * (of[old, _TERM_LEAVE] - _plogp(old_leave)) -
                    of[old, _TERM_BOTH] +
                    _plogp(old_leave + old_inside))
            best, best_delta = old, -min_gain
            best_leave = 0.
            now = _plogp(total_leave)
            num_options = num_seen
            if size[old] > 1 and num_empty > 0:
                # Alone is an option, too.
                seen[num_seen] = empty[num_empty - 1]
                num_options += 1
            for s in range(num_options):
                m = seen[s]
                if m == old:
                    continue
                new_leave = of[m, _LEAVE] + out - 2. * of[m, _TO]
                new_inside = of[m, _INSIDE] + node_flow[i]
                delta = (_plogp(rest - of[m, _LEAVE] + new_leave) - now + base +
                         2. * (of[m, _TERM_LEAVE] - _plogp(new_leave)) -
                         of[m, _TERM_BOTH] +
                         _plogp(new_leave + new_inside))
                if delta < best_delta:
                    best, best_delta, best_leave = m, delta, new_leave
            for s in range(num_seen):
                of[seen[s], _TO] = 0.
            if best == old:
                continue
            gain -= best_delta
            moved += 1
            if size[best] == 0:
                num_empty -= 1
            total_leave = rest - of[best, _LEAVE] + best_leave
            of[old, _LEAVE], of[old, _INSIDE] = max(old_leave, 0.), old_inside
            of[best, _LEAVE] = best_leave
            of[best, _INSIDE] += node_flow[i]
            size[old] -= 1
            size[best] += 1
            if size[old] == 0:
                of[old, _LEAVE], of[old, _INSIDE] = 0., 0.
                empty[num_empty] = old
                num_empty += 1
            _set_terms(of, old)
            _set_terms(of, best)
            cluster[i] = best
            for e in range(indptr[i], indptr[i + 1]):
                queued[indices[e]] = True
            queued[i] = False
        if moved == 0:
            break
    return gain


@numba.njit(cache=True)
def _order(n, num_entries):
    r"""All nodes in a random order; of a graph that no cache holds a random
    sixteenth at a time, in the order in which they lie in memory.
    """
    if num_entries <= _CACHE:
        return np.random.permutation(n)
    return np.argsort(np.random.randint(0, _PARTS, n), kind='mergesort')


@numba.njit(cache=True)
def _renumber(cluster):
    name = np.full(cluster.size, -1, dtype=np.int64)
    count = 0
    for i in range(cluster.size):
        if name[cluster[i]] < 0:
            name[cluster[i]] = count
            count += 1
        cluster[i] = name[cluster[i]]
    return count


@numba.njit(cache=True)
def _aggregate(indptr, indices, weight, scale, cluster, num_clusters):
    r"""The graph whose nodes are the clusters, flow inside as self-loops."""
    n = cluster.size
    start = np.zeros(num_clusters + 1, dtype=np.int64)
    for i in range(n):
        start[cluster[i] + 1] += 1
    for m in range(num_clusters):
        start[m + 1] += start[m]
    member = np.empty(n, dtype=np.int64)
    fill = start[:-1].copy()
    for i in range(n):
        member[fill[cluster[i]]] = i
        fill[cluster[i]] += 1
    new_indptr = np.zeros(num_clusters + 1, dtype=np.int64)
    new_indices = np.empty(indices.size, dtype=np.int32)
    new_flow = np.empty(indices.size, dtype=np.float64)
    position = np.full(num_clusters, -1, dtype=np.int64)
    count = 0
    for m in range(num_clusters):
        first = count
        for s in range(start[m], start[m + 1]):
            i = member[s]
            for e in range(indptr[i], indptr[i + 1]):
                c = cluster[indices[e]]
                if position[c] < first:
                    position[c] = count
                    new_indices[count] = c
                    new_flow[count] = 0.
                    count += 1
                new_flow[position[c]] += scale * weight[e]
        new_indptr[m + 1] = count
    return new_indptr, new_indices[:count], new_flow[:count]


@numba.njit(cache=True)
def _queue_merged(indptr, indices, cluster, num_parts, queued):
    r"""Queues the nodes of clusters that were merged from several, and those
    beside them; returns whether there are any.
    """
    found = False
    for i in range(cluster.size):
        if num_parts[cluster[i]] > 1:
            found = queued[i] = True
            for e in range(indptr[i], indptr[i + 1]):
                queued[indices[e]] = True
    return found


@numba.njit(cache=True, nogil=True)
def strength_kernel(indptr, weight):
    r"""The sum of each row, in double precision."""
    strength = np.zeros(indptr.size - 1)
    for i in range(strength.size):
        for e in range(indptr[i], indptr[i + 1]):
            strength[i] += weight[e]
    return strength


@numba.njit(cache=True, nogil=True)
def communities_kernel(indptr, indices, weight, scale, node_flow, cluster,
                       seed):
    r"""Clusters a graph by the flows of its edges, times their Markov time,
    and those of its nodes, which sum to one; :obj:`cluster` is the partition
    to start from and is changed in place. The flow of an edge is its weight
    times :obj:`scale`: weights of single precision need no copy.

    Rounds of moving nodes and then whole clusters (Louvain), and again from
    the nodes, until a round gains next to nothing: what clusters were merged
    into can still lose single nodes. In a graph that no cache holds, rounds
    after the first begin with the nodes that merging touched.
    """
    np.random.seed(seed)
    n = node_flow.size
    queued = np.ones(n, dtype=np.bool_)
    for _ in range(20):
        gain = _move_nodes(indptr, indices, weight, scale, node_flow, cluster,
                           _order(n, indices.size), 1e-12, queued)
        # Whole clusters, level by level.
        count = _renumber(cluster)
        level_indptr, level_indices, level_flow = _aggregate(
            indptr, indices, weight, scale, cluster, count)
        num_parts = np.ones(count, dtype=np.int64)
        while True:
            level_node_flow = np.zeros(count)
            for i in range(n):
                level_node_flow[cluster[i]] += node_flow[i]
            level_cluster = np.arange(count).astype(cluster.dtype)
            level_gain = _move_nodes(
                level_indptr, level_indices, level_flow, 1., level_node_flow,
                level_cluster, _order(count, level_indices.size), 1e-12,
                np.ones(count, dtype=np.bool_))
            gain += level_gain
            if level_gain <= 0.:
                break
            new_count = _renumber(level_cluster)
            for i in range(n):
                cluster[i] = level_cluster[cluster[i]]
            level_indptr, level_indices, level_flow = _aggregate(
                level_indptr, level_indices, level_flow, 1., level_cluster,
                new_count)
            merged = np.zeros(new_count, dtype=np.int64)
            for m in range(count):
                merged[level_cluster[m]] += num_parts[m]
            count, num_parts = new_count, merged
        if gain < _NOTHING:
            break
        if indices.size <= _CACHE:
            queued[:] = True
        elif not _queue_merged(indptr, indices, cluster, num_parts, queued):
            break
    return cluster
