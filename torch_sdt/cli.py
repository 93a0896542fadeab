r"""The command line: ``torch-sdt cluster | train | knn | evaluate | info``."""
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from torch_sdt.neighbors import Neighbors
    from torch_sdt.progress import Stages

# What is slow to import is imported where it is used: --help comes at once.

# Each method's class in torch_sdt.cluster, and the options it alone takes.
_METHODS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    'topk-jaccard': ('TopKJaccardClustering', ()),
    'fces': ('FCES', ('theta', )),
    'cosine': ('CosineMapEquation', ('threshold', )),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    r"""Runs the command line.

    Args:
        argv (sequence of str, optional): The arguments.
            (default: those of the process)

    Returns:
        int: The exit code: 0 on success, 1 for bad input, 130 on Ctrl-C.

    Raises:
        SystemExit: With code 2 for wrong usage, with 0 after ``--help``.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return _fail('interrupted', 130)
    except (ValueError, OSError, ImportError, FloatingPointError) as e:
        return _fail(f'error: {e}', 1)
    except RuntimeError as e:
        if 'SIGINT' not in str(e):  # networkit's word for Ctrl-C
            raise
        return _fail('interrupted', 130)
    return 0


def _fail(message: str, code: int) -> int:
    print('torch-sdt:', *message.splitlines(), file=sys.stderr)
    return code


# Commands ####################################################################


def _cluster(args: argparse.Namespace) -> None:
    from torch_sdt.datasets import write_labels
    from torch_sdt.progress import Stages

    _check_options(args)
    _check_files(args, ('.meta', '.txt'))
    estimator = _estimator(args)
    stages = Stages()
    x, truth, neighbors = _read_and_search(
        args, stages, getattr(estimator, 'check_dimension', None))
    with stages('cluster') as stage:
        if args.model is not None:
            labels = estimator.predict(x, neighbors=neighbors,
                                       adapt=args.adapt)
        else:
            labels = estimator.fit(x, neighbors=neighbors).labels_
        num_clusters = int(labels.max()) + 1
        stage.size = f'{num_clusters:,} clusters'
    with stages('write') as stage:
        write_labels(args.out, labels)
        stage.size = f'{os.path.getsize(args.out):,} bytes'
    result = {'method': args.method, 'model': args.model,
              **_settings(args, neighbors), 'num_clusters': num_clusters}
    lines = [f"{neighbors.num_nodes:,} samples in {num_clusters:,} "
             f"clusters: '{args.out}'"]
    if truth is not None:
        result['scores'], table = _scores(truth, labels)
        lines.append(table)
    _report(args, result, lines, stages)


def _train(args: argparse.Namespace) -> None:
    from torch_sdt.cluster import SDTClustering
    from torch_sdt.progress import Stages

    _check_files(args, ('.safetensors', ))
    estimator = SDTClustering(
        k=args.k, center=args.center, tokens=args.tokens, size=args.size,
        epochs=args.epochs, index=args.index or 'auto', seed=args.seed,
        workdir=args.workdir, verbose=not args.quiet)
    stages = Stages()
    with stages('read') as stage:
        features = _read_features(args)
        y = _read_truth(args.labels, features.shape[0], args.features)
        groups = None
        if args.groups is not None:
            groups = _read_truth(args.groups, y.size, args.features)
        stage.size = f'{features.shape[0]:,} x {features.shape[1]:,}'
    with stages('train') as stage:
        estimator.fit(features, y, groups)
        stage.size = f'{len(set(y.tolist())):,} identities'
    with stages('write') as stage:
        estimator.save(args.out)
        stage.size = f'{os.path.getsize(args.out):,} bytes'
    score = estimator.validation_score_
    result = {'features': args.features, 'labels': args.labels,
              'out': args.out, 'num_samples': int(y.size),
              'k': estimator.k_, 'center': args.center, 'seed': args.seed,
              'rule': estimator.rule_._asdict(), 'validation_score': score}
    _report(args, result, [
        f"Mean of pairwise and BCubed F on held-out identities: {score:.4f}",
        f"Edges: {estimator.rule_}",
        f"Model: '{args.out}'"], stages)


def _knn(args: argparse.Namespace) -> None:
    from torch_sdt.progress import Stages

    _check_files(args, ('.npz', ))
    stages = Stages()
    _, _, neighbors = _read_and_search(args, stages)
    with stages('write') as stage:
        neighbors.save(args.out)
        stage.size = f'{os.path.getsize(args.out):,} bytes'
    _report(args, _settings(args, neighbors),
            [f"{neighbors.k} neighbours of {neighbors.num_nodes:,} samples: "
             f"'{args.out}'"], stages)


def _evaluate(args: argparse.Namespace) -> None:
    from torch_sdt.datasets import read_labels

    pred = read_labels(args.pred)
    scores, table = _scores(_read_truth(args.true, pred.size, args.pred), pred)
    _report(args, {'num_samples': pred.size, **scores}, [table])


def _info(args: argparse.Namespace) -> None:
    import torch

    import torch_sdt.typing

    optional = {}
    for flag, present in vars(torch_sdt.typing).items():
        if flag.startswith('WITH_'):
            name = flag[len('WITH_'):].lower()
            optional[name] = _version(name) if present else None
    cuda = torch.cuda.is_available()
    result = {
        'torch_sdt': _version('torch_sdt'),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'torch_geometric': _version('torch_geometric'),
        'optional': optional,
        'cores': os.cpu_count(),
        'cuda': torch.cuda.get_device_name() if cuda else None,
    }
    rows = [*result.items(), *optional.items()]
    _report(args, result, [f'{name:<16} {value or "absent"}'
                           for name, value in rows if value is not optional])


# Stages ######################################################################


def _check_options(args: argparse.Namespace) -> None:
    if args.method is None and args.model is None:
        args.method = 'topk-jaccard'
    for method, (_, options) in _METHODS.items():
        for option in options:
            if getattr(args, option) is not None and args.method != method:
                got = 'a --model' if args.model else f'--method {args.method}'
                args.usage_error(f'--{option} is an option of --method '
                                 f'{method} (got {got})')
    if args.model is not None:
        if args.method is not None:
            args.usage_error('--model is a method: leave --method out')
        if args.center or args.k is not None:
            args.usage_error('--center and --k are those of the --model')
    elif args.adapt is not None:
        args.usage_error('--adapt and --no-adapt need a --model')
    if args.neighbors is not None and args.index is not None:
        args.usage_error('--neighbors leaves nothing to search with --index')


def _check_files(args: argparse.Namespace, suffixes: Tuple[str, ...]) -> None:
    # Hours of work must not end at a name that is wrong.
    names = ('features', 'neighbors', 'truth', 'labels', 'groups', 'model')
    inputs = [path for path in (getattr(args, name, None) for name in names)
              if path is not None]
    for path in inputs:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no file '{path}'")
    if os.path.splitext(args.out)[1] not in suffixes:
        raise ValueError(f"The file of --out must end in "
                         f"{' or '.join(suffixes)} (got '{args.out}')")
    folder = os.path.dirname(args.out) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder '{folder}' for --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder '{folder}' is not writable")
    if os.path.isdir(args.out):
        raise IsADirectoryError(f"--out '{args.out}' is a folder")
    for path in inputs:
        if os.path.exists(args.out) and os.path.samefile(path, args.out):
            raise ValueError(f"--out would overwrite the input '{path}'")


def _estimator(args: argparse.Namespace) -> Any:
    import torch_sdt.cluster

    if args.model is not None:
        trained = torch_sdt.cluster.SDTClustering.load(args.model)
        trained.verbose, trained.workdir = not args.quiet, args.workdir
        # The features are centred once, before the search.
        args.center, trained.center = trained.center, False
        args.k = trained.k_
        args.index = trained.index = args.index or trained.index
        if args.seed is None:
            args.seed = trained.seed
        trained.seed = args.seed
        trained.check_adapt(args.adapt)
        return trained
    if args.seed is None:
        args.seed = 0
    name, options = _METHODS[args.method]
    given = {option: getattr(args, option) for option in options
             if getattr(args, option) is not None}
    # The features are centred once, before the search.
    estimator = getattr(torch_sdt.cluster, name)(
        center=False, seed=args.seed, verbose=not args.quiet, **given)
    # As `fit` does, but before the search instead of after it.
    estimator._check_arguments()
    return estimator


def _read_and_search(
    args: argparse.Namespace,
    stages: Stages,
    check_dimension: Any = None,
) -> Tuple[Tensor, Optional[np.ndarray], Neighbors]:
    from torch_sdt.ops import normalize_features

    with stages('read') as stage:
        features = _read_features(args)
        num_samples, dim = features.shape
        if check_dimension is not None:
            check_dimension(dim)
        truth = None
        if args.truth is not None:
            truth = _read_truth(args.truth, num_samples, args.features)
        x = normalize_features(features, args.center, *_storage(args))
        stage.size = f'{num_samples:,} x {dim:,}'
    with stages('kNN') as stage:
        neighbors = _neighbors(args, x)
        stage.size = f'{num_samples:,} x {neighbors.k:,}'
    return x, truth, neighbors


def _storage(args: argparse.Namespace) -> Tuple[torch.dtype, Optional[str]]:
    # What unit features are kept in, and the file they are mapped from.
    import torch

    if not args.half:
        return torch.float32, None
    if args.workdir is None:
        return torch.float16, None
    os.makedirs(args.workdir, exist_ok=True)
    return torch.float16, os.path.join(args.workdir, 'features.f16')


def _read_features(args: argparse.Namespace) -> np.ndarray:
    from torch_sdt.datasets import read_features

    features = read_features(args.features, args.dim)
    dim = features.shape[1]
    if args.dim not in {None, dim}:
        raise ValueError(f"'{args.features}' has features of width {dim}, not "
                         f"{args.dim} as --dim says")
    return features


def _read_truth(path: str, num_samples: int, other: str) -> np.ndarray:
    from torch_sdt.datasets import read_labels

    y = read_labels(path)
    if y.size != num_samples:
        raise ValueError(f"'{path}' has {y.size} labels, but '{other}' has "
                         f"{num_samples} samples")
    return y


def _neighbors(args: argparse.Namespace, x: Tensor) -> Neighbors:
    from torch_sdt.neighbors import Neighbors
    from torch_sdt.ops.knn import default_k

    if args.neighbors is not None:
        neighbors = Neighbors.load(args.neighbors, x.size(0))
        if args.k is None or args.model is not None:
            return neighbors
        return neighbors.truncate(args.k)
    k = default_k(x.size(0)) if args.k is None else args.k
    if args.model is not None:
        k = min(k, x.size(0))  # The model takes narrower tables as well.
    return Neighbors.search(x, k, args.index or 'auto', seed=args.seed,
                            verbose=not args.quiet, workdir=args.workdir)


# Reports #####################################################################


def _report(args: argparse.Namespace, result: Dict[str, Any],
            lines: List[str], stages: Optional[Stages] = None) -> None:
    if stages is not None:
        result = {**result, 'stages': stages.to_list()}
        lines = [stages.table(), *lines]
    if args.json:
        print(json.dumps(result))
    elif not args.quiet:
        print('\n'.join(lines))


def _settings(args: argparse.Namespace, neighbors: Neighbors
              ) -> Dict[str, Any]:
    return {'features': args.features, 'out': args.out,
            'num_samples': neighbors.num_nodes, 'k': neighbors.k,
            'center': args.center, 'seed': args.seed}


def _scores(true: np.ndarray, pred: np.ndarray) -> Tuple[Dict[str, Any], str]:
    # For JSON, and as a table.
    from torch_sdt.metrics import clustering_scores

    scores = clustering_scores(true, pred)
    result = scores._asdict()
    lines = [f'{"":<8} {"precision":>10} {"recall":>10} {"fscore":>10}']
    for name in ('pairwise', 'bcubed'):
        result[name] = result[name]._asdict()
        values = [f'{value:10.4f}' for value in result[name].values()]
        lines.append(' '.join([f'{name:<8}', *values]))
    lines += [f'{"nmi":<8} {scores.nmi:10.4f}',
              f'{"clusters":<8} {scores.num_clusters:10,}']
    return result, '\n'.join(lines)


def _version(module: str) -> str:
    from importlib import metadata

    # A module may come in a package of another name: faiss in faiss-cpu.
    name = metadata.packages_distributions().get(module, [module])[0]
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # found on the path alone
        return 'unknown'


# Arguments ###################################################################


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='torch-sdt', description='Embeddings in, identities out.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    cluster = _command(commands, 'cluster', _cluster,
                       'cluster features into identities')
    add = cluster.add_argument
    _add_search(cluster, 'LABELS', 'one label a line (.txt, .meta)')
    add('--method', choices=list(_METHODS), help='without training '
        '(default: topk-jaccard)')
    add('--model', metavar='MODEL', help='a trained model instead '
        '(.safetensors), as from torch-sdt train')
    add('--adapt', action=argparse.BooleanOptionalAction,
        help="settings found on these features in place of the model's edge "
        'rule (default: where the rule fails)')
    add('--neighbors', metavar='TABLE',
        help='the kNN table of these features (.npz), as from torch-sdt knn')
    add('--threshold', type=float, metavar='COSINE',
        help='smallest cosine of a link (method cosine)')
    add('--theta', type=float, metavar='PROBABILITY',
        help='edge probability at which links stop (method fces)')
    add('--truth', metavar='LABELS', help='true labels, to score the result')
    cluster.set_defaults(half=False, seed=None)

    train = _command(commands, 'train', _train,
                     'learn from labelled identities to cluster others')
    add = train.add_argument
    _add_search(train, 'MODEL', 'the trained model (.safetensors)')
    add('--labels', metavar='LABELS', required=True,
        help='the identity of each sample, one a line')
    add('--groups', metavar='GROUPS', help='what keeps related identities on '
        'one side of the validation split, one number a line')
    add('--tokens', choices=('relation', 'feature'), default='relation',
        help='what the networks see; models of relations serve features of '
        'any kind (default: %(default)s)')
    add('--size', choices=('small', 'base'), default='small',
        help='default: %(default)s')
    add('--epochs', type=_at_least(1), help='passes over the samples '
        '(default: as many as show 40,000, at most 25)')

    knn = _command(commands, 'knn', _knn, 'write the table of neighbours')
    _add_search(knn, 'TABLE', 'the table of neighbours (.npz)')
    knn.add_argument('--half', action='store_true', help='keep features in '
                     'float16, at half the memory; with --workdir in a file '
                     'there')
    knn.set_defaults(neighbors=None, truth=None, model=None)

    evaluate = _command(commands, 'evaluate', _evaluate,
                        'score predicted labels against true ones')
    evaluate.add_argument('true', metavar='TRUE', help='true labels')
    evaluate.add_argument('pred', metavar='PRED', help='predicted labels')

    _command(commands, 'info', _info, 'versions, optional packages, hardware')
    return parser


def _command(commands: Any, name: str, run: Any, text: str
             ) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f'{text[0].upper()}{text[1:]}.')
    parser.add_argument('--json', action='store_true', help='print one JSON '
                        'object and nothing else')
    parser.set_defaults(run=run, usage_error=parser.error, quiet=False)
    return parser


def _add_search(parser: argparse.ArgumentParser, metavar: str, text: str
                ) -> None:
    add = parser.add_argument
    add('features', metavar='FEATURES', help='.npy, or .bin with --dim')
    add('--out', metavar=metavar, required=True, help=text)
    add('--dim', type=_at_least(1), help='width of the features')
    add('--k', type=_at_least(1),
        help='neighbours a sample, itself included (default: 80, or all)')
    add('--center', action='store_true',
        help='remove the mean feature: for embeddings that share an offset')
    add('--index', help='auto, flat, cells, torch, torch_cluster or a faiss '
        'factory string (default: auto)')
    add('--seed', type=_at_least(0, 2**32 - 1), default=0, metavar='S',
        help='same seed, same result (default: 0, or that of a --model)')
    add('--quiet', action='store_true', help='no progress, no summary')
    add('--workdir', metavar='FOLDER', help='where to keep what is finished, '
        'from which a killed run goes on')


def _at_least(low: int, high: Optional[int] = None) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f'must be at least {low}')
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f'must be at most {high}')
        return value

    return integer


if __name__ == '__main__':
    sys.exit(main())
