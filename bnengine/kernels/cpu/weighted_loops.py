"""Loops over values with weights, beside those of `column_loops` and `plane_loops`.

Weights are flat, (N, L): w[n * L + l] is of every channel's value at (n, l). What has weight 0 is not looked at. Sums
go in the dtype of x over as many values as there, and in float64 from one group to the next.
"""

from __future__ import annotations

import numpy as np

from ..._typing import Native
from .coefficients import MEAN, OFFSET, SCALE, SHIFT, SLOPE, gradient
from .column_loops import ROWS
from .compiling import compiled
from .plane_loops import VALUES, Line, Runs
from .vectors import fence, lanes, last, load, splat, store, stream, total, where_active

# ---- channels last: (rows, C, length) with short length; parts are ranges of rows


@compiled
def column_moments(x: Native, w: Native, start: int, stop: int, length: int, out: Native) -> float:
    """Mean of each channel over rows start to stop, and sum of squares about it; their weight is returned."""
    channels = out.shape[1]
    work = np.empty((3, channels), x.dtype)
    center, s, q = work[0], work[1], work[2]
    mean, square = out[0], out[1]
    out[:] = 0
    done = 0.0
    for block in range(start, stop, ROWS):
        end = min(stop, block + ROWS)
        if done == 0:  # about one value of the channel, corrected, which a constant one then has as its mean
            if not _first_of_columns(x, w, block, end, length, center):
                continue
            weight = _column_sums_about(x, w, block, end, length, center, s, q)
            for c in range(channels):
                center[c] += x.dtype.type(s[c] / weight)
                mean[c] = center[c]
        weight = _column_sums_about(x, w, block, end, length, center, s, q)
        if weight == 0:
            continue
        n = done + weight
        share, between = weight / n, done * weight / n
        for c in range(channels):
            m = s[c] / weight
            d = (center[c] - mean[c]) + m
            mean[c] += d * share
            square[c] += (q[c] - s[c] * m) + d * d * between
            center[c] = mean[c]
        done = n
    return done


@compiled
def _first_of_columns(x: Native, w: Native, start: int, stop: int, length: int, center: Native) -> bool:
    """The first values that have a weight, as centers."""
    for i in range(start * length, stop * length):
        if w[i] != 0:
            row, place = i // length, i % length
            for c in range(center.size):
                center[c] = x[(row * center.size + c) * length + place]
            return True
    return False


@compiled
def _column_sums_about(
    x: Native, w: Native, start: int, stop: int, length: int, center: Native, s: Native, q: Native
) -> float:
    """s = sum(w * (x - center)), q = sum(w * (x - center)^2) of each channel; the sum of the weights is returned."""
    channels, n = center.size, lanes(x)
    whole = channels - channels % n if length == 1 else 0
    s[:] = 0
    q[:] = 0
    weight = 0.0
    rows, found = np.empty(2, np.intp), 0  # those with a weight, two at a time
    for i in range(start * length, stop * length):
        weight += w[i]
        if length > 1:
            if w[i] != 0:
                row, place = i // length * channels * length, i % length
                for c in range(channels):
                    d = x[row + c * length + place] - center[c]
                    s[c] += w[i] * d
                    q[c] += w[i] * d * d
            continue
        if w[i] != 0:
            rows[found] = i
            found += 1
        if found == 2 or (found and i == stop - 1):
            a, b = rows[0], rows[found - 1]
            v, u = w[a], w[b] if found == 2 else x.dtype.type(0)
            wa, wb = splat(v), splat(u)
            for j in range(0, whole, n):
                c0 = load(center, j)
                d0, d1 = load(x, a * channels + j) - c0, load(x, b * channels + j) - c0
                t0, t1 = wa * d0, wb * d1
                store(s, j, load(s, j) + (t0 + t1))
                store(q, j, load(q, j) + (t0 * d0 + t1 * d1))
            for c in range(whole, channels):
                e0, e1 = x[a * channels + c] - center[c], x[b * channels + c] - center[c]
                s[c] += v * e0 + u * e1
                q[c] += v * e0 * e0 + u * e1 * e1
            found = 0
    return weight


@compiled
def column_gradient(
    dy: Native,
    x: Native,
    w: Native,
    start: int,
    stop: int,
    channels: int,
    length: int,
    coefficients: Native,
    relu: bool,
    streaming: bool,
    dx: Native,
) -> None:
    """dx of rows start to stop: scale * dy + w * (slope * (x - mean) + offset)."""
    mean, scale, shift = coefficients[MEAN], coefficients[SCALE], coefficients[SHIFT]
    slope, offset = coefficients[SLOPE], coefficients[OFFSET]
    n, width = lanes(x), channels * length
    whole = width - width % n if length == 1 else 0
    aligned = streaming and width % n == 0
    for row in range(start, stop):
        weight = splat(w[row * length])
        for j in range(0, whole, n):
            i = row * width + j
            t, d = load(x, i) - load(mean, j), load(dy, i)
            if relu:
                d = where_active(t * load(scale, j) + load(shift, j), d)
            v = d * load(scale, j) + weight * (t * load(slope, j) + load(offset, j))
            if aligned:
                stream(dx, i, v)
            else:
                store(dx, i, v)
        for j in range(whole, width):
            i, v = row * width + j, w[row * length + j % length]
            dx[i] = gradient(dy[i], x[i], mean[j], scale[j], shift[j], v * slope[j], v * offset[j], relu)
    if aligned:
        fence()


