"""Batch normalisation on any GPU that CuPy runs on: ElementwiseKernel and ReductionKernel only.

A pass over x is one launch whose threads each visit values of one channel, with scale and shift folded once for
each thread. Statistics and gradient sums take two launches: shares of a channel, then their sum in a fixed order.
"""

from __future__ import annotations

from typing import Any

from ..._typing import Array
from .. import reference
from ..reference import Moments
from . import device
from .device import kernel
from .layout import Dense


def forward(x: Dense, gamma: Array | None, beta: Array | None, eps: float, relu: bool) -> tuple[Array, Moments]:
    m = moments(x)
    return normalize(x, m, gamma, beta, eps, relu), m


def backward(
    dy: Array, x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    sums = gradient_sums(dy, x, m, gamma, beta, eps, relu)
    return input_gradient(dy, x, m, sums, x.values, gamma, beta, eps, relu), sums


def moments(x: Dense) -> Moments:
    dtype = reference.statistics_dtype(x.flat)
    shares = device.cupy.empty((4, x.rows, x.channels, x.columns), dtype=dtype)
    count, base, offset, var = (shares[k] for k in range(4))
    kernel("share_moments")(x.flat, *x.walk, count, base, offset, var)
    result = device.cupy.empty((3, x.channels), dtype=dtype)
    m = Moments(result[0], result[1], result[2])
    kernel("pool_moments")(count, base, offset, var, *m, axis=(0, 2))
    return m


def normalize(x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool) -> Array:
    y = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    kernel("normalize")(x.flat, *_channel(m, gamma, beta, eps), relu, *x.walk, y, size=x.threads)
    return x.restored(y)


def gradient_sums(
    dy: Array, x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool
) -> tuple[Array, Array]:
    shares = device.cupy.empty((2, x.rows, x.channels, x.columns), dtype=m.mean.dtype)
    channel = _channel(m, gamma, beta, eps)
    kernel("share_gradients")(dy, x.flat, *channel, relu, *x.walk, shares[0], shares[1])
    sums = device.cupy.empty((2, x.channels), dtype=m.mean.dtype)
    kernel("pool_gradients")(shares[0], shares[1], sums[0], sums[1], axis=(0, 2))
    return sums[0], sums[1]


def input_gradient(
    dy: Array,
    x: Dense,
    m: Moments,
    sums: tuple[Array, Array] | None,
    count: int,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    relu: bool,
) -> Array:
    """Without sums the statistics do not depend on x."""
    dx = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    channel = _channel(m, gamma, beta, eps)
    if sums is None:
        kernel("given_gradient")(dy, x.flat, *channel, relu, *x.walk, dx, size=x.threads)
    else:
        kernel("input_gradient")(dy, x.flat, *channel, *sums, count, relu, *x.walk, dx, size=x.threads)
    return x.restored(dx)


def _channel(m: Moments, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Any, ...]:
    """The kernels' channel arguments; a parameter that is None is marked and takes any array's place."""
    g = m.var if gamma is None else gamma
    b = m.var if beta is None else beta
    return (*m, g, b, gamma is not None, beta is not None, eps)
