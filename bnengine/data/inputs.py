"""The text of a table: a file, plain or gzipped, or standard input; and what separates its columns."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .readers import LIMIT, DataError

STANDARD_INPUT = "-"

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")

LONGEST_LINE = 2**24
"""Bytes: what unpacks to more without a line's end is no table."""

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " ", "\\t": "\t"}

Watch = Callable[[int, int], None]
"""Called with the bytes that have been read of a file, and its size."""


class Input(NamedTuple):
    """Something that can be read more than once."""

    name: str
    """For messages."""
    file: Path
    packed: bool
    watch: Watch | None = None

    @contextmanager
    def open(self) -> Iterator[Watched]:
        """Its bytes, unpacked."""
        with self.file.open("rb") as file:
            try:
                yield Watched(self, file)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{self.name}: cannot be read: {str(error) or type(error).__name__}") from error

    @contextmanager
    def text(self) -> Iterator[io.TextIOWrapper]:
        """Its characters; bytes that are no UTF-8 are refused with their line."""
        with self.open() as raw:
            try:
                yield io.TextIOWrapper(io.BufferedReader(raw, 2**18), "utf-8-sig", newline="")
            except UnicodeDecodeError as error:
                raise self.not_utf8() from error

    def not_utf8(self) -> DataError:
        """What to say of bytes that are no UTF-8: where the first is, and what helps."""
        with self.open() as raw:
            for number, line in enumerate(io.BufferedReader(raw), 1):
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    return DataError(
                        f"{self.name}, line 1: the text is UTF-16; save it as UTF-8 ('CSV UTF-8' in Excel)"
                    )
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    before, found = line[: error.start].decode(), line[error.start : error.end].hex(" ")
                    return DataError(
                        f"{self.name}, line {number}, character {len(before) + 1}: the byte {found} is no UTF-8 text; "
                        "save the file as UTF-8, or convert it: iconv -f latin1 -t utf-8 OLD > NEW"
                    )
        return DataError(f"{self.name}: is no UTF-8 text")


class Watched(io.RawIOBase):
    """The unpacked bytes of a file; says how far it is, and ends what unpacks to more than can be."""

    def __init__(self, whole: Input, file: Any) -> None:
        super().__init__()
        self._whole, self._file, self._size = whole, file, whole.file.stat().st_size
        self._bytes = gzip.GzipFile(fileobj=file) if whole.packed else file
        self._total = self._line = 0

    def readable(self) -> bool:
        """Yes: `io` asks before it reads."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the file, check what came, and tell the watch how far the file is."""
        content = self._bytes.read(len(buffer))
        buffer[: len(content)] = content
        self._check(content)
        if self._whole.watch is not None:
            self._whole.watch(self._file.tell(), self._size)
        return len(content)

    def _check(self, content: bytes) -> None:
        end = max(content.rfind(b"\n"), content.rfind(b"\r"))
        self._line = len(content) - end - 1 if end >= 0 else self._line + len(content)
        self._total += len(content)
        if self._line > LONGEST_LINE:
            raise DataError(f"{self._whole.name}: no line ends within {LONGEST_LINE} bytes, so it is no table")
        if self._whole.packed and self._total > LIMIT:
            raise DataError(f"{self._whole.name}: unpacks to more than {LIMIT} bytes; store it uncompressed")


@contextmanager
def open_input(path: Path, watch: Watch | None = None) -> Iterator[Input]:
    """A table's file; what comes by standard input is put into a temporary one."""
    if str(path) != STANDARD_INPUT:
        yield Input(str(path), path, path.suffix.lower() == ".gz", watch)
        return
    with tempfile.TemporaryDirectory(prefix="bnengine-") as directory:
        file = Path(directory, "input")
        with file.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
        yield Input("standard input", file, packed=False, watch=watch)


def as_delimiter(text: str) -> str:
    """The character that a person names."""
    found = DELIMITERS.get(text, text)
    if len(found) != 1 or found in '"\r\n' or found.isalnum():
        raise DataError(f"delimiter: expected one character, or {', '.join(list(DELIMITERS)[:4])}, got {text!r}")
    return found


def find_delimiter(table: Input) -> str:
    """Comma, semicolon, tab or space: the first that gives every one of the first lines as many columns, above one."""
    if table.file.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    with table.text() as file:
        lines = list(itertools.islice(file, 20))
    widths = {delimiter: _widths(lines, delimiter) for delimiter in ",;\t "}
    several = [delimiter for delimiter, found in widths.items() if found and found[0] > 1]
    even = [delimiter for delimiter in several if len(set(widths[delimiter])) == 1]
    return (even or several or [","])[0]


def rows_of(lines: Any, delimiter: str) -> Any:
    """A reader of rows; it refuses a field of more than 131,072 characters."""
    return csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=delimiter == " ")


def _widths(lines: list[str], delimiter: str) -> list[int]:
    try:
        return [len(row) for row in rows_of(lines, delimiter) if row]
    except csv.Error:  # a quoted field goes on behind the first lines, or is damaged, which reading will tell
        return [len(row) for row in rows_of(lines[:1], delimiter)] if '"' not in lines[0] else []
