"""Channels-first data, (N, C, L): a channel is N runs of L values, its *planes*.

Everything about a channel is one number, so a channel's planes are gone through one after the other: `plane_loops`
has those loops.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from ..._typing import Native
from .. import memory, workers
from ..reference import Affine, Moments
from . import plane_loops
from .coefficients import (
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    SLOPE,
    add_parts,
    merge_parts,
    scale_and_shift,
    slope_and_offset,
    sum_dy_xhat,
)
from .compiling import compiled
from .layout import Layout

Shape: TypeAlias = tuple[int, int, int]
"""(N, C, L)"""

Block: TypeAlias = tuple[int, int, int, int]
"""Samples from, to; channels from, to."""

FEW = 8  # channels: fewer would leave threads without work, so samples are divided as well

LONG = 1 << 12  # bytes of a plane from which its ends, which share cache lines with other planes, cost little

# ---- the channels of one block


@compiled
def moments(x: Native, shape: Shape, block: Block, mean: Native, square: Native) -> None:
    """Mean and sum of squares about it, in float64, over the block's samples."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        mean[c], square[c] = plane_loops.moments(x, n0 * step + c * length, step, n1 - n0, length)


@compiled
def normalize(
    x: Native, shape: Shape, block: Block, coefficients: Native, relu: bool, streaming: bool, y: Native
) -> None:
    """y of a block of samples and channels."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        plane_loops.normalize(x, n0 * step + c * length, step, n1 - n0, length, m, a, b, relu, streaming, y)


@compiled
def sums(
    dy: Native,
    x: Native,
    shape: Shape,
    block: Block,
    coefficients: Native,
    relu: bool,
    sum_dy: Native,
    sum_dy_x: Native,
) -> None:
    """sum(dy) and sum(dy * (x - mean)), in float64, over the block's samples."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        sum_dy[c], sum_dy_x[c] = plane_loops.sums(dy, x, n0 * step + c * length, step, n1 - n0, length, m, a, b, relu)


@compiled
def input_gradient(
    dy: Native,
    x: Native,
    shape: Shape,
    block: Block,
    coefficients: Native,
    relu: bool,
    streaming: bool,
    dx: Native,
) -> None:
    """dx of a block of samples and channels."""
    n0, n1, c0, c1 = block
    length, step = shape[2], shape[1] * shape[2]
    for c in range(c0, c1):
        m, a, b = coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]
        u, w = coefficients[SLOPE, c], coefficients[OFFSET, c]
        start = n0 * step + c * length
        plane_loops.input_gradient(dy, x, start, step, n1 - n0, length, m, a, b, u, w, relu, streaming, dx)


# ---- both passes over the channels of one block of all samples


@compiled
def forward(
    x: Native,
    shape: Shape,
    block: Block,
    gamma: Native,
    beta: Native,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Native,
    remainder: Native,
    var: Native,
    y: Native,
) -> None:
    """Moments and y of a block of whole channels, one channel after another."""
    samples, channels, length = shape
    step = channels * length
    for c in range(block[2], block[3]):
        m, s = plane_loops.moments(x, c * length, step, samples, length)
        mean[c] = m
        remainder[c] = m - mean[c]
        var[c] = s / (samples * length)
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        a, b = x.dtype.type(scale), x.dtype.type(shift)
        plane_loops.normalize(x, c * length, step, samples, length, mean[c], a, b, relu, streaming, y)


@compiled
def backward(
    dy: Native,
    x: Native,
    shape: Shape,
    block: Block,
    gamma: Native,
    beta: Native,
    eps: float,
    relu: bool,
    streaming: bool,
    mean: Native,
    remainder: Native,
    var: Native,
    dx: Native,
    sums: Native,
) -> None:
    """Sums and dx of a block of whole channels, one channel after another."""
    samples, channels, length = shape
    step, count = channels * length, float(samples * length)
    for c in range(block[2], block[3]):
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        a, b = x.dtype.type(scale), x.dtype.type(shift)
        s, q = plane_loops.sums(dy, x, c * length, step, samples, length, mean[c], a, b, relu)
        sums[0, c] = s
        sums[1, c] = sum_dy_xhat(s, q, remainder[c], var[c], eps)
        slope, offset = slope_and_offset(sums[0, c], sums[1, c], count, remainder[c], var[c], gamma[c], eps)
        u, w = x.dtype.type(slope), x.dtype.type(offset)
        plane_loops.input_gradient(dy, x, c * length, step, samples, length, mean[c], a, b, u, w, relu, streaming, dx)


