"""Tables with a header: which columns are taken, and the careful reader of their rows."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .inputs import STANDARD_INPUT, SUFFIXES, Input, Watch, as_delimiter, find_delimiter, open_input, rows_of
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
    """The line of the file on which each row ends."""
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
        if not len(lines):
            raise DataError(f"{self.name}: expected rows below the header, got none")
        columns = [self.header[column] for column in self.chosen]
        label = None if self.target is None else self.header[self.target]
        named = {self.header[column]: found for column, found in texts.items()}
        return Table(columns, label, x, y, lines, named, self.header, self.delimiter)


def is_table(source: str) -> bool:
    """Whether a source is named as a table is."""
    return source == STANDARD_INPUT or source.lower().endswith(SUFFIXES)


def read_table(path: Path, wanted: Wanted) -> Table:
    """A table with a header, of a file or standard input.

    Raises
    ------
    DataError
        Naming file, line and column of what cannot be used.
    """
    with open_input(path, wanted.watch) as table:
        try:
            delimiter = as_delimiter(wanted.delimiter) if wanted.delimiter else find_delimiter(table)
            with table.text() as file:
                header = _read_header(table.name, rows_of(file, delimiter), delimiter)
            layout = _lay_out(table.name, header, delimiter, wanted)
            return _read_carefully(table, layout)
        except csv.Error as error:
            raise DataError(f"{table.name}: cannot be read as CSV: {error}") from error


def _read_header(name: str, reader: Any, delimiter: str) -> list[str]:
    header = [column.strip() for column in next(reader, [])]
    if not header:
        raise DataError(f"{name}: expected a header in the first line, got an empty file")
    if len(header) == 1 and (other := next((s for s in ",;\t|" if s in header[0]), None)):
        raise DataError(
            f"{name}: expected columns separated by {delimiter!r}, but {other!r} separates them: --delimiter"
        )
    if len(set(header)) < len(header):
        raise DataError(f"{name}: expected a header with a different name for each column, got {header}")
    numbers = [column for column in header if is_number(column)]
    if len(numbers) == len(header) or any("." in column or "-" in column for column in numbers):
        raise DataError(f"{name}: expected a header in the first line, got numbers: {', '.join(numbers[:5])}")
    return header


def _lay_out(name: str, header: list[str], delimiter: str, wanted: Wanted) -> Layout:
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


class _FoundTextError(Exception):
    """Columns that are text after all."""

    def __init__(self, columns: set[int]) -> None:
        super().__init__()
        self.columns = columns


def _read_carefully(table: Input, layout: Layout) -> Table:
    """Row by row, with the place of what cannot be used; again from the start where a column proves to be text."""
    one_hot = layout.wanted.one_hot
    text = set() if isinstance(one_hot, bool) else {i for i in layout.chosen if layout.header[i] in one_hot}
    while True:
        try:
            with table.text() as file:
                return _Rows(layout, text).read(rows_of(file, layout.delimiter))
        except _FoundTextError as found:
            text |= found.columns


class _Rows:
    """The rows below the header: a number takes 8 bytes, however many there are."""

    def __init__(self, layout: Layout, text: set[int]) -> None:
        self.layout, self.text = layout, text
        self.codes: dict[int, dict[str, int]] = {column: {} for column in sorted(text)}

    def read(self, reader: Any) -> Table:
        layout, target = self.layout, self.layout.target
        numbers, labels, lines = array("d"), [], array("q")
        seen: dict[str, str] = {}
        next(reader)
        for row in reader:
            line = reader.line_num
            if not row:
                continue
            if len(row) != len(layout.header):
                raise DataError(f"{layout.name}, line {line}: expected {len(layout.header)} columns, got {len(row)}")
            numbers.extend(self.values(line, row))
            if target is not None:
                label = row[target].strip()
                if not label:
                    raise self.wrong(line, target, "missing label; fill it or leave the row out")
                labels.append(seen.setdefault(label, label))
            lines.append(line)
        x = np.frombuffer(numbers).reshape(len(lines), len(layout.chosen))
        y = np.asarray(labels, object)  # NumPy's own text would give every row the room of the longest
        return layout.table(x, y, lines, {column: list(codes) for column, codes in self.codes.items()})

    def values(self, line: int, row: list[str]) -> list[float]:
        """The features of a row, at once where all of them are finite numbers."""
        chosen = self.layout.chosen
        if not self.text:
            try:
                values = [float(row[column]) for column in chosen]
            except ValueError:
                pass
            else:
                if math.isfinite(sum(values)):
                    return values
        if self.layout.wanted.one_hot is True:
            found = {column for column in chosen if _is_text(row[column])} - self.text
            if found:
                raise _FoundTextError(found)
        return [self.value(line, column, row[column].strip()) for column in chosen]

    def value(self, line: int, column: int, text: str) -> float:
        wanted = self.layout.wanted
        if text.lower() in MISSING:
            if not wanted.impute:
                shown = f" {text!r}" if text else ""
                help_ = ", or --missing impute" if wanted.hints else ""
                raise self.wrong(line, column, f"missing value{shown}; fill it or leave the row out{help_}")
            return math.nan
        if column in self.text:
            return self.code(line, column, text)
        try:
            value = float(text)
        except ValueError:
            help_ = "; --text onehot takes columns of text, --drop leaves one out" if wanted.hints else ""
            raise self.wrong(line, column, f"expected a number, got {text!r}{help_}") from None
        if not math.isfinite(value):
            raise self.wrong(line, column, f"expected a finite number, got {text!r}")
        return value

    def code(self, line: int, column: int, text: str) -> int:
        codes = self.codes[column]
        if len(codes) == MOST_CATEGORIES and text not in codes and self.layout.wanted.one_hot is True:
            raise self.wrong(
                line, column, f"more than {MOST_CATEGORIES} different texts, too many for --text onehot; --drop it"
            )
        return codes.setdefault(text, len(codes))

    def wrong(self, line: int, column: int, reason: str) -> DataError:
        return DataError(f"{self.layout.name}, line {line}, column {self.layout.header[column]}: {reason}")


def _is_text(cell: str) -> bool:
    return not is_number(cell) and cell.strip().lower() not in MISSING


def is_number(text: str) -> bool:
    """Whether it can be read as one, NaN and infinities too."""
    try:
        float(text)
    except ValueError:
        return False
    return True
