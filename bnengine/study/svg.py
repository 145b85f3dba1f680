"""Charts as SVG elements: text in the page's own colours, so that they follow dark mode and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 12, 40
CELL = 24
CROSS = "\N{MULTIPLICATION SIGN}"

VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Even steps of matplotlib's colour map, which keeps its order for the colour-blind and in grey."""


@dataclass(frozen=True)
class Series:
    """A line: x, y and perhaps the band around it; points that are not `solid` are drawn hollow."""

    name: str
    kind: str
    """Class of the style sheet: with, without, or other."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    solid: Sequence[bool] = ()
    titles: Sequence[str] = ()
    markers: bool = True


@dataclass(frozen=True)
class Scale:
    """From values to places on the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        part = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + min(max(part, 0.0), 1.0) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Powers of ten, over less than two decades 2 and 5 times them too; or about five round numbers."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1,) if self.high / self.low >= 100 else (1, 2, 5)
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            return [value for value in values if 0.999 * self.low <= value <= 1.001 * self.high]
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if (self.high - self.low) / (step * part) <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def line_chart(
    series: Sequence[Series], *, label: str, x_label: str, y_label: str, y_range: tuple[float, float] | None = (0, 1)
) -> str:
    """Lines over a logarithmic axis, with their names below; `label` is read out instead of the picture."""
    x = Scale(*_extent([v for line in series for v in line.x]), LEFT + 6, WIDTH - RIGHT - 6, log=True)
    low, high = y_range or _padded([v for line in series for v in (*line.y, *line.low, *line.high)])
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y, x_label, y_label), *(_line(line, x, y) for line in series)]
    return _picture(HEIGHT, label, parts) + _legend(series)


def _extent(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = _extent(values)
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _picture(height: float, label: str, parts: Sequence[str]) -> str:
    inner = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{inner}</svg>'


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    parts = []
    for tick in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, y(tick) + 4, f"{tick:g}", "end"))
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{x(tick)} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 15, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 10 {middle:g})">{_text(10, middle + 3, y_label, "middle")}</g>')
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _line(line: Series, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in zip(line.x, line.y, strict=True)]
    parts = [f'<g class="{line.kind}">']
    if line.low:
        edge = [(x(a), y(b)) for a, b in zip(line.x, line.high, strict=True)]
        edge += [(x(a), y(b)) for a, b in reversed(list(zip(line.x, line.low, strict=True)))]
        parts.append(f'<path class="band" d="{_path(edge)}Z"/>')
    parts.append(f'<path class="line" d="{_path(places)}"/>')
    if line.markers:
        solid = line.solid or [True] * len(places)
        titles = line.titles or [f"{line.name}: {a:g}, {b:.4g}" for a, b in zip(line.x, line.y, strict=True)]
        parts += map(MARKERS.get(line.kind, _circle), places, solid, titles)
    return "".join([*parts, "</g>"])


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in places)


def _circle(place: tuple[float, float], solid: bool, title: str) -> str:
    kind = "" if solid else ' class="hollow"'
    return f'<circle{kind} cx="{place[0]:g}" cy="{place[1]:g}" r="3.5"><title>{escape(title)}</title></circle>'


def _square(place: tuple[float, float], solid: bool, title: str) -> str:
    kind, (a, b) = "" if solid else ' class="hollow"', place
    return f'<rect{kind} x="{a - 3.5:g}" y="{b - 3.5:g}" width="7" height="7"><title>{escape(title)}</title></rect>'


MARKERS: dict[str, Callable[[tuple[float, float], bool, str], str]] = {"with": _circle, "without": _square}


def _legend(series: Sequence[Series]) -> str:
    entries = []
    for line in {line.name: line for line in series}.values():
        marker = MARKERS.get(line.kind, _circle)((14, 6), True, line.name) if line.markers else ""
        sample = f'<svg class="sample" viewBox="0 0 28 12" aria-hidden="true"><g class="{line.kind}">'
        entries.append(f'<span>{sample}<path class="line" d="M0 6H28"/>{marker}</g></svg>{escape(line.name)}</span>')
    return f'<p class="legend">{" ".join(entries)}</p>'


@dataclass(frozen=True)
class Cell:
    """A square of a heat map."""

    share: float
    """From 0 to 1: its colour, and in per cent its number."""
    framed: bool
    crossed: bool
    title: str


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell | None]],
    *,
    label: str,
    x_label: str,
    y_label: str,
) -> str:
    """A coloured table of percentages; a frame and a cross mark cells."""
    left = 12 + max(7 * max(map(len, rows)), 20)
    step = min(46.0, (WIDTH - left - 4) / len(columns))
    height = TOP + CELL * len(rows) + BOTTOM
    parts = []
    for i, name in enumerate(rows):
        parts.append(_text(left - 5, TOP + CELL * (i + 0.5) + 4, name, "end"))
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                parts.append(_cell(cell, left + step * j, TOP + CELL * i, step))
    for j, name in enumerate(columns):
        parts.append(_text(left + step * (j + 0.5), TOP + CELL * len(rows) + 15, name, "middle"))
    parts.append(_text(left + step * len(columns) / 2, height - 6, x_label, "middle"))
    parts.append(_text(0, 9, y_label, "start"))
    return _picture(height, label, parts)


def _cell(cell: Cell, x: float, y: float, step: float) -> str:
    colour = shade(cell.share)
    ink = "#000" if sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) > 130 else "#fff"
    frame = f' stroke="{ink}" stroke-width="2"' if cell.framed else ""
    box = f'<rect x="{x + 1.5:.1f}" y="{y + 1.5:.1f}" width="{step - 3:.1f}" height="{CELL - 3}"'
    number = _text(
        x + step / 2,
        y + CELL / 2 + 4,
        f"{100 * cell.share:.0f}{CROSS if cell.crossed else ''}",
        "middle",
        f' style="fill:{ink}"',
    )
    return f'<g>{box} fill="rgb{colour}"{frame}/>{number}<title>{escape(cell.title)}</title></g>'


def shade(share: float) -> tuple[int, int, int]:
    """The colour of a share from 0 (dark) to 1 (light).

    Examples
    --------
    >>> from bnengine.study.svg import shade
    >>> shade(0.0), shade(1.0)
    ((68, 1, 84), (253, 231, 37))
    """
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    i = min(int(place), len(VIRIDIS) - 2)
    red, green, blue = (round(a + (b - a) * (place - i)) for a, b in zip(VIRIDIS[i], VIRIDIS[i + 1], strict=True))
    return red, green, blue
