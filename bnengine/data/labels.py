"""Labels as they are read, and what they are: classes by name, or values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from .layout import Table, is_number
from .readers import DataError, HostArray

MOST_CLASSES = 50
"""Different whole numbers that are taken for classes where nobody says what they are."""


MANY_CLASSES = 20
"""More classes than this whose names are numbers may be values."""


def targets(path: Path, name: str, y: HostArray, rows: int) -> HostArray:
    """y in one dimension, refused where it is not a finite number or a text for each row."""
    if y.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{path}: expected {name} of shape ({rows},), got {y.shape}")
    if y.dtype.kind not in "biufU" or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        raise DataError(f"{path}: expected finite numbers or text in {name}, got dtype {y.dtype}")
    return y.reshape(rows)


def of_kind(y: HostArray, task: str, classes: Sequence[str], where: str, lines: Sequence[int] = ()) -> HostArray:
    """Labels of other rows as numbers of these classes, or as values."""
    return class_numbers(y, classes, where, lines) if task == "classification" else values(y, where)


def class_numbers(y: HostArray, classes: Sequence[str], where: str, lines: Sequence[int] = ()) -> HostArray:
    """Labels as numbers of these classes; a label that is none of them is refused, with its line where known."""
    found = _as_numbers(y)
    names = [str(int(value)) for value in found] if _whole(found) else [str(value) for value in y]
    numbers = {name: i for i, name in enumerate(classes)}
    for row, name in enumerate(names):
        if name not in numbers:
            raise DataError(
                f"{where}, {_place(row, lines)}: label {name!r} is none of the classes {', '.join(classes)}"
            )
    return np.asarray([numbers[name] for name in names], np.int64)


def _place(row: int, lines: Sequence[int]) -> str:
    return f"line {lines[row]}" if lines else f"row {row}"


def values(y: HostArray, where: str) -> HostArray:
    """Targets of a regression as numbers."""
    found = _as_numbers(y)
    if found is None:
        row = int(np.argmin(np.isfinite([_number(value) for value in y])))
        raise DataError(f"{where}: regression needs finite numbers as targets, got {str(y[row])!r} in row {row + 1}")
    return found


def refuse_strays(path: Path, table: Table) -> None:
    """Refuse labels that are numbers but for some, which would make a class of each number."""
    if _as_numbers(table.y) is not None:
        return
    values = {label: _number(label) for label in set(table.y)}
    numbers = np.asarray([value for value in values.values() if math.isfinite(value)])
    classes = _whole(numbers) and len(np.unique(numbers)) <= MOST_CLASSES
    strays = {
        label for label, value in values.items() if not math.isfinite(value) and (not classes or is_number(label))
    }
    for row, label in enumerate(table.y) if numbers.size and strays else ():
        if label in strays:
            raise DataError(
                f"{path}, {_place(row, table.lines)}: label {str(label)!r} is no finite number, others are; "
                "mend it, or --task classification takes labels as names"
            )


def doubts(name: str, y: HostArray, task: str, classes: Sequence[str], *, asked: str) -> Iterator[str]:
    """What may be wrong with a label called `name` of this kind: a line each. `y` is class numbers or values."""
    if task == "regression":
        if _whole(y) and len(y) > MOST_CLASSES and len(np.unique(y)) == len(y) == np.ptp(y) + 1:
            yield f"the label {name} numbers the rows, as an identifier does; --label names another column"
        return
    counts = np.bincount(y, minlength=len(classes))
    if len(classes) == len(y):
        yield f"the label {name} has another value in each row, as an identifier has; --label names another column"
    elif (counts == 1).any():
        alone = [name for name, count in zip(classes, counts, strict=True) if count == 1]
        yield f"the label {name} has {len(alone)} classes with one row: {', '.join(alone[:5])}{', ...' * (len(alone) > 5)}"
    if asked == "auto" and len(classes) > MANY_CLASSES and all(is_number(text) for text in classes):
        yield f"the label {name} has {len(classes)} different whole numbers, taken as classes; --task regression?"


def _number(text: Any) -> float:
    """The value; NaN where it is none."""
    return float(text) if is_number(text) else math.nan


def find_task(y: HostArray, task: str) -> tuple[str, tuple[str, ...], HostArray]:
    """(task, names of the classes, y as class numbers or values)."""
    found = _as_numbers(y)
    if task == "auto":
        few = found is None or (_whole(found) and len(np.unique(found)) <= MOST_CLASSES)
        task = "classification" if few else "regression"
    if task == "regression":
        return task, (), values(y, "task")
    if _whole(found):
        y = found.astype(np.int64)  # classes in the order of their numbers, not of their text
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"data: expected at least 2 classes, got only {str(classes[0])!r}")
    return task, tuple(map(str, classes)), index


def _whole(found: HostArray | None) -> TypeGuard[HostArray]:
    """Whether these are whole numbers that float64 holds exactly."""
    return found is not None and bool(np.all(found == np.round(found)) and np.all(np.abs(found) <= 2**53))


def _as_numbers(y: HostArray) -> HostArray | None:
    """y in float64, or None where some of it is text."""
    try:
        values = y.astype(np.float64)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
