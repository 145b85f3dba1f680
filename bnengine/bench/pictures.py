"""Pictures of benchmark records."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from .._drawing import BLUE, GREY, ORANGE, drawing, png, set_title
from .records import Record, Row, Speed

Bar = tuple[str, Speed, dict[str, float]]
"""Case, bnengine's speed over PyTorch, others' speeds over PyTorch."""

Drawer = Callable[[Any], object]
"""Draws on a part of matplotlib's figure."""

MARKERS = {"jax.jit": (ORANGE, "o"), "NumPy": (ORANGE, "D"), "bnengine": ("black", "*")}
"""Contenders beside the bars; bnengine's ordinary step where the bars are of the compiled one."""

BASES = ("PyTorch", "NumPy", "jax.jit", "scikit-learn", "bnengine without Numba", "bnengine reference")
"""Whose speed is 1 in a plot of speeds: the first of these that was measured."""

PANELS = {
    "fixed": "BN + ReLU, forward and backward",
    "steps": "a training step",
    "steps without BN": "a training step without batch normalisation",
    "scaling": "scaling",
}
"""What the rows of a group show, for the title over them; other groups are of shapes too."""


def speeds(record: Record) -> bytes:
    """Bars of bnengine's speed by case relative to `BASES`, and cost curves where they were measured, as a PNG."""
    groups: dict[str, list[Row]] = {}
    for row in record["rows"]:
        groups.setdefault(PANELS.get(row["group"], PANELS["fixed"]), []).append(row)
    groups.pop(PANELS["scaling"], None)
    panels: list[tuple[float, Drawer]] = []
    for title, rows in groups.items():
        panels += _speed_panel(rows, title)
    if costs := _cost_curves(record["rows"]):
        panels.append((3.2, lambda part: _draw_costs(part.subplots(1, len(costs), squeeze=False)[0], costs)))
    versions, date = record["versions"], record["date"][:10]
    load = f", load {record['load']['start']} to {record['load']['end']}"
    words = f"{record['processor']}, {record['cores']} processors, {record['dtype']}, bnengine {versions['bnengine']}"
    return _stack(panels, f"{words}, PyTorch {versions.get('torch', 'not installed')}, {date}{load}", width=9, dpi=150)


def _stack(panels: list[tuple[float, Drawer]], title: str, *, width: float, dpi: int) -> bytes:
    """Panels of their heights, in inches, under each other as a PNG."""
    heights = [height for height, _ in panels] or [1.0]
    figure = drawing()(figsize=(width, 0.4 + sum(heights)), layout="constrained", dpi=dpi)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (_, draw) in zip(parts, panels, strict=False):
        draw(part)
    set_title(figure, title)
    return png(figure)


def _speed_panel(rows: list[Row], title: str) -> list[tuple[float, Drawer]]:
    """A panel of bars relative to the first of `BASES` that was measured; none where none was."""
    base = next((name for name in BASES if any(name in row["speed_over"] for row in rows)), None)
    bars = [] if base is None else _speed_bars(rows, base)
    if not bars:
        return []
    label = "bnengine compiled" if any("bnengine" in others for _, _, others in bars) else "bnengine"
    return [(1.1 + 0.3 * len(bars), lambda part: _draw_bars(part.subplots(), bars, title, str(base), label))]


FAMILIES = {
    "bnengine": (BLUE, "o"),
    "PyTorch": (ORANGE, "s"),
    "torch.compile": (ORANGE, "x"),
    "jax.jit": (GREY, "D"),
    "bnengine portable": (BLUE, "."),
}
"""Who stands in a picture of a GPU's record, and how."""


def fractions(record: Record) -> bytes:
    """A GPU's record as a PNG: the part of the copy's bandwidth by case, kind of work and dtype; speeds of steps."""
    cold = [row for row in record["rows"] if row["clock"] == "cold"]
    loops = [row for row in record["rows"] if row["group"] == "steps, loop"]
    dtypes, works = (list(dict.fromkeys(row[name] for row in cold)) for name in ("dtype", "work"))
    panels: list[tuple[float, Drawer]] = []
    for dtype in dtypes:
        rows = [row for row in cold if row["dtype"] == dtype]
        height = 0.9 + 0.17 * len({row["case"] for row in rows})
        panels.append((height, functools.partial(_draw_fractions, rows=rows, works=works, dtype=dtype)))
    panels += _speed_panel(loops, "a training step")
    device, copy = record["device"], record["copy"]["bytes_per_second"] / 1e9
    words = f"{device['name']}, copy {copy:.4g} GB/s, bnengine {record['versions']['bnengine']}, {record['date'][:10]}"
    return _stack(panels, words, width=11, dpi=120)


