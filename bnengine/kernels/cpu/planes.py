"""Loops for channels-first data, (N, C, L): a channel is N runs of L values, its *planes*.

Everything about a channel is one number, so a channel's planes are gone through one after the other
and sums live in registers. Statistics take one pass over memory: about 4096 values at a time (in the
first-level cache) are summed about the mean so far and merged in float64.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from ..._typing import Array
from .. import memory, workers
from ..reference import Moments
from ..views import Affine
from . import channels
from .channels import MEAN, OFFSET, SCALE, SHIFT, SLOPE, scale_and_shift, slope_and_offset, sum_dy_xhat
from .compiling import compiled
from .layout import Layout
from .vectors import fence, lanes, last, load, splat, store, stream, total, where_active

Shape: TypeAlias = tuple[int, int, int]
"""(N, C, L)"""

Block: TypeAlias = tuple[int, int, int, int]
"""Samples from, to; channels from, to."""

FEW = 8  # channels

VALUES = 4096  # summed in the dtype of x, in 64 partial sums


@compiled
def _sums_about(x: Array, start: int, step: int, planes: int, length: int, center: float) -> tuple[float, float]:
    """sum(x - center), sum((x - center)^2) over runs of `length` values, `step` apart."""
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
    return total(s0) + total(s1) + (total(s2) + total(s3)), total(q0) + total(q1) + (total(q2) + total(q3))


@compiled
def _channel_moments(x: Array, start: int, step: int, planes: int, length: int) -> tuple[float, float]:
    """Mean of one channel and the sum of squares about it."""
    together = max(1, VALUES // length)
    # The first center is the first value, corrected: a constant channel then has exactly its value as mean.
    center = x[start]
    first = min(planes, max(1, VALUES // 4 // length))
    piece = min(length, VALUES // 4)
    s, q = _sums_about(x, start, step, first, piece, center)
    center += x.dtype.type(s / (first * piece))
    mean, square, done = np.float64(center), 0.0, 0.0
    for plane in range(0, planes, together):
        for i in range(0, length, VALUES):
            runs, size = min(together, planes - plane), min(VALUES, length - i)
            s, q = _sums_about(x, start + plane * step + i, step, runs, size, center)
            count = np.float64(runs * size)
            n = done + count
            d = (center - mean) + s / count
            mean += d * (count / n)
            square += (q - s * (s / count)) + d * d * (done * count / n)
            center = x.dtype.type(mean)
            done = n
    return mean, square


@compiled
def _normalize_channel(
    x: Array,
    start: int,
    step: int,
    planes: int,
    length: int,
    mean: float,
    scale: float,
    shift: float,
    relu: bool,
    streaming: bool,
    y: Array,
) -> None:
    m, a, b, n = splat(mean), splat(scale), splat(shift), lanes(x)
    rest = length % n
    for plane in range(planes - 1, -1, -1):  # backwards: the pass before has left the end in cache
        first = start + plane * step
        for i in range(first, first + length - rest, n):
            v = (load(x, i) - m) * a + b
            if relu:
                v = where_active(v, v)
            if streaming:
                stream(y, i, v)
            else:
                store(y, i, v)
        if rest:  # the last whole vector of the plane, some of it once more
            i = first + length - n
            v = (load(x, i) - m) * a + b
            if relu:
                v = where_active(v, v)
            store(y, i, v)
    if streaming:
        fence()


@compiled
def _sums(
    dy: Array,
    x: Array,
    start: int,
    step: int,
    planes: int,
    length: int,
    mean: float,
    scale: float,
    shift: float,
    relu: bool,
) -> tuple[float, float]:
    """sum(dy), sum(dy * (x - mean)) over runs of `length` values, `step` apart."""
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
    return total(s0) + total(s1), total(q0) + total(q1)


@compiled
def _channel_sums(
    dy: Array,
    x: Array,
    start: int,
    step: int,
    planes: int,
    length: int,
    mean: float,
    scale: float,
    shift: float,
    relu: bool,
) -> tuple[float, float]:
    """The same of one channel, in float64 from one group of about 4096 values to the next."""
    together = max(1, VALUES // length)
    s, q = 0.0, 0.0
    for plane in range(0, planes, together):
        runs = min(together, planes - plane)
        for i in range(0, length, VALUES):
            at, size = start + plane * step + i, min(VALUES, length - i)
            ds, dq = _sums(dy, x, at, step, runs, size, mean, scale, shift, relu)
            s += ds
            q += dq
    return s, q


@compiled
def _channel_gradient(
    dy: Array,
    x: Array,
    start: int,
    step: int,
    planes: int,
    length: int,
    mean: float,
    scale: float,
    shift: float,
    slope: float,
    offset: float,
    relu: bool,
    streaming: bool,
    dx: Array,
) -> None:
    m, a, b, u, w, n = splat(mean), splat(scale), splat(shift), splat(slope), splat(offset), lanes(x)
    rest = length % n
    for plane in range(planes - 1, -1, -1):
        first = start + plane * step
        for i in range(first, first + length - rest, n):
            t, d = load(x, i) - m, load(dy, i)
            if relu:
                d = where_active(t * a + b, d)
            v = d * a + (t * u + w)
            if streaming:
                stream(dx, i, v)
            else:
                store(dx, i, v)
        if rest:
            i = first + length - n
            t, d = load(x, i) - m, load(dy, i)
            if relu:
                d = where_active(t * a + b, d)
            store(dx, i, d * a + (t * u + w))
    if streaming:
        fence()


# ---- the channels of one block


@compiled
def moments(x: Array, shape: Shape, block: Block, mean: Array, square: Array) -> None:
    """Mean and sum of squares about it, in float64, over the block's samples."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        mean[c], square[c] = _channel_moments(x, n0 * step + c * length, step, n1 - n0, length)


