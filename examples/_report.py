# What ms1m.py, deepfashion.py and msmt17.py share beside the components: they
# read the data, print what every stage cost and how good its clusters are, and
# draw three plots.
import csv
import os
import os.path as osp

import matplotlib
import numpy as np

from torch_sdt.datasets import FeatureFiles, SyntheticFaces, write_labels
from torch_sdt.io import atomic_path
from torch_sdt.metrics import clustering_scores
from torch_sdt.ops import map_equation_communities
from torch_sdt.progress import peak_memory

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

# Colours that the colour-blind tell apart (Okabe and Ito).
COLORS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9']
GREY = '.45'
STYLE = {
    'font.size': 11,
    'axes.titlesize': 13,
    'axes.titlelocation': 'left',
    'axes.titlepad': 12,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.labelcolor': '.2',
    'lines.linewidth': 2,
}
COLUMNS = ['stage', 'seconds', 'peak_memory_bytes', 'clusters', 'singletons',
           'median_size', 'largest', 'pairwise_precision', 'pairwise_recall',
           'pairwise_f', 'bcubed_precision', 'bcubed_recall', 'bcubed_f',
           'nmi']


def read(parser, args, preset, benchmark):
    r"""Returns the labelled images to learn from and the images to cluster, of
    other identities: of the twin, or of the files in :obj:`args.root`.
    """
    if args.root is None:
        args.center = True if args.center is None else args.center
        train, test = (
            SyntheticFaces(preset, seed=args.seed, split=split, num_images=num)
            for split, num in (('train', args.train_images or 6_000),
                               ('test', args.num_images or 10_000)))
        print(f'SYNTHETIC TWIN of {benchmark}: learns from {train.num_nodes:,}'
              f' generated images of {train.num_identities:,} identities and '
              f'clusters {test.num_nodes:,} of {test.num_identities:,} others.'
              f' Scores compare methods with each other; they are not those '
              f'of the paper or of {benchmark}.')
        return train, test
    if args.num_images is not None or args.train_images is not None:
        parser.error('--num-images and --train-images are for the twin: files '
                     'are taken whole')
    test = FeatureFiles(args.root, args.name, args.dim)
    train = FeatureFiles(args.root, args.train_name, args.dim)
    if train.y is None:
        parser.error(f"--train-name needs labels, but '{args.train_name}' has "
                     f"none")
    print(f'Learns from {train}; clusters {test}, '
          f'{"without" if test.y is None else "with"} labels')
    return train, test


def report(out, title, stages, found, y=None, neighbors=None, k=None):
    r"""Prints the table and writes everything to the folder :obj:`out`.

    Args:
        out (str): The folder.
        title (str): The title of the plots.
        stages (Stages): What ran, in its order.
        found (dict): The labels that a stage found, int64, shape ``[N]``.
        y (optional): The true labels, shape ``[N]``: without them there are
            no scores, and only the sizes are drawn.
        neighbors (Neighbors, optional): The table, for the purity by rank.
        k (numpy.ndarray, optional): How many neighbours each node trusts.
    """
    os.makedirs(out, exist_ok=True)
    rows = [to_row(stage, found.get(stage.name), y) for stage in stages]
    print_table(rows, scored=y is not None)
    write_table(osp.join(out, 'scores.csv'), rows)
    for name, labels in found.items():
        write_labels(osp.join(out, f'{file_name(name)}.meta'), labels)
    with plt.rc_context(STYLE):
        save(plot_sizes(title, found, y), osp.join(out, 'sizes.png'))
        if y is not None:
            save(plot_purity(title, neighbors, k, y),
                 osp.join(out, 'purity.png'))
            save(plot_precision_recall(title, found, neighbors, y),
                 osp.join(out, 'precision_recall.png'))
    print(f"Table, labels and plots: '{osp.relpath(out)}'")


def tuned_cosine(y, neighbors, thresholds=10):
    r"""The cosine threshold of :class:`CosineMapEquation` with the highest sum
    of pairwise and BCubed F on labelled data.
    """
    def score(threshold):
        scores = clustering_scores(
            y, cosine_labels(neighbors, threshold))
        return scores.pairwise.fscore + scores.bcubed.fscore

    return max(cosine_grid(neighbors, thresholds), key=score)


def cosine_grid(neighbors, thresholds):
    share = np.linspace(.02, .98, thresholds)
    return np.quantile(neighbors.similarity[:, 1:], share).tolist()


def cosine_labels(neighbors, threshold):
    # What `CosineMapEquation` makes of a table.
    cosine = neighbors.similarity
    return map_equation_communities(
        *neighbors.to_edge_index(cosine.clamp(min=0), cosine >= threshold),
        neighbors.num_nodes).cpu().numpy()


# Table #######################################################################


