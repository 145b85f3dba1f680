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

import numpy as np

from ..._typing import Native
from .coefficients import (
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    SLOPE,
    finish_moments,
    finish_sums,
    gradient,
    gradient_coefficients,
    line_coefficients,
    normalized,
)
from .compiling import compiled
from .vectors import fence, fused, lanes, load, store, stream, where_active

ROWS = 64  # wide rows summed in the dtype of x; the squares of 64 values of 1e18 still fit in float32

FIRST = 8  # wide rows from which the first center is taken: not of one value, which may be an outlier


@compiled
def _sums_about(x: Native, start: int, stop: int, width: int, center: Native, s: Native, q: Native) -> None:
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
def moments(x: Native, start: int, stop: int, width: int, out: Native) -> None:
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
def _leave_out_repeats(positions: Native, width: int, n: int) -> None:
    """Move the sums that only the last vector of a row has to where those of the vectors before it end."""
    repeats = positions.shape[1] - width
    if repeats:
        for j in range(width - width % n, width):
            positions[0, j] = positions[0, j + repeats]
            positions[1, j] = positions[1, j + repeats]


@compiled
def merge_positions(x: Native, rows: int, width: int, length: int, positions: Native, out: Native) -> None:
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
def add_positions(x: Native, width: int, length: int, positions: Native, out: Native) -> None:
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
    x: Native, start: int, stop: int, width: int, coefficients: Native, relu: bool, streaming: bool, y: Native
) -> None:
    """y of the values from start to stop, a vector of channels at a time."""
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
    dy: Native, x: Native, start: int, stop: int, width: int, coefficients: Native, relu: bool, s: Native, q: Native
) -> None:
    """s = sum(dy), q = sum(dy * (x - mean)) for each position; two rows at once, then what is left: vectors, values."""
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
def sums(
    dy: Native, x: Native, start: int, stop: int, width: int, coefficients: Native, relu: bool, out: Native
) -> None:
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
    dy: Native,
    x: Native,
    start: int,
    stop: int,
    width: int,
    coefficients: Native,
    relu: bool,
    streaming: bool,
    dx: Native,
) -> None:
    """dx of the values from start to stop, a vector of channels at a time."""
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
    x: Native,
    width: int,
    length: int,
    gamma: Native,
    beta: Native,
    eps: float,
    relu: bool,
    streaming: bool,
    statistics: Native,
    y: Native,
) -> None:
    """`statistics` receives the rows mean, remainder, var."""
    rows, n = x.size // width, lanes(x)
    positions, totals = np.empty((2, -(-width // n) * n)), np.empty((2, gamma.size))
    if rows > 0:
        moments(x, 0, rows * width, width, positions)
    merge_positions(x, rows, width, length, positions, totals)
    mean, remainder, var = statistics[0], statistics[1], statistics[2]
    finish_moments(totals, x.size / gamma.size, mean, remainder, var)
    coefficients = np.empty((3, width + n), x.dtype)
    line_coefficients(mean, remainder, var, gamma, beta, eps, length, coefficients)
    normalize(x, 0, x.size, width, coefficients, relu, streaming, y)


@compiled
def backward(
    dy: Native,
    x: Native,
    width: int,
    length: int,
    gamma: Native,
    beta: Native,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Native,
    remainder: Native,
    var: Native,
    dx: Native,
    sums_: Native,
) -> None:
    """Sums and dx of the whole array by one thread."""
    n = lanes(x)
    coefficients = np.empty((5, width + n), x.dtype)
    line_coefficients(mean, remainder, var, gamma, beta, eps, length, coefficients)
    positions, totals = np.empty((2, -(-width // n) * n)), np.empty((2, gamma.size))
    sums(dy, x, 0, x.size, width, coefficients, relu, positions)
    add_positions(x, width, length, positions, totals)
    finish_sums(totals, remainder, var, eps, sums_)
    gradient_coefficients(sums_, x.size / gamma.size, remainder, var, gamma, eps, length, coefficients)
    input_gradient(dy, x, 0, x.size, width, coefficients, relu, streaming, dx)
