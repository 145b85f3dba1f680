"""Passes over flat arrays, block by block in cache, on one thread: handing the interpreter over takes what a second gains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..._typing import Array
from .. import memory
from ..reference import Affine, Moments
from ..views import FLOAT64
from .blocks import Block, Part, Scratch, each


def moments(x: Array, parts: list[Part]) -> Moments:
    """Parts are merged in float64 (Chan, Golub and LeVeque 1979), in their order."""
    (done, mean, square), *others = [_part_moments(x, part) for part in parts]
    for count, part_mean, part_square in others:
        between = part_mean - mean
        mean = mean + between * (count / (done + count))
        square = square + part_square + between * between * (done * count / (done + count))
        done = done + count
    m = mean.astype(x.dtype)
    return Moments(m, (mean - m).astype(x.dtype), (square / done).astype(x.dtype))


def _part_moments(x: Array, part: Part) -> tuple[Array, Array, Array]:
    """Count, mean and sum of squares about it: blocks are summed about the mean so far, and merged in the same way."""
    mean = part.first(x).astype(np.float64)  # about one of its values, a constant channel's mean is exact
    square, done = np.zeros((2, mean.size))
    scratch = Scratch(x.dtype)
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
    return done, mean, square


def normalize(x: Array, moments: Moments, affine: Affine, parts: list[Part]) -> Array:
    y, vectors = memory.empty_like(x), [moments.mean, *_line(moments, affine)]

    def one(part: Part) -> None:
        zeros = _zeros(x)
        for (a, out), (mean, scale, shift), _ in each(part, [x, y], vectors):
            np.subtract(a, mean, out=out)
            np.multiply(out, scale, out=out)
            np.add(out, shift, out=out)
            if affine.relu:
                np.maximum(out, zeros(out), out=out)

    for part in parts:
        one(part)
    return y


def sums(
    dy: Array, x: Array, moments: Moments, affine: Affine, parts: list[Part], kept: Array | None = None
) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * xhat). dy where a fused ReLU was on, else 0, is kept in `kept`."""
    vectors = [moments.mean, *_line(moments, affine)]

    def one(part: Part) -> Array:
        scratch, totals = (Scratch(x.dtype), Scratch(x.dtype)), np.zeros((2, moments.mean.size))
        for block in each(part, [x, dy] if kept is None else [x, dy, kept], vectors):
            t, d = _masked(block, affine.relu, scratch, block.arrays[-1] if kept is not None else None)
            totals[0, block.channels] += part.total(d)
            totals[1, block.channels] += part.total(np.multiply(d, t, out=t))
        return totals

    sum_dy, sum_dy_x = sum(one(part) for part in parts)
    sum_dy_xhat = (sum_dy_x - moments.remainder * sum_dy) / np.sqrt(moments.var.astype(np.float64) + affine.eps)
    return sum_dy.astype(x.dtype), sum_dy_xhat.astype(x.dtype)


def input_gradient(
    dy: Array,
    x: Array,
    moments: Moments,
    sums: tuple[Array, Array],
    count: int,
    affine: Affine,
    parts: list[Part],
    dx: Array,
) -> Array:
    """dx = scale * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n) as dy * scale + (x - mean) * slope + offset.

    dx may be dy itself.
    """
    inv_std = 1 / np.sqrt(moments.var.astype(np.float64) + affine.eps)
    slope = -(inv_std * affine.gamma) * inv_std * sums[1] / count
    offset = -(inv_std * affine.gamma) * sums[0] / count - moments.remainder * slope
    vectors = [moments.mean, *_line(moments, affine), slope.astype(x.dtype), offset.astype(x.dtype)]

    def one(part: Part) -> None:
        scratch = Scratch(x.dtype), Scratch(x.dtype)
        for block in each(part, [x, dy, dx], vectors):
            t, d = _masked(block, affine.relu, scratch)
            _, scale, _, slope, offset = block.vectors
            out = np.multiply(d, scale, out=block.arrays[2])
            np.multiply(t, slope, out=t)
            np.add(t, offset, out=t)
            np.add(out, t, out=out)

    for part in parts:
        one(part)
    return dx


def backward(
    dy: Array, x: Array, moments: Moments, count: int, affine: Affine, parts: list[Part]
) -> tuple[Array, tuple[Array, Array]]:
    """Both passes; the first leaves the masked dy where the second writes dx."""
    dx = memory.empty_like(x)
    if not affine.relu:
        found = sums(dy, x, moments, affine, parts)
        return input_gradient(dy, x, moments, found, count, affine, parts, dx), found
    found = sums(dy, x, moments, affine, parts, kept=dx)
    return input_gradient(dx, x, moments, found, count, affine._replace(relu=False), parts, dx), found


def given_gradient(dy: Array, x: Array, moments: Moments, affine: Affine, parts: list[Part]) -> Array:
    dx, vectors = memory.empty_like(x), [moments.mean, *_line(moments, affine)]

    def one(part: Part) -> None:
        scratch = Scratch(x.dtype), Scratch(x.dtype)
        for block in each(part, [x, dy, dx], vectors):
            d = _masked(block, True, scratch)[1] if affine.relu else block.arrays[1]
            np.multiply(d, block.vectors[1], out=block.arrays[2])

    for part in parts:
        one(part)
    return dx


def _masked(
    block: Block, relu: bool, scratch: tuple[Scratch, Scratch], out: Array | None = None
) -> tuple[Array, Array]:
    """x - mean, and dy where a fused ReLU was on, else 0."""
    x, dy, mean = block.arrays[0], block.arrays[1], block.vectors[0]
    t = np.subtract(x, mean, out=scratch[0].like(x))
    if not relu:
        return t, dy
    before = np.multiply(t, block.vectors[1], out=scratch[1].like(x) if out is None else out)
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
