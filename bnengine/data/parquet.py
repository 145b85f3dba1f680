"""Parquet files as tables, by pyarrow (the extra `data`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .layout import MISSING, MOST_CATEGORIES, Layout, Table, Wanted, check_names, lay_out
from .readers import LIMIT, DataError, HostArray


def read_parquet(path: Path, wanted: Wanted) -> Table:
    """The table of a Parquet file; its rows count from 0, as a data frame's."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"data: reading {path} needs pyarrow; install the extra data") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = check_names(str(path), [name.strip() for name in file.schema_arrow.names])
            layout = lay_out(str(path), names, ",", wanted)
            return _read(file, layout, pa)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _read(file: Any, layout: Layout, pa: Any) -> Table:
    rows = file.metadata.num_rows
    if rows * len(layout.chosen) * 8 > LIMIT:
        raise DataError(f"{layout.name}: claims {rows} rows, and what is compressed may hold {LIMIT} bytes")
    x, texts = np.empty((rows, len(layout.chosen))), {}
    for i, column in enumerate(layout.chosen):
        found = _column(file, layout, column, pa)
        if pa.types.is_string(found.type):
            x[:, i], texts[column] = _text(found, layout, column)
        else:
            x[:, i] = _numbers(found, layout, column, pa)
        _check(x[:, i], layout, column)
    labels = [] if layout.target is None else _column(file, layout, layout.target, pa).to_pylist()
    if layout.target is not None and (gone := [row for row, label in enumerate(labels) if label in (None, "")]):
        raise _wrong(layout, layout.target, gone[0], "missing label; fill it or leave the row out")
    return layout.table(x, np.asarray([str(label).strip() for label in labels], object), (), texts)


def _column(file: Any, layout: Layout, column: int, pa: Any) -> Any:
    """A column in one piece, its text as plain text."""
    table = file.read(columns=[file.schema_arrow.names[column]])
    if table.num_columns != 1:
        raise DataError(
            f"{layout.name}, column {layout.header[column]}: expected numbers or text, got {table.schema.types}"
        )
    found = table.column(0)
    kind = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
    kind = pa.string() if pa.types.is_large_string(kind) else kind
    return found.cast(kind).combine_chunks() if kind != found.type else found.combine_chunks()


def _numbers(found: Any, layout: Layout, column: int, pa: Any) -> HostArray:
    kind = pa.types
    if not (kind.is_integer(found.type) or kind.is_floating(found.type) or kind.is_boolean(found.type)):
        raise _wrong(layout, column, 0, f"expected numbers or text, got {found.type}")
    if kind.is_boolean(found.type):
        found = found.cast(pa.int8())
    values: HostArray = found.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _text(found: Any, layout: Layout, column: int) -> tuple[HostArray, list[str]]:
    """The texts by number, and what they are."""
    wanted, name = layout.wanted, layout.header[column]
    if wanted.one_hot is False or (wanted.one_hot is not True and name not in wanted.one_hot):
        hint = "; --text onehot takes columns of text, --drop leaves one out" if wanted.hints else ""
        shown = next((text for text in found.to_pylist() if text is not None), "")
        raise _wrong(layout, column, found.to_pylist().index(shown or None), f"expected a number, got {shown!r}{hint}")
    codes: dict[str, int] = {}
    cells = (text.strip() if text is not None else "" for text in found.to_pylist())
    numbers = [np.nan if text.lower() in MISSING else codes.setdefault(text, len(codes)) for text in cells]
    if len(codes) > MOST_CATEGORIES and wanted.one_hot is True:
        reason = f"more than {MOST_CATEGORIES} different texts, too many for --text onehot; --drop it"
        raise _wrong(layout, column, numbers.index(MOST_CATEGORIES), reason)
    return np.asarray(numbers, np.float64), list(codes)


def _check(values: HostArray, layout: Layout, column: int) -> None:
    """Refuse infinities, and what is missing where that is not wanted."""
    gone = np.isnan(values)
    if gone.any() and not layout.wanted.impute:
        hint = ", or --missing impute" if layout.wanted.hints else ""
        raise _wrong(layout, column, int(gone.argmax()), f"missing value; fill it or leave the row out{hint}")
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise _wrong(layout, column, row, f"expected a finite number, got {values[row]}")


def _wrong(layout: Layout, column: int, row: int, reason: str) -> DataError:
    return DataError(f"{layout.name}, row {row}, column {layout.header[column]}: {reason}")
