"""The careful reader of a table's rows: it takes them one by one and knows the place of what cannot be used."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

from .inputs import Input, rows_of
from .layout import MISSING, MOST_CATEGORIES, Layout, Table, is_text
from .readers import DataError


class _FoundTextError(Exception):
    """Columns that are text after all."""

    def __init__(self, columns: set[int]) -> None:
        super().__init__()
        self.columns = columns


def read_carefully(table: Input, layout: Layout) -> Table:
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
            found = {column for column in chosen if is_text(row[column])} - self.text
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
