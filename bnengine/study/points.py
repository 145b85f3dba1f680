"""Rows gathered into points: the runs of one setting, which differ by their seeds only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from .experiments import EXPERIMENTS
from .running import Row

MARGIN = 0.02
"""Of test accuracy: what a usable setting may lose against the best."""

USABLE = "mean test accuracy within 2 points of the best mean of both arms in the same panel"

WORDS = {
    "learning_rate": "learning rate",
    "scale": "factor of the initial weights",
    "hidden": "hidden layers",
    "optimizer": "optimiser",
    "norm_position": "normalised",
    "batch_size": "rows in a batch",
    "bias": "bias",
}
"""What an experiment varies, in words."""

VALUES = {"pre": "before", "post": "after", "none": "nowhere", "sgd": "gradient descent"}


class Point(NamedTuple):
    """The runs of one setting, which differ by their seeds only."""

    experiment: str
    panel: str
    norm: str
    value: float | str
    learning_rate: float
    accuracies: tuple[float, ...]
    steps_to_target: tuple[int | None, ...]
    diverged: int
    usable: bool

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def low(self) -> float:
        return min(self.accuracies)

    @property
    def high(self) -> float:
        return max(self.accuracies)

    @property
    def mean_steps(self) -> float:
        """Mean steps to the target; infinite where a seed never reached it."""
        steps = [math.inf if step is None else step for step in self.steps_to_target]
        return sum(steps) / len(steps)

    @property
    def setting(self) -> str:
        """Where in its panel the point is, in words."""
        varies = EXPERIMENTS[self.experiment].varies
        rate = f"learning rate {self.learning_rate:g}"
        return rate if varies == "learning_rate" else f"{WORDS[varies]} {shown(self.value)}, {rate}"


def shown(value: float | str) -> str:
    """A value of an experiment in words.

    Examples
    --------
    >>> from bnengine.study.points import shown
    >>> shown(0.001), shown("pre")
    ('0.001', 'before')
    """
    return VALUES.get(value, value) if isinstance(value, str) else f"{value:g}"


def points(rows: Iterable[Row]) -> list[Point]:
    """Rows gathered by setting, in their order, each held against the best of its panel."""
    gathered: dict[tuple[str, str, str, float | str, float], list[Row]] = {}
    for row in rows:
        key = (row["experiment"], row["panel"], row["norm"], row["value"], row["learning_rate"])
        gathered.setdefault(key, []).append(row)
    found = [_point(key, seeds) for key, seeds in gathered.items()]
    best: dict[tuple[str, str], float] = {}
    for point in found:
        best[point[:2]] = max(best.get(point[:2], 0.0), point.mean)
    # The slack of 1e-9 is for sums that round: exactly two points lost are still within two points.
    return [point._replace(usable=point.mean >= best[point[:2]] - MARGIN - 1e-9) for point in found]


def _point(key: tuple[str, str, str, float | str, float], rows: list[Row]) -> Point:
    accuracies = tuple(row["test_accuracy"] for row in rows)
    steps = tuple(row["steps_to_target"] for row in rows)
    return Point(*key, accuracies, steps, sum(row["diverged"] for row in rows), False)


def panels(found: Iterable[Point]) -> dict[tuple[str, str], list[Point]]:
    """Points by (experiment, panel)."""
    by_panel: dict[tuple[str, str], list[Point]] = {}
    for point in found:
        by_panel.setdefault(point[:2], []).append(point)
    return by_panel


def arm(found: Iterable[Point], norm: str) -> list[Point]:
    """The points with or without normalisation."""
    return [point for point in found if point.norm == norm]


def is_line(found: Iterable[Point]) -> bool:
    """Whether one thing alone is varied; otherwise the learning rate is too."""
    settings = {(point.value, point.learning_rate) for point in found}
    return len(settings) == len({value for value, _ in settings})
