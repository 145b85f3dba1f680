"""The same figures as PNG files, with matplotlib."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._drawing import BLUE, GREY, ORANGE, png
from .experiments import EXPERIMENTS
from .figures import NAMES
from .points import MARGIN, WORDS, Point, arm, is_line, panels, points, shown
from .running import PERCENTILES, Curve

STYLES = {"batch": (BLUE, "o", "-"), "none": (ORANGE, "s", "--")}

Drawer = Callable[[Any], None]
"""Draws on matplotlib's axes."""


def pictures(record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(name of the experiment, PNG file's bytes) for each experiment."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; install the extra train") from error

    found = panels(points(record["rows"]))
    meta = record["meta"]
    for name in dict.fromkeys(experiment for experiment, _ in found):
        drawers: list[Drawer] = []
        for (experiment, panel), group in found.items():
            if experiment == name:
                own = [c for c in record["curves"] if (c["experiment"], c["panel"]) == (name, panel)]
                drawers += _drawers(panel, group, own)
        columns = min(2, len(drawers))
        rows = -(-len(drawers) // columns)
        figure = Figure(figsize=(4.5 * columns, 3.3 * rows), layout="constrained", dpi=110)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for draw, place in zip(drawers, axes, strict=False):
            draw(place)
        for place in axes[len(drawers) :]:
            place.set_axis_off()
        steps = max(row["steps"] for row in record["rows"] if row["experiment"] == name)
        words = f"{meta['data']}, {len(meta['seeds'])} seeds, {steps} steps"
        figure.suptitle(f"{EXPERIMENTS[name].title}: {words}", fontsize=10, color=GREY)
        yield name, png(figure)


def _drawers(panel: str, group: Sequence[Point], curves: Sequence[Curve]) -> list[Drawer]:
    experiment = group[0].experiment
    if experiment == "section_4_1":
        return [lambda axes: _accuracies(axes, curves), *_of_a_unit(curves)]
    if experiment == "bias":
        return [lambda axes: _losses(axes, panel, curves)]
    if is_line(group):
        return [lambda axes: _lines(axes, panel, group)]
    return [functools.partial(_heat_map, panel=panel, norm=norm, group=group) for norm in NAMES]


def _lines(axes: Any, panel: str, group: Sequence[Point]) -> None:
    for norm, name in NAMES.items():
        colour, marker, style = STYLES[norm]
        own = sorted(arm(group, norm), key=lambda point: point.value)
        x = [point.value for point in own]
        axes.plot(x, [point.mean for point in own], style, color=colour, label=name)
        axes.fill_between(x, [p.low for p in own], [p.high for p in own], color=colour, alpha=0.18, linewidth=0)
        for usable in (True, False):
            some = [point for point in own if point.usable == usable]
            face = colour if usable else "white"
            axes.plot([p.value for p in some], [p.mean for p in some], marker, color=colour, markerfacecolor=face)
    axes.axhline(max(point.mean for point in group) - MARGIN, color=GREY, linestyle=":", linewidth=1, label="usable")
    axes.set(title=panel, xscale="log", ylim=(0, 1), ylabel="test accuracy")
    axes.set_xlabel(WORDS[EXPERIMENTS[group[0].experiment].varies])
    if len(x) <= 5:  # less than two decades: powers of ten alone would say too little
        axes.set_xticks(x)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    _finished(axes)


def _heat_map(axes: Any, panel: str, norm: str, group: Sequence[Point]) -> None:
    own = {(point.value, point.learning_rate): point for point in arm(group, norm)}
    values = list(dict.fromkeys(value for value, _ in own))
    rates = sorted({point.learning_rate for point in group})
    table = [[own[value, rate].mean for rate in rates] for value in values]
    axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, value in enumerate(values):
        for j, rate in enumerate(rates):
            point = own[value, rate]
            words = f"{100 * point.mean:.0f}" + ("x" if point.diverged else "")
            ink = "black" if point.mean > 0.6 else "white"
            weight = "bold" if point.usable else "normal"
            axes.text(j, i, words, ha="center", va="center", color=ink, weight=weight, fontsize=9)
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(values)), [shown(value) for value in values])
    axes.set(title=f"{panel}, {NAMES[norm]}", xlabel="learning rate")
    axes.set_ylabel(WORDS[EXPERIMENTS[group[0].experiment].varies])


def _accuracies(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour, _, style = STYLES[curve["norm"]]
        axes.plot(curve["step"], curve["test_accuracy"], style, color=colour, label=NAMES[curve["norm"]])
    axes.set(title="Test accuracy, each seed", xscale="log", xlabel="step", ylim=(0, 1))
    _finished(axes)


def _of_a_unit(curves: Sequence[Curve]) -> list[Drawer]:
    first = {curve["norm"]: curve for curve in curves if curve["seed"] == curves[0]["seed"]}
    return [
        *(functools.partial(_inputs, first=first, norm=norm) for norm in first),
        *(functools.partial(_learned, curve=first["batch"], name=name) for name in ("gamma", "beta")),
    ]


def _inputs(axes: Any, first: dict[str, Curve], norm: str) -> None:
    every = [value for curve in first.values() for row in curve["input_percentiles"] for value in row]
    _band(axes, first[norm]["step"], first[norm]["input_percentiles"], STYLES[norm][0])
    axes.set(title=f"Input of a unit, {NAMES[norm]}", ylim=(min(every), max(every)))


def _learned(axes: Any, curve: Curve, name: str) -> None:
    _band(axes, curve["step"], curve[f"{name}_percentiles"], BLUE)
    axes.plot(curve["step"], curve[name], ":", color=GREY, label="this unit")
    axes.set(title=f"What {name} has learned")
    axes.legend(frameon=False, fontsize=8)


def _band(axes: Any, steps: Sequence[int], rows: Sequence[Sequence[float]], colour: str) -> None:
    low, middle, high = zip(*rows, strict=True)
    axes.plot(steps, middle, color=colour, label=f"median, percentiles {PERCENTILES[0]} and {PERCENTILES[2]}")
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set(xscale="log", xlabel="step")
    _finished(axes)


def _losses(axes: Any, panel: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        if curve["seed"] == curves[0]["seed"]:
            colour, _, style = STYLES["batch" if curve["value"] == "with" else "none"]
            axes.plot(curve["step"], curve["loss"], style, color=colour, label=f"{curve['value']} the bias")
    axes.set(title=f"{panel}, both with BN", xscale="log", xlabel="step", ylabel="loss")
    _finished(axes)


def _finished(axes: Any) -> None:
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=8)
    axes.grid(color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
