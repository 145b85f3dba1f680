"""The kernels on CuPy arrays: the seam, and the rest of a network.

Batch normalisation takes wide loads where the rule in `plans` says so, and kernels that run on any GPU elsewhere.
There are no atomics on floating values, and launch shapes depend on the array's shape and the chip alone: the same
input gives the same bits. Kernels run on the array's own device and its current stream, and are compiled when first
called.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..._typing import Native
from .. import reference
from ..reference import Affine, Moments
from . import device, plans, portable, wide
from .device import FLOAT64, Given, kernel, statistics_dtype
from .layout import FEWEST, Dense, laid_out, memory
from .updates import RULES, update

INT64 = np.dtype(np.int64)
DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})

WARM_SHAPES = ((2, 2), (2 * FEWEST, 2), (1, 2, 2 * FEWEST), (2 * FEWEST, 2, 4))
"""Channels that one thread reads, and several: over the outer indices, the inner ones, and both."""

ONE_BLOCK = 256
"""Rows of logits that one block takes, so that no other has to be waited for."""


def supports(x: Native) -> bool:
    """Whether the kernels take x as it is."""
    return device.name_of(x.dtype) in DTYPES


def warmup(*dtypes: str) -> str:
    """Compile every kernel for the current device: later calls find them in CuPy's cache."""
    chip = wide.chip_of(device.cupy.cuda.Device().id)
    for dtype in (device.cupy.float16, device.cupy.float32, device.cupy.float64, *_bfloat16()):
        name = np.dtype(dtype).name
        if dtypes and name not in dtypes:
            continue
        if name in wide.DTYPES and chip.architecture >= plans.OLDEST:
            wide.warmup(name, np.dtype(dtype).itemsize, chip)
        for shape in WARM_SHAPES:
            _warm_portable(laid_out(device.cupy.zeros(shape, dtype=dtype), 1))
        _warm_network(device.cupy.zeros((2, 2), dtype=dtype))
    return os.environ.get("CUPY_CACHE_DIR", str(Path.home() / ".cupy" / "kernel_cache"))  # as CuPy chooses it


# ---- batch normalisation


@device.on_device
def _run(x: Native, name: str, axis: int, *rest: Any, dy: Native | None = None) -> Any:
    """The kernel on wide loads where it takes x and what lies as x does, else the portable one."""
    dense = laid_out(x, axis)
    others = () if dy is None else (memory(dy, dense.order),)
    kernels = wide if wide.takes(dense, *others) else portable
    return getattr(kernels, name)(*others, dense, *rest)


def moments(x: Native, axis: int) -> Moments:
    """Mean, its remainder and biased variance of each channel."""
    m: Moments = _run(x, "moments", axis)
    return m


def given(mean: Native, var: Native, x: Native) -> Moments:
    """As they are where they are of the statistics dtype: nothing is launched, and the kernels are told of no remainder."""
    dtype = statistics_dtype(x)
    return Given(mean, mean, var) if mean.dtype == dtype == var.dtype else reference.given(mean, var, x)


def normalize(x: Native, moments: Moments, affine: Affine, axis: int) -> Native:
    """y, for the mean, scale and shift of each channel."""
    return _run(x, "normalize", axis, moments, affine)


def gradient_sums(dy: Native, x: Native, moments: Moments, affine: Affine, axis: int) -> tuple[Native, Native]:
    """sum(dy) and sum(dy * xhat) of each channel."""
    sums: tuple[Native, Native] = _run(x, "gradient_sums", axis, moments, affine, dy=dy)
    return sums


def input_gradient(
    dy: Native, x: Native, moments: Moments, sums: tuple[Native, Native], count: int, affine: Affine, axis: int
) -> Native:
    """dx, from the sums over each channel."""
    return _run(x, "input_gradient", axis, moments, sums, count, affine, dy=dy)


def given_gradient(dy: Native, x: Native, moments: Moments, affine: Affine, axis: int) -> Native:
    """dx for statistics that do not depend on x."""
    return _run(x, "input_gradient", axis, moments, None, 1, affine, dy=dy)


def forward(x: Native, affine: Affine, axis: int) -> tuple[Native, Moments]:
    """Both passes of the forward direction: y and the moments."""
    result: tuple[Native, Moments] = _run(x, "forward", axis, affine)
    return result


