"""What columns and planes have in common: four kernels over blocks of a flat array, and their compositions."""

from __future__ import annotations

import numpy as np

from ..._typing import Native
from ..reference import Affine, Moments
from .coefficients import finish_moments, finish_sums, gradient_coefficients, line_coefficients


class Layout:
    """One shape: how it is divided into blocks, by the shape alone, and the kernels over all of them.

    A subclass has `moments`, `normalize`, `totals` and `input_gradient`.
    """

    channels: int
    count: int
    """Values for each channel."""
    coefficient_length: int
    """Of a row of coefficients."""
    length: int
    """How often a channel's coefficients stand side by side."""

    def moments(self, x: Native) -> Moments:
        """Mean, remainder and variance of each channel."""
        raise NotImplementedError

    def normalize(self, x: Native, coefficients: Native, relu: bool) -> Native:
        """y by rows of coefficients."""
        raise NotImplementedError

    def totals(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """Rows sum(dy), sum(dy * (x - mean)) of each channel, in float64."""
        raise NotImplementedError

    def input_gradient(self, dy: Native, x: Native, coefficients: Native, relu: bool) -> Native:
        """dx by rows of coefficients, slopes among them."""
        raise NotImplementedError

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

    def coefficients(self, moments: Moments, affine: Affine) -> Native:
        """Rows MEAN, SCALE and SHIFT; room for SLOPE and OFFSET."""
        out = np.empty((5, self.coefficient_length), moments.mean.dtype)
        line_coefficients(*moments, affine.gamma, affine.beta, affine.eps, self.length, out)
        return out

    def sums(self, dy: Native, x: Native, moments: Moments, coefficients: Native, affine: Affine) -> Native:
        """Rows sum(dy), sum(dy * xhat) of each channel."""
        totals = self.totals(dy, x, coefficients, affine.relu)
        sums = np.empty((2, self.channels), x.dtype)
        finish_sums(totals, moments.remainder, moments.var, affine.eps, sums)
        return sums

    def add_slopes(self, coefficients: Native, sums: Native, count: int, moments: Moments, affine: Affine) -> None:
        """Fill the rows SLOPE and OFFSET."""
        _, remainder, var = moments
        gradient_coefficients(sums, float(count), remainder, var, affine.gamma, affine.eps, self.length, coefficients)
