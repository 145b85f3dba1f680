"""Kernels of NumPy alone, for NumPy arrays where no compiler is installed.

The equations are the specification's; what is gained is that each pass goes block by block, in place in
memory that stays in cache, where the specification writes every intermediate result to main memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._typing import Array
from . import memory, reference, views
from .reference import Moments
from .views import FLOAT64, Affine, View

supports = views.supports

BLOCK = 1 << 15  # values: with their intermediate results they fit in the second-level cache
ROWS = 256  # of a block at most
TOGETHER = 32  # rows summed in the dtype of x: after an outlier of 1e6 more of them would cost digits
SHORT = 16  # runs of a channel that are not worth a loop of their own
WIDE = 512  # values of a row, if one is shorter and there are rows enough


# ---- the four kernels and their compositions


def moments(x: Array, axis: int) -> Moments:
    view, parts = _of(x, axis)
    return _moments(view.flat(x), view, parts)


def normalize(
    x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    view, parts = _of(x, axis)
    affine = view.affine(gamma, beta, eps, relu)
    return view.restored(_normalize(view.flat(x), view.moments(moments), affine, parts))


def gradient_sums(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Array]:
    view, parts = _of(x, axis)
    return _sums(view.flat(dy), view.flat(x), view.moments(moments), view.affine(gamma, beta, eps, relu), parts)


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
    view, parts = _of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    return view.restored(_input_gradient(view.flat(dy), view.flat(x), m, sums, count, affine, parts))


def given_gradient(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    view, parts = _of(x, axis)
    affine = view.affine(gamma, beta, eps, relu)
    return view.restored(_given_gradient(view.flat(dy), view.flat(x), view.moments(moments), affine, parts))


def forward(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Moments]:
    view, parts = _of(x, axis)
    flat = view.flat(x)
    m = _moments(flat, view, parts)
    return view.restored(_normalize(flat, m, view.affine(gamma, beta, eps, relu), parts)), m


def backward(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    view, parts = _of(x, axis)
    m, affine = view.moments(moments), view.affine(gamma, beta, eps, relu)
    dy, x, count = view.flat(dy), view.flat(x), view.seen[0] * view.seen[2]
    sums = _sums(dy, x, m, affine, parts)
    return view.restored(_input_gradient(dy, x, m, sums, count, affine, parts)), sums


blend = reference.blend


# ---- blocks


class _Part(NamedTuple):
    """Some samples of a flat array, seen as (n, positions, run): a position belongs to one channel.

    Runs that are short become positions of their own, and so do several samples side by side.
    """

    start: int
    stop: int
    shape: tuple[int, int, int]
    channels: int
    length: int
    """Positions side by side that belong to one channel."""

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        n, positions, run = self.shape
        rows = max(1, min(ROWS if run == 1 else n, BLOCK // (positions * run)))
        columns = positions if self.length * self.channels != positions or run == 1 else max(1, BLOCK // run)
        for i in range(0, n, rows):
            for j in range(0, positions, columns):
                for k in range(0, run, BLOCK):
                    yield slice(i, i + rows), slice(j, j + columns), slice(k, k + BLOCK)

    def spread(self, v: Array) -> Array:
        """Values of the channels for each position, shaped to broadcast."""
        repeated = np.repeat(v, self.length) if self.length > 1 else v
        tiles = self.shape[1] // repeated.size
        return (np.tile(repeated, tiles) if tiles > 1 else repeated)[:, None]

    def total(self, d: Array) -> Array:
        """The sum of a block for each of its channels, in float64."""
        if self.shape[2] > 1:
            return np.add.reduce(np.add.reduce(d, axis=2), axis=0, dtype=np.float64)
        rows, whole = d[:, :, 0], len(d) - len(d) % TOGETHER
        sums = np.add.reduce(rows[:whole].reshape(-1, TOGETHER, rows.shape[1]), axis=1)
        total = np.add.reduce(sums, axis=0, dtype=np.float64) + np.add.reduce(rows[whole:], axis=0)
        return np.add.reduce(total.reshape(-1, self.channels, self.length), axis=(0, 2))


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[View, list[_Part]]:
    view = View(shape, axis, order, dtype)
    samples, channels, length = view.seen
    size = samples * channels * length
    if length >= SHORT:
        return view, [_Part(0, size, view.seen, channels, 1)]
    pattern = channels * length
    together = max(1, min(WIDE // pattern, samples // ROWS))
    rows = samples // together
    whole = rows * together * pattern
    parts = [
        _Part(0, whole, (rows, together * pattern, 1), channels, length),
        _Part(whole, size, (samples - rows * together, pattern, 1), channels, length),
    ]
    return view, [part for part in parts if part.stop > part.start]


def _of(x: Array, axis: int) -> tuple[View, list[_Part]]:
    return _plan(x.shape, axis, views.order(x), x.dtype)


class _Block(NamedTuple):
    """Some positions of a part: what they hold of the arrays, and the vectors spread over them."""

    arrays: list[Array]
    vectors: list[Array]
    channels: slice
    """The channels that the positions belong to."""
    total: Callable[[Array], Array]


def _each(parts: list[_Part], arrays: list[Array], vectors: list[Array]) -> Iterator[_Block]:
    for part in parts:
        seen = [a[part.start : part.stop].reshape(part.shape) for a in arrays]
        spread = [part.spread(v) for v in vectors]
        for n, c, k in part.blocks():
            channels = c if part.shape[2] > 1 else slice(None)
            yield _Block([a[n, c, k] for a in seen], [v[c] for v in spread], channels, part.total)


class _Scratch:
    """Memory for an intermediate result of a block, used again for the next."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.memory = np.empty(0, dtype)

    def like(self, block: Array) -> Array:
        if self.memory.size < block.size:
            self.memory = np.empty(block.size, self.memory.dtype)
        return self.memory[: block.size].reshape(block.shape)


