"""What a training step needs besides normalisation: products, losses and activations in kept or given memory."""

from __future__ import annotations

import math

import numpy as np

from ..._typing import Array
from .. import memory, reference
from ..views import FLOAT32, FLOAT64


def matmul(a: Array, b: Array) -> Array:
    if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
        return reference.matmul(a, b)
    return np.matmul(a, b, out=memory.empty((a.shape[0], b.shape[1]), a.dtype))


def relu(x: Array) -> Array:
    return np.maximum(x, 0, out=_like(x))


def sigmoid(x: Array) -> Array:
    y = _like(x)
    np.negative(x, out=y)
    with np.errstate(over="ignore"):  # exp(100) is infinite in float32, and 1 / (1 + that) is right
        np.exp(y, out=y)
    np.add(y, 1, out=y)
    return np.divide(1, y, out=y)


def sigmoid_backward(y: Array, dy: Array) -> Array:
    dx = np.subtract(1, y, out=_like(y))
    np.multiply(dx, y, out=dx)
    return np.multiply(dx, dy, out=dx)


def _like(x: Array) -> Array:
    """Memory for a result in the order of x."""
    return memory.empty_like(x) if x.flags.c_contiguous else np.empty_like(x)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    rows, classes = logits.shape
    z = logits.astype(FLOAT64 if logits.dtype == FLOAT64 else FLOAT32)
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
