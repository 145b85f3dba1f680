"""What the columns of a table become in a network's input, learnt from the training rows and kept with the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .layout import Table
from .readers import DataError, HostArray


class Column(NamedTuple):
    """What one column becomes."""

    name: str
    fill: float | None = None
    """In the place of a missing number: the median of the training rows."""
    indicator: bool = False
    """Whether a feature beside it says that the value is missing: where one was in the file that was trained on."""
    categories: tuple[str, ...] | None = None
    """The texts of a column that becomes a feature, 0 or 1, for each of them."""

    @property
    def features(self) -> list[str]:
        """Names of the network's inputs that the column becomes, in their order."""
        names = [self.name] if self.categories is None else [f"{self.name}={text}" for text in self.categories]
        return [*names, f"{self.name} missing"] if self.indicator else names


@dataclass(frozen=True)
class Encoding:
    """What the columns of a table become; none of them: themselves."""

    columns: tuple[Column, ...] = ()
    impute: bool = False

    @classmethod
    def learn(cls, where: str, table: Table, train: HostArray, *, impute: bool) -> Encoding:
        """The encoding of a table whose rows `train` are for training."""
        if not impute and not table.texts:
            return cls()
        columns = []
        for i, name in enumerate(table.columns):
            gone = np.isnan(table.x[:, i])
            there = table.x[train, i][~gone[train]]
            if not there.size:
                raise DataError(f"{where}, column {name}: all values of the training rows are missing; --drop it")
            text = table.texts.get(name)
            fill = float(np.median(there)) if impute and text is None else None
            columns.append(Column(name, fill, bool(gone.any()), None if text is None else tuple(sorted(text))))
        return cls(tuple(columns), impute)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the network's inputs; none where the columns become themselves."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def text_columns(self) -> frozenset[str]:
        """Names of the columns that are read as text."""
        return frozenset(column.name for column in self.columns if column.categories is not None)

    def apply(self, table: Table) -> HostArray:
        """The features of the rows; a text that is none of the categories is 0 in all of them."""
        if not self.columns:
            return table.x
        x, place = np.zeros((len(table.x), len(self.features))), 0
        for i, column in enumerate(self.columns):
            values, gone = table.x[:, i], np.isnan(table.x[:, i])
            if column.categories is None:
                x[:, place] = np.where(gone, column.fill or 0.0, values)
            else:
                numbers = {text: number for number, text in enumerate(column.categories)}
                known = np.asarray([numbers.get(text, -1) for text in table.texts[column.name]] + [-1])
                found = known[np.where(gone, -1, values).astype(np.int64)]
                rows = np.flatnonzero(found >= 0)
                x[rows, place + found[rows]] = 1
            place += len(column.features)
            if column.indicator:
                x[:, place - 1] = gone
        return x

    def remarks(self, where: str, table: Table) -> Iterator[str]:
        """A line on missing values that were filled, and one on texts that are none of the categories."""
        gone = {column.name: int(np.isnan(table.x[:, i]).sum()) for i, column in enumerate(self.columns)}
        if any(gone.values()):
            yield f"{where}: missing values filled, {_counts(gone)}"
        unknown = {}
        for i, column in enumerate(self.columns):
            if column.categories is not None:
                strange = [n for n, text in enumerate(table.texts[column.name]) if text not in column.categories]
                unknown[column.name] = int(np.isin(table.x[:, i], strange).sum())
        if any(unknown.values()):
            yield f"{where}: texts that the training file has not, taken as none of its categories, {_counts(unknown)}"

    def to_metadata(self) -> dict[str, Any]:
        """A form for JSON, kept with the network; empty where the columns become themselves."""
        return {"impute": self.impute, "columns": [column._asdict() for column in self.columns]} if self.columns else {}

    @classmethod
    def from_metadata(cls, found: Any) -> Encoding:
        """What `to_metadata` gave; a ValueError where that cannot be. Runs of before have none."""
        if not found:
            return cls()
        try:
            columns = tuple(_column(**column) for column in found["columns"])
            impute = {True: True, False: False}[found["impute"]]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError("expected columns with name, fill, indicator and categories") from error
        return cls(columns, impute)


PLAIN = Encoding()
"""Columns become themselves."""


def _column(name: Any, fill: Any, indicator: Any, categories: Any) -> Column:
    right = type(name) is str and type(indicator) is bool and (fill is None or np.isfinite(fill))
    texts = categories is None or all(type(text) is str for text in categories)
    if not right or not texts:
        raise ValueError
    return Column(name, fill, indicator, None if categories is None else tuple(categories))


def _counts(numbers: dict[str, int]) -> str:
    each = ", ".join(f"{name} {number}" for name, number in Counter(numbers).most_common(10) if number)
    return f"{sum(numbers.values())} in all: {each}"
