"""How well each class is told from the others: figures for each, counts of what was taken for what, and their table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..arguments import printable
from ..backends import Backend
from ..checkpoints import Loaded
from ..data.readers import HostArray
from ..networks import Sequential
from ..parallel import Communicator
from ..training.evaluation import predict
from ..training.fitted import Fitted

COUNTED = 50
"""Classes, at most, of which the counts are kept."""

COLUMNS = 20
"""Classes, at most, that a table or a picture has room for one by one."""


def class_figures(
    net: Sequential,
    found: Fitted | Loaded,
    rows: tuple[HostArray, HostArray],
    names: tuple[str, ...],
    backend: Backend,
    ranks: Communicator,
) -> dict[str, Any]:
    """`classes`: the figures of each over the rows of all ranks; `confusion`: rows of true, columns of given classes.

    A figure is None where it is not defined, such as the precision of a class that nothing was taken for.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    own = rows[1], predict(net, found.params, found.state, rows[0], backend=backend).argmax(axis=1)
    true, given = (np.concatenate(each) for each in zip(*ranks.gather(own), strict=True))
    numbers = range(len(names))
    figures = precision_recall_fscore_support(true, given, labels=numbers, zero_division=np.nan)
    words = ("precision", "recall", "f1", "rows")
    of_each = [dict(zip(words, map(_number, values), strict=True)) for values in zip(*figures, strict=True)]
    counts = {"confusion": confusion_matrix(true, given, labels=numbers).tolist()} if len(names) <= COUNTED else {}
    return {"classes": dict(zip(names, of_each, strict=True)), **counts}


def table(classes: dict[str, dict[str, Any]], confusion: list[list[int]] | None) -> list[str]:
    """The figures in lines, and of few classes how often each was taken for which; of many the COUNTED worst by F1."""
    shown = sorted(classes, key=lambda name: classes[name]["f1"] or 0.0)[:COUNTED] if confusion is None else classes
    counts = confusion if confusion is not None and len(classes) <= COLUMNS else [[] for _ in shown]
    head = ["class", *classes[next(iter(classes))], *(["taken for", *classes] if any(counts) else [])]
    rows = [[name, *map(_cell, classes[name].values())] for name in shown]
    rows = [[*row, *(["", *map(str, taken)] if taken else [])] for row, taken in zip(rows, counts, strict=True)]
    cut = [
        [printable(cell) if i in (0, 5) else printable(cell[:9]) for i, cell in enumerate(row)] for row in (head, *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cut]
    more = len(classes) - len(lines) + 1
    return [*lines, f"and {more} more classes with a higher f1"] if more else lines


def _number(value: np.generic) -> float | None:
    number: float = value.item()
    return None if math.isnan(number) else number


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value}"
