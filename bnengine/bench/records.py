"""What a record of measurements holds."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Spread(TypedDict):
    """Of samples: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


class Speed(Spread):
    """How many times as fast as another contender, by the ratios of each repeat."""

    over: str


class Row(TypedDict, total=False):
    """A contender of a case; only a few names are in every row."""

    group: str
    case: str
    shape: list[int]
    axis: int
    varies: str
    value: int
    rest: str
    """Of a sweep: what varies, its value, and what stays."""
    work: str
    clock: str
    dtype: str
    """On a GPU."""
    family: str
    contender: str
    error: float
    page_faults: float | None
    calls: int
    seconds: Spread
    samples: list[float]
    speed_over: dict[str, Speed]
    """Over the fastest variant of each other family."""
    of_limit: Spread
    of_copy: Spread


class LeftOut(TypedDict):
    """A contender that was not timed, and why."""

    contender: str
    reason: str
    kind: str
    case: NotRequired[str]
    work: NotRequired[str | None]


Mean = dict[str, Any]
"""The geometric mean of the speeds of a family over another in a group of cases."""

Record = dict[str, Any]
"""`rows`, `left_out`, `summary`, and what was measured, where and with what."""