def to_row(stage, labels, y):
    row = {'stage': stage.name, 'seconds': stage.seconds,
           'peak_memory_bytes': stage.peak_memory}
    if labels is None:
        return row
    size = np.bincount(labels)
    row.update(clusters=size.size, singletons=int((size == 1).sum()),
               median_size=float(np.median(size)), largest=int(size.max()))
    if y is not None:
        scores = clustering_scores(y, labels)
        for name in ['pairwise', 'bcubed']:
            precision, recall, fscore = getattr(scores, name)
            row.update({f'{name}_precision': precision,
                        f'{name}_recall': recall, f'{name}_f': fscore})
        row['nmi'] = scores.nmi
    return row


def print_table(rows, scored):
    width = max(len(row['stage']) for row in rows)
    if scored:
        columns = [('pairwise_precision', 'P_P', 6, '.1f', 100),
                   ('pairwise_recall', 'R_P', 6, '.1f', 100),
                   ('pairwise_f', 'F_P', 6, '.1f', 100),
                   ('bcubed_precision', 'P_B', 7, '.1f', 100),
                   ('bcubed_recall', 'R_B', 6, '.1f', 100),
                   ('bcubed_f', 'F_B', 6, '.1f', 100),
                   ('nmi', 'NMI', 7, '.1f', 100)]
    else:
        columns = [('singletons', 'singletons', 12, ',d', 1),
                   ('median_size', 'median', 8, ',.0f', 1),
                   ('largest', 'largest', 9, ',d', 1)]
    columns = [('clusters', 'clusters', 10, ',d', 1), *columns,
               ('seconds', 'seconds', 10, '.2f', 1),
               ('peak_memory_bytes', 'peak MB', 9, ',.0f', 1e-6)]
    print(f'\n{"":{width}}' +
          ''.join(f'{head:>{size}}' for _, head, size, _, _ in columns))
    total = {'stage': 'total', 'seconds': sum(row['seconds'] for row in rows),
             'peak_memory_bytes': peak_memory()}
    for row in [*rows, total]:
        line = f'{row["stage"]:{width}}'
        for key, _, size, spec, scale in columns:
            value = row.get(key)
            text = '' if value is None else f'{value * scale:{spec}}'
            line += f'{text:>{size}}'
        print(line)
    if scored:
        print('In per cent: precision P, recall R and their harmonic mean F '
              'over pairs (_P) and BCubed (_B).')
    print('Peak MB: the most the process had held by the end of a stage.')


def write_table(path, rows):
    with atomic_path(path) as tmp, open(tmp, 'w', newline='') as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def file_name(name):
    # "FCES, published" -> "FCES_published"
    return '_'.join(''.join(c if c.isalnum() else ' ' for c in name).split())


# Plots #######################################################################


def plot_sizes(title, found, y):
    fig, ax = plt.subplots(figsize=(9, 5))
    lines = list(zip(found, found.values(), COLORS))
    if y is not None:
        y = np.unique(y, return_inverse=True)[1]
        lines.append(('True identities', y, 'black'))
    ends = []
    for name, labels, color in lines:
        size = np.sort(np.bincount(labels))
        # How many are at least that large, at each size that occurs.
        value, first = np.unique(size, return_index=True)
        count = size.size - first
        ax.plot(np.r_[1, value], np.r_[count[0], count], color=color,
                drawstyle='steps-pre', zorder=2 + (color == 'black'))
        ends.append((size.size, f'{name}  {size.size:,}', color))
    largest = max(np.bincount(labels).max() for _, labels, _ in lines)
    # A little left of 1: where singletons end is a step to be seen.
    ax.set(xscale='log', yscale='log', xlim=(.9, 1.2 * largest),
           ylim=(.8, None),
           xlabel='Images', ylabel='Clusters with at least as many images',
           title=f'{title}: cluster sizes')
    plain_ticks(ax.xaxis)
    plain_ticks(ax.yaxis)
    # Named where the lines start: on the left, with their number of clusters.
    ax.spines['left'].set_visible(False)
    ax.spines['right'].set_visible(True)
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position('right')
    fig.subplots_adjust(left=.36, right=.9, bottom=.12, top=.9)
    name_points(fig, ax, [(1, count) for count, _, _ in ends],
                [text for _, text, _ in ends], [c for _, _, c in ends], 'left')
    return fig


