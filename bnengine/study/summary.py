"""From rows to points (means over seeds, usable or not), and from points to sentences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .experiments import EXPERIMENTS
from .running import Curve, Row

MARGIN = 0.02
"""Of test accuracy: what a usable setting may lose against the best."""

USABLE = "mean test accuracy within 2 points of the best mean of both arms in the same panel"

ARMS = {"batch": "with batch normalisation", "none": "without it"}


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


class Sentence(NamedTuple):
    """A result in words; `wins` is None where nothing was compared."""

    experiment: str
    text: str
    wins: bool | None


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


def sentences(rows: Sequence[Row], curves: Sequence[Curve], target: float) -> list[Sentence]:
    """The results in words, made from the numbers alone, whether batch normalisation wins or not."""
    found = []
    for (experiment, panel), group in panels(points(rows)).items():
        if experiment == "bias":
            found.append(_same_trajectory(panel, [curve for curve in curves if curve["experiment"] == "bias"]))
            continue
        for say in (*SAID.get(experiment, ()), _fastest, _most_accurate):
            found += [Sentence(experiment, f"{panel}: {text}", wins) for text, wins in say(group, target)]
        found += [Sentence(experiment, f"{panel}: {text}", None) for text in _diverged(group)]
    return found


Said = Iterator[tuple[str, bool | None]]


# ---- ranges


def usable_range(scan: Sequence[tuple[float, bool]]) -> tuple[float, float] | None:
    """The ends of the longest run of neighbouring usable values; None where none is usable.

    Examples
    --------
    >>> from bnengine.study.summary import usable_range
    >>> usable_range([(0.1, True), (1.0, False), (10.0, True), (100.0, True)])
    (10.0, 100.0)
    """
    blocks = [list(block) for usable, block in itertools.groupby(sorted(scan), key=lambda entry: entry[1]) if usable]
    longest = max(blocks, key=len, default=None)
    return None if longest is None else (longest[0][0], longest[-1][0])


def _range_words(scan: Sequence[tuple[float, bool]]) -> tuple[str, float]:
    """(words, decades), -1 decades where nothing is usable."""
    ends, count = usable_range(scan), sum(usable for _, usable in scan)
    if ends is None:
        return f"none of {len(scan)}", -1.0
    decades = math.log10(ends[1] / ends[0])
    if count == 1:
        return f"1 of {len(scan)}, {ends[0]:g} (0.0 decades)", decades
    return f"{count} of {len(scan)}, {ends[0]:g} to {ends[1]:g} ({decades:.1f} decades)", decades


def _ranges(what: str, scanned: Callable[[Point], float], group: list[Point]) -> Said:
    scans = {norm: [(scanned(point), point.usable) for point in arm(group, norm)] for norm in ARMS}
    (with_bn, wide), (without, narrow) = (_range_words(scan) for scan in scans.values())
    tail = "" if wide > narrow + 1e-9 else " Batch normalisation does not widen the range here."
    yield f"usable {what}: {with_bn}, with batch normalisation; {without}, without it.{tail}", not tail


def _rates(group: list[Point], target: float) -> Said:  # noqa: ARG001
    yield from _ranges("learning rates", lambda point: point.learning_rate, group)


def _scales(group: list[Point], target: float) -> Said:  # noqa: ARG001
    yield from _ranges("factors of the initial weights", lambda point: float(point.value), group)


def _rates_by_value(group: list[Point], target: float) -> Said:  # noqa: ARG001
    for value in dict.fromkeys(point.value for point in group):
        own = [point for point in group if point.value == value]
        yield from _ranges(f"learning rates of {value}", lambda point: point.learning_rate, own)


# ---- comparisons


def _setting(point: Point) -> str:
    """Where in the panel a point is."""
    varied = EXPERIMENTS[point.experiment].varies
    words = f"learning rate {point.learning_rate:g}"
    return (
        words
        if varied in ("learning_rate", "scale") and point.value == point.learning_rate
        else (f"{WORDS[varied]} {shown(point.value)}, {words}")
    )


WORDS = {
    "learning_rate": "learning rate",
    "scale": "initial weights times",
    "hidden": "hidden layers:",
    "optimizer": "optimiser",
    "norm_position": "normalised",
    "batch_size": "batches of",
    "bias": "bias:",
}
VALUES = {"pre": "before", "post": "after", "none": "nowhere", "sgd": "gradient descent"}


def shown(value: float | str) -> str:
    """A value of an experiment in words.

    Examples
    --------
    >>> from bnengine.study.summary import shown
    >>> shown(0.001), shown("pre")
    ('0.001', 'before')
    """
    return VALUES.get(value, value) if isinstance(value, str) else f"{value:g}"


def _fastest(group: list[Point], target: float) -> Said:
    """Steps to the target, each arm at its fastest setting."""
    best = {norm: min(arm(group, norm), key=lambda point: point.mean_steps) for norm in ARMS}
    steps = {norm: point.mean_steps for norm, point in best.items()}
    said = {
        norm: f"after {steps[norm]:.0f} steps {words} ({_setting(best[norm])})"
        if math.isfinite(steps[norm])
        else f"never by all seeds {words}"
        for norm, words in ARMS.items()
    }
    text = f"test accuracy {target:g} is reached {said['batch']}, and {said['none']}"
    wins = steps["batch"] < steps["none"]
    if all(map(math.isfinite, steps.values())):
        text += f": {steps['none'] / steps['batch']:.2g} times as many steps without it"
    yield f"{text}." + ("" if wins else " Batch normalisation is not faster here."), wins


def _most_accurate(group: list[Point], target: float) -> Said:  # noqa: ARG001
    """The best mean accuracy of each arm."""
    best = {norm: max(arm(group, norm), key=lambda point: point.mean) for norm in ARMS}
    said = [f"{_accuracy(point)} {ARMS[norm]} ({_setting(point)})" for norm, point in best.items()]
    verdict, wins = _verdict(best["batch"], best["none"])
    yield f"best mean test accuracy {said[0]}, {said[1]}: {verdict}.", wins


def _accuracy(point: Point) -> str:
    return f"{point.mean:.3f} [{point.low:.3f}, {point.high:.3f}]"


def _verdict(ours: Point, other: Point) -> tuple[str, bool]:
    """Higher or lower where the ranges of the seeds do not meet."""
    points_apart = f"by {100 * abs(ours.mean - other.mean):.1f} points"
    if ours.low > other.high:
        return f"higher with it {points_apart}", True
    if ours.high < other.low:
        return f"lower with it {points_apart}, batch normalisation does not win", False
    return "alike, the seeds overlap, and batch normalisation does not win", False


def _diverged(group: list[Point]) -> Iterator[str]:
    counts = {norm: (sum(point.diverged for point in arm(group, norm)), arm(group, norm)) for norm in ARMS}
    said = [f"{count} of {sum(len(p.accuracies) for p in own)} {ARMS[norm]}" for norm, (count, own) in counts.items()]
    if any(count for count, _ in counts.values()):
        yield f"runs that diverged: {', '.join(said)}."


def _by_value(group: list[Point]) -> Iterator[tuple[float | str, dict[str, Point]]]:
    """For each value the best point of each arm over the learning rates."""
    for value in dict.fromkeys(point.value for point in group):
        own = [point for point in group if point.value == value]
        yield value, {norm: max(arm(own, norm), key=lambda point: point.mean) for norm in ARMS}


def _deepest(group: list[Point], target: float) -> Said:
    """The deepest network that reaches the target in the mean, and the depths at which normalisation loses."""
    deepest = {norm: max((float(p.value) for p in arm(group, norm) if p.mean >= target), default=0) for norm in ARMS}
    wins = deepest["batch"] > deepest["none"]
    said = [f"{shown(depth)} hidden layers" if depth else "none" for depth in deepest.values()]
    tail = "" if wins else " Batch normalisation does not train a deeper one here."
    reached = f"{said[0]} with batch normalisation, {said[1]} without it.{tail}"
    yield f"deepest network whose mean test accuracy reaches {target:g}: {reached}", wins
    yield from _losses(group, "hidden layers")


def _small_batches(group: list[Point], target: float) -> Said:  # noqa: ARG001
    yield from _losses(group, "rows in a batch")


def _losses(group: list[Point], what: str) -> Said:
    """The values at which the best without normalisation is better than the best with it, all seeds."""
    lost = [(value, best) for value, best in _by_value(group) if best["batch"].high < best["none"].low]
    said = [f"{shown(v)} ({best['batch'].mean:.3f} with, {best['none'].mean:.3f} without)" for v, best in lost]
    if said:
        yield f"batch normalisation loses with this many {what}: {', '.join(said)}.", False


def _position(group: list[Point], target: float) -> Said:  # noqa: ARG001
    """Before against after the activation, each at its best learning rate."""
    best = {
        value: max((point for point in group if point.value == value), key=lambda point: point.mean)
        for value in ("pre", "post")
    }
    verdict, _ = _verdict(best["pre"], best["post"])
    verdict = verdict.split(",")[0].replace(" with it", " before")
    said = [f"{_accuracy(point)} (learning rate {point.learning_rate:g})" for point in best.values()]
    yield f"before the activation {said[0]}, after it {said[1]}: {verdict}.", None


def _matched(group: list[Point], target: float) -> Said:  # noqa: ARG001
    """At the largest learning rate that is usable in both arms, and at the largest of each."""
    rates = {norm: {p.learning_rate: p for p in arm(group, norm)} for norm in ARMS}
    usable = {norm: [rate for rate, point in by_rate.items() if point.usable] for norm, by_rate in rates.items()}
    both = set(usable["batch"]) & set(usable["none"])
    if both:
        rate = max(both)
        ours, other = rates["batch"][rate], rates["none"][rate]
        verdict, wins = _verdict(ours, other)
        yield f"matched learning rate {rate:g}: {_accuracy(ours)} with, {_accuracy(other)} without: {verdict}.", wins
    if all(usable.values()):
        largest = {norm: rates[norm][max(values)] for norm, values in usable.items()}
        said = [f"{_accuracy(point)} {ARMS[norm]} ({point.learning_rate:g})" for norm, point in largest.items()]
        verdict, wins = _verdict(largest["batch"], largest["none"])
        yield f"each at its largest usable learning rate: {said[0]}, {said[1]}: {verdict}.", wins


SAID: dict[str, tuple[Callable[[list[Point], float], Said], ...]] = {
    "learning_rate": (_rates,),
    "initial_scale": (_scales,),
    "optimizer": (_rates_by_value,),
    "depth": (_deepest,),
    "batch_size": (_small_batches,),
    "norm_position": (_position,),
    "matched": (_matched,),
}
"""What is said of an experiment beside speed, accuracy and divergence."""


def _same_trajectory(panel: str, curves: Sequence[Curve]) -> Sentence:
    """The largest difference of the losses with and without the bias, over seeds and looks."""
    losses = {(curve["value"], curve["seed"]): curve["loss"] for curve in curves}
    gaps = [
        abs(a - b)
        for (value, seed), own in losses.items()
        if value == "with"
        for a, b in zip(own, losses["without", seed], strict=True)
    ]
    text = f"with and without the bias the losses differ by at most {max(gaps):.1e} over all seeds and steps looked at"
    return Sentence("bias", f"{panel}: {text}, computed in float64.", None)
