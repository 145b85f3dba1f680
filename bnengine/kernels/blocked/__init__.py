"""Kernels of NumPy alone, for NumPy arrays where no compiler is installed.

The equations are the specification's; what is gained is that each pass goes block by block, in place in
memory that stays in cache, where the specification writes every intermediate result to main memory.
`blocks` says which values go together, `passes` goes through them, `network` holds the rest of a training step.
"""

from __future__ import annotations

from ..._typing import Array
from .. import memory, reference, views
from ..reference import Moments
from . import network, passes
from .blocks import of

supports = views.supports

# ---- the four kernels and their compositions


def moments(x: Array, axis: int) -> Moments:
    view, parts = of(x, axis)
    return passes.moments(view.flat(x), parts)


def normalize(
    x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    view, parts = of(x, axis)
    affine = view.affine(gamma, beta, eps, relu)
    return view.restored(passes.normalize(view.flat(x), view.moments(moments), affine, parts))


def gradient_sums(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Array]:
    view, parts = of(x, axis)
    return passes.sums(view.flat(dy), view.flat(x), view.moments(moments), view.affine(gamma, beta, eps, relu), parts)


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
    view, parts = of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    x, dy = view.flat(x), view.flat(dy)
    return view.restored(passes.input_gradient(dy, x, m, sums, count, affine, parts, memory.empty_like(x)))


def given_gradient(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    view, parts = of(x, axis)
    affine = view.affine(gamma, beta, eps, relu)
    return view.restored(passes.given_gradient(view.flat(dy), view.flat(x), view.moments(moments), affine, parts))


def forward(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Moments]:
    view, parts = of(x, axis)
    flat = view.flat(x)
    m = passes.moments(flat, parts)
    return view.restored(passes.normalize(flat, m, view.affine(gamma, beta, eps, relu), parts)), m


def backward(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    view, parts = of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    dx, sums = passes.backward(view.flat(dy), view.flat(x), m, view.seen[0] * view.seen[2], affine, parts)
    return view.restored(dx), sums


blend = reference.blend


# ---- the network's other hot operations

matmul, softmax_cross_entropy = network.matmul, network.softmax_cross_entropy
relu, relu_backward = network.relu, reference.relu_backward
sigmoid, sigmoid_backward = network.sigmoid, network.sigmoid_backward
