"""Contenders in one process: checked first, then timed in turn, then compared repeat by repeat."""

from __future__ import annotations

import datetime as dt
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..provenance import cores
from .records import LeftOut, Record, Row, Speed, Spread

SAMPLE = 5e-3
"""Seconds that a sample lasts at least: shorter calls are repeated within it, so that a slice of time that the
system gives to somebody else does not make most of a sample."""

LONG = 0.03
"""Seconds of a call that needs none before it to wake its threads."""

FAULT_CALLS = 20
"""Calls over which page faults are counted."""

OURS, WITHOUT_NUMBA, WEIGHTED = "bnengine", "bnengine without Numba", "bnengine with weights"
RECORDED = "bnengine compiled"
COPY, PRODUCTS = "copy", "matrix products"
NUMPY, PYTORCH, OPERATORS, COMPILED, JAX = "NumPy", "PyTorch", "PyTorch operators", "torch.compile", "jax.jit"
REFERENCE, PORTABLE = "bnengine reference", "bnengine portable"
"""Families that figures are quoted of."""

NOT_HERE, WRONG, FAILED = "not here", "wrong", "failed"
"""Why a contender was left out."""


def nothing() -> None:
    """Of a contender that needs no preparing."""


@dataclass(frozen=True)
class Contender:
    """One way to compute something. The variants of a family are alternatives; the fastest speaks for it."""

    family: str
    call: Callable[[], Any]
    """Does the work once, with fresh results, and waits until it is done; on a GPU it only queues the work."""
    error: Callable[[], float]
    """The largest error of `call` against float64, as a part of the largest value."""
    tolerance: float
    variant: str = ""
    prepare: Callable[[], Any] = nothing
    """Sets thread counts; called before each sample and not timed."""
    on_stream: Callable[[], Any] | None = None
    """Of a library that has GPU streams of its own: `call`, behind what the current stream does and before what it
    does next."""

    @property
    def name(self) -> str:
        """Family and variant, as tables call it."""
        return f"{self.family}, {self.variant}" if self.variant else self.family


Builder = Callable[[Any], Iterable[Contender]]
"""From a case to the contenders of a family; ImportError or ValueError says why there are none."""


class Case(Protocol):
    """What contenders work on. One that is wrong is looked at again on the data of `redraw`, where a case has that."""

    @property
    def steady(self) -> bool:
        """Whether page faults are worth counting."""


@dataclass(frozen=True)
class Outcome:
    """What became of one case: rows of those measured, and why the others were not."""

    rows: list[Row]
    left_out: list[LeftOut]


def measure(
    case: Case, builders: Mapping[str, Builder], *, wants: Callable[[str], bool], repeats: int, pause: float
) -> Outcome:
    """Check, time and compare the contenders of a case. One that is wrong is not timed."""
    errors, left_out = check(case, {family: build for family, build in builders.items() if wants(family)})
    calls, samples = take_samples(list(errors), repeats, pause)
    rows = []
    for contender, error in errors.items():
        about: Row = {"calls": calls[contender.name], "page_faults": page_faults(contender) if case.steady else None}
        rows.append(about | row(contender, error, samples[contender.name]))
    return Outcome(compare(rows), left_out)


def row(contender: Contender, error: float, samples: list[float]) -> Row:
    """What a record says of a contender."""
    names: Row = {"family": contender.family, "contender": contender.name, "error": shorten(error)}
    return names | {"seconds": spread(samples), "samples": samples}


def check(case: Case, builders: Mapping[str, Builder]) -> tuple[dict[Contender, float], list[LeftOut]]:
    """(contenders that may be timed, with their errors; why others may not)."""
    errors: dict[Contender, float] = {}
    left_out: list[LeftOut] = []
    for family, build in builders.items():
        try:
            made = list(build(case))
        except (ImportError, ValueError) as reason:
            left_out.append({"contender": family, "reason": " ".join(str(reason).split()), "kind": NOT_HERE})
            continue
        except Exception as reason:  # noqa: BLE001  one library's fault must not cost the others' figures
            left_out.append(failure(family, reason))
            continue
        for contender in made:
            try:
                contender.prepare()
                error = contender.error()
                if not error <= contender.tolerance and hasattr(case, "redraw"):
                    error = _error(contender.name, build(case.redraw()))
            except Exception as reason:  # noqa: BLE001
                left_out.append(failure(contender.name, reason))
                continue
            if error <= contender.tolerance:  # NaN is not
                errors[contender] = error
                continue
            words = f"wrong by {error:.2g} of the largest value, {contender.tolerance:g} is allowed"
            left_out.append({"contender": contender.name, "reason": words, "kind": WRONG})
    return errors, left_out


