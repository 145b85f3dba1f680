"""How a source is read, as a person asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..arguments import integer, one_of, shown
from .inputs import Watch
from .layout import Wanted
from .readers import DataError
from .splits import check_part


def as_names(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Names of columns; one text is no sequence of them."""
    if isinstance(value, str) or not all(type(column) is str for column in value):
        raise DataError(f"{name}: expected a sequence of names of columns, got {shown(value)}")
    return tuple(value)


@dataclass(frozen=True)
class Reading:
    """What a person may ask of a source: which part is for what, and what is taken of a table."""

    label: str | None = None
    task: str = "auto"
    test: float = 0.2
    seed: int = 0
    test_data: str | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    delimiter: str | None = None
    missing: str = "refuse"
    text: str = "refuse"
    watch: Watch | None = None

    def __post_init__(self) -> None:
        one_of("task", self.task, ("auto", "classification", "regression"))
        check_part("test", self.test, least=0)
        integer("seed", self.seed, 0)
        one_of("missing", self.missing, ("refuse", "impute"))
        one_of("text", self.text, ("refuse", "onehot"))
        for name in ("label", "test_data", "delimiter"):
            value = getattr(self, name)
            if value is not None and (type(value) is not str or not value):
                raise DataError(f"{name}: expected text, got {shown(value)}")

    def refuse_columns(self, source: str) -> None:
        """Refuse what is asked of the columns of a table where the source is none."""
        for name in ("label", "features", "drop", "delimiter", "missing", "text"):
            if getattr(self, name) != getattr(Reading, name):
                raise DataError(f"{name}: only a CSV, TSV or Parquet file has columns to choose, and data is {source}")

    @property
    def wanted(self) -> Wanted:
        """What is taken from a table."""
        chosen = {name: getattr(self, name) for name in ("label", "features", "drop", "delimiter", "watch")}
        return Wanted(**chosen, impute=self.missing == "impute", one_hot=self.text == "onehot")
