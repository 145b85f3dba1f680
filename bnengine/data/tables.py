"""Tables with a header, as files or by standard input."""

from __future__ import annotations

import csv
from pathlib import Path

from .careful import read_carefully
from .fast import read_fast
from .inputs import STANDARD_INPUT, SUFFIXES, as_delimiter, find_delimiter, open_input, rows_of
from .layout import Table, Wanted, lay_out, read_header
from .parquet import read_parquet
from .readers import DataError


def is_table(source: str) -> bool:
    """Whether a source is named as a table is."""
    return source == STANDARD_INPUT or (source.lower().endswith(SUFFIXES) and not Path(source).is_dir())


def read_table(path: Path, wanted: Wanted) -> Table:
    """A table with a header, of a file or standard input.

    Raises
    ------
    DataError
        Naming file, line and column of what cannot be used.
    """
    if path.suffix == ".parquet":
        return read_parquet(path, wanted)
    with open_input(path, wanted.watch) as table:
        try:
            delimiter = as_delimiter(wanted.delimiter) if wanted.delimiter else find_delimiter(table)
            with table.text() as file:
                header = read_header(table.name, rows_of(file, delimiter), delimiter)
            layout = lay_out(table.name, header, delimiter, wanted)
            return read_fast(table, layout) or read_carefully(table, layout)
        except csv.Error as error:
            raise DataError(f"{table.name}: cannot be read as CSV: {error}") from error
