"""From points and curves to sentences, made from the numbers alone, whether batch normalisation wins or not."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .points import LEVEL, Panel, Point, experiments, interval, shown
from .records import Curve, Row, Said

ARMS = {"batch": "with batch normalisation", "none": "without it"}
EVERY_ARM = {**ARMS, "dyt": "with Dynamic Tanh"}


Texts = Iterator[tuple[str, bool | None]]


def sentences(rows: Sequence[Row], curves: Sequence[Curve], target: float) -> list[Said]:
    """The results in words, in the order of the rows."""
    found: list[Said] = []
    for experiment, panels in experiments(rows, curves, target).items():
        for panel, say in itertools.product(panels, SAID[experiment]):
            for text, wins in say(panel):
                found.append({"experiment": experiment, "text": f"{panel.name}: {text}", "wins": wins})
    return found


# ---- said of every comparison


def _fastest(panel: Panel) -> Texts:
    """Steps to the target, each arm at its fastest setting. What was there at the first look may have been earlier."""
    best = {norm: min(own, key=lambda point: point.choice_mean_steps) for norm, own in panel.arms().items()}
    ours, other = (point.mean_steps for point in best.values())
    first = min((curve["step"][0] for curve in panel.curves if curve["step"]), default=0)
    said = [
        f"after {'at most ' * (point.mean_steps <= first)}{point.mean_steps:.0f} steps {ARMS[norm]} ({point.setting})"
        if math.isfinite(point.mean_steps)
        else f"not by every seed {ARMS[norm]}"
        for norm, point in best.items()
    ]
    reached = f"test accuracy {panel.target:g} is reached {said[0]} and {said[1]}"
    if max(ours, other) <= first:
        yield f"{reached}: both were there at the first look.", None
        return
    if not (math.isfinite(ours) and math.isfinite(other)):
        tail, wins = panel.decide(ours < other, " Batch normalisation is not faster here.")
        yield f"{reached}.{tail}", wins
        return
    logarithms = [[math.log(step or math.inf) for step in point.steps_to_target] for point in best.values()]
    low, high = (math.exp(end) for end in interval(*reversed(logarithms)))
    times = f"{math.exp(statistics.fmean(logarithms[1]) - statistics.fmean(logarithms[0])):.1f} times as many"
    tail = "" if low > 1 else " Batch normalisation is slower here." if high < 1 else " No difference is shown."
    yield f"{reached}, {times} ({_interval(low, high, '.1f')}).{tail}", low > 1


def _most_accurate(panel: Panel) -> Texts:
    """The mean accuracy of each arm at its best setting."""
    best = {norm: max(own, key=lambda point: point.choice_mean) for norm, own in panel.arms().items()}
    said = [f"{_accuracy(point)} {ARMS[norm]} ({point.setting})" for norm, point in best.items()]
    verdict, wins = _verdict(best["batch"], best["none"])
    yield f"best mean test accuracy {said[0]}, {said[1]}: {verdict}.", wins


def _accuracy(point: Point) -> str:
    return f"{point.mean:.3f} [{point.low:.3f}, {point.high:.3f}]"


def _verdict(ours: Point, other: Point) -> tuple[str, bool]:
    """Higher or lower with batch normalisation where the interval excludes no difference."""
    low, high = _difference(ours, other)
    said = f"by {100 * abs(ours.mean - other.mean):.1f} points ({_interval(low, high, '+.1f')})"
    if low > 0:
        return f"higher with it {said}", True
    if high < 0:
        return f"lower with it {said}, batch normalisation does not win", False
    return f"no difference is shown ({_interval(low, high, '+.1f')} points), batch normalisation does not win", False


def _difference(ours: Point, other: Point) -> tuple[float, float]:
    """The interval of the difference of the accuracies, in points."""
    low, high = interval(ours.accuracies, other.accuracies)
    return 100 * low, 100 * high


def _interval(low: float, high: float, digits: str) -> str:
    if not math.isfinite(high):
        return "too few seeds for an interval"
    return f"Welch's {LEVEL:.0%} interval {low:{digits}} to {high:{digits}}"


def _diverged(panel: Panel) -> Texts:
    counts = {norm: sum(point.diverged for point in own) for norm, own in panel.arms().items()}
    sizes = {norm: sum(len(point.accuracies) for point in own) for norm, own in panel.arms().items()}
    if any(counts.values()):
        said = [f"{counts[norm]} of {sizes[norm]} {words}" for norm, words in ARMS.items()]
        yield f"runs that diverged: {', '.join(said)}.", None


# ---- ranges


def usable_range(scan: Sequence[tuple[float, bool]]) -> tuple[float, float] | None:
    """The ends of the longest row of neighbouring usable values; None where none is usable.

    Examples
    --------
    >>> from bnengine.study.summary import usable_range
    >>> usable_range([(0.1, True), (1.0, False), (10.0, True), (100.0, True)])
    (10.0, 100.0)
    """
    blocks = [list(block) for usable, block in itertools.groupby(sorted(scan), key=lambda entry: entry[1]) if usable]
    longest = max(blocks, key=len, default=None)
    return None if longest is None else (longest[0][0], longest[-1][0])


def _range(scan: Sequence[tuple[float, bool]]) -> tuple[str, float]:
    """(words, decades); -1 decades where nothing is usable."""
    ends, count = usable_range(scan), sum(usable for _, usable in scan)
    if ends is None:
        return f"none of {len(scan)}", -1.0
    decades = math.log10(ends[1] / ends[0])
    reach = f"{ends[0]:g}" if decades == 0 else f"{ends[0]:g} to {ends[1]:g}"
    return f"{count} of {len(scan)}, {reach} ({decades:.1f} decades)", decades


def _ranges(name: str, what: str, panel: Panel, arms: dict[str, list[Point]] | None = None) -> Texts:
    """The usable values of the field of that name."""
    arms = panel.arms() if arms is None else arms
    found = {norm: _range([(getattr(point, name), point.usable) for point in own]) for norm, own in arms.items()}
    (ours, wide), (other, narrow) = found.values()
    tail, wins = panel.decide(wide > narrow + 1e-9, " Batch normalisation does not widen the range here.")
    yield f"usable {what} with batch normalisation: {ours}; without it: {other}.{tail}", wins


def _rates_by_value(panel: Panel) -> Texts:
    for value, own in _by_value(panel).items():
        yield from _ranges("learning_rate", f"learning rates of {shown(value)}", panel, own)


def _by_value(panel: Panel) -> dict[float | str, dict[str, list[Point]]]:
    """The points of each arm, by value."""
    values = dict.fromkeys(point.value for point in panel.points)
    return {v: {norm: [p for p in own if p.value == v] for norm, own in panel.arms().items()} for v in values}


# ---- said of single experiments


def _deepest(panel: Panel) -> Texts:
    """The deepest network that reaches the target in the mean."""
    reach = {norm: [float(p.value) for p in own if p.mean >= panel.target] for norm, own in panel.arms().items()}
    ours, other = (max(depths, default=0) for depths in reach.values())
    said = [f"{depth:g} hidden layers" if depth else "none" for depth in (ours, other)]
    tail, wins = panel.decide(ours > other, " Batch normalisation does not train a deeper one here.")
    reached = f"{said[0]} with batch normalisation, {said[1]} without it.{tail}"
    yield f"deepest network whose mean test accuracy reaches {panel.target:g}: {reached}", wins


def _losses(what: str, panel: Panel) -> Texts:
    """The values at which the best setting with it is less accurate than the best without."""
    best = {
        value: [max(own, key=lambda point: point.choice_mean) for own in arms.values()]
        for value, arms in _by_value(panel).items()
    }
    lost = [(value, ours, other) for value, (ours, other) in best.items() if _difference(ours, other)[1] < 0]
    if lost:
        said = [f"{shown(value)} ({ours.mean:.3f} with, {other.mean:.3f} without)" for value, ours, other in lost]
        yield f"batch normalisation loses with this many {what}: {', '.join(said)}.", False


def _position(panel: Panel) -> Texts:
    """Before against after the activation, each at its best learning rate."""
    before, after = (
        max((point for point in panel.points if point.value == value), key=lambda point: point.choice_mean)
        for value in ("pre", "post")
    )
    said = [f"{_accuracy(point)} (learning rate {point.learning_rate:g})" for point in (before, after)]
    verdict = _higher({"after": after, "before": before})
    yield f"normalised before the activation {said[0]}, after it {said[1]}: {verdict}.", None


def _higher(two: dict[str, Point]) -> str:
    """Which of two points has the higher accuracy, by its name, where the interval excludes no difference."""
    (first, ours), (second, other) = two.items()
    low, high = _difference(ours, other)
    if low <= 0 <= high:
        return f"no difference is shown ({_interval(low, high, '+.1f')} points)"
    apart = f"by {abs(low + high) / 2:.1f} points ({_interval(low, high, '+.1f')})"
    return f"{first if low > 0 else second} is higher {apart}"


def _dynamic_tanh(panel: Panel) -> Texts:
    """The third arm against batch normalisation; records of before have none."""
    own = panel.arm("dyt")
    if not own:
        return
    best, other = (max(arm, key=lambda point: point.choice_mean) for arm in (own, panel.arm("batch")))
    verdict = _higher({"Dynamic Tanh": best, "batch normalisation": other})
    diverged, runs = sum(point.diverged for point in own), sum(len(point.accuracies) for point in own)
    said = f"best mean test accuracy {_accuracy(best)} ({best.setting}), {diverged} of {runs} runs diverged"
    yield f"with Dynamic Tanh in the place of batch normalisation: {said}: {verdict}.", None
    if panel.experiment == "learning_rate":
        usable, _ = _range([(point.learning_rate, point.usable) for point in own])
        yield f"usable learning rates with Dynamic Tanh: {usable}.", None
    else:
        deepest = max((float(p.value) for p in own if p.mean >= panel.target), default=0)
        words = f"{deepest:g} hidden layers" if deepest else "none"
        yield f"deepest network whose mean test accuracy reaches {panel.target:g} with Dynamic Tanh: {words}.", None


def _geometry(panel: Panel) -> Texts:
    """Rank and angles in front of the first layer and behind the last, in the mean of the seeds."""
    for norm in panel.norms():
        own = [curve for curve in panel.curves if curve["norm"] == norm]
        ends = [[statistics.fmean(curve[name][at] for curve in own) for at in (0, -1)] for name in ("rank", "furthest")]
        middle = [statistics.fmean(curve["angle_percentiles"][at][1] for curve in own) for at in (0, -1)]
        (rank, last_rank), (_, furthest) = ends
        yield (
            (
                f"a mini-batch of rank {rank:.1f}, with a median angle of {middle[0]:.0f} degrees between two rows, has rank "
                f"{last_rank:.1f} and angle {middle[1]:.0f} after {own[0]['layer'][-1]} layers {EVERY_ARM[norm]}, its furthest row "
                f"{furthest:.0f} degrees from the others."
            ),
            None,
        )


def _matched(panel: Panel) -> Texts:
    """At the largest learning rate that is usable in both arms, and at the largest of each."""
    usable = {norm: {p.learning_rate: p for p in own if p.usable} for norm, own in panel.arms().items()}
    both = usable["batch"].keys() & usable["none"].keys()
    if both:
        rate = max(both)
        ours, other = (by_rate[rate] for by_rate in usable.values())
        verdict, wins = _verdict(ours, other)
        said = f"{_accuracy(ours)} with batch normalisation, {_accuracy(other)} without it"
        yield f"at the matched learning rate {rate:g}: {said}: {verdict}.", wins
    if all(usable.values()):
        largest = {norm: by_rate[max(by_rate)] for norm, by_rate in usable.items()}
        said = ", ".join(f"{_accuracy(p)} {ARMS[norm]} ({p.learning_rate:g})" for norm, p in largest.items())
        verdict, wins = _verdict(largest["batch"], largest["none"])
        yield f"each at its largest usable learning rate: {said}: {verdict}.", wins


def _movement(panel: Panel) -> Texts:
    """How far the median of the watched unit's input wanders, in widths between its outer percentiles."""
    drifts: dict[str, list[float]] = {norm: [] for norm in ARMS}
    for curve in panel.curves:
        least, middle, most = zip(*curve["input_percentiles"], strict=True)
        width = sum(b - a for a, b in zip(least, most, strict=True)) / len(least)
        drifts[curve["norm"]].append((max(middle) - min(middle)) / width)
    ours, other = (statistics.fmean(drift) for drift in drifts.values())
    low, high = interval(drifts["batch"], drifts["none"])
    tail = "" if high < 0 else " It moves more with it." if low > 0 else " No difference is shown."
    said = f"{ours:.2f} {ARMS['batch']}, {other:.2f} {ARMS['none']} ({_interval(low, high, '+.2f')})"
    moves = "over training the median input of the watched unit moves, in widths from its 15th to its 85th percentile,"
    yield f"{moves} by {said}.{tail}", high < 0


