"""What a training step needs besides normalisation: products, losses, activations and updates in kept or given memory."""

from __future__ import annotations

import math

import numpy as np

from ..._typing import Array
from .. import memory, reference, views
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


def sigmoid_backward(dy: Array, y: Array) -> Array:
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
