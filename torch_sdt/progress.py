import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterator, List, Optional

from tqdm.auto import tqdm


def progress(total: int, desc: str, verbose: bool = True,
             unit: str = 'rows') -> Any:
    r"""A progress bar with a rate, silent when the output is no terminal or
    :obj:`verbose` is :obj:`False`.
    """
    return tqdm(total=total, desc=desc, unit=f' {unit}', unit_scale=True,
                disable=None if verbose else True, leave=False)


@dataclass
class Stage:
    r"""What one stage of a run worked on and what it cost.

    Args:
        name (str): The stage's name.
        size (str): What it worked on, for the reader.
        seconds (float): Wall-clock seconds.
        peak_memory (int, optional): See :meth:`peak_memory`, at the end of
            the stage.
    """
    name: str
    size: str = ''
    seconds: float = 0.
    peak_memory: Optional[int] = None


class Stages:
    r"""Times the stages of a run, for a table at its end.

    Example:
        >>> stages = Stages()
        >>> with stages('read') as stage:
        ...     stage.size = '5 x 3'
        >>> [stage.name for stage in stages]
        ['read']
    """

    def __init__(self) -> None:
        self._stages: List[Stage] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[Stage]:
        r"""Times what runs inside; a stage that fails is not recorded."""
        stage, start = Stage(name), time.perf_counter()
        yield stage
        stage.seconds = time.perf_counter() - start
        stage.peak_memory = peak_memory()
        self._stages.append(stage)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._stages)

    def to_list(self) -> List[Dict[str, Any]]:
        r"""The stages as dictionaries, memory in bytes, for JSON."""
        return [asdict(stage) for stage in self]

    def table(self) -> str:
        r"""The stages as an aligned table, a line each, and their total."""
        width = max([len('size'), *(len(stage.size) for stage in self)])
        lines = [f'{"stage":<8} {"size":<{width}} {"seconds":>10} '
                 f'{"peak memory":>12}']
        total = Stage('total', '', sum(stage.seconds for stage in self),
                      peak_memory())
        for stage in [*self, total]:
            lines.append(f'{stage.name:<8} {stage.size:<{width}} '
                         f'{stage.seconds:>10,.2f} '
                         f'{_megabytes(stage.peak_memory):>12}')
        return '\n'.join(lines)


def peak_memory() -> Optional[int]:
    r"""The most main memory, in bytes, that the process has held at any time
    since its start, or :obj:`None` where the system does not say (Windows).
    """
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return None
    peak = getrusage(RUSAGE_SELF).ru_maxrss
    # Kibibytes everywhere but on macOS.
    return peak if sys.platform == 'darwin' else peak * 1024


def _megabytes(size: Optional[int]) -> str:
    return '-' if size is None else f'{size / 1e6:,.0f} MB'
