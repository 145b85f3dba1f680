"""The pictures of a run: its curves over the epochs, and which classes it takes for which."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._drawing import BLUE, FONT, GREY, ORANGE, drawable, drawing, png, set_title
from ..arguments import quantity
from .classes import COLUMNS


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
        f"{summary['data']}: {quantity(summary['epochs'], 'epoch')}, {summary['parameters']:,} parameters, "
        f"{summary['backend']} {summary['dtype']}",
    )
    return png(figure)


def confusion_picture(summary: dict[str, Any]) -> bytes:
    """What part of the test rows of each class was taken for which, with the counts of few classes, as a PNG file's bytes."""
    counts, names = np.asarray(summary["confusion"]), [drawable(name[:20]) for name in summary["classes"]]
    labelled = len(counts) <= COLUMNS
    side = 3 + 0.35 * len(counts) if labelled else 6
    figure = drawing()(figsize=(side + 1, side), layout="constrained", dpi=150)
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("blues", ["white", BLUE])
    image = axes.imshow(parts, cmap=colours, vmin=0, vmax=1)
    axes.set(xlabel="taken for", ylabel="class", xticks=[], yticks=[])
    if labelled:
        for axis, turn in ((axes.xaxis, 90 if max(len(text) for text, _ in names) > 3 else 0), (axes.yaxis, 0)):
            axis.set_ticks(range(len(names)), [text for text, _ in names], rotation=turn, fontsize=8)
            for label, (_, font) in zip(axis.get_ticklabels(), names, strict=True):
                label.set(family=[FONT, font], parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if parts[row, column] > 0.6 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="part of the class's rows", shrink=0.8)
    set_title(figure, f"{summary['data']}: {int(counts.sum())} test rows, accuracy {summary['test_accuracy']:.4f}")
    return png(figure)
