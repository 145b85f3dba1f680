"""Optimisers on CuPy arrays: one launch updates all leaves of the same dtypes, in place."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..._typing import Native
from . import device

LEAVES = 64
"""Leaves of a launch: their table travels with its arguments, of which CUDA takes 4 KiB."""
CHUNK, THREADS = 2048, 256
"""Values and threads of a block: few enough that a small network keeps every multiprocessor busy."""


class Leaf(NamedTuple):
    """A parameter with its slots, which are written, its gradient, and its weight decay: L2, or a factor."""

    written: tuple[Native, ...]
    g: Native
    decay: float
    shrink: float = 1.0


class Rule(NamedTuple):
    """A rule of updates.cuh, what it writes beside the parameter, and its fields."""

    kernel: str
    slots: int
    scalars: Callable[[dict[str, Any]], tuple[float, ...]]
    """From the scalars of the update."""
    decoupled: bool = False


def _adam(s: dict[str, Any]) -> tuple[float, ...]:
    averages = s["beta1"], 1 - s["beta1"], s["beta2"], 1 - s["beta2"]
    return (s["rate"] / s["correction1"], *averages, s["eps"], s["correction2"] ** 0.5)


RULES = {
    "sgd": Rule("sgd", 0, lambda s: (s["rate"],)),
    "momentum": Rule("momentum", 1, lambda s: (s["rate"], s["momentum"], 0)),
    "nesterov": Rule("momentum", 1, lambda s: (s["rate"], s["momentum"], 1)),
    "rmsprop": Rule("rmsprop", 1, lambda s: (s["rate"], s["decay"], 1 - s["decay"], s["eps"])),
    "adam": Rule("adam", 2, _adam),
    "adamw": Rule("adam", 2, _adam, decoupled=True),
}


def update(
    rule: str,
    params: list[Native],
    grads: list[Native],
    slots: list[list[Native]],
    decays: list[float],
    scalars: dict[str, Any],
) -> bool:
    """Write the step into params and slots; False, and nothing written, where there is no such rule."""
    if rule not in RULES:
        return False
    kernel, _, fields, decoupled = RULES[rule]
    each = zip(decays, grads, params, *slots, strict=True)
    leaves = [Leaf(tuple(written), g, decay) for decay, g, *written in each]
    if decoupled:
        leaves = [leaf._replace(decay=0.0, shrink=1 - scalars["rate"] * leaf.decay) for leaf in leaves]
    _update(kernel, leaves, fields(scalars))
    return True


def _update(kernel: str, leaves: list[Leaf], scalars: tuple[float, ...]) -> None:
    """A launch for each device and set of dtypes, and one more for every LEAVES leaves."""
    groups: dict[tuple[Any, ...], list[Leaf]] = {}
    for leaf in leaves:
        key = leaf.g.device.id, leaf.g.dtype, *[a.dtype for a in leaf.written]
        groups.setdefault(key, []).append(leaf)
    for group in groups.values():
        for first in range(0, len(group), LEAVES):
            _launch(group[first].g, kernel, group[first : first + LEAVES], scalars)


@device.on_device
def _launch(g: Native, rule: str, leaves: list[Leaf], scalars: tuple[float, ...]) -> None:
    dense = [leaf._replace(written=tuple(map(_in_order, leaf.written)), g=_in_order(leaf.g)) for leaf in leaves]
    ends = list(itertools.accumulate(-(-leaf.g.size // CHUNK) for leaf in dense))
    p, *slots = leaves[0].written
    if ends[-1]:
        types = tuple(
            (letter, device.name_of(a.dtype)) for letter, a in zip("PGS", (p, g, (*slots, p)[0]), strict=True)
        )
        kernel = device.raw("update", types, RULE=rule, LEAVES=LEAVES, CHUNK=CHUNK)
        wide = device.statistics_dtype(p)
        kernel((ends[-1],), (THREADS,), (_table(dense, ends, wide), _packed(scalars, wide)))
    for leaf, copy in zip(leaves, dense, strict=True):
        for a, values in zip(leaf.written, copy.written, strict=True):
            if values is not a:
                a[...] = values


def _in_order(a: Native) -> Native:
    """The array in C order: a copy where it lies otherwise."""
    return a if a.flags.c_contiguous else a.copy(order="C")


def _table(leaves: list[Leaf], ends: list[int], wide: np.dtype[Any]) -> Any:
    """What a launch is told of its leaves, as one value: the `Leaves` of updates.cuh."""
    leaf_type, table_type = _types(wide)
    rows = []
    for leaf in leaves:
        p, first, second = (*[a.data.ptr for a in leaf.written], 0, 0)[:3]
        rows.append((p, leaf.g.data.ptr, first, second, leaf.g.size, leaf.decay, leaf.shrink))
    table = np.zeros((), table_type)
    table["leaf"][: len(rows)] = np.array(rows, leaf_type)
    table["end"] = (*ends, *[ends[-1]] * (LEAVES - len(ends)))
    return table[()]


def _packed(scalars: tuple[float, ...], wide: np.dtype[Any]) -> Any:
    """The fields of a rule, as one value."""
    return np.array(scalars, wide).view(f"V{wide.itemsize * len(scalars)}")[0]


@functools.cache
def _types(wide: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Of a leaf and of the table, with these scalars."""
    addresses = [(name, np.uint64) for name in ("p", "g", "first", "second")]
    leaf = np.dtype([*addresses, ("size", np.int64), ("decay", wide), ("shrink", wide)])
    return leaf, np.dtype([("leaf", leaf, LEAVES), ("end", np.uint32, LEAVES)])