@compiled
def normalize(x: Array, shape: Shape, block: Block, coefficients: Array, relu: bool, streaming: bool, y: Array) -> None:
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        _normalize_channel(x, n0 * step + c * length, step, n1 - n0, length, m, a, b, relu, streaming, y)


@compiled
def sums(
    dy: Array,
    x: Array,
    shape: Shape,
    block: Block,
    coefficients: Array,
    relu: bool,
    sum_dy: Array,
    sum_dy_x: Array,
) -> None:
    """sum(dy) and sum(dy * (x - mean)), in float64, over the block's samples."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        sum_dy[c], sum_dy_x[c] = _channel_sums(dy, x, n0 * step + c * length, step, n1 - n0, length, m, a, b, relu)


@compiled
def input_gradient(
    dy: Array,
    x: Array,
    shape: Shape,
    block: Block,
    coefficients: Array,
    relu: bool,
    streaming: bool,
    dx: Array,
) -> None:
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        u, w = coefficients[SLOPE, c], coefficients[OFFSET, c]
        start = n0 * step + c * length
        _channel_gradient(dy, x, start, step, n1 - n0, length, m, a, b, u, w, relu, streaming, dx)


# ---- both passes over the channels of one block of all samples


@compiled
def forward(
    x: Array,
    shape: Shape,
    block: Block,
    gamma: Array,
    beta: Array,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Array,
    remainder: Array,
    var: Array,
    y: Array,
) -> None:
    samples, channels, length = shape
    step = channels * length
    for c in range(block[2], block[3]):
        m, s = _channel_moments(x, c * length, step, samples, length)
        mean[c] = m
        remainder[c] = m - mean[c]
        var[c] = s / (samples * length)
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        a, b = x.dtype.type(scale), x.dtype.type(shift)
        _normalize_channel(x, c * length, step, samples, length, mean[c], a, b, relu, streaming, y)


@compiled
def backward(
    dy: Array,
    x: Array,
    shape: Shape,
    block: Block,
    gamma: Array,
    beta: Array,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Array,
    remainder: Array,
    var: Array,
    dx: Array,
    sums: Array,
) -> None:
    samples, channels, length = shape
    step, count = channels * length, float(samples * length)
    for c in range(block[2], block[3]):
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        a, b = x.dtype.type(scale), x.dtype.type(shift)
        s, q = _channel_sums(dy, x, c * length, step, samples, length, mean[c], a, b, relu)
        sums[0, c] = s
        sums[1, c] = sum_dy_xhat(s, q, remainder[c], var[c], eps)
        slope, offset = slope_and_offset(sums[0, c], sums[1, c], count, remainder[c], var[c], gamma[c], eps)
        u, w = x.dtype.type(slope), x.dtype.type(offset)
        _channel_gradient(dy, x, c * length, step, samples, length, mean[c], a, b, u, w, relu, streaming, dx)


class Planes(Layout):
    """(N, C, L) with long L. A block holds whole channels where there are enough of them.

    Then each goes from the first pass to the second while it is in cache. Few large channels are divided by
    samples.
    """

    length = 1

    def __init__(self, shape: Shape, itemsize: int) -> None:
        samples, channels, length = shape
        self.shape, self.channels, self.width, self.count = shape, channels, channels, samples * length
        parts = workers.parts(math.prod(shape))
        groups = min(channels, parts)
        self.parts = min(samples, -(-parts // groups)) if channels < FEW else 1
        self.blocks: list[Block] = [
            (n0, n1, c0, c1)
            for n0, n1 in workers.ranges(samples, self.parts)
            for c0, c1 in workers.ranges(channels, groups)
        ]
        self.aligned = length * itemsize % memory.ALIGNMENT == 0

    def forward(self, x: Array, affine: Affine) -> tuple[Array, Moments]:
        if self.parts > 1:
            return super().forward(x, affine)
        y, m = memory.empty_like(x), Moments(*np.empty((3, self.channels), x.dtype))
        streaming = self._streaming(2 * x.nbytes)

        def task(i: int) -> None:
            forward(x, self.shape, self.blocks[i], *affine, streaming, *m, y)

        workers.run(task, len(self.blocks))
        return y, m

    def backward(self, dy: Array, x: Array, moments: Moments, affine: Affine) -> tuple[Array, Array]:
        if self.parts > 1:
            return super().backward(dy, x, moments, affine)
        dx, sums = memory.empty_like(x), np.empty((2, self.channels), x.dtype)
        streaming = self._streaming(3 * x.nbytes)

        def task(i: int) -> None:
            backward(dy, x, self.shape, self.blocks[i], *affine, streaming, *moments, dx, sums)

        workers.run(task, len(self.blocks))
        return dx, sums

    def moments(self, x: Array) -> Moments:
        parts = np.empty((self.parts, 2, self.channels))
        each = len(self.blocks) // self.parts

        def task(i: int) -> None:
            moments(x, self.shape, self.blocks[i], *parts[i // each])

        workers.run(task, len(self.blocks))
        counts = np.asarray([float((b[1] - b[0]) * self.shape[2]) for b in self.blocks[::each]])
        channels.merge(counts, parts)
        return self.finish_moments(parts[0], x.dtype)

    def normalize(self, x: Array, coefficients: Array, relu: bool) -> Array:
        y, streaming = memory.empty_like(x), self._streaming(2 * x.nbytes)

        def task(i: int) -> None:
            normalize(x, self.shape, self.blocks[i], coefficients, relu, streaming, y)

        workers.run(task, len(self.blocks), backwards=True)
        return y

    def totals(self, dy: Array, x: Array, coefficients: Array, relu: bool) -> Array:
        parts = np.empty((self.parts, 2, self.channels))
        each = len(self.blocks) // self.parts

        def task(i: int) -> None:
            sums(dy, x, self.shape, self.blocks[i], coefficients, relu, *parts[i // each])

        workers.run(task, len(self.blocks))
        channels.add(parts)
        return parts[0]

    def input_gradient(self, dy: Array, x: Array, coefficients: Array, relu: bool) -> Array:
        dx, streaming = memory.empty_like(x), self._streaming(3 * x.nbytes)

        def task(i: int) -> None:
            input_gradient(dy, x, self.shape, self.blocks[i], coefficients, relu, streaming, dx)

        workers.run(task, len(self.blocks), backwards=True)
        return dx

    def _streaming(self, traffic: int) -> bool:
        return self.aligned and memory.past_cache(traffic)
