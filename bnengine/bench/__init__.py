"""Measurements of batch normalisation and of whole training steps against the memory limit and other libraries."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import _drawing, backends, provenance
from .._typing import Library
from ..arguments import ConfigError
from ..kernels import workers
from ..options import Options as _Options
from ..options import at_least, option
from ..provenance import to_json as to_json
from . import networks, normalization, pictures, scaling, settings, steps, tables
from .limit import MINIMUM, PASSES
from .normalization import FIXED, Shape, draw_shapes
from .records import Mean, Record, Row, Speed
from .timing import (
    COPY,
    FAILED,
    OURS,
    RECORDED,
    WRONG,
    Builder,
    Case,
    Outcome,
    geometric_mean,
    measure,
    shorten,
    time_is_over,
)

PAUSE = 0.006
"""Seconds in which the threads of another library stop spinning."""

Layout = Literal["rows", "nchw", "nhwc"]
DTYPES = {"numpy": ("float32", "float64"), "cupy": ("float16", "bfloat16", "float32")}
"""What is measured on each backend."""
SAMPLES = {"numpy": 15, "cupy": 50}
"""Of each contender, unless asked otherwise."""
FORMAT = 1
"""Of the record; raised when a reader of older ones would misread it."""


@dataclass(frozen=True)
class Options(_Options):
    """What to measure. Field names are the options of `bnengine bench` with underscores."""

    COMMAND = "bench"

    kernels: bool = option(False, "batch normalisation (default: with steps)")
    steps: bool = option(False, "whole training steps (default: with kernels)")
    scaling: bool = option(False, "how cost grows with rows, channels, depth and batch")
    shapes: str | None = option(
        None, "shapes such as 4096x512,32x64x56x56; a list of its own where not given", metavar="NxC,..."
    )
    layout: Layout | None = option(None, "of --shapes; channels in place 1 where not given")
    draw: int | None = option(None, "draw so many shapes by --seed", within=at_least(1))
    seed: int = option(0, "of the drawn shapes and of the data", within=at_least(0))
    contenders: str | None = option(
        None, "bnengine against these, such as pytorch,jax.jit; all where not given", metavar="NAME,..."
    )
    dtype: str = option("float32", "float32 (default), float64; on cupy float16, bfloat16, float32")
    backend: Library = option("numpy", "numpy (default) or cupy")
    repeats: int | None = option(None, "samples of each contender; 15, on cupy 50, where not given", within=at_least(2))
    minutes: float | None = option(None, "begin no case after so many minutes", within=at_least(0))
    out: str | None = option(None, "write the record with all samples", metavar="FILE.json", kept=False)
    plot: str | None = option(
        None,
        "draw the speeds relative to PyTorch, or to another where it is not measured; on a GPU, parts of the copy's",
        metavar="FILE.png",
        kept=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        reason = backends.unusable(self.backend)
        if reason is not None:
            raise ConfigError(f"backend: {self.backend} cannot be used here: {reason}")
        if self.backend not in DTYPES:
            raise ConfigError(f"backend: bench measures {' and '.join(DTYPES)}; it does not measure {self.backend}")
        if self.dtype not in DTYPES[self.backend]:
            raise ConfigError(f"dtype: expected {' or '.join(DTYPES[self.backend])}, got {self.dtype!r}")
        if self.scaling and self.backend != "numpy":
            raise ConfigError(f"scaling: is measured on numpy only; leave it out for {self.backend}")
        if self.layout is not None and self.shapes is None:
            raise ConfigError("layout: says what shapes are, but shapes is not given")
        for name in ("shapes", "draw"):
            if getattr(self, name) is not None and not self.measures("kernels"):
                raise ConfigError(f"{name}: is for kernels; add --kernels or leave it out")
        if self.dtype not in DTYPES["numpy"] and self.measures("steps"):
            raise ConfigError(f"dtype: {self.dtype} is for kernels; add --kernels or leave it out")
        families = self.families()
        for name in [] if self.contenders is None else _names(self.contenders) or [""]:
            if name not in map(str.lower, families):
                raise ConfigError(f"contenders: expected some of {', '.join(families)}, got {name!r}")
        self.groups()

    @property
    def samples(self) -> int:
        """Of each contender."""
        return SAMPLES[self.backend] if self.repeats is None else self.repeats

    def measures(self, part: str) -> bool:
        """Whether "kernels", "steps" or "scaling" is measured: kernels and steps where nothing is asked for."""
        if self.kernels or self.steps or self.scaling:
            return bool(getattr(self, part))
        return part != "scaling"

    def families(self) -> list[str]:
        """Contenders of what is measured."""
        if self.backend == "cupy":
            from . import gpu

            parts = {"kernels": gpu.normalization.BUILDERS, "steps": gpu.steps.BUILDERS}
            return list(dict.fromkeys(name for part in parts if self.measures(part) for name in parts[part]))
        found = dict(normalization.BUILDERS) if self.measures("kernels") else {}
        for network in networks.FIXED if self.measures("steps") else ():
            found |= steps.builders(network)
        return list(dict.fromkeys([*found, *(scaling.FAMILIES if self.scaling else ())]))

    def groups(self) -> dict[str, list[Shape]]:
        """Shapes by the name of their group: the fixed list unless others are asked for."""
        found = {}
        if self.shapes is not None:
            found["shapes"] = list(dict.fromkeys(_shape(text, self.layout) for text in self.shapes.split(",")))
        if self.draw is not None:
            found["drawn"] = draw_shapes(self.draw, self.seed)
        if found:
            return found
        if self.backend == "cupy":
            from . import gpu

            return {"fixed": list(gpu.normalization.FIXED)}
        return {"fixed": list(FIXED)}

    def wants(self, family: str) -> bool:
        """Whether a contender was asked for. bnengine always is, and the copy, which the limit is taken from."""
        if self.contenders is None or family in (OURS, RECORDED, COPY):
            return True
        return family.lower() in _names(self.contenders)


def run(options: Options, tell: Callable[[str], None], keep: Callable[[Record], None] | None = None) -> Record:
    """Measure, telling lines of the table as they come; return the record, and keep it as it is after each case.

    Returns
    -------
    dict
        `rows`: one for each contender of each case, with its samples in seconds, their median and spread, and
        its speed over every other family's fastest variant, as median and spread of the ratios of each
        repeat. `left_out`: contenders that are not here or are wrong, with the reason. `summary`: geometric
        means. The rest says what was measured, where and with what.
    """
    began = time.perf_counter()
    record: Record = {
        "format": FORMAT,
        "command": options.command(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **provenance.describe(),
        "threads": workers.threads(),
        "load": {"start": provenance.load()},
        **{name: getattr(options, name) for name in ("backend", "dtype", "seed", "minutes")},
        "repeats": options.samples,
        "rows": [],
        "left_out": [],
        "summary": [],
    }
    if keep is not None:
        tell = _telling(tell, keep, record)
    if options.backend == "cupy":
        from . import gpu

        gpu.run(options, record, tell)
    else:
        _processor(options, record, tell)
    record["summary"] = summary(record["rows"])
    record["load"]["end"] = provenance.load()
    record["seconds"] = round(time.perf_counter() - began, 1)
    for line in tables.closing(record):
        tell(line)
    return record


def _telling(tell: Callable[[str], None], keep: Callable[[Record], None], record: Record) -> Callable[[str], None]:
    """`tell`, which also keeps the record where rows have come since: what was measured stays, however the rest ends."""
    kept = 0

    def told(line: str) -> None:
        nonlocal kept
        tell(line)
        if len(record["rows"]) > kept:
            kept = len(record["rows"])
            keep(record)

    return told


def _processor(options: Options, record: Record, tell: Callable[[str], None]) -> None:
    tell(tables.heading(record))
    if options.measures("kernels"):
        _normalization(options, record, tell)
    with settings.restore_at_end():  # a contender's threads and kernels are its own
        if options.measures("steps"):
            _steps(options, record, tell)
        if options.measures("scaling"):
            _scaling(options, record, tell)


def _normalization(options: Options, record: Record, tell: Callable[[str], None]) -> None:
    tell(tables.normalization_head(options.dtype, options.samples))
    for group, shapes in options.groups().items():
        for shape in shapes:
            case = normalization.Case(shape, options.dtype, options.seed)
            about: Row = {"group": group, "case": shape.name, "shape": list(shape.sizes), "axis": shape.axis}
            rows = _measure(options, record, case, about, normalization.BUILDERS)
            tell(tables.normalization_line(rows, shape.name))


def _steps(options: Options, record: Record, tell: Callable[[str], None]) -> None:
    for network in networks.FIXED:
        case = networks.Case(network, options.dtype, options.seed)
        about: Row = {"group": "steps" if network.norm else "steps without BN", "case": network.name}
        rows = _measure(options, record, case, about, steps.builders(network), steps.PAUSE)
        for line in tables.step_lines(rows, network.name, options.samples):
            tell(line)


def _scaling(options: Options, record: Record, tell: Callable[[str], None]) -> None:
    tell(tables.scaling_head(options.samples))
    for about, case, builders, pause in scaling.points(options.dtype, options.seed, PAUSE):
        chosen = {family: build for family, build in builders.items() if family in scaling.FAMILIES}
        rows = _measure(options, record, case, about, chosen, pause)
        tell(tables.scaling_line(rows, about["case"]))


def _measure(
    options: Options, record: Record, case: Case, about: Row, builders: Mapping[str, Builder], pause: float = PAUSE
) -> list[Row]:
    """The rows of a case, which are added to the record."""
    if time_is_over(options.minutes, record, about["case"]):
        return []
    outcome: Outcome = measure(case, builders, wants=options.wants, repeats=options.samples, pause=pause)
    rows = [about | row | _of_limit(row) for row in outcome.rows]
    record["rows"] += rows
    record["left_out"] += [{"case": about["case"], **left} for left in outcome.left_out]
    return rows


# ---- figures


def _of_limit(row: Row) -> Row:
    """The part of the limit that a row reaches: the time in which a copy moves the least traffic, over its own."""
    over = row["speed_over"].get(COPY)
    if over is None or row["family"] == COPY:
        return {}
    median, low, high = (shorten(part * MINIMUM / PASSES) for part in (over["median"], over["p20"], over["p80"]))
    return {"of_limit": {"median": median, "p20": low, "p80": high}}


def summary(rows: list[Row]) -> list[Mean]:
    """Geometric means of the speeds of bnengine's families over others, by group of cases."""
    speeds: dict[tuple[str, str, str], dict[str, Speed]] = {}
    for row in sorted(rows, key=lambda row: row["seconds"]["median"], reverse=True):  # the fastest variant last
        for other in row["speed_over"]:
            if row["family"].startswith(OURS) and other != row["family"] and other != COPY:
                speeds.setdefault((row["group"], row["family"], other), {})[row["case"]] = row["speed_over"][other]
    found = []
    for (group, family, other), cases in speeds.items():
        if group != "scaling":
            values = [speed["median"] for speed in cases.values()]
            numbers = {
                "geometric_mean": shorten(geometric_mean(values)),
                "lowest": min(values),
                "cases": len(values),
            }
            found.append({"group": group, "family": family, "over": other, **numbers})
    return found


