"""What a study's record holds."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Row(TypedDict):
    """What came out of a trial, beside everything that decided it: the other fields of `Trial`."""

    experiment: str
    panel: str
    value: float | str
    norm: str
    seed: int
    steps: int
    learning_rate: float
    network: str
    seconds: float
    test_accuracy: float
    steps_to_target: int | None
    diverged: bool
    diverged_at: int | None
    validation_accuracy: NotRequired[float]
    validation_steps_to_target: NotRequired[int | None]
    """The last two are missing in records of format 1."""


class Said(TypedDict):
    """A sentence; `wins` says whether batch normalisation does, None where that was not asked."""

    experiment: str
    text: str
    wins: bool | None


Curve = dict[str, Any]
"""What was seen in a trial at each look: a list for each name; in a record also which trial it is of."""


class Record(TypedDict):
    """A study: how it was made, its sentences, a row and a curve for each trial."""

    meta: dict[str, Any]
    summary: list[Said]
    rows: list[Row]
    curves: list[Curve]
