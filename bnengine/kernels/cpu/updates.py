"""Optimiser updates in one pass over each leaf: what NumPy does in ten.

Leaves are written in place where all of them are writable, contiguous and of one dtype. Scalars come in the leaves' dtype, or Numba would compute in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..._typing import Native
from ...recording import call, table
from .. import workers
from ..views import plain, writable
from .compiling import compiled

# Each loop takes the gradient with weight decay as L2: g + decay * p. Its scalars come as one array, which costs
# a call less than a handful of them.


@compiled
def _sgd(p: Native, g: Native, scalars: Native) -> None:
    decay, rate = scalars
    for i in range(p.size):
        p[i] -= rate * (g[i] + decay * p[i])


@compiled
def _momentum(p: Native, g: Native, v: Native, scalars: Native) -> None:
    decay, rate, momentum, ahead = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        velocity = momentum * v[i] + gradient
        v[i] = velocity
        p[i] -= rate * (gradient + momentum * velocity if ahead else velocity)


@compiled
def _rmsprop(p: Native, g: Native, s: Native, scalars: Native) -> None:
    decay, rate, kept, new, eps = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        square = kept * s[i] + new * (gradient * gradient)
        s[i] = square
        p[i] -= rate * gradient / (math.sqrt(square) + eps)


@compiled
def _adam(p: Native, g: Native, m: Native, v: Native, scalars: Native) -> None:
    decay, shrink, step, beta1, new1, beta2, new2, inv_root, eps = scalars
    for i in range(p.size):
        gradient = g[i] + decay * p[i]
        first = beta1 * m[i] + new1 * gradient
        second = beta2 * v[i] + new2 * (gradient * gradient)
        m[i] = first
        v[i] = second
        p[i] = p[i] * shrink - step * first / (math.sqrt(second) * inv_root + eps)


class Rule(NamedTuple):
    """The loop of a rule, its arrays beside the gradient, and what its scalars are made of."""

    loop: Callable[..., None]
    written: int
    scalars: Callable[[float, dict[str, Any]], tuple[float, ...]]
    """From the weight decay of a leaf and the scalars of the update."""


def _adam_scalars(s: dict[str, Any]) -> tuple[float, ...]:
    averages = s["beta1"], 1 - s["beta1"], s["beta2"], 1 - s["beta2"]
    return (s["rate"] / s["correction1"], *averages, s["correction2"] ** -0.5, s["eps"])


RULES = {
    "sgd": Rule(_sgd, 1, lambda decay, s: (decay, s["rate"])),
    "momentum": Rule(_momentum, 2, lambda decay, s: (decay, s["rate"], s["momentum"], 0)),
    "nesterov": Rule(_momentum, 2, lambda decay, s: (decay, s["rate"], s["momentum"], 1)),
    "rmsprop": Rule(_rmsprop, 2, lambda decay, s: (decay, s["rate"], s["decay"], 1 - s["decay"], s["eps"])),
    "adam": Rule(_adam, 3, lambda decay, s: (decay, 1, *_adam_scalars(s))),
    "adamw": Rule(_adam, 3, lambda decay, s: (0, 1 - s["rate"] * decay, *_adam_scalars(s))),
}


def update(
    rule: str,
    params: list[Native],
    grads: list[Native],
    slots: list[list[Native]],
    decays: list[float],
    scalars: dict[str, Any],
) -> bool:
    """Write the step into params and slots; False, and nothing written, where there is no such rule or memory."""
    if rule not in RULES or not writable(grads, params, *slots):
        return False
    dtype, (loop, _, scalars_of) = params[0].dtype, RULES[rule]
    typed = {decay: table(dtype, scalars_of, decay, scalars) for decay in set(decays)}
    for decay, *leaves in zip(decays, params, grads, *slots, strict=True):
        flat = [leaf.reshape(-1) for leaf in leaves]
        flat[1] = plain(flat[1], dtype)
        call(loop if flat[0].size < workers.SERIAL else _Divided(loop), (*flat, typed[decay]))
    return True


class _Divided:
    """A loop over leaves so long that threads take parts of them."""

    def __init__(self, loop: Callable[..., None]) -> None:
        self.loop = loop

    def __call__(self, *arguments: Native) -> None:
        *leaves, scalars = arguments
        parts = workers.ranges(leaves[0].size, workers.parts(leaves[0].size))

        def task(i: int) -> None:
            self.loop(*(leaf[slice(*parts[i])] for leaf in leaves), scalars)

        workers.run(task, len(parts))


def warmup(dtype: np.dtype[Any]) -> None:
    """Compile every loop for that dtype."""
    for loop, written, scalars in RULES.values():
        some = scalars(0.0, defaultdict(lambda: 0.5))
        loop(*(np.zeros(1, dtype) for _ in range(1 + written)), np.asarray(some, dtype))