def wrong(record: Record) -> list[str]:
    """What was refused because its results were wrong or it failed."""
    refused = [left for left in record["left_out"] if left["kind"] in (WRONG, FAILED)]
    return [f"{left['contender']}, {left['case']}: {left['reason']}" for left in refused]


# ---- checks


def check_plot(options: Options, plot: Path, out: Path | None) -> None:
    """Refuse a picture that could not be drawn or written, before anything is measured."""
    if plot == out:
        raise ConfigError(f"plot: {plot} is the file of --out too; choose another")
    if plot.suffix != ".png":
        raise ConfigError(f"plot: expected a name that ends in .png, got {plot}")
    if options.backend == "numpy" and not options.scaling and not any(map(options.wants, pictures.BASES)):
        raise ConfigError(f"plot: shows speeds relative to another contender; add one of {', '.join(pictures.BASES)}")
    _drawing.drawing()


def _names(contenders: str) -> list[str]:
    return [name.strip().lower() for name in contenders.split(",") if name.strip()]


def _shape(text: str, layout: str | None) -> Shape:
    try:
        sizes = tuple(int(size) for size in text.lower().strip().split("x"))
    except ValueError:
        raise ConfigError(f"shapes: expected sizes such as 4096x512, got {text!r}") from None
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(f"shapes: expected two positive sizes or more, got {text!r}")
    if layout == "rows" and len(sizes) > 2:
        raise ConfigError(f"layout: rows have two sizes, but shapes has {text!r}")
    shape = Shape(sizes, -1 if layout == "nhwc" and len(sizes) > 2 else 1)
    if math.prod(sizes) // sizes[shape.axis] < 2:
        raise ConfigError(f"shapes: expected two values or more for each channel, got {text!r}")
    return shape
