"""Kernels of NumPy alone, on whole arrays seen as (N, C, L), for NumPy arrays where no compiler is installed."""

from __future__ import annotations

import functools

import numpy as np

from .._typing import Native
from ..recording import call, constant, made
from . import memory, reference, views
from .reference import Affine, Moments
from .views import FLOAT32, FLOAT64, View, supports  # noqa: F401  # supports is for the seam

ROWS = 32  # summed in the dtype of x: after an outlier of 1e6 more of them would cost digits
RUN = 256  # values beside each other summed so: the squares of 256 values of 1e18 still fit in float32


def moments(x: Native, axis: int) -> Moments:
    """About one value of the channel, so that a constant one is exact, and then about the mean that this gave."""
    a = _seen(x, axis)[1]
    n, first, d = a.shape[0] * a.shape[2], a[0, :, 0], memory.empty_like(a)
    center = (first + _total(np.subtract(a, first[:, None], out=d)) / n).astype(a.dtype)
    rest = _total(np.subtract(a, center[:, None], out=d)) / n
    var = np.maximum(_total(np.multiply(d, d, out=d)) / n - rest * rest, 0)
    mean = (center + rest).astype(a.dtype)
    return Moments(mean, ((center - mean) + rest).astype(a.dtype), var.astype(a.dtype))


def normalize(x: Native, moments: Moments, affine: Affine, axis: int) -> Native:
    """y as scale * (x - mean) + shift."""
    one = _Pass(x, moments, affine, axis)
    y = one.line(out=one.t)  # below zeros in an array, as a scalar takes numpy.maximum three times as long
    return one.view.restored(np.maximum(y, np.zeros_like(one.shift), out=y) if affine.relu else y)


def gradient_sums(dy: Native, x: Native, moments: Moments, affine: Affine, axis: int) -> tuple[Native, Native]:
    """Both sums, in the order of `_total`."""
    one = _Pass(x, moments, affine, axis)
    return one.sums(one.masked(dy))


def input_gradient(
    dy: Native, x: Native, moments: Moments, sums: tuple[Native, Native], count: int, affine: Affine, axis: int
) -> Native:
    """dx from dy, its sums and x - mean."""
    one = _Pass(x, moments, affine, axis)
    return one.input_gradient(one.masked(dy), sums, count)


def given(mean: Native, var: Native, x: Native) -> Moments:
    """As they are, without a remainder, where they are of the statistics dtype."""
    if mean.dtype == var.dtype == (FLOAT64 if x.dtype == FLOAT64 else FLOAT32):
        return Moments(mean, constant(np.zeros_like(mean)), var)
    moments: Moments = made(reference.given, mean, var, x)
    return moments


def given_gradient(dy: Native, x: Native, moments: Moments, affine: Affine, axis: int) -> Native:
    """dx = scale * dy, for statistics that do not depend on x."""
    one = _Pass(x, moments, affine, axis)
    return one.view.restored(one.masked(dy) * one.scale)


def forward(x: Native, affine: Affine, axis: int) -> tuple[Native, Moments]:
    """y and the moments, in two passes over x."""
    m = moments(x, axis)
    return normalize(x, m, affine, axis), m


