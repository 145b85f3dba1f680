"""A fast reader of large tables, by pyarrow where that is installed (the extra `data`).

It takes a whole table or nothing: what pyarrow refuses, or could read in another way than the careful reader, is left
to that one, which also knows the place of what cannot be used.
"""

from __future__ import annotations

import io
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from .inputs import Input, Watched, rows_of
from .layout import MISSING, MOST_CATEGORIES, Layout, Table, is_text
from .readers import HostArray

LARGE = 2**22
"""Bytes of a file from which the fast reader is worth its start."""

LONGEST_FIELD = 131_072
"""Characters, as the careful reader has it."""


class _LeftError(Exception):
    """Something that is left to the careful reader."""


def read_fast(table: Input, layout: Layout) -> Table | None:
    """The table, the same as the careful reader's; None where it is left to that one."""
    if table.file.stat().st_size < LARGE or layout.delimiter == " ":
        return None
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        return None
    pool = pa.system_memory_pool()  # others keep what they have had
    try:
        return _read(table, layout, pa, csv, pool)
    except (_LeftError, pa.ArrowException):
        return None
    finally:
        pool.release_unused()


def _read(table: Input, layout: Layout, pa: Any, csv: Any, pool: Any) -> Table:
    text = _text_columns(table, layout)
    with table.open() as raw:
        lines, rows = _Lines(raw), _Rows(layout, text)
        options = (
            csv.ReadOptions(column_names=layout.header, block_size=2**20),
            csv.ParseOptions(delimiter=layout.delimiter, quote_char=False),
            _conversion(csv, pa, layout, text),
        )
        for batch in csv.open_csv(lines, *options, pool):
            rows.add(batch)
        return rows.table(lines)


def _text_columns(table: Input, layout: Layout) -> set[int]:
    """Columns of text: those that are known, or that the first rows show."""
    if not isinstance(layout.wanted.one_hot, bool):
        return {column for column in layout.chosen if layout.header[column] in layout.wanted.one_hot}
    if not layout.wanted.one_hot:
        return set()
    with table.text() as file:
        rows = [
            row for row in itertools.islice(rows_of(file, layout.delimiter), 1, 100) if len(row) == len(layout.header)
        ]
    return {column for column in layout.chosen if any(is_text(row[column]) for row in rows)}


def _conversion(csv: Any, pa: Any, layout: Layout, text: set[int]) -> Any:
    """Numbers as float64, text by number; what is missing among numbers as null where that is wanted."""
    words = pa.dictionary(pa.int32(), pa.utf8())
    kinds = {layout.header[column]: words if column in text else pa.float64() for column in layout.chosen}
    if layout.target is not None:
        kinds[layout.header[layout.target]] = words
    spelled = [change(word) for word in MISSING for change in (str.lower, str.upper, str.title)]
    return csv.ConvertOptions(
        column_types=kinds,
        include_columns=list(kinds),
        null_values=sorted({*spelled, "NaN"}) if layout.wanted.impute else [],
        strings_can_be_null=False,
    )


class _Lines(io.RawIOBase):
    """The bytes below the header; counts the lines, and ends at what could be read in two ways."""

    def __init__(self, raw: Watched) -> None:
        super().__init__()
        self._file = io.BufferedReader(raw, 2**21)
        header = self._file.readline()
        if not header.endswith(b"\n") or header.count(b'"') % 2 or b"\r" in header[:-2]:
            raise _LeftError
        self._ends, self._lone, self._last = 0, 0, b"\n"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        if b'"' in content or b"\0" in content or (not content.isascii() and not _is_utf8(content)):
            raise _LeftError
        self._ends += content.count(b"\n")
        self._lone += content.count(b"\r") - content.count(b"\r\n") - (self._last == b"\r" and content[:1] == b"\n")
        self._last = content[-1:] or self._last
        buffer[: len(content)] = content
        return len(content)

    @property
    def rows(self) -> int:
        """How many there are if each is a line; -1 where a line ends in another way."""
        return -1 if self._lone else self._ends + (self._last != b"\n")


class _Rows:
    """Rows from batches of columns."""

    def __init__(self, layout: Layout, text: set[int]) -> None:
        self.layout = layout
        self.numbers, self.labels = array("d"), list[HostArray]()
        self.codes: dict[int, dict[str, int]] = {column: {} for column in sorted(text)}
        self.seen: dict[str, str] = {}

    def add(self, batch: Any) -> None:
        layout = self.layout
        columns = [self.column(batch.column(layout.header[column]), column) for column in layout.chosen]
        self.numbers.frombytes(np.column_stack(columns).reshape(-1).view(np.uint8).data)
        if layout.target is not None:
            found = batch.column(layout.header[layout.target])
            labels = [self.seen.setdefault(label, label) for label in _texts(found)]
            if "" in labels:
                raise _LeftError
            self.labels.append(np.asarray(labels, object)[found.indices.to_numpy()])

    def column(self, found: Any, column: int) -> HostArray:
        if column not in self.codes:
            values: HostArray = found.to_numpy(zero_copy_only=False)
            if np.count_nonzero(~np.isfinite(values)) != found.null_count:
                raise _LeftError
            return values
        codes, impute = self.codes[column], self.layout.wanted.impute
        texts = _texts(found)
        if not impute and any(text.lower() in MISSING for text in texts):
            raise _LeftError
        known = [np.nan if text.lower() in MISSING else codes.setdefault(text, len(codes)) for text in texts]
        if len(codes) > MOST_CATEGORIES and self.layout.wanted.one_hot is True:
            raise _LeftError
        numbers: HostArray = np.asarray(known, np.float64)[found.indices.to_numpy()]
        return numbers

    def table(self, lines: _Lines) -> Table:
        """The table, if each row was a line."""
        width = len(self.layout.chosen)
        rows = len(self.numbers) // width
        if rows != lines.rows:
            raise _LeftError
        x = np.frombuffer(self.numbers).reshape(rows, width)
        y = np.concatenate(self.labels) if self.labels else np.empty(0, object)
        return self.layout.table(x, y, range(2, rows + 2), {c: list(codes) for c, codes in self.codes.items()})


def _texts(found: Any) -> Sequence[str]:
    """The different texts of a column."""
    texts = [text.strip() for text in found.dictionary.to_pylist()]
    if found.null_count or any(len(text) > LONGEST_FIELD for text in texts):
        raise _LeftError
    return texts


def _is_utf8(content: bytes) -> bool:
    """Whether it is UTF-8, but for a character that is cut off at either end."""
    while content and content[0] & 0xC0 == 0x80:
        content = content[1:]
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True
