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
from . import plane_loops, weighted_loops
from .coefficients import (
    MEAN,
    OFFSET,
    SCALE,
    SHIFT,
    SLOPE,
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
def _runs(shape: Shape, block: Block, c: int) -> plane_loops.Runs:
    step = shape[1] * shape[2]
    return block[0] * step + c * shape[2], step, block[1] - block[0], shape[2]


@compiled
def _line(coefficients: Native, c: int) -> plane_loops.Line:
    return coefficients[MEAN, c], coefficients[SCALE, c], coefficients[SHIFT, c]


@compiled
def moments(x: Native, shape: Shape, block: Block, out: Native) -> None:
    """Mean and sum of squares about it, in float64, over the block's samples."""
    for c in range(block[2], block[3]):
        out[0, c], out[1, c] = plane_loops.moments(x, _runs(shape, block, c))


@compiled
def normalize(
    x: Native, shape: Shape, block: Block, coefficients: Native, relu: bool, streaming: bool, y: Native
) -> None:
    """y, for the mean, scale and shift of each channel."""
    for c in range(block[2], block[3]):
        plane_loops.normalize(x, _runs(shape, block, c), _line(coefficients, c), relu, streaming, y)


@compiled
def sums(dy: Native, x: Native, shape: Shape, block: Block, coefficients: Native, relu: bool, out: Native) -> None:
    """sum(dy) and sum(dy * (x - mean)), in float64, over the block's samples."""
    for c in range(block[2], block[3]):
        out[0, c], out[1, c] = plane_loops.sums(dy, x, _runs(shape, block, c), _line(coefficients, c), relu)


@compiled
def input_gradient(
    dy: Native, x: Native, shape: Shape, block: Block, coefficients: Native, relu: bool, streaming: bool, dx: Native
) -> None:
    """dx, from the sums over each channel."""
    for c in range(block[2], block[3]):
        runs, line, u, w = (
            _runs(shape, block, c),
            _line(coefficients, c),
            coefficients[SLOPE, c],
            coefficients[OFFSET, c],
        )
        plane_loops.input_gradient(dy, x, runs, line, u, w, relu, streaming, dx)


@compiled
def weighted_moments(x: Native, w: Native, shape: Shape, block: Block, out: Native) -> float:
    """The same of weighted values, and the weight of the samples."""
    own = w[block[0] * shape[2] : block[1] * shape[2]]
    first = 0
    while first < own.size and own[first] == 0:
        first += 1
    done = 0.0
    if first < own.size:
        for c in range(block[2], block[3]):
            out[0, c], out[1, c], done = weighted_loops.plane_moments(x, own, _runs(shape, block, c), first)
    return done


@compiled
def weighted_gradient(
    dy: Native,
    x: Native,
    w: Native,
    shape: Shape,
    block: Block,
    coefficients: Native,
    relu: bool,
    streaming: bool,
    dx: Native,
) -> None:
    """dx of weighted values, from the sums over each channel."""
    own = w[block[0] * shape[2] : block[1] * shape[2]]
    for c in range(block[2], block[3]):
        runs, line, u, o = (
            _runs(shape, block, c),
            _line(coefficients, c),
            coefficients[SLOPE, c],
            coefficients[OFFSET, c],
        )
        weighted_loops.plane_gradient(dy, x, own, runs, line, u, o, relu, streaming, dx)


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
    """Both passes of the forward direction: y and the moments."""
    for c in range(block[2], block[3]):
        runs = _runs(shape, block, c)
        m, s = plane_loops.moments(x, runs)
        mean[c] = m
        remainder[c] = m - mean[c]
        var[c] = s / (shape[0] * shape[2])
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        plane_loops.normalize(x, runs, (mean[c], x.dtype.type(scale), x.dtype.type(shift)), relu, streaming, y)


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
    """Both passes of the backward direction: dx and the sums."""
    count = float(shape[0] * shape[2])
    for c in range(block[2], block[3]):
        runs = _runs(shape, block, c)
        scale, shift = scale_and_shift(remainder[c], var[c], gamma[c], beta[c], eps)
        line = mean[c], x.dtype.type(scale), x.dtype.type(shift)
        s, q = plane_loops.sums(dy, x, runs, line, relu)
        sums[0, c] = s
        sums[1, c] = sum_dy_xhat(s, q, remainder[c], var[c], eps)
        slope, offset = slope_and_offset(sums[0, c], sums[1, c], count, remainder[c], var[c], gamma[c], eps)
        u, w = x.dtype.type(slope), x.dtype.type(offset)
        plane_loops.input_gradient(dy, x, runs, line, u, w, relu, streaming, dx)


class Planes(Layout):
    """(N, C, L) with long L. A block holds whole channels where there are enough of them.

    Then each goes from the first pass to the second while it is in cache. Few large channels are divided by
    samples.
    """

    normalize_block = staticmethod(normalize)
    sum_block = staticmethod(sums)
    input_gradient_block = staticmethod(input_gradient)
    length = 1

    def __init__(self, shape: Shape, itemsize: int) -> None:
        samples, channels, length = shape
        self.shape, self.channels, self.count = shape, channels, samples * length
        self.coefficient_length = self.positions = channels
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
        streaming = self.streaming(2 * x.nbytes)

        def task(i: int) -> None:
            forward(x, self.shape, self.blocks[i], *affine, streaming, *m, y)

        workers.run(task, len(self.blocks))
        return y, m

    def backward(self, dy: Native, x: Native, moments: Moments, affine: Affine) -> tuple[Native, Native]:
        """Channel by channel where blocks hold whole ones, so that the second pass finds x and dy in the cache."""
        if self.parts > 1:
            return super().backward(dy, x, moments, affine)
        dx, sums = memory.empty_like(x), np.empty((2, self.channels), x.dtype)
        streaming = self.streaming(3 * x.nbytes)

        def task(i: int) -> None:
            backward(dy, x, self.shape, self.blocks[i], *affine, streaming, *moments, dx, sums)

        workers.run(task, len(self.blocks))
        return dx, sums

    def moments(self, x: Native) -> Moments:
        """Of each part of the samples about its own mean, then merged by counts."""
        parts = np.empty((self.parts, 2, self.channels))
        each = len(self.blocks) // self.parts

        def task(i: int) -> None:
            moments(x, self.shape, self.blocks[i], parts[i // each])

        workers.run(task, len(self.blocks))
        counts = np.asarray([float((b[1] - b[0]) * self.shape[2]) for b in self.blocks[::each]])
        merge_parts(counts, parts)
        return self.finish_moments(parts[0], x.dtype)

    def place(self, i: int) -> tuple[Shape, Block]:
        """Where block i lies, as the loops take it."""
        return self.shape, self.blocks[i]

    def weighted_moments(self, x: Native, w: Native) -> Moments:
        """Of each part of the samples about its own mean, then merged by weights."""
        parts, each = np.zeros((self.parts, 2, self.channels)), len(self.blocks) // self.parts
        weights = np.zeros(len(self.blocks))

        def task(i: int) -> None:
            weights[i] = weighted_moments(x, w, self.shape, self.blocks[i], parts[i // each])

        workers.run(task, len(self.blocks))
        return self.merge_weighted(weights[::each], parts, x.dtype)

    def weighted_gradient(self, dy: Native, x: Native, w: Native, coefficients: Native, relu: bool) -> Native:
        """dx, from the sums over each channel."""
        dx, streaming = memory.empty_like(x), self.streaming(3 * x.nbytes)

        def task(i: int) -> None:
            weighted_gradient(dy, x, w, self.shape, self.blocks[i], coefficients, relu, streaming, dx)

        workers.run(task, len(self.blocks), backwards=True)
        return dx
