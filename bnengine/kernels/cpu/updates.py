"""Optimiser updates in one pass over each leaf: what NumPy does in ten.

Leaves are written in place where all of them are writable, contiguous and of one dtype; else the
reference makes new ones. Scalars come in the leaves' dtype, or Numba would compute in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..._typing import Array
from .. import reference, workers
from ..views import plain, writable
from .compiling import compiled

# Each loop takes the gradient with weight decay as L2: g + decay * p. Its scalars come as one array, which costs
# a call less than a handful of them.


@compiled
def _sgd(p: Array, g: Array, scalars: Array) -> None:
    decay, rate = scalars
    for i in range(p.size):
        p[i] -= rate * (g[i] + decay * p[i])


@compiled
def _momentum(p: Array, g: Array, v: Array, scalars: Array) -> None:
    decay, rate, momentum, ahead = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        velocity = momentum * v[i] + gradient
        v[i] = velocity
        p[i] -= rate * (gradient + momentum * velocity if ahead else velocity)


@compiled
def _rmsprop(p: Array, g: Array, s: Array, scalars: Array) -> None:
    decay, rate, kept, new, eps = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        square = kept * s[i] + new * (gradient * gradient)
        s[i] = square
        p[i] -= rate * gradient / (math.sqrt(square) + eps)


@compiled
def _adam(p: Array, g: Array, m: Array, v: Array, scalars: Array) -> None:
    decay, shrink, step, beta1, new1, beta2, new2, inv_root, eps = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        first = beta1 * m[i] + new1 * gradient
        second = beta2 * v[i] + new2 * (gradient * gradient)
        m[i] = first
        v[i] = second
        p[i] = p[i] * shrink - step * first / (math.sqrt(second) * inv_root + eps)


def sgd(params: list[Array], grads: list[Array], decays: list[float], *, rate: float) -> tuple[list[Array]]:
    if not writable(grads, params):
        return reference.sgd(params, grads, decays, rate=rate)
    _update(_sgd, (params, grads), [(d, rate) for d in decays])
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
    if not writable(grads, params, velocity):
        return reference.momentum(params, grads, velocity, decays, rate=rate, momentum=momentum, nesterov=nesterov)
    _update(_momentum, (params, grads, velocity), [(d, rate, momentum, nesterov) for d in decays])
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
    if not writable(grads, params, square):
        return reference.rmsprop(params, grads, square, decays, rate=rate, decay=decay, eps=eps)
    _update(_rmsprop, (params, grads, square), [(d, rate, decay, 1 - decay, eps) for d in decays])
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
    if not writable(grads, params, first, second):
        scalars = {"rate": rate, "beta1": beta1, "beta2": beta2, "eps": eps}
        corrections = {"correction1": correction1, "correction2": correction2}
        return reference.adam(params, grads, first, second, decays, **scalars, **corrections, decoupled=decoupled)
    common = rate / correction1, beta1, 1 - beta1, beta2, 1 - beta2, correction2**-0.5, eps
    each = [(0.0, 1 - rate * d, *common) if decoupled else (d, 1.0, *common) for d in decays]
    _update(_adam, (params, grads, first, second), each)
    return params, first, second


def _update(loop: Callable[..., None], lists: tuple[list[Array], ...], scalars: Sequence[tuple[float, ...]]) -> None:
    """Run the loop over each leaf (its arrays in the order of `lists`: params, grads, slots) with its scalars."""
    dtype = lists[0][0].dtype
    typed = {values: np.asarray(values, dtype) for values in set(scalars)}
    for leaves, values in zip(zip(*lists, strict=True), scalars, strict=True):
        flat = [leaf.reshape(-1) for leaf in leaves]
        flat[1] = plain(flat[1], dtype)
        if flat[0].size < workers.SERIAL:
            loop(*flat, typed[values])
        else:
            parts = workers.ranges(flat[0].size, workers.parts(flat[0].size))
            workers.run(_part(loop, flat, typed[values], parts), len(parts))


def _part(loop: Callable[..., None], flat: list[Array], scalars: Array, parts: list[tuple[int, int]]) -> workers.Task:
    def task(i: int) -> None:
        loop(*(leaf[slice(*parts[i])] for leaf in flat), scalars)

    return task
