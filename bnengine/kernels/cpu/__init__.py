"""Compiled kernels for NumPy arrays: the fast module for the CPU (needs Numba, the extra `cpu`).

An array is seen as (N, C, L): what is before the feature axis, the features, what is behind. Short L is
gone through as `columns`, long L as `planes`; both give the four kernels of the specification over flat
arrays, and their compositions. What is done once for each channel is in `coefficients`; `layout` puts them
together, over blocks that other threads may take. `other` and `updates` hold the rest of a training step.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..._typing import Native
from .. import plain, views, workers
from ..reference import Affine, Moments
from ..views import View
from . import other, planes, updates
from .columns import Columns
from .compiling import cache_folder
from .layout import Layout
from .other import relu_backward, sigmoid_backward, softmax_cross_entropy  # noqa: F401  # of the seam
from .planes import Planes

supports = views.supports

SHORT = 16  # shorter runs of a channel hold no whole vector

# ---- the four kernels and their compositions


def moments(x: Native, axis: int) -> Moments:
    """Mean, remainder and variance, each thread over a block of its own."""
    view, layout = _of(x, axis)
    return layout.moments(view.flat(x))


def normalize(x: Native, moments: Moments, affine: Affine, axis: int) -> Native:
    """y in one pass, with scale and shift of each channel computed ahead."""
    view, layout = _of(x, axis)
    coefficients = layout.coefficients(view.moments(moments), view.affine(affine))
    return view.restored(layout.normalize(view.flat(x), coefficients, affine.relu))


def gradient_sums(dy: Native, x: Native, moments: Moments, affine: Affine, axis: int) -> tuple[Native, Native]:
    """Both sums in one pass over dy and x."""
    view, layout = _of(x, axis)
    m, affine = view.moments(moments), view.affine(affine)
    coefficients = layout.coefficients(m, affine)
    sum_dy, sum_dy_xhat = layout.sums(view.flat(dy), view.flat(x), m, coefficients, affine)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Native, x: Native, moments: Moments, sums: tuple[Native, Native], count: int, affine: Affine, axis: int
) -> Native:
    """dx in one pass, as scale * dy + slope * (x - mean) + offset of each channel."""
    view, layout = _of(x, axis)
    m, affine = view.moments(moments), view.affine(affine)
    coefficients = layout.coefficients(m, affine)
    layout.add_slopes(coefficients, np.stack(sums), count, m, affine)
    return view.restored(layout.input_gradient(view.flat(dy), view.flat(x), coefficients, affine.relu))


def forward(x: Native, affine: Affine, axis: int) -> tuple[Native, Moments]:
    """Moments and y of a block while it is in the cache, where one thread has whole channels."""
    view, layout = _of(x, axis)
    y, m = layout.forward(view.flat(x), view.affine(affine))
    return view.restored(y), m


def backward(
    dy: Native, x: Native, moments: Moments, affine: Affine, axis: int
) -> tuple[Native, tuple[Native, Native]]:
    """Sums and gradient over a block while it is in the cache, where one thread has whole channels."""
    view, layout = _of(x, axis)
    affine = view.affine(affine)
    dx, sums = layout.backward(view.flat(dy), view.flat(x), view.moments(moments), affine)
    return view.restored(dx), (sums[0], sums[1])


given, given_gradient = plain.given, plain.given_gradient
blend = other.blend


def weighted_moments(x: Native, weights: Native, total: Any, axis: int) -> Moments:  # noqa: ARG001  # summed on the way
    """Mean, remainder and variance of weighted values, each thread over a block of its own."""
    view, layout = _of(x, axis)
    return layout.weighted_moments(view.flat(x), _below_one(view.weights(weights))[0])


def weighted_gradient(
    dy: Native,
    x: Native,
    moments: Moments,
    sums: tuple[Native, Native],
    weights: Native,
    total: float,
    affine: Affine,
    axis: int,
) -> Native:
    """dx in one pass, as scale * dy + weight * (slope * (x - mean) + offset) of each channel."""
    view, layout = _of(x, axis)
    m, affine = view.moments(moments), view.affine(affine)
    coefficients = layout.coefficients(m, affine)
    w, power = _below_one(view.weights(weights))
    layout.add_slopes(coefficients, np.stack(sums), math.ldexp(total, -power), m, affine)
    return view.restored(layout.weighted_gradient(view.flat(dy), view.flat(x), w, coefficients, affine.relu))


def _below_one(w: Native) -> tuple[Native, int]:
    """Weights over a power of two, so that none is above 1 and the squares of 64 values of 1e18 still fit in float32."""
    power = int(np.frexp(w.max())[1])
    return np.ldexp(w, -power), power


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[View, Layout]:
    view = View(shape, axis, order, dtype)
    layout = Planes if view.seen[2] >= SHORT else Columns
    return view, layout(view.seen, view.statistics.itemsize)


def _of(x: Native, axis: int) -> tuple[View, Layout]:
    return _plan(x.shape, axis, views.order(x), x.dtype)


# ---- the network's other hot operations

matmul, update = plain.matmul, updates.update
add_bias, column_sums, relu, sigmoid = other.add_bias, other.column_sums, other.relu, other.sigmoid


# ---- ahead of time


def warmup(*dtypes: str) -> str:
    """Compile all kernels for these dtypes, which else happens on first use; float16 is computed in float32."""
    for name in dtypes or ("float32", "float64"):
        dtype = np.dtype(name)
        for shape in ((4, 3), (2, 3, 32), (workers.SERIAL // 64, 64), (workers.SERIAL // 64, 1, 64)):
            _every_kernel(np.zeros(shape, dtype))
        other.warmup(dtype)
        updates.warmup(dtype)
    return cache_folder(planes.normalize)


def _every_kernel(x: Native) -> None:
    affine = Affine(None, None, 1e-5, True)
    _, m = forward(x, affine, 1)
    backward(x, x, m, affine, 1)
    normalize(x, moments(x, 1), affine, 1)
    sums = gradient_sums(x, x, m, affine, 1)
    input_gradient(x, x, m, sums, 2, affine, 1)
    weights = np.ones((len(x), 1, *x.shape[2:]), m.mean.dtype)
    weighted_moments(x, weights, weights.sum(), 1)
    weighted_gradient(x, x, m, sums, weights, weights.sum(), affine, 1)
