"""Pictures of runs and of benchmark records."""

from __future__ import annotations

import io
import math
from typing import Any

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#6b7280"


def curves(history: list[dict[str, Any]], summary: dict[str, Any]) -> bytes:
    """Loss and accuracy (or r2) over the epochs, as a PNG file's bytes."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
    except ImportError as error:
        raise ImportError("curves.png needs matplotlib; install the extra train") from error

    score = "accuracy" if "test_accuracy" in summary else "r2"
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, metric, title in ((left, "loss", "Loss"), (right, score, {"accuracy": "Accuracy", "r2": "R²"}[score])):
        for part, colour in (("train", BLUE), ("validation", ORANGE)):
            values = [row.get(f"{part}_{metric}") for row in history]
            if None not in values:
                axes.plot(epochs, values, color=colour, label=part, marker="o" if len(epochs) < 3 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    test = summary[f"test_{score}"]
    if test is not None:
        right.axhline(test, color=GREY, linestyle="--", linewidth=1, label=f"test, at the end: {test:.4f}")
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.suptitle(
        f"{summary['data']}: {summary['epochs']} epochs, {summary['parameters']:,} parameters, "
        f"{summary['backend']} {summary['dtype']}",
        fontsize=10,
        color=GREY,
    )
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ---- benchmark records


def speeds(record: dict[str, Any]) -> bytes:
    """Bars of bnengine's speed relative to PyTorch's by case, and cost curves where they were measured, as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot: needs matplotlib; install the extra train") from error

    bars, costs = _speed_bars(record["rows"]), _cost_curves(record["rows"])
    heights = ([1.2 + 0.36 * len(bars)] if bars else []) + ([3.2] if costs else [])
    figure = Figure(figsize=(9, 0.5 + sum(heights or [1])), layout="constrained", dpi=150)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0] if heights else []
    if bars:
        _draw_bars(parts[0].subplots(), bars)
    if costs:
        _draw_costs(parts[-1].subplots(1, len(costs), squeeze=False)[0], costs)
    figure.suptitle(
        f"{record['processor']}, {record['cores']} processors, {record['dtype']}, bnengine "
        f"{record['versions']['bnengine']}, {record['date'][:10]}",
        fontsize=9,
        color=GREY,
    )
    return _png(figure)


def _speed_bars(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], dict[str, float]]]:
    """(case, our speed over PyTorch, others' speeds over PyTorch), in the record's order."""
    bars: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {}
    fastest = sorted(rows, key=lambda row: row["seconds"]["median"])
    for row in rows:
        if row["group"] == "scaling" or row["family"] != "bnengine" or row["case"] in bars:
            continue
        case = [other for other in fastest if (other["group"], other["case"]) == (row["group"], row["case"])]
        by_family = {other["family"]: other["speed_over"].get("PyTorch") for other in reversed(case)}  # fastest last
        if by_family["bnengine"] is not None:
            others = {
                name: value["median"] for name, value in by_family.items() if value and name in ("jax.jit", "NumPy")
            }
            bars[row["case"]] = (row["case"], by_family["bnengine"], others)
    return list(bars.values())


def _draw_bars(axes: Any, bars: list[tuple[str, dict[str, Any], dict[str, float]]]) -> None:
    places = range(len(bars))
    ours = [speed["median"] for _, speed, _ in bars]
    reach = [[v["median"] - v["p20"] for _, v, _ in bars], [v["p80"] - v["median"] for _, v, _ in bars]]
    axes.barh(places, ours, xerr=reach, color=BLUE, ecolor=GREY, label="bnengine", height=0.7)
    for family, marker in (("jax.jit", "o"), ("NumPy", "D")):
        points = [
            (others[family], place) for place, (_, _, others) in zip(places, bars, strict=True) if family in others
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=ORANGE, s=16, zorder=3, label=family)
    for place, value in zip(places, ours, strict=True):
        axes.annotate(f"{value:.1f}", (0, place), (4, 0), textcoords="offset points", color="white", va="center")
    axes.axvline(1, color="black", linewidth=1.2)
    axes.annotate(
        "PyTorch", (1, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center"
    )
    axes.set_yticks(places, [case for case, _, _ in bars])
    axes.invert_yaxis()
    mean = math.exp(sum(map(math.log, ours)) / len(ours))
    axes.set_title(f"bnengine is {mean:.1f} times as fast as PyTorch (geometric mean)", pad=18)
    axes.set_xlabel("times as fast as PyTorch")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")


def _cost_curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What varies -> family -> (value, seconds of the fastest variant)."""
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        if row["group"] == "scaling" and row["family"] != "copy":
            points = curves.setdefault(row["varies"], {}).setdefault(row["family"], {})
            points[row["value"]] = min(row["seconds"]["median"], points.get(row["value"], math.inf))
    return {varied: {family: sorted(p.items()) for family, p in by.items()} for varied, by in curves.items()}


def _draw_costs(panels: Any, costs: dict[str, dict[str, list[tuple[float, float]]]]) -> None:
    for axes, (varied, families) in zip(panels, costs.items(), strict=True):
        for (family, points), colour in zip(families.items(), (BLUE, ORANGE, GREY, "black"), strict=False):
            axes.loglog(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=family)
        axes.set(title=varied, xlabel=varied)
        axes.grid(color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False, fontsize=8)