def _learned(panel: Panel) -> Texts:
    """Where gamma and beta of the watched layer end, in the mean of the seeds."""
    said = []
    for name, start in (("gamma", 1), ("beta", 0)):
        ends: Any = zip(*(c[f"{name}_percentiles"][-1] for c in panel.curves if c["norm"] == "batch"), strict=True)
        low, middle, high = (sum(values) / len(values) for values in ends)
        said.append(f"{name}, {start} at first, ends with median {middle:.2f} [{low:.2f}, {high:.2f}]")
    yield f"of the last hidden layer's units {', and '.join(said)}, 15th to 85th percentile.", None


def _same_trajectory(panel: Panel) -> Texts:
    """The largest difference of the losses with and without the bias, over seeds and looks."""
    losses = {(curve["value"], curve["seed"]): curve["loss"] for curve in panel.curves}
    gaps = [
        abs(a - b)
        for (value, seed), own in losses.items()
        if value == "with"
        for a, b in zip(own, losses["without", seed], strict=True)
    ]
    yield f"with and without the bias the losses of a batch differ by at most {max(gaps):.0e}, in float64.", None


COMPARED = (_fastest, _most_accurate, _diverged)

SAID: dict[str, tuple[Callable[[Panel], Texts], ...]] = {
    "section_4_1": (*COMPARED, _movement, _learned),
    "learning_rate": (functools.partial(_ranges, "learning_rate", "learning rates"), *COMPARED, _dynamic_tanh),
    "matched": (_matched, *COMPARED),
    "initial_scale": (functools.partial(_ranges, "value", "factors of the initial weights"), *COMPARED),
    "optimizer": (_rates_by_value, *COMPARED),
    "norm_position": (*COMPARED, _position),
    "batch_size": (*COMPARED, functools.partial(_losses, "rows in a batch")),
    "bias": (_same_trajectory,),
    "depth": (_deepest, *COMPARED, functools.partial(_losses, "hidden layers"), _dynamic_tanh),
    "geometry": (_geometry,),
}
"""What is said of each experiment."""
