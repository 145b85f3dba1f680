"""Batch normalisation on wide loads: RawKernels for float16, bfloat16 and float32, chosen by `plans`."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

from ..._typing import Native
from ..reference import Affine, Moments
from . import device, plans
from .device import FLOAT32, Given
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
    if any(a.dtype != dtype for a in others):
        return False
    return _taken(x[1:4], dtype, _addresses(x.flat, *others), chip(x))


@functools.lru_cache(maxsize=4096)
def _taken(sizes: tuple[int, int, int], dtype: Any, addresses: int, chip: Chip) -> bool:
    if dtype.name not in DTYPES or chip.architecture < plans.OLDEST:
        return False
    return plans.wide(*sizes, dtype.itemsize, addresses) is not None


def _addresses(*arrays: Native) -> int:
    """What the addresses of all leave when divided by the widest load: 0 where each may have it."""
    together = 0
    for a in arrays:
        together |= a.data.ptr
    return together % 16


def forward(x: Dense, affine: Affine) -> tuple[Native, Moments]:
    """y and the moments in one launch that reads x once, where a tile fits on the chip; else in two."""
    launch = _prepared("held_forward", x, 1, x.flat)
    if launch is None:
        m = moments(x)
        return normalize(x, m, affine), m
    y, m = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype), _moments(x)
    launch((x.flat, y, *m, *_parameters(affine, m.var)), _options(x.values, affine))
    return x.restored(y), m


def backward(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, tuple[Native, Native]]:
    """dx and the sums in one launch that reads x and dy once, where a tile fits on the chip; else in two."""
    launch = _prepared("held_backward", x, 2, x.flat, dy)
    if launch is None:
        sums = gradient_sums(dy, x, m, affine)
        return input_gradient(dy, x, m, sums, x.values, affine), sums
    dx, sums = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype), _pair(x)
    launch((dy, x.flat, dx, *sums, *_channel(m, affine)), _options(x.values, affine, m))
    return x.restored(dx), sums


def moments(x: Dense) -> Moments:
    """In one launch: the last block of a tile pools the shares of all."""
    launch, m = _prepared("split_moments", x, 0, x.flat), _moments(x)
    shares = device.cupy.empty((launch.plan.parts, x.channels, 4), dtype=device.cupy.float32)
    launch((x.flat, shares, _tickets(launch.plan), *m), _options(x.values, NOTHING))
    return m


def gradient_sums(dy: Native, x: Dense, m: Moments, affine: Affine) -> tuple[Native, Native]:
    """In one launch: the last block of a tile adds the shares of all."""
    launch, sums = _prepared("split_sums", x, 0, x.flat, dy), _pair(x)
    shares = device.cupy.empty((launch.plan.parts, 2, x.channels), dtype=device.cupy.float32)
    arrays = (dy, x.flat, shares, _tickets(launch.plan), *sums, *_channel(m, affine))
    launch(arrays, _options(x.values, affine, m))
    return sums


def normalize(x: Dense, m: Moments, affine: Affine) -> Native:
    """y in one launch."""
    y = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    launch = _prepared("pass_forward", x, 0, x.flat)
    launch((x.flat, y, *_channel(m, affine)), _options(x.values, affine, m))
    return x.restored(y)


def input_gradient(
    dy: Native, x: Dense, m: Moments, sums: tuple[Native, Native] | None, count: int, affine: Affine
) -> Native:
    """Without sums the statistics do not depend on x."""
    dx = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    arrays = (dy, x.flat, dx, *(sums or m[:2]), *_channel(m, affine))
    launch = _prepared("pass_backward", x, 0, x.flat, dy)
    launch(arrays, _options(count, affine, m, sums is None))
    return x.restored(dx)


def warmup(dtype: str, itemsize: int, chip: Chip) -> None:
    """Compile what `plans` can choose for a dtype."""
    splits = ("split_moments", "split_sums", "pass_forward", "pass_backward")
    kinds = [(name, plans.SPLIT_THREADS, 1) for name in splits]
    held = ("held_forward", "held_backward")
    kinds += list(itertools.product(held, plans.HELD_THREADS, chip.clusters))
    for (name, threads, cluster), vector, rows in itertools.product(kinds, plans.widths(itemsize), (False, True)):
        if not (name in held and threads == plans.HELD_THREADS[0] and plans.many(rows, itemsize, vector)):
            _kernel(name, dtype, vector, rows, threads, cluster).compile()


# ---- launches


class Launch(NamedTuple):
    """A kernel and all that a launch tells it but the arrays."""

    kernel: Any
    plan: Plan
    grid: tuple[int]
    block: tuple[int]
    shared: int
    layout: Any

    def __call__(self, arrays: tuple[Native, ...], options: Any) -> None:
        """Queue it."""
        kernel, _, grid, block, shared, layout = self
        kernel(grid, block, (*arrays, layout, options), shared_mem=shared)


def _prepared(name: str, x: Dense, arrays: int, *read: Native) -> Any:
    """The launch on arrays at such addresses as those read have; None where so many arrays of x's size are not held."""
    return _launch(name, x[1:4], x.flat.dtype, arrays, _addresses(*read), x.flat.device.id, chip(x))


