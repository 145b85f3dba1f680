"""Loops for channels-last data: (N, D), (N, H, W, C), and short runs of one channel such as (N, C, 4).

Flat, such data repeats a pattern of channels. A *wide row* is `width` values: as many patterns as fill some
vectors. Statistics are kept for each position of a wide row and merged into channels at the end. Where `width`
is no whole number of vectors, the last vector of a row overlaps the one before: its sums have a place of their
own behind the others, and what was counted twice is left out at the end. Coefficients stand side by side as far
as one vector past the row, so the loops that write run over aligned vectors, whatever the number of features.
Values after the last wide row are merged one by one.

Statistics take one pass over memory: 64 wide rows at a time are summed about the mean so far and
merged in float64. About a fixed value, an outlier in the first rows would cost six digits.
"""

from __future__ import annotations

import math

import numpy as np

from ..._typing import Array
from .. import memory, workers
from ..reference import Affine, Moments
from . import coefficients as channels
from .coefficients import MEAN, OFFSET, SCALE, SHIFT, SLOPE, gradient, normalized
from .compiling import compiled
from .layout import Layout
from .vectors import fence, fused, lanes, load, store, stream, where_active

ROWS = 64  # wide rows summed in the dtype of x; the squares of 64 values of 1e18 still fit in float32

FIRST = 8  # wide rows from which the first center is taken

PERIOD = 512  # values of a wide row, if one row is shorter and there are rows enough


@compiled
def _sums_about(x: Array, start: int, stop: int, width: int, center: Array, s: Array, q: Array) -> None:
    """s = sum(x - center), q = sum((x - center)^2) for each position; four rows at once, then the rest."""
    n, end = lanes(x), width - lanes(x)
    s[:] = 0
    q[:] = 0
    fours = stop - (stop - start) % (4 * width)
    for row in range(start, fours, 4 * width):
        for j in range(0, s.size, n):
            c, i = load(center, j), row + min(j, end)
            a0, a1 = load(x, i) - c, load(x, i + width) - c
            a2, a3 = load(x, i + 2 * width) - c, load(x, i + 3 * width) - c
            store(s, j, load(s, j) + ((a0 + a1) + (a2 + a3)))
            store(q, j, load(q, j) + (fused(a0, a0, a1 * a1) + fused(a2, a2, a3 * a3)))
    for row in range(fours, stop, width):
        for j in range(0, s.size, n):
            a0 = load(x, row + min(j, end)) - load(center, j)
            store(s, j, load(s, j) + a0)
            store(q, j, load(q, j) + a0 * a0)


