"""What columns and planes have in common: four kernels over blocks of a flat array, and their compositions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..._typing import Native
from ...recording import call
from .. import memory, workers
from ..reference import Affine, Moments
from .coefficients import (
    add_parts,
    finish_moments,
    finish_sums,
    gradient_coefficients,
    line_coefficients,
    merge_parts,
)


class Layout:
    """One shape: how it is divided into blocks, by the shape alone, and the kernels over all of them.

    A subclass has `moments`, those of weighted values, and the compiled loops over one block.
    """

    normalize_block: ClassVar[staticmethod[..., None]]
    sum_block: ClassVar[staticmethod[..., None]]
    input_gradient_block: ClassVar[staticmethod[..., None]]

    blocks: list[Any]
    parts: int
    """Into how many the values of a channel are divided: one after another, each by as many blocks."""
    positions: int
    """Sums of a part."""
    streams: bool
    """Whether results may be written past the caches."""
    channels: int
    count: int
    """Values for each channel."""
    coefficient_length: int
    """Of a row of coefficients."""
    length: int
    """How often a channel's coefficients stand side by side."""

    def place(self, i: int) -> tuple[Any, ...]:
        """Where block i is, as its loops take it."""
        raise NotImplementedError

    def moments(self, x: Native) -> Moments:
        """Mean, remainder and variance of each channel."""
        raise NotImplementedError

    def weighted_moments(self, x: Native, w: Native) -> Moments:
        """The same of weighted values."""
        raise NotImplementedError

    def weighted_gradient(self, dy: Native, x: Native, w: Native, coefficients: Native, relu: bool) -> Native:
        """dx of weighted values, from the sums over each channel."""
        raise NotImplementedError

    def normalize(self, x: Native, coefficients: Native, relu: bool) -> Native:
        """y, for the mean, scale and shift of each channel."""
        y, streaming = memory.empty_like(x), self.streaming(2 * x.nbytes)
        if len(self.blocks) == 1:
            call(self.normalize_block, (x, *self.place(0), coefficients, relu, streaming, y), (y,))
            return y

        def task(i: int) -> None:
            self.normalize_block(x, *self.place(i), coefficients, relu, streaming, y)

        workers.run(task, len(self.blocks), backwards=True)
        return y

    def totals(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """Rows sum(dy), sum(dy * (x - mean)), in float64, of each position."""
        parts = np.empty((self.parts, 2, self.positions))

        def task(i: int) -> None:
            self.sum_block(dy, x, *self.place(i), coefficients, relu, parts[i * self.parts // len(self.blocks)])

        workers.run(task, len(self.blocks))
        add_parts(parts)
        return parts[0]

    def input_gradient(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """dx, from the sums over each channel."""
        dx, streaming = memory.empty_like(x), self.streaming(3 * x.nbytes)

        def task(i: int) -> None:
            self.input_gradient_block(dy, x, *self.place(i), coefficients, relu, streaming, dx)

        workers.run(task, len(self.blocks), backwards=True)
        return dx

    def streaming(self, traffic: int) -> bool:
        """Whether a pass that moves so many bytes writes past the caches."""
        return self.streams and memory.past_cache(traffic)

    def forward(self, x: Native, affine: Affine) -> tuple[Native, Moments]:
        """y and the moments, in two passes."""
        m = self.moments(x)
        return self.normalize(x, self.coefficients(m, affine), affine.relu), m

    def backward(self, dy: Native, x: Native, moments: Moments, affine: Affine) -> tuple[Native, Native]:
        """dx and the rows of sums, in two passes."""
        coefficients = self.coefficients(moments, affine)
        sums = self.sums(dy, x, moments, coefficients, affine)
        self.add_slopes(coefficients, sums, self.count, moments, affine)
        return self.input_gradient(dy, x, coefficients, affine.relu), sums

    # ---- between the passes

    def finish_moments(self, totals: Native, dtype: Native) -> Moments:
        """From rows mean and sum of squares about it, in float64."""
        m = Moments(*np.empty((3, self.channels), dtype))
        finish_moments(totals, float(self.count), *m)
        return m

    def merge_weighted(self, weights: Native, parts: Native, dtype: Native) -> Moments:
        """From rows mean and sum of squares about it of each part, in float64, and the parts' weights."""
        some = weights > 0
        weights, parts = weights[some], parts[some]
        merge_parts(weights, parts)
        m = Moments(*np.empty((3, self.channels), dtype))
        finish_moments(parts[0], float(weights.sum()), *m)
        return m

    def coefficients(self, moments: Moments, affine: Affine) -> Native:
        """Rows MEAN, SCALE and SHIFT; room for SLOPE and OFFSET."""
        out = np.empty((5, self.coefficient_length), moments.mean.dtype)
        call(line_coefficients, (*moments, affine.gamma, affine.beta, affine.eps, self.length, out), (out,))
        return out

    def sums(self, dy: Native, x: Native, moments: Moments, coefficients: Native, affine: Affine) -> Native:
        """Rows sum(dy), sum(dy * xhat) of each channel."""
        totals = self.totals(dy, x, coefficients, affine.relu)
        sums = np.empty((2, self.channels), x.dtype)
        finish_sums(totals, moments.remainder, moments.var, affine.eps, sums)
        return sums

    def add_slopes(self, coefficients: Native, sums: Native, count: float, moments: Moments, affine: Affine) -> None:
        """Fill the rows SLOPE and OFFSET."""
        _, remainder, var = moments
        gradient_coefficients(sums, float(count), remainder, var, affine.gamma, affine.eps, self.length, coefficients)