@functools.lru_cache(maxsize=4096)
def _launch(
    name: str, sizes: tuple[int, int, int], dtype: Any, arrays: int, addresses: int, number: int, chip: Chip
) -> Launch | None:
    w = plans.wide(*sizes, dtype.itemsize, addresses)
    plan = None if w is None else plans.held(w, chip, arrays) if arrays else plans.split(w, chip)
    if plan is None:
        return None
    kernel = _kernel(name, dtype.name, plan.wide.vector, plan.wide.rows, plan.threads, plan.cluster)
    shared = 0 if name.startswith("pass") else plan.shared
    if shared > device.SHARED:
        device.allow_shared(kernel, number, chip.shared)
    return Launch(kernel, plan, (plan.blocks,), (plan.threads,), shared, plans.layout(plan))


def _kernel(name: str, dtype: str, vector: int, rows: bool, threads: int, cluster: int) -> Any:
    compiled_in = {"VECTOR": vector, "ROWS": int(rows), "THREADS": threads, "CLUSTER": cluster}
    return device.raw(name, (("T", dtype),), **compiled_in)


def _options(count: int, affine: Affine, m: Moments | None = None, given: bool = False) -> Any:
    gamma, beta, eps, relu = affine
    return plans.options(count, eps, gamma is not None, beta is not None, relu, given, not isinstance(m, Given))


def _moments(x: Dense) -> Moments:
    empty = device.cupy.empty
    return Moments(empty(x.channels, FLOAT32), empty(x.channels, FLOAT32), empty(x.channels, FLOAT32))


def _pair(x: Dense) -> tuple[Native, Native]:
    return device.cupy.empty(x.channels, FLOAT32), device.cupy.empty(x.channels, FLOAT32)


def _tickets(plan: Plan) -> Native:
    """A count of finished blocks for each tile, from zero: of this launch alone, whatever else the device runs."""
    return device.cupy.zeros(plan.wide.tiles(plan.lanes) if plan.parts > 1 else 1, dtype=device.cupy.uint32)


def _channel(m: Moments, affine: Affine) -> tuple[Native, ...]:
    """Statistics and parameters in float32."""
    return (*map(_vector, m), *_parameters(affine, m.var))


def _parameters(affine: Affine, other: Native) -> tuple[Native, Native]:
    """gamma and beta in float32; one that is None is marked in the options, and any other array takes its place."""
    gamma, beta = affine.gamma, affine.beta
    return other if gamma is None else _vector(gamma), other if beta is None else _vector(beta)


def _vector(v: Native) -> Native:
    if v.dtype == FLOAT32 and v.flags.c_contiguous:
        return v
    return v.astype(device.cupy.float32, order="C")
