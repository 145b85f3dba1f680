"""Compiled kernels for NumPy arrays: the fast module for the CPU (needs Numba, the extra `cpu`).

An array is seen as (N, C, L): what is before the feature axis, the features, what is behind. Short L is
gone through as `columns`, long L as `planes`; both give the four kernels of the specification over flat
arrays, and their compositions. What is done once for each channel is in `channels`; `layout` puts them
together, over blocks that other threads may take. `network` and `updates` hold the rest of a training step.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..._typing import Array
from .. import blocked, views, workers
from ..reference import Moments
from ..views import View
from . import other as network
from . import updates
from .columns import Columns
from .layout import Layout
from .planes import Planes

supports = views.supports

SHORT = 16  # shorter runs of a channel hold no whole vector

# ---- the four kernels and their compositions


def moments(x: Array, axis: int) -> Moments:
    view, layout = _of(x, axis)
    return layout.moments(view.flat(x))


def normalize(
    x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    view, layout = _of(x, axis)
    coefficients = layout.coefficients(view.moments(moments), view.affine(gamma, beta, eps, relu))
    return view.restored(layout.normalize(view.flat(x), coefficients, relu))


def gradient_sums(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Array]:
    view, layout = _of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    coefficients = layout.coefficients(m, affine)
    sum_dy, sum_dy_xhat = layout.sums(view.flat(dy), view.flat(x), m, coefficients, affine)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Array,
    x: Array,
    moments: Moments,
    sums: tuple[Array, Array],
    count: int,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    eps: float,
    relu: bool,
) -> Array:
    view, layout = _of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    coefficients = layout.coefficients(m, affine)
    layout.add_slopes(coefficients, np.stack(sums), count, m, affine)
    return view.restored(layout.input_gradient(view.flat(dy), view.flat(x), coefficients, relu))


def forward(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Moments]:
    view, layout = _of(x, axis)
    y, m = layout.forward(view.flat(x), view.affine(gamma, beta, eps, relu))
    return view.restored(y), m


def backward(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    view, layout = _of(x, axis)
    affine = view.affine(gamma, beta, eps, relu)
    dx, sums = layout.backward(view.flat(dy), view.flat(x), view.moments(moments), affine)
    return view.restored(dx), (sums[0], sums[1])


given_gradient = blocked.given_gradient
blend = blocked.blend


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[View, Layout]:
    view = View(shape, axis, order, dtype)
    layout = Planes if view.seen[2] >= SHORT else Columns
    return view, layout(view.seen, view.statistics.itemsize)


def _of(x: Array, axis: int) -> tuple[View, Layout]:
    return _plan(x.shape, axis, views.order(x), x.dtype)


# ---- the network's other hot operations

matmul = blocked.matmul
relu, relu_backward = network.relu, network.relu_backward
sigmoid, sigmoid_backward = network.sigmoid, network.sigmoid_backward
softmax_cross_entropy = network.softmax_cross_entropy
update = updates.update


# ---- ahead of time


def warmup(*dtypes: str) -> None:
    """Compile all kernels for these dtypes ("float32", "float64"), which else happens on first use."""
    for name in dtypes:
        dtype = np.dtype(name)
        for shape in ((4, 3), (2, 3, 32), (workers.SERIAL // 64, 64), (workers.SERIAL // 64, 1, 64)):
            _every_kernel(np.zeros(shape, dtype))
        for activation_backward in (relu_backward, sigmoid_backward):
            activation_backward(np.zeros(1, dtype), np.zeros(1, dtype))
        softmax_cross_entropy(np.zeros((1, 1), dtype), np.zeros(1, np.int64))
        updates.warmup(dtype)


def _every_kernel(x: Array) -> None:
    _, m = forward(x, None, None, 1, 1e-5, True)
    backward(x, x, m, None, None, 1, 1e-5, True)
    normalize(x, moments(x, 1), None, None, 1, 1e-5, True)
    sums = gradient_sums(x, x, m, None, None, 1, 1e-5, True)
    input_gradient(x, x, m, sums, 2, None, None, 1, 1e-5, True)
