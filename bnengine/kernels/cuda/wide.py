"""Batch normalisation on wide loads: RawKernels for float16, bfloat16 and float32, chosen by `plans`."""

from __future__ import annotations

import functools
import itertools
import operator
from typing import Any

import numpy as np

from ..._typing import Native
from ..reference import Affine, Moments
from . import device, plans
from .layout import Dense
from .plans import Chip, Plan

DTYPES = frozenset({"float16", "bfloat16", "float32"})

NOTHING = Affine(None, None, 0.0, False)
"""For a pass that takes statistics only."""


@functools.cache
def chip_of(number: int) -> Chip:
    """The chip of the device of that number."""
    found = device.cupy.cuda.Device(number)
    attributes = found.attributes
    shared = attributes["MaxSharedMemoryPerBlockOptin"]
    return Chip(int(found.compute_capability), attributes["MultiProcessorCount"], shared)


def chip(x: Dense) -> Chip:
    """The chip that x is on."""
    return chip_of(x.flat.device.id)


def takes(x: Dense, *others: Native) -> bool:
    """Whether the kernels here take x and the others, which lie as it does."""
    dtype = x.flat.dtype
    if dtype.name not in DTYPES or any(a.dtype != dtype for a in others) or chip(x).architecture < plans.OLDEST:
        return False
    return _vectors(x) is not None


def _vectors(x: Dense, *others: Native) -> Any:
    """x as vectors: a `Wide`, or None where it has no values or too many."""
    addresses = functools.reduce(operator.or_, (a.data.ptr for a in (x.flat, *others)))
    return plans.wide(x.outer, x.channels, x.inner, x.flat.dtype.itemsize, addresses % 16)


def forward(x: Dense, affine: Affine) -> tuple[Native, Moments]:
    """y and the moments in one launch that reads x once, where a tile fits on the chip; else in two."""
    plan = plans.held(_vectors(x), chip(x), 1)
    if plan is None:
        m = moments(x)
        return normalize(x, m, affine), m
    y, m = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype), _moments(x)
    _launch("held_forward", plan, x, (x.flat, y, *_channel(m, affine)), _options(x.values, affine))
    return x.restored(y), m


def backward(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, tuple[Native, Native]]:
    """dx and the sums in one launch that reads x and dy once, where a tile fits on the chip; else in two."""
    plan = plans.held(_vectors(x, dy), chip(x), 2)
    if plan is None:
        sums = gradient_sums(dy, x, m, affine)
        return input_gradient(dy, x, m, sums, x.values, affine), sums
    dx, sums = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype), _pair(x)
    arrays = (dy, x.flat, dx, *sums, *_channel(m, affine))
    _launch("held_backward", plan, x, arrays, _options(x.values, affine))
    return x.restored(dx), sums


def moments(x: Dense) -> Moments:
    """In one launch: the last block of a tile pools the shares of all."""
    plan, m = plans.split(_vectors(x), chip(x)), _moments(x)
    shares = device.cupy.empty((plan.parts, x.channels, 4), dtype=device.cupy.float32)
    _launch("split_moments", plan, x, (x.flat, shares, _tickets(plan), *m), _options(x.values, NOTHING))
    return m


def gradient_sums(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, Native]:
    """In one launch: the last block of a tile adds the shares of all."""
    plan, sums = plans.split(_vectors(x, dy), chip(x)), _pair(x)
    shares = device.cupy.empty((plan.parts, 2, x.channels), dtype=device.cupy.float32)
    arrays = (dy, x.flat, shares, _tickets(plan), *sums, *_channel(m, affine))
    _launch("split_sums", plan, x, arrays, _options(x.values, affine))
    return sums


def normalize(x: Dense, m: Moments, affine: Affine) -> Native:
    """y in one launch."""
    y = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    plan = plans.split(_vectors(x), chip(x))
    _launch("pass_forward", plan, x, (x.flat, y, *_channel(m, affine)), _options(x.values, affine))
    return x.restored(y)


def input_gradient(
    dy: Native, x: Dense, m: Moments, sums: tuple[Native, Native] | None, count: int, affine: Affine
) -> Native:
    """Without sums the statistics do not depend on x."""
    dx = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    arrays = (dy, x.flat, dx, *(sums or m[:2]), *_channel(m, affine))
    plan = plans.split(_vectors(x, dy), chip(x))
    _launch("pass_backward", plan, x, arrays, _options(count, affine, sums is None))
    return x.restored(dx)


def warmup(dtype: str, itemsize: int, chip: Chip) -> None:
    """Compile what `plans` can choose for a dtype."""
    splits = ("split_moments", "split_sums", "pass_forward", "pass_backward")
    kinds = [(name, plans.SPLIT_THREADS, 1) for name in splits]
    kinds += [(name, plans.HELD_THREADS, n) for name in ("held_forward", "held_backward") for n in chip.clusters]
    for (name, threads, cluster), vector, rows in itertools.product(kinds, plans.widths(itemsize), (False, True)):
        _kernel(name, dtype, vector, rows, threads, cluster).compile()


# ---- launches


def _kernel(name: str, dtype: str, vector: int, rows: bool, threads: int, cluster: int) -> Any:
    compiled_in = {"VECTOR": vector, "ROWS": int(rows), "THREADS": threads, "CLUSTER": cluster}
    return device.raw(name, (("T", dtype),), **compiled_in)


def _launch(name: str, plan: Plan, x: Dense, arrays: tuple[Native, ...], options: np.ndarray[Any, Any]) -> None:
    w = plan.wide
    kernel = _kernel(name, x.flat.dtype.name, w.vector, w.rows, plan.threads, plan.cluster)
    shared = 0 if name.startswith("pass") else plan.shared
    if shared > device.SHARED:
        device.allow_shared(kernel, x.flat.device.id, chip(x).shared)
    kernel((plan.blocks,), (plan.threads,), (*arrays, plans.layout(plan), options), shared_mem=shared)


def _options(count: int, affine: Affine, given: bool = False) -> np.ndarray[Any, Any]:
    gamma, beta, eps, relu = affine
    return plans.options(count, eps, gamma is not None, beta is not None, relu, given)


def _moments(x: Dense) -> Moments:
    return Moments(*device.cupy.empty((3, x.channels), dtype=device.cupy.float32))


def _pair(x: Dense) -> tuple[Native, Native]:
    sum_dy, sum_dy_xhat = device.cupy.empty((2, x.channels), dtype=device.cupy.float32)
    return sum_dy, sum_dy_xhat


def _tickets(plan: Plan) -> Native:
    """A count of finished blocks for each tile, from zero: of this launch alone, whatever else the device runs."""
    return device.cupy.zeros(plan.wide.tiles(plan.lanes) if plan.parts > 1 else 1, dtype=device.cupy.uint32)


def _channel(m: Moments, affine: Affine) -> tuple[Native, ...]:
    """Statistics and parameters in float32; one that is None is marked in the options, and any array takes its place."""
    return tuple(_vector(m.var if v is None else v) for v in (*m, affine.gamma, affine.beta))


def _vector(v: Native) -> Native:
    if v.flags.c_contiguous and v.dtype.name == "float32":
        return v
    return v.astype(device.cupy.float32, order="C")
