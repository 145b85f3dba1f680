"""The study's pictures, with matplotlib: PNG files of an experiment, and SVG of each panel for the page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .._drawing import BLUE, GREEN, GREY, ORANGE, drawing, png, set_title
from .experiments import EXPERIMENTS
from .points import WORDS, Panel, Point, experiments, shown
from .records import Curve, Record
from .trial import PERCENTILES

NAMES = {"batch": "with BN", "dyt": "with Dynamic Tanh", "none": "without"}
STYLES = {"batch": (BLUE, "o", "-"), "dyt": (GREEN, "^", "-."), "none": (ORANGE, "s", "--")}
CROSS = "\N{MULTIPLICATION SIGN}"
IN_CELLS = f"Numbers in cells are per cent, a frame means usable, {CROSS} that a seed diverged."


class Plot(NamedTuple):
    """A plot: its title, the words for those who do not see it, what draws it on matplotlib's axes, how to read it."""

    title: str
    alternative: str
    draw: Callable[[Any], None]
    reading: str = ""


def pictures(record: Record) -> Iterator[tuple[str, bytes]]:
    """(name of the experiment, PNG file's bytes) for each experiment."""
    for name, panels in experiments(record["rows"], record["curves"], record["meta"]["target"]).items():
        steps = max(row["steps"] for row in record["rows"] if row["experiment"] == name)
        words = f"{record['meta']['data']}, {len(record['meta']['seeds'])} seeds"
        words += f", {steps} steps" if steps else ""
        plots = [plot for panel in panels for plot in plots_of(panel)]
        yield name, png(picture(plots, f"{EXPERIMENTS[name].title}: {words}"))