# ---- passes over flat arrays


def _moments(x: Array, view: View, parts: list[_Part]) -> Moments:
    """Blocks are summed about the mean so far and merged in float64 (Chan, Golub and LeVeque 1979)."""
    first = x.reshape(view.seen)[0, :, 0]  # about one of its values, a constant channel's mean is exact
    mean, square, done = first.astype(np.float64), np.zeros(first.size), np.zeros(first.size)
    scratch = _Scratch(x.dtype)
    for part in parts:
        seen = x[part.start : part.stop].reshape(part.shape)
        for n, c, k in part.blocks():
            block, channels = seen[n, c, k], c if part.shape[2] > 1 else slice(None)
            count = float(block.size // mean[channels].size)
            for _ in range(1 if done[channels][0] else 2):  # the first block about a mean of its own
                center = mean.astype(x.dtype)
                d = np.subtract(block, part.spread(center)[c], out=scratch.like(block))
                s = part.total(d) / count
                if not done[channels][0]:
                    mean[channels] = (center[channels] + s).astype(x.dtype)
            q = part.total(np.multiply(d, d, out=d))
            before = done[channels]
            between = (center[channels] - mean[channels]) + s
            mean[channels] += between * (count / (before + count))
            square[channels] += (q - s * s * count) + between * between * (before * count / (before + count))
            done[channels] += count
    m = mean.astype(x.dtype)
    return Moments(m, (mean - m).astype(x.dtype), (square / done).astype(x.dtype))


def _normalize(x: Array, moments: Moments, affine: Affine, parts: list[_Part]) -> Array:
    y = memory.empty(x.shape, x.dtype)
    zeros = _zeros(x)
    for (a, out), (mean, scale, shift), _, _ in _each(parts, [x, y], [moments.mean, *_line(moments, affine)]):
        np.subtract(a, mean, out=out)
        np.multiply(out, scale, out=out)
        np.add(out, shift, out=out)
        if affine.relu:
            np.maximum(out, zeros(out), out=out)
    return y


def _sums(dy: Array, x: Array, moments: Moments, affine: Affine, parts: list[_Part]) -> tuple[Array, Array]:
    channels = moments.mean.size
    sum_dy, sum_dy_x = np.zeros((2, channels))
    scratch = _Scratch(x.dtype), _Scratch(x.dtype)
    for block in _each(parts, [x, dy], [moments.mean, *_line(moments, affine)]):
        t, d = _masked(block, affine.relu, scratch)
        sum_dy[block.channels] += block.total(d)
        sum_dy_x[block.channels] += block.total(np.multiply(d, t, out=t))
    sum_dy_xhat = (sum_dy_x - moments.remainder * sum_dy) / np.sqrt(moments.var.astype(np.float64) + affine.eps)
    return sum_dy.astype(x.dtype), sum_dy_xhat.astype(x.dtype)


def _input_gradient(
    dy: Array, x: Array, moments: Moments, sums: tuple[Array, Array], count: int, affine: Affine, parts: list[_Part]
) -> Array:
    """dx = scale * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n) as dy * scale + (x - mean) * slope + offset."""
    dx, scratch = memory.empty(x.shape, x.dtype), (_Scratch(x.dtype), _Scratch(x.dtype))
    inv_std = 1 / np.sqrt(moments.var.astype(np.float64) + affine.eps)
    slope = -affine.gamma * inv_std * inv_std * sums[1] / count
    offset = -affine.gamma * inv_std * sums[0] / count - moments.remainder * slope
    vectors = [moments.mean, *_line(moments, affine), slope.astype(x.dtype), offset.astype(x.dtype)]
    for block in _each(parts, [x, dy, dx], vectors):
        t, d = _masked(block, affine.relu, scratch)
        _, scale, _, slope, offset = block.vectors
        out = np.multiply(d, scale, out=block.arrays[2])
        np.multiply(t, slope, out=t)
        np.add(t, offset, out=t)
        np.add(out, t, out=out)
    return dx


def _given_gradient(dy: Array, x: Array, moments: Moments, affine: Affine, parts: list[_Part]) -> Array:
    dx, scratch = memory.empty(x.shape, x.dtype), (_Scratch(x.dtype), _Scratch(x.dtype))
    for block in _each(parts, [x, dy, dx], [moments.mean, *_line(moments, affine)]):
        d = _masked(block, True, scratch)[1] if affine.relu else block.arrays[1]
        np.multiply(d, block.vectors[1], out=block.arrays[2])
    return dx


def _masked(block: _Block, relu: bool, scratch: tuple[_Scratch, _Scratch]) -> tuple[Array, Array]:
    """x - mean, and dy where a fused ReLU was on, else 0."""
    x, dy, mean = block.arrays[0], block.arrays[1], block.vectors[0]
    t = np.subtract(x, mean, out=scratch[0].like(x))
    if not relu:
        return t, dy
    before = np.multiply(t, block.vectors[1], out=scratch[1].like(x))
    np.add(before, block.vectors[2], out=before)
    # A copy with `where` takes ten times as long; a product with the mask would make 0 * inf of an infinite dy.
    integer = np.int64 if dy.dtype == FLOAT64 else np.int32
    on = ((before <= 0).view(np.int8) - np.int8(1)).astype(integer)  # all bits set, or none
    np.bitwise_and(dy.view(integer), on, out=before.view(integer))
    return t, before


def _line(moments: Moments, affine: Affine) -> tuple[Array, Array]:
    """Scale and shift of y = (x - mean) * scale + shift; the remainder of the mean is in the shift."""
    scale = affine.gamma / np.sqrt(moments.var.astype(np.float64) + affine.eps)
    shift = affine.beta - moments.remainder * scale
    return scale.astype(moments.mean.dtype), shift.astype(moments.mean.dtype)


def _zeros(x: Array) -> Callable[[Array], Array]:
    """Zeros in the shape of a block: numpy.maximum is three times slower against a scalar."""
    zeros = np.zeros(0, x.dtype)

    def like(block: Array) -> Array:
        nonlocal zeros
        if zeros.size < block.size:
            zeros = np.zeros(block.size, x.dtype)
        return zeros[: block.size].reshape(block.shape)

    return like


# ---- the network's other hot operations


def matmul(a: Array, b: Array) -> Array:
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        return reference.matmul(a, b)
    return np.matmul(a, b, out=memory.empty((a.shape[0], b.shape[1]), a.dtype))


def sigmoid(x: Array) -> Array:
    y = memory.empty(x.shape, x.dtype)
    np.negative(x, out=y)
    with np.errstate(over="ignore"):  # exp(100) is infinite in float32, and 1 / (1 + that) is right
        np.exp(y, out=y)
    np.add(y, 1, out=y)
    return np.divide(1, y, out=y)


def sigmoid_backward(y: Array, dy: Array) -> Array:
    dx = np.subtract(1, y, out=memory.empty(y.shape, y.dtype))
    np.multiply(dx, y, out=dx)
    return np.multiply(dx, dy, out=dx)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    rows, classes = logits.shape
    z = logits.astype(FLOAT64 if logits.dtype == FLOAT64 else views.FLOAT32)
    z -= np.max(z, axis=1, keepdims=True)
    outside = (labels < 0) | (labels >= classes)
    chosen = np.arange(rows), np.where(outside, 0, labels)
    own = z[chosen]
    np.exp(z, out=z)
    total = np.add.reduce(z, axis=1, keepdims=True)
    loss = np.add.reduce(np.log(total[:, 0]) - np.where(outside, math.nan, own)) / rows
    z /= total
    z[chosen] -= 1
    z[outside] = math.nan
    z /= rows
    return z.dtype.type(loss), z.astype(logits.dtype, copy=False)


# ---- optimisers, in place where all leaves are the caller's to write to and of one dtype


def sgd(params: list[Array], grads: list[Array], decays: list[float], *, rate: float) -> tuple[list[Array]]:
    if not views.writable(grads, params):
        return reference.sgd(params, grads, decays, rate=rate)
    for p, g in zip(params, _decayed(params, grads, decays), strict=True):
        np.subtract(p, rate * g, out=p)
    return (params,)


def momentum(
    params: list[Array],
    grads: list[Array],
    velocity: list[Array],
    decays: list[float],
    *,
    rate: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Array], list[Array]]:
    if not views.writable(grads, params, velocity):
        return reference.momentum(params, grads, velocity, decays, rate=rate, momentum=momentum, nesterov=nesterov)
    for p, g, v in zip(params, _decayed(params, grads, decays), velocity, strict=True):
        np.multiply(v, momentum, out=v)
        np.add(v, g, out=v)
        step = v * (momentum * rate if nesterov else rate)
        np.subtract(p, step, out=p)
        if nesterov:
            np.subtract(p, np.multiply(g, rate, out=step), out=p)
    return params, velocity


