"""What every picture is drawn with: matplotlib or the reason why not, PNG files, three colours."""

from __future__ import annotations

import io
from typing import Any

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#6b7280"


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