def _draw_fractions(part: Any, rows: list[Row], works: list[str], dtype: str) -> None:
    """A column for each kind of work, a line for each case, the fastest variant of each family."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    columns = part.subplots(1, len(works), sharey=True, squeeze=False)[0]
    for axes, work in zip(columns, works, strict=True):
        for family, (colour, marker) in FAMILIES.items():
            best: dict[str, float] = {}
            for row in rows:
                if (row["work"], row["family"]) == (work, family):
                    best[row["case"]] = max(row["of_copy"]["median"], best.get(row["case"], 0.0))
            if best:
                places = [cases.index(case) for case in best]
                axes.scatter(list(best.values()), places, color=colour, marker=marker, s=14, label=family)
        axes.set_yticks(range(len(cases)), cases, fontsize=7)
        axes.set_title(f"{work}, {dtype}", fontsize=10)
        axes.set_xlabel("part of the copy's bandwidth, L2 cold", fontsize=8)
        axes.set_xlim(left=0)
        axes.grid(color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    columns[0].invert_yaxis()
    columns[-1].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _speed_bars(rows: list[Row], base: str) -> list[Bar]:
    """One for each case in which both were measured, in the order of the rows."""
    fastest_last = sorted(rows, key=lambda row: row["seconds"]["median"], reverse=True)
    bars = []
    for case in dict.fromkeys(row["case"] for row in rows):
        by_family = {row["family"]: row["speed_over"].get(base) for row in fastest_last if row["case"] == case}
        ours = by_family.pop("bnengine compiled", None) or by_family.pop("bnengine", None)
        if ours is not None:
            others = {name: over["median"] for name in MARKERS if name != base and (over := by_family.get(name))}
            bars.append((case, ours, others))
    return bars


def _draw_bars(axes: Any, bars: list[Bar], title: str, base: str, label: str) -> None:
    places = range(len(bars))
    ours = [speed["median"] for _, speed, _ in bars]
    reach = [[v["median"] - v["p20"] for _, v, _ in bars], [v["p80"] - v["median"] for _, v, _ in bars]]
    axes.barh(places, ours, xerr=reach, color=BLUE, ecolor=GREY, label=label, height=0.7)
    for family, (colour, marker) in MARKERS.items():
        points = [(bar[2][family], place) for place, bar in zip(places, bars, strict=True) if family in bar[2]]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=24, zorder=3, label=family)
    for place, (_, speed, others) in zip(places, bars, strict=True):
        end = max(speed["p80"], *others.values(), 1)  # past every mark
        axes.annotate(f"{speed['median']:.1f}", (end, place), (6, 0), textcoords="offset points", va="center")
    axes.margins(x=0.1)
    axes.axvline(1, color="black", linewidth=1.2)
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
    axes.annotate(base, (1, 1), (0, 2), **above)
    axes.set_yticks(places, [case for case, _, _ in bars])
    axes.invert_yaxis()
    mean = math.exp(sum(map(math.log, ours)) / len(ours))
    of_all = " (geometric mean)" if len(bars) > 1 else ""
    axes.set_title(f"{title}: {mean:.1f} times as fast as {base}{of_all}", pad=16, fontsize=11)
    axes.set_xlabel(f"times as fast as {base}; grey lines: 20th to 80th percentile")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _cost_curves(rows: list[Row]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What varies -> family -> (value, milliseconds of the fastest variant)."""
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if row["group"] == "scaling":
            points = curves.setdefault(f"{row['varies']} ({row['rest']})", {}).setdefault(row["family"], {})
            points[row["value"]] = min(1e3 * row["seconds"]["median"], points.get(row["value"], math.inf))
    return {varied: {family: sorted(p.items()) for family, p in by.items()} for varied, by in curves.items()}


def _draw_costs(panels: Any, costs: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    from matplotlib.ticker import LogLocator

    for axes, (varied, families) in zip(panels, costs.items(), strict=True):
        for (family, points), colour in zip(families.items(), (BLUE, ORANGE), strict=False):
            values, times = zip(*points, strict=True)
            axes.loglog(values, times, marker="o", markersize=3, color=colour, label=family)
            axes.set_xticks(values, values, rotation=45, fontsize=8)
        axes.set_xlabel(varied, fontsize=9)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(frameon=False, fontsize=8)
