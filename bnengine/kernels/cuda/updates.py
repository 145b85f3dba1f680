"""Optimisers on CuPy arrays: one launch updates all leaves of the same dtypes, in place."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..._typing import Array
from .. import reference
from . import device

LEAVES = 64
"""Leaves of a launch: their table travels with its arguments, of which CUDA takes 4 KiB."""
CHUNK, THREADS = 2048, 256
"""Values and threads of a block: few enough that a small network keeps every multiprocessor busy."""


class Leaf(NamedTuple):
    """A parameter with its slots, which are written, its gradient, and its weight decay: L2, or a factor."""

    written: tuple[Array, ...]
    g: Array
    decay: float
    shrink: float = 1.0


def sgd(params: list[Array], grads: list[Array], decays: list[float], *, rate: float) -> tuple[list[Array]]:
    _update("sgd", _leaves((params,), grads, decays), rate)
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
    _update("momentum", _leaves((params, velocity), grads, decays), rate, momentum, nesterov)
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
    _update("rmsprop", _leaves((params, square), grads, decays), rate, decay, 1 - decay, eps)
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
    leaves = _leaves((params, first, second), grads, decays)
    if decoupled:
        leaves = [leaf._replace(decay=0.0, shrink=1 - rate * leaf.decay) for leaf in leaves]
    _update("adam", leaves, rate / correction1, beta1, 1 - beta1, beta2, 1 - beta2, eps, correction2**0.5)
    return params, first, second


def _leaves(written: tuple[list[Array], ...], grads: list[Array], decays: list[float]) -> list[Leaf]:
    return [Leaf(tuple(arrays), g, decay) for *arrays, g, decay in zip(*written, grads, decays, strict=True)]


def _update(rule: str, leaves: list[Leaf], *scalars: float) -> None:
    """A launch for each device and set of dtypes, and one more for every LEAVES leaves."""
    groups: dict[tuple[Any, ...], list[Leaf]] = {}
    for leaf in leaves:
        key = leaf.g.device.id, *(a.dtype.name for a in (*leaf.written, leaf.g))
        groups.setdefault(key, []).append(leaf)
    for group in groups.values():
        for first in range(0, len(group), LEAVES):
            _launch(group[first].g, rule, group[first : first + LEAVES], scalars)


@device.on_device
def _launch(g: Array, rule: str, leaves: list[Leaf], scalars: tuple[float, ...]) -> None:
    dense = [_dense(leaf) for leaf in leaves]
    ends = list(itertools.accumulate(-(-leaf.g.size // CHUNK) for leaf in dense))
    p, *slots = leaves[0].written
    if ends[-1]:
        types = ("P", p.dtype.name), ("G", g.dtype.name), ("S", (*slots, p)[0].dtype.name)
        kernel = device.raw("update", types, RULE=rule, LEAVES=LEAVES, CHUNK=CHUNK)
        wide = np.dtype(reference.statistics_dtype(p))
        packed = np.array((scalars,), [("scalars", wide, len(scalars))])
        kernel((ends[-1],), (THREADS,), (_table(dense, ends, wide), packed))
    for leaf, copy in zip(leaves, dense, strict=True):
        for a, values in zip(leaf.written, copy.written, strict=True):
            if values is not a:
                a[...] = values


def _dense(leaf: Leaf) -> Leaf:
    """The leaf in C order: copies where its arrays lie otherwise."""
    return leaf._replace(written=tuple(map(_in_order, leaf.written)), g=_in_order(leaf.g))


def _in_order(a: Array) -> Array:
    return a if a.flags.c_contiguous else a.copy(order="C")


def _table(leaves: list[Leaf], ends: list[int], wide: Any) -> np.ndarray[Any, Any]:
    """What a launch is told of its leaves, as one value: the `Leaves` of updates.cuh."""
    addresses = [(name, np.uint64) for name in ("p", "g", "first", "second")]
    leaf_type = np.dtype([*addresses, ("size", np.int64), ("decay", wide), ("shrink", wide)])
    table = np.zeros((), [("leaf", leaf_type, LEAVES), ("end", np.uint32, LEAVES)])
    for k, leaf in enumerate(leaves):
        p, first, second = (*(a.data.ptr for a in leaf.written), 0, 0)[:3]
        table["leaf"][k] = (p, leaf.g.data.ptr, first, second, leaf.g.size, leaf.decay, leaf.shrink)
    table["end"] = (*ends, *[ends[-1]] * (LEAVES - len(ends)))
    return table