def _error(name: str, made: Iterable[Contender]) -> float:
    """The error of the contender of that name."""
    contender = next(contender for contender in made if contender.name == name)
    contender.prepare()
    return contender.error()


def time_is_over(minutes: float | None, record: Record, case: str) -> bool:
    """Whether the minutes have passed since the record was begun; then it says that the case is left out."""
    passed = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(record["date"])
    if minutes is None or passed.total_seconds() < 60 * minutes:
        return False
    reason = f"no time was left of --minutes {minutes:g}"
    record["left_out"].append({"case": case, "contender": "all", "reason": reason, "kind": NOT_HERE})
    return True


def failure(name: str, reason: Exception) -> LeftOut:
    """What is left out because it raised: in one line."""
    words = next(iter(str(reason).splitlines()), "")
    return {"contender": name, "reason": f"{type(reason).__name__}: {words}", "kind": FAILED}


def in_turn(contenders: list[Contender], repeats: int) -> Iterator[Contender]:
    """All contenders in each repeat, starting one further on, while no garbage is collected."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(repeats):
            first = repeat % max(len(contenders), 1)
            yield from contenders[first:] + contenders[:first]
    finally:
        if collecting:
            gc.enable()


def take_samples(
    contenders: list[Contender], repeats: int, pause: float
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """(calls in a sample, seconds for each call by repeat) of each contender.

    Each repeat goes through all contenders, starting one further on. Before its sample a contender gets a
    pause, in which the spinning threads of the one before go to sleep, and a short one a call to wake its own.
    """
    once = {contender.name: _once(contender) for contender in contenders}
    calls = {name: math.ceil(SAMPLE / took) if took < SAMPLE else 1 for name, took in once.items()}
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in in_turn(contenders, repeats):
        time.sleep(pause)
        contender.prepare()
        if once[contender.name] < LONG:
            contender.call()
        samples[contender.name].append(_seconds(contender.call, calls[contender.name]))
    return calls, samples


def _seconds(call: Callable[[], Any], times: int) -> float:
    """Seconds for each call."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return shorten((time.perf_counter() - began) / times)


def _once(contender: Contender) -> float:
    """About how long a call lasts, in seconds; two calls first, in which things are compiled."""
    contender.prepare()
    _seconds(contender.call, 2)
    return min(_seconds(contender.call, 1) for _ in range(3))


def page_faults(contender: Contender) -> float | None:
    """Minor page faults for each call in the steady state; None where the system does not count them."""
    if sys.platform == "win32":
        return None
    import resource

    contender.prepare()
    for _ in range(3):
        contender.call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(FAULT_CALLS):
        contender.call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / FAULT_CALLS


# ---- from samples to figures


def shorten(value: float) -> float:
    """To five digits: more than a clock on a busy machine can tell, and a record that a person can read."""
    return float(f"{value:.5g}")


def spread(values: Iterable[float]) -> Spread:
    """Median, 20th and 80th percentile."""
    low, middle, high = np.percentile(list(values), (20, 50, 80))
    return {"median": shorten(middle), "p20": shorten(low), "p80": shorten(high)}


def best(rows: Iterable[Row], family: str) -> Row | None:
    """The fastest variant of a family, by its median."""
    return min((row for row in rows if row["family"] == family), key=lambda row: row["seconds"]["median"], default=None)


def speed(row: Row, other: Row) -> Speed:
    """How many times as fast as the other: the ratio of each repeat that both have, then its median and spread."""
    ratios = [theirs / ours for ours, theirs in zip(row["samples"], other["samples"], strict=False)]
    return {"over": other["contender"], **spread(ratios)}


def compare(rows: list[Row]) -> list[Row]:
    """The rows of a case, each with its speed over every family's fastest variant."""
    families = dict.fromkeys(row["family"] for row in rows)
    leaders = {family: leader for family in families if (leader := best(rows, family)) is not None}
    return [
        {**row, "speed_over": {family: speed(row, other) for family, other in leaders.items() if other is not row}}
        for row in rows
    ]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios: the one that does not depend on which side is called 1."""
    return float(np.exp(np.mean(np.log(list(values)))))


def thread_counts() -> tuple[int, ...]:
    """One and all: those at which a library is tried."""
    return tuple(dict.fromkeys((1, cores())))


def threads(count: int) -> str:
    """The count in words."""
    return f"{count} thread{'s' if count > 1 else ''}"
