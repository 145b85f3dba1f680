"""Loops over one channel of channels-first data: its `planes` are runs of `length` values, `step` apart in a flat array.

Sums live in registers, 64 partial ones. Statistics take one pass over memory: about 4096 values at a time (in
the first-level cache) are summed about the mean so far and merged in float64.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from ..._typing import Native
from .coefficients import gradient, normalized
from .compiling import compiled
from .vectors import fence, lanes, last, load, splat, store, stream, total, where_active

VALUES = 4096  # summed in the dtype of x
FIRST = 128  # from which the first center is taken

Runs: TypeAlias = tuple[int, int, int, int]
"""Where the first begins, how far the next is, how many there are, and the length of each."""

Line: TypeAlias = tuple[float, float, float]
"""(mean, scale, shift): y = (x - mean) * scale + shift."""


@compiled
def _sums_about(x: Native, runs: Runs, center: float) -> tuple[float, float]:
    """sum(x - center), sum((x - center)^2)."""
    start, step, planes, length = runs
    c, zero = splat(center), splat(x.dtype.type(0))
    s0, s1, s2, s3 = zero, zero, zero, zero
    q0, q1, q2, q3 = zero, zero, zero, zero
    n = lanes(x)
    rest = length % n
    for plane in range(planes):
        first = start + plane * step
        quads = first + length - length % (4 * n)
        whole = first + length - rest
        for i in range(first, quads, 4 * n):
            d0 = load(x, i) - c
            d1 = load(x, i + n) - c
            d2 = load(x, i + 2 * n) - c
            d3 = load(x, i + 3 * n) - c
            s0, s1, s2, s3 = s0 + d0, s1 + d1, s2 + d2, s3 + d3
            q0, q1, q2, q3 = q0 + d0 * d0, q1 + d1 * d1, q2 + d2 * d2, q3 + d3 * d3
        for i in range(quads, whole, n):
            d0 = load(x, i) - c
            s0, q0 = s0 + d0, q0 + d0 * d0
        if rest:
            d1 = last(load(x, first + length - n) - c, rest)
            s1, q1 = s1 + d1, q1 + d1 * d1
    return total((s0, s1, s2, s3)), total((q0, q1, q2, q3))


@compiled
def moments(x: Native, runs: Runs) -> tuple[float, float]:
    """Mean of one channel and the sum of squares about it."""
    start, step, planes, length = runs
    together = max(1, VALUES // length)
    # The first center is the first value, corrected: a constant channel then has exactly its value as mean.
    center = x[start]
    first = min(planes, max(1, FIRST // length))
    piece = min(length, FIRST)
    s, q = _sums_about(x, (start, step, first, piece), center)
    center += x.dtype.type(s / (first * piece))
    mean, square, done = np.float64(center), 0.0, 0.0
    for plane in range(0, planes, together):
        for i in range(0, length, VALUES):
            some, size = min(together, planes - plane), min(VALUES, length - i)
            s, q = _sums_about(x, (start + plane * step + i, step, some, size), center)
            count = np.float64(some * size)
            n = done + count
            d = (center - mean) + s / count
            mean += d * (count / n)
            square += (q - s * (s / count)) + d * d * (done * count / n)
            center = x.dtype.type(mean)
            done = n
    return mean, square


@compiled
def normalize(x: Native, runs: Runs, line: Line, relu: bool, streaming: bool, y: Native) -> None:
    """y, for the mean, scale and shift of each channel."""
    (start, step, planes, length), (mean, scale, shift) = runs, line
    m, a, b, n = splat(mean), splat(scale), splat(shift), lanes(x)
    for plane in range(planes - 1, -1, -1):  # backwards: the pass before has left the end in cache
        first, stop = start + plane * step, start + plane * step + length
        if streaming:  # from where y is aligned; the ends share cache lines with other planes
            first += -first % n
            for i in range(stop - length, first):
                y[i] = normalized(x[i], mean, scale, shift, relu)
        rest = (stop - first) % n
        for i in range(first, stop - rest, n):
            v = (load(x, i) - m) * a + b
            if relu:
                v = where_active(v, v)
            if streaming:
                stream(y, i, v)
            else:
                store(y, i, v)
        if streaming:
            for i in range(stop - rest, stop):
                y[i] = normalized(x[i], mean, scale, shift, relu)
        elif rest:  # the last whole vector of the plane, some of it once more
            i = stop - n
            v = (load(x, i) - m) * a + b
            if relu:
                v = where_active(v, v)
            store(y, i, v)
    if streaming:
        fence()


@compiled
def _sums(dy: Native, x: Native, runs: Runs, line: Line, relu: bool) -> tuple[float, float]:
    """sum(dy), sum(dy * (x - mean))."""
    (start, step, planes, length), (mean, scale, shift) = runs, line
    m, a, b, zero = splat(mean), splat(scale), splat(shift), splat(x.dtype.type(0))
    s0, s1, q0, q1 = zero, zero, zero, zero
    n = lanes(x)
    rest = length % n
    for plane in range(planes):
        first = start + plane * step
        pairs = first + length - length % (2 * n)
        for i in range(first, pairs, 2 * n):
            t0, t1 = load(x, i) - m, load(x, i + n) - m
            d0, d1 = load(dy, i), load(dy, i + n)
            if relu:
                d0, d1 = where_active(t0 * a + b, d0), where_active(t1 * a + b, d1)
            s0, s1 = s0 + d0, s1 + d1
            q0, q1 = q0 + d0 * t0, q1 + d1 * t1
        for i in range(pairs, first + length - rest, n):
            t0, d0 = load(x, i) - m, load(dy, i)
            if relu:
                d0 = where_active(t0 * a + b, d0)
            s0, q0 = s0 + d0, q0 + d0 * t0
        if rest:
            i = first + length - n
            t1, d1 = load(x, i) - m, load(dy, i)
            if relu:
                d1 = where_active(t1 * a + b, d1)
            s1, q1 = s1 + last(d1, rest), q1 + last(d1 * t1, rest)
    return total((s0, s1)), total((q0, q1))


@compiled
def sums(dy: Native, x: Native, runs: Runs, line: Line, relu: bool) -> tuple[float, float]:
    """The same of one channel, in float64 from one group of about 4096 values to the next."""
    start, step, planes, length = runs
    together = max(1, VALUES // length)
    s, q = 0.0, 0.0
    for plane in range(0, planes, together):
        some = min(together, planes - plane)
        for i in range(0, length, VALUES):
            at, size = start + plane * step + i, min(VALUES, length - i)
            ds, dq = _sums(dy, x, (at, step, some, size), line, relu)
            s += ds
            q += dq
    return s, q


@compiled
def input_gradient(
    dy: Native, x: Native, runs: Runs, line: Line, slope: float, offset: float, relu: bool, streaming: bool, dx: Native
) -> None:
    """dx, from the sums over each channel."""
    (start, step, planes, length), (mean, scale, shift) = runs, line
    m, a, b, u, w, n = splat(mean), splat(scale), splat(shift), splat(slope), splat(offset), lanes(x)
    for plane in range(planes - 1, -1, -1):
        first, stop = start + plane * step, start + plane * step + length
        if streaming:
            first += -first % n
            for i in range(stop - length, first):
                dx[i] = gradient(dy[i], x[i], mean, scale, shift, slope, offset, relu)
        rest = (stop - first) % n
        for i in range(first, stop - rest, n):
            t, d = load(x, i) - m, load(dy, i)
            if relu:
                d = where_active(t * a + b, d)
            v = d * a + (t * u + w)
            if streaming:
                stream(dx, i, v)
            else:
                store(dx, i, v)
        if streaming:
            for i in range(stop - rest, stop):
                dx[i] = gradient(dy[i], x[i], mean, scale, shift, slope, offset, relu)
        elif rest:
            i = stop - n
            t, d = load(x, i) - m, load(dy, i)
            if relu:
                d = where_active(t * a + b, d)
            store(dx, i, d * a + (t * u + w))
    if streaming:
        fence()
