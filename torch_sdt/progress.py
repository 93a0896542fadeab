from typing import Any

from tqdm.auto import tqdm


def progress(total: int, desc: str, verbose: bool = True,
             unit: str = 'rows') -> Any:
    r"""A progress bar with a rate, silent when the output is no terminal or
    :obj:`verbose` is :obj:`False`.
    """
    return tqdm(total=total, desc=desc, unit=f' {unit}', unit_scale=True,
                disable=None if verbose else True, leave=False)
