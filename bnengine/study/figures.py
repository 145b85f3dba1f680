"""From points and curves to charts of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .experiments import EXPERIMENTS
from .points import MARGIN, WORDS, Point, arm, is_line, shown
from .running import PERCENTILES, Curve
from .svg import Cell, Series, heat_map, line_chart

NAMES = {"batch": "with BN", "none": "without"}
KINDS = {"batch": "with", "none": "without"}
OVER_STEPS = ("section_4_1", "bias")
"""Experiments whose figures are curves over the steps."""


def of_panel(panel: str, points: Sequence[Point], curves: Sequence[Curve]) -> Iterator[str]:
    """The figures of a panel: curves over steps, lines over what is varied, or a heat map for each arm."""
    experiment = points[0].experiment
    if experiment == "section_4_1":
        yield from _section_4_1(panel, curves)
    elif experiment == "bias":
        yield _bias(panel, curves)
    elif is_line(points):
        yield _lines(panel, points)
    else:
        yield from _heat_maps(panel, points)


def described(point: Point) -> str:
    """A point in words, for those who hover or listen."""
    said = f"{NAMES[point.norm]}, {point.setting}: {point.mean:.4f} [{point.low:.4f}, {point.high:.4f}]"
    said += f", {point.diverged} of {len(point.accuracies)} diverged" if point.diverged else ""
    return said + (", usable" if point.usable else "")


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _lines(panel: str, points: Sequence[Point]) -> str:
    series = []
    for norm, name in NAMES.items():
        own = sorted(arm(points, norm), key=lambda point: point.value)
        series.append(
            Series(
                name,
                KINDS[norm],
                [float(point.value) for point in own],
                [point.mean for point in own],
                [point.low for point in own],
                [point.high for point in own],
                [point.usable for point in own],
                [described(point) for point in own],
            )
        )
    least = max(point.mean for point in points) - MARGIN
    ends = [min(series[0].x), max(series[0].x)]
    series.append(Series("usable from here", "other", ends, [least, least], markers=False))
    what = WORDS[EXPERIMENTS[points[0].experiment].varies]
    label = f"{panel}: test accuracy over {what}, with and without batch normalisation; the numbers are in the table."
    return _figure(panel, line_chart(series, label=label, x_label=what, y_label="test accuracy"))


def _heat_maps(panel: str, points: Sequence[Point]) -> Iterator[str]:
    rates = sorted({point.learning_rate for point in points})
    what = WORDS[EXPERIMENTS[points[0].experiment].varies]
    for norm, name in NAMES.items():
        own = {(point.value, point.learning_rate): point for point in arm(points, norm)}
        values = list(dict.fromkeys(value for value, _ in own))
        cells = [[_cell(own.get((value, rate))) for rate in rates] for value in values]
        caption = f"{panel}, {name}"
        chart = heat_map(
            [shown(value) for value in values],
            [f"{rate:g}" for rate in rates],
            cells,
            label=f"{caption}: mean test accuracy in per cent over {what} and learning rate; the numbers are in the table.",
            x_label="learning rate",
            y_label=what,
        )
        yield _figure(caption, chart)


def _cell(point: Point | None) -> Cell | None:
    return None if point is None else Cell(point.mean, point.usable, point.diverged > 0, described(point))


def _section_4_1(panel: str, curves: Sequence[Curve]) -> Iterator[str]:
    yield _accuracies(panel, curves)
    first = {curve["norm"]: curve for curve in curves if curve["seed"] == curves[0]["seed"]}
    yield from _inputs(first)
    for name in ("gamma", "beta"):
        yield _learned(first["batch"], name)


def _accuracies(panel: str, curves: Sequence[Curve]) -> str:
    series = [
        Series(NAMES[curve["norm"]], KINDS[curve["norm"]], curve["step"], curve["test_accuracy"], markers=False)
        for curve in curves
    ]
    label = f"{panel}: test accuracy over the steps, a line for each seed."
    chart = line_chart(series, label=label, x_label="step", y_label="test accuracy")
    return _figure("Test accuracy, each seed", chart)


def _inputs(first: dict[str, Curve]) -> Iterator[str]:
    """The watched unit's input in both arms, over the same range."""
    values = [value for curve in first.values() for row in curve["input_percentiles"] for value in row]
    y_range = min(values), max(values)
    for norm, curve in first.items():
        caption = f"Input of a unit, {NAMES[norm]}"
        label = f"{caption}: {PERCENTILES} percentiles over the steps."
        band = _band(PERCENTILES, KINDS[norm], curve["step"], curve["input_percentiles"])
        chart = line_chart(band, label=label, x_label="step", y_label="input of the sigmoid", y_range=y_range)
        yield _figure(caption, chart)


def _learned(curve: Curve, name: str) -> str:
    series = _band(PERCENTILES, "with", curve["step"], curve[f"{name}_percentiles"])
    series.append(Series("this unit", "other", curve["step"], curve[name], markers=False))
    label = f"{name} of the last hidden layer over the steps: percentiles over its units, and the unit's own."
    chart = line_chart(series, label=label, x_label="step", y_label=name, y_range=None)
    return _figure(f"What {name} has learned", chart)


def _band(percentiles: Sequence[int], kind: str, steps: Sequence[int], rows: Sequence[Sequence[float]]) -> list[Series]:
    low, middle, high = zip(*rows, strict=True)
    name = f"median, {percentiles[0]}th to {percentiles[2]}th percentile"
    return [Series(name, kind, steps, middle, low, high, markers=False)]


def _bias(panel: str, curves: Sequence[Curve]) -> str:
    first = [curve for curve in curves if curve["seed"] == curves[0]["seed"]]
    kinds = {"with": "with", "without": "without"}
    series = [
        Series(f"{curve['value']} the bias", kinds[curve["value"]], curve["step"], curve["loss"], markers=False)
        for curve in first
    ]
    label = f"{panel}: loss of the batch over the steps with and without the bias; the lines lie on each other."
    return _figure(
        f"{panel}, both with BN", line_chart(series, label=label, x_label="step", y_label="loss", y_range=None)
    )
