from __future__ import annotations

import csv
import os
from typing import Any, Dict, List, Optional

import torch_sdt.typing
from torch_sdt.io import atomic_path


class History:
    r"""What each epoch of a training brought, for curves on disk.

    Args:
        rows (list of dict, optional): Earlier epochs. (default: none)

    Attributes:
        rows (list of dict): One an epoch: ``epoch``, ``seconds``, ``loss``
            and what the validation returned.
    """

    def __init__(self, rows: Optional[List[Dict[str, Any]]] = None) -> None:
        self.rows = list(rows or [])

    def append(self, row: Dict[str, Any]) -> None:
        r"""Adds an epoch."""
        self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def write(self, folder: str, name: str) -> None:
        r"""Writes ``<name>.csv`` and, where matplotlib is there,
        ``<name>.png``.
        """
        columns = list(dict.fromkeys(
            key for row in self.rows for key in row))
        path = os.path.join(folder, f'{name}.csv')
        with atomic_path(path) as tmp, open(tmp, 'w', newline='') as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        if torch_sdt.typing.WITH_MATPLOTLIB:
            self._plot(os.path.join(folder, f'{name}.png'), name)

    def _plot(self, path: str, name: str) -> None:
        # Not pyplot: it would choose a backend for the whole process.
        from matplotlib.figure import Figure

        scores = [key for key in self.rows[-1]
                  if key not in {'epoch', 'seconds', 'loss'}]
        fig = Figure(figsize=(9, 3.6), layout='constrained')
        left, right = fig.subplots(1, 2)
        epoch = [row['epoch'] for row in self.rows]
        left.plot(epoch, [row['loss'] for row in self.rows], marker='o',
                  color='#0072B2')
        left.set(xlabel='Epoch', ylabel='Training loss', ylim=(0, None),
                 title=name)
        for key, color in zip(scores, ['#D55E00', '#009E73', '#CC79A7']):
            right.plot(epoch, [row.get(key) for row in self.rows],
                       marker='o', color=color, label=key)
        right.set(xlabel='Epoch', ylabel='On held-out identities',
                  title='validation')
        if len(scores) > 0:
            right.legend(frameon=False)
        for ax in (left, right):
            ax.spines[['top', 'right']].set_visible(False)
            ax.locator_params(axis='x', integer=True)
        with atomic_path(path) as tmp:
            fig.savefig(tmp, dpi=150, format='png')
