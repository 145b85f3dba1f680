"""Clocks of a GPU: events around each call, with the L2 cache flushed or warm, and the host's time for the call."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import cupy
import numpy as np

from ..records import Row
from ..timing import Builder, Case, Contender, Outcome, check, compare, in_turn, row, shorten, spread

WARM_UPS = 10
COPIED = 1 << 30
"""Bytes of the copy that everything is held against: far more than any cache."""
FLUSHED = 4
"""Times the L2 cache that a flush reads."""
MOST, FEWEST = 1.5, 3
"""Seconds that a contender may take for its samples of a case, and how many it has in any case."""
LOOP = 10
"""Training steps in a row that the host waits for once."""

HOLD = """
extern "C" __global__ void bnengine_hold(long long cycles) {
  const long long until = clock64() + cycles;
  while (clock64() < until) {}
}
"""
READ = """
extern "C" __global__ void bnengine_read(const float4* x, long long n, float* never) {
  float sum = 0;
  for (long long i = blockIdx.x * 256LL + threadIdx.x; i < n; i += gridDim.x * 256LL) {
    float4 v = x[i];
    sum += v.x + v.y + v.z + v.w;
  }
  if (sum == 1) *never = sum;  // x is zero
}
"""
READERS = 1024
"""Blocks that read."""
CYCLES = 2e9
"""Of a multiprocessor in a second, at most: a slower one holds longer."""
LONGEST = 0.02
"""Seconds that the queue is held at most."""

Clock = Callable[[Contender, float], float]
"""From a contender, and the seconds in which the host queues its call, to a sample in seconds."""


def cold(contender: Contender, queued: float) -> float:
    """On the device, x and all else in its memory.

    The L2 cache is full of what was read, not of what was written: the call would pay for writing that back.
    """
    scratch = _scratch()
    blocks = min(READERS, -(-scratch.size // 1024))
    _read()((blocks,), (256,), (scratch, np.int64(scratch.size // 4), scratch))
    return warm(contender, queued)


def warm(contender: Contender, queued: float) -> float:
    """On the device, the L2 cache as the call before has left it.

    The queue is held until the host has put the whole call into it, so that the time between two launches is
    the device's and not the host's.
    """
    hold = min(2 * queued + 20e-6, LONGEST)
    _hold()((1,), (1,), (np.int64(hold * CYCLES),))
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    (contender.on_stream or contender.call)()
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) / 1e3


def call(contender: Contender, queued: float) -> float:  # noqa: ARG001
    """On the host, until the call returns; the device may still work."""
    began = time.perf_counter()
    contender.call()
    took = time.perf_counter() - began
    if contender.on_stream is not None:
        contender.on_stream()  # behind the call on its own stream
    _wait()
    return took


def loop(contender: Contender, queued: float) -> float:  # noqa: ARG001
    """On the host, for each of `LOOP` calls in a row, until the device is done with all."""
    began = time.perf_counter()
    for _ in range(LOOP - 1):
        contender.call()
    (contender.on_stream or contender.call)()
    _wait()
    return (time.perf_counter() - began) / LOOP


KERNEL_CLOCKS: dict[str, Clock] = {"cold": cold, "warm": warm, "call": call}
STEP_CLOCKS: dict[str, Clock] = {"loop": loop, "warm": warm, "call": call}


def _wait() -> None:
    cupy.cuda.get_current_stream().synchronize()


@functools.cache
def _hold() -> Any:
    return cupy.RawKernel(HOLD, "bnengine_hold")


@functools.cache
def _read() -> Any:
    return cupy.RawKernel(READ, "bnengine_read")


@functools.cache
def _scratch() -> Any:
    return cupy.zeros(FLUSHED * cupy.cuda.Device().attributes["L2CacheSize"] // 4, dtype=cupy.float32)


# ---- contenders in turn


def measure(
    case: Case,
    builders: Mapping[str, Builder],
    *,
    wants: Callable[[str], bool],
    repeats: int,
    clocks: dict[str, Clock],
) -> Outcome:
    """Check, time on each clock and compare the contenders of a case. One that is wrong is not timed."""
    errors, left_out = check(case, {family: build for family, build in builders.items() if wants(family)})
    samples = take_samples(list(errors), repeats, clocks)
    rows: list[Row] = []
    for clock in clocks:
        about: Row = {"clock": clock}
        rows += compare([about | row(c, error, samples[c.name][clock]) for c, error in errors.items()])
    return Outcome(rows, left_out)


def take_samples(
    contenders: list[Contender], repeats: int, clocks: dict[str, Clock]
) -> dict[str, dict[str, list[float]]]:
    """Contender -> clock -> samples. Each repeat goes through all contenders, starting one further on.

    One whose time is up has no further samples: those of all are still of the same repeats.
    """
    queued = {contender.name: _warm_up(contender) for contender in contenders}
    samples: dict[str, dict[str, list[float]]] = {c.name: {clock: [] for clock in clocks} for c in contenders}
    spent = dict.fromkeys(samples, 0.0)
    for contender in in_turn(contenders, repeats):
        taken = samples[contender.name]
        if spent[contender.name] > MOST and min(map(len, taken.values())) >= FEWEST:
            continue
        began = time.perf_counter()
        contender.prepare()
        for name, clock in clocks.items():
            taken[name].append(shorten(clock(contender, queued[contender.name])))
        spent[contender.name] += time.perf_counter() - began
    return samples


def _warm_up(contender: Contender) -> float:
    """Seconds in which the host queues a call, after those in which things are compiled and memory is obtained."""
    contender.prepare()
    call = contender.on_stream or contender.call
    call()
    _wait()
    took: list[float] = []
    first = time.perf_counter()
    while not took or (len(took) < WARM_UPS - 1 and time.perf_counter() - first < MOST / 3):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
        _wait()
    return statistics.median(took[len(took) // 2 :])


# ---- the copy


def copy(repeats: int) -> dict[str, Any]:
    """The device's copy of `COPIED` bytes: its samples, and the bytes that it reads and writes in a second."""
    source, to = (cupy.full(COPIED // 4, value, dtype=cupy.float32) for value in (1, 0))
    contender = Contender("copy", lambda: cupy.copyto(to, source), lambda: float((to != source).any()), 0)
    contender.call()
    if contender.error():
        raise RuntimeError("the device's copy gives other values than it was given")
    samples = take_samples([contender], repeats, {"warm": warm})[contender.name]["warm"]
    seconds = spread(samples)
    bandwidth = shorten(2 * COPIED / seconds["median"])
    return {"bytes": COPIED, "bytes_per_second": bandwidth, "seconds": seconds, "samples": samples}
