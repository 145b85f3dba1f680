"""Rows gathered into points: the trials of one setting, which differ by their seeds only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .experiments import EXPERIMENTS
from .records import Curve, Row

MARGIN = 0.02
"""Of accuracy: what a usable setting may lose against the best."""

USABLE = "mean validation accuracy within 2 points of the best mean of all arms in the same panel"

CHOSEN = "Settings are chosen by their accuracy on validation rows, and what is said of them is of test rows."
CHOSEN_BY_TEST = (
    "Settings were chosen by the same test rows that say how well they do: the accuracies of the best settings are "
    "too high, of both arms."
)
"""Of records made before there were validation rows."""

LEVEL, ENOUGH = 0.95, 5
TEST = (
    f"Accuracies, steps and movement are won or lost where Welch's {LEVEL:.0%} interval for the difference of the means "
    "over the seeds excludes no difference; of twenty comparisons without a difference one would still pass by chance. "
    f"Ranges, depths, and a target that not every seed reaches get a verdict from {ENOUGH} seeds on."
)
"""How it is decided whether batch normalisation wins."""

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
    """The trials of one setting, which differ by their seeds only."""

    experiment: str
    panel: str
    norm: str
    value: float | str
    learning_rate: float
    accuracies: tuple[float, ...]
    steps_to_target: tuple[int | None, ...]
    diverged: int
    choice_accuracies: tuple[float, ...]
    """On the rows that settings are chosen by: validation rows, or test rows in a record that has no others."""
    choice_steps: tuple[int | None, ...]
    usable: bool = False

    @property
    def mean(self) -> float:
        """Mean accuracy of its seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def low(self) -> float:
        """Accuracy of the worst seed."""
        return min(self.accuracies)

    @property
    def high(self) -> float:
        """Accuracy of the best seed."""
        return max(self.accuracies)

    @property
    def mean_steps(self) -> float:
        """Mean steps to the target; infinite where a seed never reached it."""
        return _mean_steps(self.steps_to_target)

    @property
    def choice_mean(self) -> float:
        """What settings are chosen by: the mean accuracy on the rows for that."""
        return sum(self.choice_accuracies) / len(self.choice_accuracies)

    @property
    def choice_mean_steps(self) -> float:
        """What the fastest setting is chosen by."""
        return _mean_steps(self.choice_steps)

    @property
    def setting(self) -> str:
        """Where in its panel the point is, in words."""
        varies = EXPERIMENTS[self.experiment].varies
        rate = f"learning rate {self.learning_rate:g}"
        return rate if varies == "learning_rate" else f"{WORDS[varies]} {shown(self.value)}, {rate}"


def _mean_steps(steps: Sequence[int | None]) -> float:
    return sum(math.inf if step is None else step for step in steps) / len(steps)


def interval(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Welch's interval of level `LEVEL` for the mean of ours less that of the other; unbounded where it has no sense.

    That is for single values, and for fewer than `ENOUGH` on each side that do not differ among themselves.

    Examples
    --------
    >>> from bnengine.study.points import interval
    >>> interval([0.85, 0.86, 0.87], [0.80, 0.81, 0.82])
    (0.02..., 0.07...)
    """
    from scipy.stats import t

    apart = statistics.fmean(ours) - statistics.fmean(other)
    if min(len(ours), len(other)) < 2:
        return -math.inf, math.inf
    errors = [statistics.variance(values) / len(values) for values in (ours, other)]
    if not any(errors):
        return (apart, apart) if len(ours) >= ENOUGH or apart == 0 else (-math.inf, math.inf)
    parts = sum(error**2 / (len(values) - 1) for error, values in zip(errors, (ours, other), strict=True))
    reach = float(t.ppf((1 + LEVEL) / 2, sum(errors) ** 2 / parts)) * math.sqrt(sum(errors))
    return apart - reach, apart + reach


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
        best[point[:2]] = max(best.get(point[:2], 0.0), point.choice_mean)
    # The slack of 1e-9 is for sums that round: exactly two points lost are still within two points.
    return [point._replace(usable=point.choice_mean >= best[point[:2]] - MARGIN - 1e-9) for point in found]


def _point(key: tuple[str, str, str, float | str, float], rows: list[Row]) -> Point:
    accuracies = tuple(row["test_accuracy"] for row in rows)
    steps = tuple(row["steps_to_target"] for row in rows)
    diverged = sum(row["diverged"] for row in rows)
    if "validation_accuracy" not in rows[0]:
        return Point(*key, accuracies, steps, diverged, accuracies, steps)
    chosen = tuple(row["validation_accuracy"] for row in rows)
    return Point(*key, accuracies, steps, diverged, chosen, tuple(row["validation_steps_to_target"] for row in rows))


class Panel(NamedTuple):
    """The points and the curves of a panel of an experiment."""

    experiment: str
    name: str
    points: list[Point]
    curves: list[Curve]
    target: float
    """Test accuracy that steps are counted to."""

    def arm(self, norm: str) -> list[Point]:
        """The points with that normalisation."""
        return [point for point in self.points if point.norm == norm]

    def arms(self) -> dict[str, list[Point]]:
        """The points with batch normalisation, and those with no normalisation."""
        return {norm: self.arm(norm) for norm in ("batch", "none")}

    def norms(self) -> list[str]:
        """All arms that there are, in the order of the experiment."""
        return [norm for norm in EXPERIMENTS[self.experiment].arms if self.arm(norm)]

    def is_line(self) -> bool:
        """Whether one thing alone is varied; otherwise the learning rate is too."""
        settings = {(point.value, point.learning_rate) for point in self.points}
        return len(settings) == len({value for value, _ in settings})

    def decide(self, wins: bool, otherwise: str) -> tuple[str, bool | None]:
        """(end of a sentence, verdict) where no interval over the seeds is to be had."""
        seeds = len(self.points[0].accuracies)
        if seeds < ENOUGH:
            return f" No verdict from {seeds} seed{'s' if seeds > 1 else ''}.", None
        return ("", True) if wins else (otherwise, False)


def experiments(rows: Sequence[Row], curves: Sequence[Curve], target: float) -> dict[str, list[Panel]]:
    """The panels of each experiment, in the order of the rows."""
    found: dict[str, dict[str, Panel]] = {}
    for point in points(rows):
        panel = Panel(point.experiment, point.panel, [], [], target)
        found.setdefault(point.experiment, {}).setdefault(point.panel, panel).points.append(point)
    for curve in curves:
        found[curve["experiment"]][curve["panel"]].curves.append(curve)
    return {name: list(panels.values()) for name, panels in found.items()}