# ---- channels first: one channel, whose runs lie `step` apart in x and one after another in w


@compiled
def plane_moments(x: Native, w: Native, runs: Runs, first: int) -> tuple[float, float, float]:
    """Mean of one channel, sum of squares about it, and weight.

    `w` begins with the weights of the first run. `first` is the first place in it that is not 0, which there has to be.
    """
    start, step, planes, length = runs
    together = max(1, VALUES // length)
    plane, i = first // length, first % length
    piece = min(length - i, VALUES)
    center = x[start + plane * step + i]
    at = start + plane * step + i, step, 1, piece
    s, q, weight = _plane_sums_about(x, w, at, first, center)
    center += x.dtype.type(s / weight)
    mean, square, done = np.float64(center), 0.0, 0.0
    for plane in range(0, planes, together):
        for i in range(0, length, VALUES):
            some, size = min(together, planes - plane), min(VALUES, length - i)
            at = start + plane * step + i, step, some, size
            s, q, weight = _plane_sums_about(x, w, at, plane * length + i, center)
            if weight == 0:
                continue
            n = done + weight
            d = (center - mean) + s / weight
            mean += d * (weight / n)
            square += (q - s * (s / weight)) + d * d * (done * weight / n)
            center = x.dtype.type(mean)
            done = n
    return mean, square, done


@compiled
def _plane_sums_about(x: Native, w: Native, runs: Runs, begin: int, center: float) -> tuple[float, float, float]:
    """sum(w * (x - center)), sum(w * (x - center)^2), sum(w); weights begin at `begin`, runs of theirs follow at once."""
    start, step, planes, length = runs
    c, zero, n = splat(center), splat(x.dtype.type(0)), lanes(x)
    s0, s1, q0, q1, w0, w1 = zero, zero, zero, zero, zero, zero
    rest = length % n
    for plane in range(planes):
        i, j = start + plane * step, begin + plane * length
        for k in range(0, length - length % (2 * n), 2 * n):
            u0, u1 = load(w, j + k), load(w, j + k + n)
            d0 = where_active(u0, load(x, i + k) - c)
            d1 = where_active(u1, load(x, i + k + n) - c)
            t0, t1 = u0 * d0, u1 * d1
            s0, s1, q0, q1, w0, w1 = s0 + t0, s1 + t1, q0 + t0 * d0, q1 + t1 * d1, w0 + u0, w1 + u1
        for k in range(length - length % (2 * n), length - rest, n):
            u0 = load(w, j + k)
            d0 = where_active(u0, load(x, i + k) - c)
            t0 = u0 * d0
            s0, q0, w0 = s0 + t0, q0 + t0 * d0, w0 + u0
        if rest:
            u1 = last(load(w, j + length - n), rest)
            d1 = where_active(u1, load(x, i + length - n) - c)
            t1 = u1 * d1
            s1, q1, w1 = s1 + t1, q1 + t1 * d1, w1 + u1
    return total((s0, s1)), total((q0, q1)), total((w0, w1))


@compiled
def plane_gradient(
    dy: Native,
    x: Native,
    w: Native,
    runs: Runs,
    line: Line,
    slope: float,
    offset: float,
    relu: bool,
    streaming: bool,
    dx: Native,
) -> None:
    """dx of one channel: scale * dy + w * (slope * (x - mean) + offset)."""
    (start, step, planes, length), (mean, scale, shift) = runs, line
    m, a, b, u, o, n = splat(mean), splat(scale), splat(shift), splat(slope), splat(offset), lanes(x)
    for plane in range(planes - 1, -1, -1):
        begin = start + plane * step
        shifted = plane * length - begin  # from a place in x to that in w
        first, stop = begin + (-begin % n if streaming else 0), begin + length
        rest = (stop - first) % n
        for i in range(first, stop - rest, n):
            t, d = load(x, i) - m, load(dy, i)
            if relu:
                d = where_active(t * a + b, d)
            v = d * a + load(w, i + shifted) * (t * u + o)
            if streaming:
                stream(dx, i, v)
            else:
                store(dx, i, v)
        for ends in ((begin, first), (stop - rest, stop)):
            for i in range(ends[0], ends[1]):
                v = w[i + shifted]
                dx[i] = gradient(dy[i], x[i], mean, scale, shift, v * slope, v * offset, relu)
    if streaming:
        fence()
