"""The picture of a run: its curves over the epochs."""

from __future__ import annotations

from typing import Any

from .._drawing import BLUE, GREY, ORANGE, drawing, png, set_title


def curves(history: list[dict[str, Any]], summary: dict[str, Any]) -> bytes:
    """Loss and accuracy (or r2) over the epochs, as a PNG file's bytes."""
    figure = drawing()(figsize=(9, 3.6), layout="constrained", dpi=150)
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    score = "accuracy" if "test_accuracy" in summary else "r2"
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    for axes, metric, title in ((left, "loss", "Loss"), (right, score, {"accuracy": "Accuracy", "r2": "R²"}[score])):
        for part, colour in (("train", BLUE), ("validation", ORANGE)):
            values = [row.get(f"{part}_{metric}") for row in history]
            if None not in values:
                axes.plot(epochs, values, color=colour, label=part, marker="o" if len(epochs) < 3 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True) if len(epochs) > 2 else FixedLocator(epochs))
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
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    set_title(
        figure,
        f"{summary['data']}: {summary['epochs']} epoch{'s' if summary['epochs'] > 1 else ''}, {summary['parameters']:,} parameters, "
        f"{summary['backend']} {summary['dtype']}",
    )
    return png(figure)
