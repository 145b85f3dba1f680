"""How channels-last data are divided: whole wide rows for a block, blocks that threads may take. See `column_loops`."""

from __future__ import annotations

import math

import numpy as np

from ..._typing import Native
from ...recording import call
from .. import memory, workers
from ..reference import Affine, Moments
from . import column_loops, weighted_loops
from .coefficients import merge_parts
from .column_loops import ROWS
from .layout import Layout

LONGEST = 512  # values of a wide row at most, unless one pattern is longer: its sums stay in the first-level cache


class Columns(Layout):
    """(rows, C, length) with short `length`. Blocks are whole wide rows; the last has what is left at the end."""

    normalize_block = staticmethod(column_loops.normalize)
    sum_block = staticmethod(column_loops.sums)
    input_gradient_block = staticmethod(column_loops.input_gradient)
    streams = True

    def __init__(self, shape: tuple[int, int, int], itemsize: int) -> None:
        rows, self.channels, self.length = shape
        self.count, self.size = rows * self.length, math.prod(shape)
        n, pattern = memory.ALIGNMENT // itemsize, self.channels * self.length
        patterns = max(-(-n // pattern), min(LONGEST // pattern, self.size // (ROWS * pattern)))
        even = n // math.gcd(n, pattern)  # patterns that fill whole vectors
        self.width = pattern * (patterns - patterns % even if patterns > even else patterns)
        self.positions, self.coefficient_length = -(-self.width // n) * n, self.width + n
        self.rows = self.size // self.width
        unit = math.lcm(self.width, n)  # values; so that blocks begin where results are aligned
        parts = max(1, min(self.size // unit, workers.parts(self.size)))
        stops = [b * unit for _, b in workers.ranges(self.size // unit, parts)]
        self.blocks: list[tuple[int, int]] = list(
            zip([0, *stops[:-1]], [*stops[:-1], self.rows * self.width], strict=True)
        )
        self.parts = len(self.blocks)

    def forward(self, x: Native, affine: Affine) -> tuple[Native, Moments]:
        """In one call where there is one block: small arrays would pay more for calls than for values."""
        if len(self.blocks) > 1:
            return super().forward(x, affine)
        y, statistics = memory.empty_like(x), np.empty((3, self.channels), x.dtype)
        streaming = memory.past_cache(2 * x.nbytes)
        call(column_loops.forward, (x, self.width, self.length, *affine, streaming, statistics, y), (statistics, y))
        return y, Moments(*statistics)

    def backward(self, dy: Native, x: Native, moments: Moments, affine: Affine) -> tuple[Native, Native]:
        """In one call where there is one block."""
        if len(self.blocks) > 1:
            return super().backward(dy, x, moments, affine)
        dx, sums = memory.empty_like(x), np.empty((2, self.channels), x.dtype)
        arguments = dy, x, self.width, self.length, *affine, memory.past_cache(3 * x.nbytes), *moments, dx, sums
        call(column_loops.backward, arguments, (dx, sums))
        return dx, sums

    def moments(self, x: Native) -> Moments:
        """Of each block about its own mean, then merged by counts."""
        parts = np.zeros((len(self.blocks), 2, self.positions))

        def task(i: int) -> None:
            if self.rows:
                column_loops.moments(x, *self.blocks[i], self.width, parts[i])

        workers.run(task, len(self.blocks))
        counts = np.asarray([float((stop - start) // self.width) for start, stop in self.blocks])
        merge_parts(counts, parts)
        totals = np.empty((2, self.channels))
        column_loops.merge_positions(x, self.rows, self.width, self.length, parts[0], totals)
        return self.finish_moments(totals, x.dtype)

    def weighted_moments(self, x: Native, w: Native) -> Moments:
        """Of each range of rows about its own mean, then merged by weights."""
        ranges = self.row_ranges()
        parts, weights = np.empty((len(ranges), 2, self.channels)), np.zeros(len(ranges))

        def task(i: int) -> None:
            weights[i] = weighted_loops.column_moments(x, w, *ranges[i], self.length, parts[i])

        workers.run(task, len(ranges))
        return self.merge_weighted(weights, parts, x.dtype)

    def weighted_gradient(self, dy: Native, x: Native, w: Native, coefficients: Native, relu: bool) -> Native:
        """dx, from the sums over each channel."""
        ranges, dx, streaming = self.row_ranges(), memory.empty_like(x), self.streaming(3 * x.nbytes)

        def task(i: int) -> None:
            weighted_loops.column_gradient(
                dy, x, w, *ranges[i], self.channels, self.length, coefficients, relu, streaming, dx
            )

        workers.run(task, len(ranges), backwards=True)
        return dx

    def row_ranges(self) -> list[tuple[int, int]]:
        """Rows of (rows, C, length), as many at a time as make a block."""
        rows = self.count // self.length
        return workers.ranges(rows, min(rows, workers.parts(self.size)))

    def totals(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """Rows sum(dy) and sum(dy * (x - mean)) of each channel."""
        totals = np.empty((2, self.channels))
        column_loops.add_positions(x, self.width, self.length, super().totals(dy, x, coefficients, relu), totals)
        return totals

    def place(self, i: int) -> tuple[int, int, int]:
        """Where block i lies, as the loops take it."""
        start, stop = self.blocks[i]
        return start, self.size if i == len(self.blocks) - 1 else stop, self.width