def backward(
    dy: Native, x: Native, moments: Moments, affine: Affine, axis: int
) -> tuple[Native, tuple[Native, Native]]:
    """Both passes of the backward direction: dx and the sums."""
    result: tuple[Native, tuple[Native, Native]] = _run(x, "backward", axis, moments, affine, dy=dy)
    return result


@device.on_device
def blend(
    mean: Native, var: Native, batch_mean: Native, batch_var: Native, weight: float, unbiased: float
) -> tuple[Native, Native]:
    """Both running statistics in one launch."""
    if batch_mean.dtype != mean.dtype:
        return reference.blend(mean, var, batch_mean, batch_var, weight, unbiased)
    new_mean, new_var = device.cupy.empty(mean.shape, dtype=mean.dtype), device.cupy.empty(var.shape, dtype=mean.dtype)
    kernel("blend")(mean, var, batch_mean, batch_var, weight, unbiased, new_mean, new_var)
    return new_mean, new_var


# ---- the network's other hot operations


def matmul(a: Native, b: Native) -> Native:
    """a @ b, without asking for a namespace."""
    return a @ b


@device.on_device
def sigmoid(x: Native) -> Native:
    """In one launch."""
    y = device.cupy.empty(x.shape, dtype=x.dtype)
    kernel("sigmoid")(x, y)
    return y


@device.on_device
def sigmoid_backward(dy: Native, y: Native) -> Native:
    """In one launch where dy and y have one dtype."""
    if dy.dtype != y.dtype:
        return reference.sigmoid_backward(dy, y)
    dx = device.cupy.empty(y.shape, dtype=y.dtype)
    kernel("sigmoid_backward")(y, dy, dx)
    return dx


@device.on_device
def softmax_cross_entropy(logits: Native, labels: Native) -> tuple[Native, Native]:
    """Loss and gradient in one launch; its blocks add their shares of the loss in a fixed order."""
    cupy, (rows, classes) = device.cupy, logits.shape
    logits = logits if logits.flags.c_contiguous else logits.copy(order="C")
    if labels.dtype != INT64 or not labels.flags.c_contiguous:
        labels = labels.astype(cupy.int64, order="C")
    dtype = statistics_dtype(logits)
    most = 512 if dtype == FLOAT64 else 1024  # more would leave too few registers
    blocks, threads = (1, most) if rows <= ONE_BLOCK else (min(-(-rows // 8), 1024), 256)
    dlogits, loss = cupy.empty(logits.shape, dtype=logits.dtype), cupy.empty((), dtype=dtype)
    shares, ticket = cupy.empty(blocks, dtype=dtype), cupy.zeros(1, dtype=cupy.uint32) if blocks > 1 else labels
    raw = device.raw("cross_entropy", (("T", device.name_of(logits.dtype)),), THREADS=threads)
    raw((blocks,), (threads,), (logits, labels, dlogits, shares, ticket, loss, np.int64(rows), np.int64(classes)))
    return loss, dlogits


# ---- warming up


def _bfloat16() -> tuple[Any, ...]:
    """The dtype of ml_dtypes, which CuPy takes from version 14 on."""
    try:
        import ml_dtypes
    except ImportError:
        return ()
    return (ml_dtypes.bfloat16,) if int(device.cupy.__version__.partition(".")[0]) >= 14 else ()


def _warm_portable(x: Dense) -> None:
    with x.flat.device:
        ones = device.cupy.ones(2, dtype=reference.statistics_dtype(x.flat))
        affine = Affine(ones, ones, 1e-5, True)
        _, m = portable.forward(x, affine)
        portable.backward(x.flat, x, m, affine)
        portable.input_gradient(x.flat, x, m, None, 1, affine)
        blend(m.mean, m.var, m.mean, m.var, 0.1, 1.0)


def _warm_network(x: Native) -> None:
    sigmoid_backward(x, sigmoid(x))
    for rows in (2, ONE_BLOCK + 1):
        logits, labels = (device.cupy.zeros(s, dtype=t) for s, t in (((rows, 2), x.dtype), (rows, device.cupy.int64)))
        softmax_cross_entropy(logits, labels)
    for rule in RULES:
        p, g, first, second = ([device.cupy.zeros_like(x)] for _ in range(4))
        update(rule, p, g, [first, second][: RULES[rule].slots], [0.0], defaultdict(lambda: 0.5))