def picture(plots: Sequence[Plot], title: str | None = None) -> Any:
    """A figure of plots, two beside each other, under a title; without a title each stands for itself."""
    columns = min(2, len(plots))
    rows = -(-len(plots) // columns)
    figure = drawing()(figsize=(4.5 * columns, 3.3 * rows), layout="constrained", dpi=110)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for plot, axes in zip(plots, places, strict=False):
        plot.draw(axes)
        if title is not None:
            axes.set_title(plot.title)
    for axes in places[len(plots) :]:
        axes.set_axis_off()
    if title is not None:
        set_title(figure, title)
        reading = dict.fromkeys(plot.reading for plot in plots if plot.reading)
        figure.supxlabel(" ".join(reading), fontsize=8, color=GREY)
    return figure


def plots_of(panel: Panel) -> list[Plot]:
    """The plots of a panel: curves over steps, lines over what is varied, or a heat map for each arm."""
    if panel.experiment == "section_4_1":
        return _section_4_1(panel.name, panel.curves)
    if panel.experiment == "geometry":
        return _geometry(panel.name, panel.curves)
    if panel.experiment == "bias":
        words = (
            f"{panel.name}: loss of the batch over the steps with and without the bias; the lines lie on each other."
        )
        own = [curve for curve in panel.curves if curve["seed"] == panel.curves[0]["seed"]]
        lines = [(c, "batch" if c["value"] == "with" else "none", f"{c['value']} the bias") for c in own]
        return [Plot(f"{panel.name}, both with BN", words, functools.partial(_seen, name="loss", lines=lines))]
    what = WORDS[EXPERIMENTS[panel.experiment].varies]
    seen = "the numbers are in the table."
    if panel.is_line():
        words = f"{panel.name}: test accuracy over {what}, with and without batch normalisation; {seen}"
        return [Plot(panel.name, words, functools.partial(_lines, panel=panel), "Bands: lowest to highest seed.")]
    found = []
    for norm in panel.norms():
        title = f"{panel.name}, {NAMES[norm]}"
        words = f"{title}: mean test accuracy in per cent over {what} and learning rate; {seen}"
        found.append(Plot(title, words, functools.partial(_heat_map, points=panel.arm(norm), what=what), IN_CELLS))
    return found


def _lines(axes: Any, panel: Panel) -> None:
    for norm in panel.norms():
        colour, marker, style = STYLES[norm]
        own = sorted(panel.arm(norm), key=lambda point: point.value)
        x = [point.value for point in own]
        axes.plot(x, [point.mean for point in own], style, marker=marker, color=colour, label=NAMES[norm])
        axes.fill_between(x, [p.low for p in own], [p.high for p in own], color=colour, alpha=0.18, linewidth=0)
        some = [point for point in own if not point.usable]
        axes.plot([p.value for p in some], [p.mean for p in some], marker, color=colour, markerfacecolor="white")
    axes.plot([], [], "o", color=GREY, markerfacecolor="white", label="not usable")
    axes.set(ylim=(0, 1), ylabel="test accuracy", xlabel=WORDS[EXPERIMENTS[panel.experiment].varies])
    _finish(axes)
    if len(x) <= 6:
        axes.set_xticks(x)


def _heat_map(axes: Any, points: Sequence[Point], what: str) -> None:
    from matplotlib.patches import Rectangle

    own = {(point.value, point.learning_rate): point for point in points}
    values = list(dict.fromkeys(value for value, _ in own))
    rates = sorted({rate for _, rate in own})
    table = [[own[value, rate].mean for rate in rates] for value in values]
    axes.pcolormesh(table, vmin=0, vmax=1, cmap="viridis")
    for i, value in enumerate(values):
        for j, rate in enumerate(rates):
            point = own[value, rate]
            words = f"{100 * point.mean:.0f}" + (CROSS if point.diverged else "")
            ink = "black" if point.mean > 0.6 else "white"
            axes.text(j + 0.5, i + 0.5, words, ha="center", va="center", color=ink, fontsize=9)
            if point.usable:
                axes.add_patch(Rectangle((j + 0.06, i + 0.1), 0.88, 0.8, fill=False, edgecolor=ink, linewidth=1.5))
    axes.set_xticks([j + 0.5 for j in range(len(rates))], [f"{rate:g}" for rate in rates])
    axes.set_yticks([i + 0.5 for i in range(len(values))], [shown(value) for value in values])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set(xlabel="learning rate", ylabel=what)


def _section_4_1(panel: str, curves: Sequence[Curve]) -> list[Plot]:
    first = {curve["norm"]: curve for curve in curves if curve["seed"] == curves[0]["seed"]}
    words = f"{panel}: test accuracy over the steps, a line for each seed."
    lines = [(curve, curve["norm"], NAMES[curve["norm"]]) for curve in curves]
    draw = functools.partial(_seen, name="test_accuracy", lines=lines, ylim=(0, 1))
    found = [Plot("Test accuracy, each seed", words, draw)]
    for norm in first:
        title = f"Input of a unit, {NAMES[norm]}"
        words = f"{title}: {PERCENTILES} percentiles over the steps."
        found.append(Plot(title, words, functools.partial(_inputs, first=first, norm=norm)))
    for name in ("gamma", "beta"):
        words = f"{name} of the last hidden layer over the steps: percentiles over its units, and the unit's own."
        draw = functools.partial(_learned, curve=first["batch"], name=name)
        found.append(Plot(f"What {name} has learned", words, draw))
    return found


def _seen(axes: Any, name: str, lines: Sequence[tuple[Curve, str, str]], **more: Any) -> None:
    """What was seen over the steps; of each curve, the arm in whose style it is drawn, and its label."""
    for curve, norm, label in lines:
        colour, _, style = STYLES[norm]
        axes.plot(curve["step"], curve[name], style, color=colour, label=label)
    axes.set(xlabel="step", ylabel=name.replace("_", " "), **more)
    _finish(axes)


def _inputs(axes: Any, first: dict[str, Curve], norm: str) -> None:
    every = [value for curve in first.values() for row in curve["input_percentiles"] for value in row]
    _band(axes, first[norm]["step"], first[norm]["input_percentiles"], STYLES[norm][0])
    axes.set(ylabel="input of the sigmoid", ylim=(min(every), max(every)))
    _finish(axes)


def _learned(axes: Any, curve: Curve, name: str) -> None:
    _band(axes, curve["step"], curve[f"{name}_percentiles"], BLUE)
    axes.plot(curve["step"], curve[name], ":", color=GREY, label="this unit")
    axes.set_ylabel(name)
    _finish(axes)


def _geometry(panel: str, curves: Sequence[Curve]) -> list[Plot]:
    words = f"{panel}: rank of a mini-batch over the layers of an untrained network, a line for each seed."
    found = [Plot(f"{panel}: rank", words, functools.partial(_ranks, curves=curves))]
    words = (
        f"{panel}: angles between the rows of a mini-batch over the layers, first seed; the numbers are in the table."
    )
    first = [curve for curve in curves if curve["seed"] == curves[0]["seed"]]
    reading = (
        f"Bands: {PERCENTILES[0]}th to {PERCENTILES[2]}th percentile. Dotted: the row that is furthest from the others."
    )
    return [*found, Plot(f"{panel}: angles", words, functools.partial(_angles, curves=first), reading)]


def _ranks(axes: Any, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for curve in curves:
        colour, _, style = STYLES[curve["norm"]]
        axes.plot(curve["layer"], curve["rank"], style, color=colour, label=NAMES[curve["norm"]])
    axes.set(xlabel="layer", ylabel="rank", yscale="log", ylim=(0.9, None))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, steps=False)


def _angles(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour, _, style = STYLES[curve["norm"]]
        low, middle, high = zip(*curve["angle_percentiles"], strict=True)
        axes.plot(curve["layer"], middle, style, color=colour, label=f"median, {NAMES[curve['norm']]}")
        axes.fill_between(curve["layer"], low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve["layer"], curve["furthest"], ":", color=colour)
    axes.set(xlabel="layer", ylabel="angle between two rows, degrees", ylim=(0, None))
    _finish(axes, steps=False)


def _band(axes: Any, steps: Sequence[int], rows: Sequence[Sequence[float]], colour: str) -> None:
    low, middle, high = zip(*rows, strict=True)
    axes.plot(steps, middle, color=colour, label="median")
    words = f"{PERCENTILES[0]}th to {PERCENTILES[2]}th percentile"
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0, label=words)
    axes.set_xlabel("step")


def _finish(axes: Any, *, steps: bool = True) -> None:
    """Of steps a logarithmic axis with few numbers on it; a grid, and names for all that is drawn."""
    from matplotlib.ticker import LogLocator, NullLocator

    if steps:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high >= 100 * low else (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys(), frameon=False, fontsize=7)
    axes.grid(color="#e5e7eb")
    axes.spines[["top", "right"]].set_visible(False)