def plot_purity(title, neighbors, k, y):
    y = np.asarray(y)
    index = neighbors.index.cpu().numpy()
    rank = np.arange(1, neighbors.k)
    purity = [float((y[index[:, r]] == y).mean()) for r in rank]
    size = np.unique(y, return_inverse=True, return_counts=True)
    size = size[2][size[1]]
    ideal = [float((size > r).mean()) for r in rank]
    low, median, high = np.percentile(k - 1, (25, 50, 75))

    fig, ax = plt.subplots(figsize=(9, 5))
    ax.axvspan(low, high, color=COLORS[1], alpha=.15, linewidth=0)
    ax.axvline(median, color=COLORS[1])
    ax.plot(rank, ideal, color=GREY, linestyle='--', linewidth=1.5)
    ax.plot(rank, purity, color=COLORS[0])
    ax.set(xlim=(1, max(rank[-1], 2)), ylim=(0, 1.02),
           xlabel='Rank of the neighbour',
           ylabel='Share of nodes whose neighbour at that rank\n'
           'is of their own identity', title=f'{title}: neighbour purity')
    ax.yaxis.set_major_formatter('{x:.0%}')
    fig.subplots_adjust(left=.12, right=.74, bottom=.12, top=.9)
    # Band and line from the bottom, curves from their ends.
    name_points(fig, ax, [(rank[-1], ideal[-1]), (rank[-1], purity[-1])],
                ['if all of the own\nidentity came first',
                 'neighbours found'], [GREY, COLORS[0]], 'right')
    inside = median < .6 * rank[-1]
    ax.annotate(f'trusted neighbours $k_i - 1$:\nmedian {median:.0f}, '
                f'quartiles {low:.0f} to {high:.0f}',
                (high if inside else low, .04), (6 if inside else -6, 0),
                textcoords='offset points', color=COLORS[1],
                ha='left' if inside else 'right')
    return fig


def plot_precision_recall(title, found, neighbors, y):
    points = {name: clustering_scores(y, labels).pairwise
              for name, labels in found.items()}
    line = {threshold: clustering_scores(
        y, cosine_labels(neighbors, threshold)).pairwise
        for threshold in cosine_grid(neighbors, 12)}
    fig, ax = plt.subplots(figsize=(9.5, 5.4))
    ax.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel='Pairwise recall',
           ylabel='Pairwise precision',
           title=f'{title}: precision and recall\n')
    for fscore in [.2, .4, .6, .8, .9]:
        # Precision at which the harmonic mean with a recall is that.
        recall = np.geomspace(fscore / (2 - fscore), 1, 100)
        precision = fscore * recall / (2 * recall - fscore)
        ax.plot(recall, precision, color='.85', linewidth=1, zorder=1)
        ax.text(recall[0], 1.02, f'F {fscore:g}', color=GREY, fontsize=9,
                ha='center', va='bottom')
    ax.plot([s.recall for s in line.values()],
            [s.precision for s in line.values()], color=GREY, marker='o',
            markersize=4, linewidth=1.5)
    taken = [np.array([s.recall + .03, s.precision + .03])
             for s in points.values()]
    for threshold, s in line.items():
        at = np.array([s.recall, s.precision])
        if all(np.abs(at - other).max() > .05 for other in taken):
            ax.annotate(f'{threshold:.2f}', at, (-5, -5), color=GREY,
                        textcoords='offset points', fontsize=9, ha='right',
                        va='top')
            taken.append(at)
    for s, color in zip(points.values(), COLORS):
        ax.plot(s.recall, s.precision, 'o', color=color, markersize=9,
                markeredgecolor='white', zorder=4)
    fig.subplots_adjust(left=.08, right=.62, bottom=.12, top=.87)
    name_points(fig, ax, [(s.recall, s.precision) for s in points.values()],
                [f'{name}  F {s.fscore:.3f}' for name, s in points.items()],
                COLORS, 'right')
    ax.text(.02, .02, 'Grey line: CosineMapEquation by its threshold',
            color=GREY, fontsize=10)
    return fig


def name_points(fig, ax, points, names, colors, side):
    r"""Writes names beside the axes, each at the height of its point or as
    near to it as the others leave room, with a line to it.
    """
    fig.canvas.draw()
    to_axes = ax.transData + ax.transAxes.inverted()
    at = np.clip([to_axes.transform(point) for point in points], 0, 1)
    need = [.055 * (1 + name.count('\n')) for name in names]
    order = np.argsort(at[:, 1], kind='stable')
    height = at[:, 1].copy()
    # Upwards so that none overlap, then back below the upper end.
    for low, high in zip(order[:-1], order[1:]):
        gap = (need[low] + need[high]) / 2
        height[high] = max(height[high], height[low] + gap)
    limit = 1.03
    for i in order[::-1]:
        height[i] = min(height[i], limit)
        limit = height[i] - need[i]
    x, align, sign = (1.05, 'left', 1) if side == 'right' else (
        -.05, 'right', -1)
    for point, name, color, h in zip(at, names, colors, height):
        ax.plot([point[0], x - .01 * sign], [point[1], h], color=color,
                linewidth=.8, transform=ax.transAxes, clip_on=False,
                zorder=1.5)
        ax.text(x, h, name, color=color, ha=align, va='center',
                transform=ax.transAxes)


def plain_ticks(axis):
    # 1, 10, 100 rather than powers of ten.
    axis.set_major_formatter('{x:,.0f}')
    axis.set_minor_formatter('')


def save(fig, path):
    with atomic_path(path) as tmp:
        fig.savefig(tmp, dpi=150, format='png')
    plt.close(fig)