def rmsprop(
    params: list[Array],
    grads: list[Array],
    square: list[Array],
    decays: list[float],
    *,
    rate: float,
    decay: float,
    eps: float,
) -> tuple[list[Array], list[Array]]:
    if not views.writable(grads, params, square):
        return reference.rmsprop(params, grads, square, decays, rate=rate, decay=decay, eps=eps)
    for p, g, s in zip(params, _decayed(params, grads, decays), square, strict=True):
        work = g * g
        _average(s, work, decay)
        step = g * rate
        np.subtract(p, np.divide(step, _root(s, 1, eps, work), out=step), out=p)
    return params, square


def adam(
    params: list[Array],
    grads: list[Array],
    first: list[Array],
    second: list[Array],
    decays: list[float],
    *,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    correction1: float,
    correction2: float,
    decoupled: bool,
) -> tuple[list[Array], list[Array], list[Array]]:
    scalars = {"rate": rate, "beta1": beta1, "beta2": beta2, "eps": eps}
    if not views.writable(grads, params, first, second):
        corrections = {"correction1": correction1, "correction2": correction2}
        return reference.adam(params, grads, first, second, decays, **scalars, **corrections, decoupled=decoupled)
    root, rate1 = correction2**0.5, rate / correction1
    if decoupled:
        for p, decay in zip(params, decays, strict=True):
            if decay != 0:
                np.multiply(p, 1 - rate * decay, out=p)
    else:
        grads = _decayed(params, grads, decays)
    for p, g, m, v in zip(params, grads, first, second, strict=True):
        work = g.copy()
        _average(m, work, beta1)
        _average(v, np.multiply(g, g, out=work), beta2)
        step = m * rate1
        np.subtract(p, np.divide(step, _root(v, root, eps, work), out=step), out=p)
    return params, first, second


def _average(old: Array, new: Array, weight: float) -> None:
    """old = weight * old + (1 - weight) * new; `new` is overwritten."""
    np.multiply(old, weight, out=old)
    np.add(old, np.multiply(new, 1 - weight, out=new), out=old)


def _root(square: Array, root: float, eps: float, out: Array) -> Array:
    """sqrt(square) / root + eps"""
    np.sqrt(square, out=out)
    if root != 1:
        np.divide(out, root, out=out)
    return np.add(out, eps, out=out)


def _decayed(params: list[Array], grads: list[Array], decays: list[float]) -> list[Array]:
    """Gradients with weight decay as L2: g + decay * p."""
    return [g if d == 0 else g + d * p for p, g, d in zip(params, grads, decays, strict=True)]
