"""Measurements on a GPU that CuPy uses: a copy first, then kernels and training steps on several clocks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import cupy

from ... import provenance
from .. import networks, tables
from ..normalization import Shape
from ..records import Record, Row
from ..timing import Builder, Outcome, failure, shorten, time_is_over
from . import events, normalization, steps
from .shared import clear

if TYPE_CHECKING:
    from .. import Options


def run(options: Options, record: Record, tell: Callable[[str], None]) -> None:
    """Fill the record, on the stream that PyTorch takes too where nobody says otherwise."""
    with cupy.cuda.Stream.null:
        record |= provenance.gpu()
        record["copy"] = events.copy(options.samples)
        record["clocks"] = {"start": provenance.gpu_clocks()}
        tell(tables.gpu_heading(record))
        if options.measures("kernels"):
            tell(tables.gpu_head(options.dtype, options.samples))
            for group, shapes in options.groups().items():
                for shape, work in itertools.product(shapes, normalization.TRAFFIC):
                    _kernels(options, record, tell, group, shape, work)
        if options.measures("steps"):
            for network in steps.NETWORKS:
                make = functools.partial(networks.Case, network, options.dtype, options.seed, "cupy")
                rows = _measure(options, record, make, {"group": "steps", "case": network.name}, steps.BUILDERS)
                for line in tables.gpu_step_lines(rows, network.name, options.samples):
                    tell(line)
        record["clocks"]["end"] = provenance.gpu_clocks()


def _kernels(
    options: Options, record: Record, tell: Callable[[str], None], group: str, shape: Shape, work: str
) -> None:
    about: Row = {"group": f"{group}, {work}", "case": shape.name, "work": work}
    about |= {"shape": list(shape.sizes), "axis": shape.axis}
    make = functools.partial(normalization.Case, shape, options.dtype, work, options.seed)
    rows = _measure(options, record, make, about, normalization.BUILDERS)
    tell(tables.gpu_line(rows, shape.name, work))


def _measure(
    options: Options, record: Record, make: Callable[[], Any], about: Row, builders: Mapping[str, Builder]
) -> list[Row]:
    """The rows of a case, one for each clock of each contender; what fails is named, and the others go on."""
    if time_is_over(options.minutes, record, about["case"]):
        return []
    clocks = events.STEP_CLOCKS if about["group"] == "steps" else events.KERNEL_CLOCKS
    try:
        clear()
        case = make()
        outcome = events.measure(case, builders, wants=options.wants, repeats=options.samples, clocks=clocks)
    except Exception as reason:  # noqa: BLE001  out of memory, or the device is lost
        outcome = Outcome([], [failure("all", reason)])
    about = about | {"dtype": options.dtype}
    rows = [about | row | {"group": f"{about['group']}, {row['clock']}"} for row in outcome.rows]
    if "work" in about:
        rows = [row | _of_copy(row, case.floor / record["copy"]["bytes_per_second"]) for row in rows]
    record["rows"] += rows
    record["left_out"] += [{"case": about["case"], "work": about.get("work"), **left} for left in outcome.left_out]
    return rows


def _of_copy(row: Row, least: float) -> Row:
    """The part of the copy's bandwidth that a row reaches, counted on the traffic that the work takes at least."""
    if row["clock"] == "call":
        return {}
    seconds = row["seconds"]
    median, slow, fast = (shorten(least / part) for part in (seconds["median"], seconds["p80"], seconds["p20"]))
    return {"of_copy": {"median": median, "p20": slow, "p80": fast}}