class Planes(Layout):
    """(N, C, L) with long L. A block holds whole channels where there are enough of them.

    Then each goes from the first pass to the second while it is in cache. Few large channels are divided by
    samples.
    """

    length = 1

    def __init__(self, shape: Shape, itemsize: int) -> None:
        samples, channels, length = shape
        self.shape, self.channels, self.count = shape, channels, samples * length
        self.coefficient_length = channels
        parts = workers.parts(math.prod(shape))
        groups = min(channels, parts)
        self.parts = min(samples, -(-parts // groups)) if channels < FEW else 1
        self.blocks: list[Block] = [
            (n0, n1, c0, c1)
            for n0, n1 in workers.ranges(samples, self.parts)
            for c0, c1 in workers.ranges(channels, groups)
        ]
        plane = length * itemsize  # bytes
        self.streams = plane % memory.ALIGNMENT == 0 or plane >= LONG

    def forward(self, x: Native, affine: Affine) -> tuple[Native, Moments]:
        """Channel by channel where blocks hold whole ones, so that the second pass finds x in the cache."""
        if self.parts > 1:
            return super().forward(x, affine)
        y, m = memory.empty_like(x), Moments(*np.empty((3, self.channels), x.dtype))
        streaming = self._streaming(2 * x.nbytes)

        def task(i: int) -> None:
            forward(x, self.shape, self.blocks[i], *affine, streaming, *m, y)

        workers.run(task, len(self.blocks))
        return y, m

    def backward(self, dy: Native, x: Native, moments: Moments, affine: Affine) -> tuple[Native, Native]:
        """Channel by channel where blocks hold whole ones, so that the second pass finds x and dy in the cache."""
        if self.parts > 1:
            return super().backward(dy, x, moments, affine)
        dx, sums = memory.empty_like(x), np.empty((2, self.channels), x.dtype)
        streaming = self._streaming(3 * x.nbytes)

        def task(i: int) -> None:
            backward(dy, x, self.shape, self.blocks[i], *affine, streaming, *moments, dx, sums)

        workers.run(task, len(self.blocks))
        return dx, sums

    def moments(self, x: Native) -> Moments:
        """Of each part of the samples about its own mean, then merged by counts."""
        parts = np.empty((self.parts, 2, self.channels))
        each = len(self.blocks) // self.parts

        def task(i: int) -> None:
            moments(x, self.shape, self.blocks[i], *parts[i // each])

        workers.run(task, len(self.blocks))
        counts = np.asarray([float((b[1] - b[0]) * self.shape[2]) for b in self.blocks[::each]])
        merge_parts(counts, parts)
        return self.finish_moments(parts[0], x.dtype)

    def normalize(self, x: Native, coefficients: Native, relu: bool) -> Native:
        """Block by block, the last first: it is still in the cache."""
        y, streaming = memory.empty_like(x), self._streaming(2 * x.nbytes)

        def task(i: int) -> None:
            normalize(x, self.shape, self.blocks[i], coefficients, relu, streaming, y)

        workers.run(task, len(self.blocks), backwards=True)
        return y

    def totals(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """Of each part of the samples, then added in their order."""
        parts = np.empty((self.parts, 2, self.channels))
        each = len(self.blocks) // self.parts

        def task(i: int) -> None:
            sums(dy, x, self.shape, self.blocks[i], coefficients, relu, *parts[i // each])

        workers.run(task, len(self.blocks))
        add_parts(parts)
        return parts[0]

    def input_gradient(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """Block by block, the last first: it is still in the cache."""
        dx, streaming = memory.empty_like(x), self._streaming(3 * x.nbytes)

        def task(i: int) -> None:
            input_gradient(dy, x, self.shape, self.blocks[i], coefficients, relu, streaming, dx)

        workers.run(task, len(self.blocks), backwards=True)
        return dx

    def _streaming(self, traffic: int) -> bool:
        return self.streams and memory.past_cache(traffic)
