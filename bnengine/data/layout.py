"""What is wanted of a table, where it is in it, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .inputs import Watch
from .readers import DataError, HostArray

MISSING = frozenset(["", "na", "n/a", "nan", "null", "none", "?"])
"""Spellings of a value that is not there, in lower case."""

MOST_CATEGORIES = 1000
"""Different texts of a column that is one-hot encoded."""


@dataclass(frozen=True)
class Wanted:
    """What is taken from a table, and how."""

    label: str | None = None
    """Name or position of the label; the last column where None."""
    labelled: bool = True
    columns: Sequence[str] = ()
    """Names of the features, of a run that knows them."""
    features: Sequence[str] = ()
    """Names or positions of the features; all but the label where there are none."""
    drop: Sequence[str] = ()
    """Names or positions of columns to leave out."""
    delimiter: str | None = None
    impute: bool = False
    """Whether missing values are taken, as NaN."""
    one_hot: bool | frozenset[str] = False
    """Whether columns of text are taken, as numbers of their texts; or which columns are text."""
    hints: bool = True
    """Whether a refusal names the options of training that help."""
    watch: Watch | None = None


class Table(NamedTuple):
    """What was read."""

    columns: list[str]
    """Names of the feature columns."""
    label: str | None
    """Name of the label's column."""
    x: HostArray
    """Shape (rows, columns), float64; NaN where a value is missing."""
    y: HostArray
    """The labels as text, empty where there are none."""
    lines: Sequence[int]
    """The line of the file on which each row ends; empty where a file has rows and no lines."""
    texts: dict[str, list[str]]
    """Of each column of text the different ones, whose numbers x holds."""
    header: list[str]
    delimiter: str


class Layout(NamedTuple):
    """Where the columns of a table are."""

    name: str
    header: list[str]
    chosen: list[int]
    target: int | None
    delimiter: str
    wanted: Wanted

    def table(self, x: HostArray, y: HostArray, lines: Sequence[int], texts: dict[int, list[str]]) -> Table:
        """The table of these rows."""
        if not len(x):
            raise DataError(f"{self.name}: expected rows below the header, got none")
        columns = [self.header[column] for column in self.chosen]
        label = None if self.target is None else self.header[self.target]
        named = {self.header[column]: found for column, found in texts.items()}
        return Table(columns, label, x, y, lines, named, self.header, self.delimiter)


def read_header(name: str, reader: Any, delimiter: str) -> list[str]:
    """The column names of the first line, refused where they are numbers or another delimiter separates them."""
    header = [column.strip() for column in next(reader, [])]
    if not header:
        raise DataError(f"{name}: expected a header in the first line, got an empty file")
    if len(header) == 1 and (other := next((s for s in ",;\t|" if s in header[0]), None)):
        raise DataError(
            f"{name}: expected columns separated by {delimiter!r}, but {other!r} separates them: --delimiter"
        )
    check_names(name, header)
    numbers = [column for column in header if is_number(column)]
    if len(numbers) == len(header) or any("." in column or "-" in column for column in numbers):
        raise DataError(f"{name}: expected a header in the first line, got numbers: {', '.join(numbers[:5])}")
    return header


def check_names(name: str, header: list[str]) -> list[str]:
    """The names of columns, if no two are the same."""
    if len(set(header)) < len(header):
        raise DataError(f"{name}: expected a header with a different name for each column, got {header}")
    return header


def lay_out(name: str, header: list[str], delimiter: str, wanted: Wanted) -> Layout:
    """Where the label and the chosen features stand in the header, refused where one of them is not in it."""
    label = "-1" if wanted.label is None else wanted.label
    target = _position(name, header, label, "label") if wanted.labelled else None
    missing = [column for column in wanted.columns if column not in header]
    if missing:
        raise DataError(f"{name}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
    asked = [_position(name, header, column, "features") for column in wanted.features]
    dropped = [_position(name, header, column, "drop") for column in wanted.drop]
    if target in (*asked, *dropped):
        option = "features" if target in asked else "drop"
        raise DataError(f"{option}: {header[target or 0]!r} is the column to predict; --label names another")
    chosen = asked or [header.index(column) for column in wanted.columns]
    chosen = [column for column in chosen or range(len(header)) if column not in (target, *dropped)]
    if not chosen:
        raise DataError(f"{name}: expected a label and at least one feature column, got {header}")
    return Layout(name, header, chosen, target, delimiter, wanted)


def _position(name: str, header: list[str], column: str, option: str) -> int:
    if column in header:
        return header.index(column)
    try:
        return range(len(header))[int(column)]
    except (ValueError, IndexError):
        reason = f"no column {column!r}; its columns are {', '.join(header)}"
        raise DataError(f"{name}: {reason}" if option == "label" else f"{option}: {name} has {reason}") from None


def is_text(cell: str) -> bool:
    """Whether a cell holds a text: no number, and no spelling of a missing value."""
    return not is_number(cell) and cell.strip().lower() not in MISSING


def is_number(text: str) -> bool:
    """Whether it can be read as one, NaN and infinities too."""
    try:
        float(text)
    except ValueError:
        return False
    return True