def backward(
    dy: Native, x: Native, moments: Moments, affine: Affine, axis: int
) -> tuple[Native, tuple[Native, Native]]:
    """dx and the sums; x - mean is computed once for both."""
    one = _Pass(x, moments, affine, axis)
    sums = one.sums(d := one.masked(dy))
    return one.input_gradient(d, sums, x.size // x.shape[axis]), sums


def matmul(a: Native, b: Native) -> Native:
    """Into kept memory, where both are matrices of one dtype."""
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        return reference.matmul(a, b)
    product = memory.empty((a.shape[0], b.shape[1]), a.dtype)
    call(np.matmul, (a, b, product), (product,))
    return product


def add_bias(z: Native, bias: Native) -> Native:
    """In place."""
    call(np.add, (z, bias, z))
    return z


def column_sums(x: Native) -> Native:
    """In the order of the rows, as numpy.sum."""
    sums = np.empty(x.shape[1:], x.dtype)
    call(np.add.reduce, (x, 0, None, sums), (sums,))
    return sums


def relu(x: Native) -> Native:
    """max(x, 0) into kept memory; NaN stays NaN."""
    if not x.flags.c_contiguous:
        return np.maximum(x, 0)
    y = memory.empty_like(x)
    call(_relu, (x, y), (y,))
    return y


def _relu(x: Native, y: Native) -> None:
    np.maximum(x, 0, out=y)


def sigmoid(x: Native) -> Native:
    """1 / (1 + exp(-x)) in place, in kept memory."""
    y = memory.empty_like(x) if x.flags.c_contiguous else np.empty_like(x)
    call(_sigmoid, (x, y), (y,))
    return y


def _sigmoid(x: Native, y: Native) -> None:
    np.negative(x, out=y)
    with np.errstate(over="ignore"):  # exp(100) is infinite in float32, and 1 / (1 + that) is right
        np.exp(y, out=y)
    np.divide(1, np.add(y, 1, out=y), out=y)


_view = functools.lru_cache(maxsize=1024)(View)


def _seen(x: Native, axis: int) -> tuple[View, Native]:
    view = _view(x.shape, axis, views.order(x), x.dtype)
    return view, view.flat(x).reshape(view.seen)


class _Pass:
    """x - mean and what goes with it into y = (x - mean) * scale + shift; the mean's remainder is in the shift."""

    def __init__(self, x: Native, moments: Moments, affine: Affine, axis: int) -> None:
        self.view, a = _seen(x, axis)
        self.m, self.affine = self.view.moments(moments), self.view.affine(affine)
        self.inv_std = 1 / np.sqrt(self.m.var.astype(FLOAT64) + affine.eps)
        scale = self.inv_std * self.affine.gamma
        self.scale, self.shift = self.along(scale), self.along(self.affine.beta - self.m.remainder * scale)
        self.t = np.subtract(a, self.m.mean[:, None], out=memory.empty_like(a))

    def along(self, v: Native) -> Native:
        return v.astype(self.view.statistics)[:, None]

    def line(self, out: Native) -> Native:
        return np.add(np.multiply(self.t, self.scale, out=out), self.shift, out=out)

    def masked(self, dy: Native) -> Native:
        """dy where a fused ReLU was on, else 0."""
        d = self.view.flat(dy).reshape(self.t.shape)
        if not self.affine.relu:
            return d
        y = self.line(out=memory.empty_like(self.t))
        # Bits, all set or none: numpy.where takes ten times as long, and a product with the mask makes NaN of infinity.
        integer = np.dtype(f"i{y.itemsize}")
        on = ((y <= 0).view(np.int8) - np.int8(1)).astype(integer)
        return np.bitwise_and(d.view(integer), on, out=y.view(integer)).view(y.dtype)

    def sums(self, d: Native) -> tuple[Native, Native]:
        sum_dy, sum_dy_x = _total(d), _total(np.multiply(d, self.t, out=memory.empty_like(self.t)))
        sum_dy_xhat = (sum_dy_x - self.m.remainder * sum_dy) * self.inv_std
        return sum_dy.astype(d.dtype), sum_dy_xhat.astype(d.dtype)

    def input_gradient(self, d: Native, sums: tuple[Native, Native], count: int) -> Native:
        """dx = dy * scale + (x - mean) * slope + offset, in the place of x - mean."""
        scale, dx = self.inv_std * self.affine.gamma / count, self.t
        slope = -scale * self.inv_std * sums[1]
        dx *= self.along(slope)
        dx += self.along(-scale * sums[0] - self.m.remainder * slope)
        dx += np.multiply(d, self.scale, out=memory.empty_like(dx))
        return self.view.restored(dx)


def _total(d: Native) -> Native:
    """The sum for each channel, of some values at a time in the dtype of x, and of their sums in float64."""
    if d.shape[2] > 1:
        return np.add.reduce(np.add.reduceat(d, range(0, d.shape[2], RUN), axis=2), axis=(0, 2), dtype=FLOAT64)
    rows, whole = d[:, :, 0], len(d) - len(d) % ROWS
    sums = np.add.reduce(rows[:whole].reshape(-1, ROWS, rows.shape[1]), axis=1)
    return np.add.reduce(sums, axis=0, dtype=FLOAT64) + np.add.reduce(rows[whole:], axis=0)
