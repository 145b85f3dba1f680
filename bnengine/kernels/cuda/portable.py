"""Batch normalisation on any GPU that CuPy runs on: ElementwiseKernel and ReductionKernel only.

A pass over x is one launch whose threads each visit values of one channel, with scale and shift folded once for
each thread. Statistics and gradient sums take two launches: shares of a channel, then their sum in a fixed order.
"""

from __future__ import annotations

from typing import Any

from ..._typing import Native
from .. import reference
from ..reference import Affine, Moments
from . import device
from .device import Given, kernel
from .layout import Dense


def forward(x: Dense, affine: Affine) -> tuple[Native, Moments]:
    """y and the moments, in two passes over x."""
    m = moments(x)
    return normalize(x, m, affine), m


def backward(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, tuple[Native, Native]]:
    """dx and the sums, in two passes over x and dy."""
    sums = gradient_sums(dy, x, m, affine)
    return input_gradient(dy, x, m, sums, x.values, affine), sums


def moments(x: Dense) -> Moments:
    """Each thread takes a share of a channel about a value of its own; shares are pooled by counts."""
    dtype = reference.statistics_dtype(x.flat)
    shares = device.cupy.empty((4, x.rows, x.channels, x.columns), dtype=dtype)
    count, base, offset, var = (shares[k] for k in range(4))
    kernel("share_moments")(x.flat, *x.walk, count, base, offset, var)
    result = device.cupy.empty((3, x.channels), dtype=dtype)
    m = Moments(result[0], result[1], result[2])
    kernel("pool_moments")(count, base, offset, var, *m, axis=(0, 2))
    return m


def normalize(x: Dense, m: Moments, affine: Affine) -> Native:
    """y in one launch."""
    y = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    kernel("normalize")(x.flat, *_channel(m, affine), affine.relu, *x.walk, y, size=x.threads)
    return x.restored(y)


def gradient_sums(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, Native]:
    """Shares of each thread, then their sum."""
    shares = device.cupy.empty((2, x.rows, x.channels, x.columns), dtype=m.mean.dtype)
    channel = _channel(m, affine)
    kernel("share_gradients")(dy, x.flat, *channel, affine.relu, *x.walk, shares[0], shares[1])
    sums = device.cupy.empty((2, x.channels), dtype=m.mean.dtype)
    kernel("pool_gradients")(shares[0], shares[1], sums[0], sums[1], axis=(0, 2))
    return sums[0], sums[1]


def input_gradient(
    dy: Native, x: Dense, m: Moments, sums: tuple[Native, Native] | None, count: int, affine: Affine
) -> Native:
    """Without sums the statistics do not depend on x."""
    dx = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    channel = _channel(m, affine)
    if sums is None:
        kernel("given_gradient")(dy, x.flat, *channel, affine.relu, *x.walk, dx, size=x.threads)
    else:
        kernel("input_gradient")(dy, x.flat, *channel, *sums, count, affine.relu, *x.walk, dx, size=x.threads)
    return x.restored(dx)


def _channel(m: Moments, affine: Affine) -> tuple[Any, ...]:
    """The kernels' channel arguments; a parameter that is None is marked and takes any array's place."""
    if isinstance(m, Given):
        m = Moments(m.mean, device.cupy.zeros_like(m.mean), m.var)
    g = m.var if affine.gamma is None else affine.gamma
    b = m.var if affine.beta is None else affine.beta
    return (*m, g, b, affine.gamma is not None, affine.beta is not None, affine.eps)
