"""What every picture is drawn with: matplotlib or the reason why not, PNG and SVG, four colours, titles of any text."""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any

BLUE, ORANGE, GREEN, GREY = "#3b6fb6", "#d9822b", "#2f855a", "#6b7280"

FONT = "DejaVu Sans"
"""Comes with matplotlib."""

LETTERS_FOR_AN_INCH = 11
"""Of a title, in letters of ten points."""


def drawing() -> Any:
    """Matplotlib's Figure, or ImportError naming the extra that is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib; install the extra train") from error
    return Figure


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(figure: Any) -> bytes:
    """A matplotlib figure as an SVG file's bytes: text as text, and the same bytes for the same figure."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "bnengine"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def set_title(figure: Any, text: str) -> None:
    """Write a title over a figure, in as many lines as it takes."""
    text, font = drawable(text)
    lines = textwrap.fill(text, int(LETTERS_FOR_AN_INCH * figure.get_figwidth()), break_on_hyphens=False)
    # A $ in the name of a file begins no formula.
    figure.suptitle(lines, fontsize=10, color=GREY, family=[FONT, font], parse_math=False)


def drawable(text: str) -> tuple[str, str]:
    """The text, and an installed font for what matplotlib's own lacks; without such a font "…" is in its place."""
    from matplotlib.font_manager import findfont, fontManager

    own = str(findfont(FONT))
    missing = {letter for letter in text if not _has(own, letter)}
    for font in fontManager.ttflist if missing else ():
        if "Last Resort" not in font.name and all(
            _has(font.fname, letter) for letter in missing
        ):  # that has boxes only
            return text, str(font.name)
    return (re.sub(f"[{re.escape(''.join(missing))}]+", "…", text) if missing else text), FONT


def _has(path: str, letter: str) -> bool:
    from matplotlib import font_manager

    try:
        return bool(font_manager.get_font(path).get_char_index(ord(letter)))
    except (OSError, RuntimeError):  # a font that has gone, or that cannot be read
        return False