@compiled
def moments(x: Array, start: int, stop: int, width: int, out: Array) -> None:
    """Mean of each position over the wide rows from start to stop, and sum of squares about it, in float64."""
    size = out.shape[1]
    work = np.empty((3, size), x.dtype)
    center, s, q = work[0], work[1], work[2]
    mean, square = out[0], out[1]
    # The first center is the first row, corrected: a constant column then has exactly its value as mean.
    first = min(stop, start + FIRST * width)
    for j in range(0, size, lanes(x)):
        store(center, j, load(x, start + min(j, width - lanes(x))))
    _sums_about(x, start, first, width, center, s, q)
    share = 1 / x.dtype.type((first - start) // width)
    for j in range(size):
        center[j] += s[j] * share
        mean[j] = center[j]
        square[j] = 0
    done = 0.0
    for block in range(start, stop, ROWS * width):
        end = min(stop, block + ROWS * width)
        _sums_about(x, block, end, width, center, s, q)
        rows = (end - block) // width
        n = done + rows
        weight, between, share64 = rows / n, done * rows / n, 1 / np.float64(rows)
        for j in range(size):
            m = s[j] * share64
            d = (center[j] - mean[j]) + m
            mean[j] += d * weight
            square[j] += (q[j] - s[j] * m) + d * d * between
            center[j] = mean[j]
        done = n


@compiled
def _leave_out_repeats(positions: Array, width: int, n: int) -> None:
    """Move the sums that only the last vector of a row has to where those of the vectors before it end."""
    repeats = positions.shape[1] - width
    if repeats:
        for j in range(width - width % n, width):
            positions[0, j] = positions[0, j + repeats]
            positions[1, j] = positions[1, j + repeats]


@compiled
def merge_positions(x: Array, rows: int, width: int, length: int, positions: Array, out: Array) -> None:
    """Rows mean and sum of squares of each channel, from those of each position and the values after them."""
    _leave_out_repeats(positions, width, lanes(x))
    channels = out.shape[1]
    groups = 0  # of positions that hold every channel once
    for c in range(channels):  # about one of its values, which a constant channel's mean then is exactly
        out[0, c] = positions[0, c * length] if rows > 0 else x[c * length]
        out[1, c] = 0
    if rows > 0:
        for pattern in range(0, width, channels * length):
            for i in range(pattern, pattern + length):
                weight = 1 / (groups + 1.0)
                between = rows * groups * weight
                for c in range(channels):
                    d = positions[0, i + c * length] - out[0, c]
                    out[0, c] += d * weight
                    out[1, c] += positions[1, i + c * length] + d * d * between
                groups += 1
    start = rows * width
    for j in range(x.size - start):
        c, before = j // length % channels, groups * rows + j // (channels * length) * length + j % length
        d = x[start + j] - out[0, c]
        weight = 1 / (before + 1.0)
        out[0, c] += d * weight
        out[1, c] += d * d * (before * weight)


@compiled
def add_positions(x: Array, width: int, length: int, positions: Array, out: Array) -> None:
    """Both sums of each channel from those of each position."""
    _leave_out_repeats(positions, width, lanes(x))
    channels = out.shape[1]
    out[:] = 0
    for pattern in range(0, width, channels * length):
        for i in range(pattern, pattern + length):
            for c in range(channels):
                out[0, c] += positions[0, i + c * length]
                out[1, c] += positions[1, i + c * length]


@compiled
def normalize(
    x: Array, start: int, stop: int, width: int, coefficients: Array, relu: bool, streaming: bool, y: Array
) -> None:
    mean, scale, shift = coefficients[MEAN], coefficients[SCALE], coefficients[SHIFT]
    whole = stop - (stop - start) % lanes(x)
    j = 0
    for i in range(start, whole, lanes(x)):
        v = (load(x, i) - load(mean, j)) * load(scale, j) + load(shift, j)
        if relu:
            v = where_active(v, v)
        if streaming:
            stream(y, i, v)
        else:
            store(y, i, v)
        j += lanes(x)
        if j >= width:
            j -= width
    for i in range(whole, stop):
        y[i] = normalized(x[i], mean[j], scale[j], shift[j], relu)
        j += 1
    if streaming:
        fence()


@compiled
def _block_sums(
    dy: Array, x: Array, start: int, stop: int, width: int, coefficients: Array, relu: bool, s: Array, q: Array
) -> None:
    """The same of 64 wide rows, two rows at once; then what is left of rows: single vectors, single values."""
    mean, scale, shift = coefficients[MEAN], coefficients[SCALE], coefficients[SHIFT]
    n, end = lanes(x), width - lanes(x)
    s[:] = 0
    q[:] = 0
    pairs = stop - (stop - start) % (2 * width)
    for row in range(start, pairs, 2 * width):
        for j in range(0, s.size, n):
            at = min(j, end)
            m, a, b, i = load(mean, at), load(scale, at), load(shift, at), row + at
            t0, t1 = load(x, i) - m, load(x, i + width) - m
            d0, d1 = load(dy, i), load(dy, i + width)
            if relu:
                d0, d1 = where_active(t0 * a + b, d0), where_active(t1 * a + b, d1)
            store(s, j, load(s, j) + (d0 + d1))
            store(q, j, load(q, j) + fused(d0, t0, d1 * t1))
    for row in range(pairs, stop, width):
        left = min(width, stop - row)
        for j in range(0, left - left % n, n):
            t0, d0 = load(x, row + j) - load(mean, j), load(dy, row + j)
            if relu:
                d0 = where_active(t0 * load(scale, j) + load(shift, j), d0)
            store(s, j, load(s, j) + d0)
            store(q, j, load(q, j) + d0 * t0)
        for j in range(left - left % n, left):
            t, at = x[row + j] - mean[j], j if j < width - width % n else j + s.size - width
            if not (relu and t * scale[j] + shift[j] <= 0):
                s[at] += dy[row + j]
                q[at] += dy[row + j] * t


@compiled
def sums(dy: Array, x: Array, start: int, stop: int, width: int, coefficients: Array, relu: bool, out: Array) -> None:
    """sum(dy) and sum(dy * (x - mean)) of each position, in float64; 64 wide rows at a time in the dtype of x."""
    size = out.shape[1]
    work = np.empty((2, size), x.dtype)
    s, q = work[0], work[1]
    out[:] = 0
    for block in range(start, stop, ROWS * width):
        end = min(stop, block + ROWS * width)
        _block_sums(dy, x, block, end, width, coefficients, relu, s, q)
        for j in range(size):
            out[0, j] += s[j]
            out[1, j] += q[j]


@compiled
def input_gradient(
    dy: Array,
    x: Array,
    start: int,
    stop: int,
    width: int,
    coefficients: Array,
    relu: bool,
    streaming: bool,
    dx: Array,
) -> None:
    mean, scale, shift = coefficients[MEAN], coefficients[SCALE], coefficients[SHIFT]
    slope, offset = coefficients[SLOPE], coefficients[OFFSET]
    whole = stop - (stop - start) % lanes(x)
    j = 0
    for i in range(start, whole, lanes(x)):
        t = load(x, i) - load(mean, j)
        d = load(dy, i)
        if relu:
            d = where_active(t * load(scale, j) + load(shift, j), d)
        v = d * load(scale, j) + (t * load(slope, j) + load(offset, j))
        if streaming:
            stream(dx, i, v)
        else:
            store(dx, i, v)
        j += lanes(x)
        if j >= width:
            j -= width
    for i in range(whole, stop):
        dx[i] = gradient(dy[i], x[i], mean[j], scale[j], shift[j], slope[j], offset[j], relu)
        j += 1
    if streaming:
        fence()


# ---- both passes over an array that is one block


@compiled
def forward(
    x: Array,
    width: int,
    length: int,
    gamma: Array,
    beta: Array,
    eps: float,
    relu: bool,
    streaming: bool,
    statistics: Array,
    y: Array,
) -> None:
    """`statistics` receives the rows mean, remainder, var."""
    rows, n = x.size // width, lanes(x)
    positions, totals = np.empty((2, -(-width // n) * n)), np.empty((2, gamma.size))
    if rows > 0:
        moments(x, 0, rows * width, width, positions)
    merge_positions(x, rows, width, length, positions, totals)
    mean, remainder, var = statistics[0], statistics[1], statistics[2]
    channels.finish_moments(totals, x.size / gamma.size, mean, remainder, var)
    coefficients = np.empty((3, width + n), x.dtype)
    channels.coefficients(mean, remainder, var, gamma, beta, eps, length, coefficients)
    normalize(x, 0, x.size, width, coefficients, relu, streaming, y)


@compiled
def backward(
    dy: Array,
    x: Array,
    width: int,
    length: int,
    gamma: Array,
    beta: Array,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Array,
    remainder: Array,
    var: Array,
    dx: Array,
    sums_: Array,
) -> None:
    n = lanes(x)
    coefficients = np.empty((5, width + n), x.dtype)
    channels.coefficients(mean, remainder, var, gamma, beta, eps, length, coefficients)
    positions, totals = np.empty((2, -(-width // n) * n)), np.empty((2, gamma.size))
    sums(dy, x, 0, x.size, width, coefficients, relu, positions)
    add_positions(x, width, length, positions, totals)
    channels.finish_sums(totals, remainder, var, eps, sums_)
    channels.gradient_coefficients(sums_, x.size / gamma.size, remainder, var, gamma, eps, length, coefficients)
    input_gradient(dy, x, 0, x.size, width, coefficients, relu, streaming, dx)


class Columns(Layout):
    """(rows, C, length) with short `length`. Blocks are whole wide rows; the last has what is left at the end."""

    def __init__(self, shape: tuple[int, int, int], itemsize: int) -> None:
        rows, self.channels, self.length = shape
        self.count, self.size = rows * self.length, math.prod(shape)
        n, pattern = memory.ALIGNMENT // itemsize, self.channels * self.length
        patterns = max(-(-n // pattern), min(PERIOD // pattern, self.size // (ROWS * pattern)))
        even = n // math.gcd(n, pattern)  # patterns that fill whole vectors
        self.period = pattern * (patterns - patterns % even if patterns > even else patterns)
        self.positions, self.width = -(-self.period // n) * n, self.period + n
        self.rows = self.size // self.period
        unit = math.lcm(self.period, n)  # values; so that blocks begin where results are aligned
        parts = max(1, min(self.size // unit, workers.parts(self.size)))
        stops = [b * unit for _, b in workers.ranges(self.size // unit, parts)]
        self.blocks = list(zip([0, *stops[:-1]], [*stops[:-1], self.rows * self.period], strict=True))

    def forward(self, x: Array, affine: Affine) -> tuple[Array, Moments]:
        if len(self.blocks) > 1:
            return super().forward(x, affine)
        y, statistics = memory.empty_like(x), np.empty((3, self.channels), x.dtype)
        forward(x, self.period, self.length, *affine, memory.past_cache(2 * x.nbytes), statistics, y)
        return y, Moments(*statistics)

    def backward(self, dy: Array, x: Array, moments: Moments, affine: Affine) -> tuple[Array, Array]:
        if len(self.blocks) > 1:
            return super().backward(dy, x, moments, affine)
        dx, sums = memory.empty_like(x), np.empty((2, self.channels), x.dtype)
        backward(dy, x, self.period, self.length, *affine, memory.past_cache(3 * x.nbytes), *moments, dx, sums)
        return dx, sums

    def moments(self, x: Array) -> Moments:
        parts = np.zeros((len(self.blocks), 2, self.positions))

        def task(i: int) -> None:
            if self.rows:
                moments(x, *self.blocks[i], self.period, parts[i])

        workers.run(task, len(self.blocks))
        counts = np.asarray([float((stop - start) // self.period) for start, stop in self.blocks])
        channels.merge(counts, parts)
        totals = np.empty((2, self.channels))
        merge_positions(x, self.rows, self.period, self.length, parts[0], totals)
        return self.finish_moments(totals, x.dtype)

    def normalize(self, x: Array, coefficients: Array, relu: bool) -> Array:
        y = memory.empty_like(x)
        streaming = memory.past_cache(2 * x.nbytes)

        def task(i: int) -> None:
            normalize(x, *self._whole(i), self.period, coefficients, relu, streaming, y)

        workers.run(task, len(self.blocks), backwards=True)
        return y

    def totals(self, dy: Array, x: Array, coefficients: Array, relu: bool) -> Array:
        parts = np.empty((len(self.blocks), 2, self.positions))

        def task(i: int) -> None:
            sums(dy, x, *self._whole(i), self.period, coefficients, relu, parts[i])

        workers.run(task, len(self.blocks))
        channels.add(parts)
        totals = np.empty((2, self.channels))
        add_positions(x, self.period, self.length, parts[0], totals)
        return totals

    def input_gradient(self, dy: Array, x: Array, coefficients: Array, relu: bool) -> Array:
        dx = memory.empty_like(x)
        streaming = memory.past_cache(3 * x.nbytes)

        def task(i: int) -> None:
            input_gradient(dy, x, *self._whole(i), self.period, coefficients, relu, streaming, dx)

        workers.run(task, len(self.blocks), backwards=True)
        return dx

    def _whole(self, i: int) -> tuple[int, int]:
        start, stop = self.blocks[i]
        return start, self.size if i == len(self.blocks) - 1 else stop
