"""The kernels on CuPy arrays: made of ElementwiseKernel and ReductionKernel, so they run on any GPU that CuPy does.

A pass over x is one launch whose threads each visit values of one channel, with scale and shift folded
once for each thread. Statistics and gradient sums take two launches: shares of a channel, then their sum in a
fixed order. There are no atomics, and launch shapes depend on the array's shape alone: the same input gives
the same bits. Kernels run on the array's own device and its current stream, and are compiled when first called.
"""

from __future__ import annotations

from typing import Any

from ..._typing import Array
from .. import reference
from ..reference import Moments
from . import device
from .device import kernel
from .layout import FEWEST, Dense, laid_out, memory
from .updates import adam, momentum, rmsprop, sgd

DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})

WARM_SHAPES = ((2, 2), (2 * FEWEST, 2), (1, 2, 2 * FEWEST), (2 * FEWEST, 2, 4))
"""Channels that one thread reads, and several: over the outer indices, the inner ones, and both."""

matmul = reference.matmul
relu, relu_backward = reference.relu, reference.relu_backward


def supports(x: Array) -> bool:
    """Whether the kernels take x as it is."""
    return x.dtype.name in DTYPES


def warmup() -> None:
    """Compile every kernel for the current device, for each dtype: later calls find them in CuPy's cache."""
    for dtype in (device.cupy.float16, device.cupy.float32, device.cupy.float64, *_bfloat16()):
        for shape in WARM_SHAPES:
            _warm_normalization(device.cupy.zeros(shape, dtype=dtype))
        _warm_network(device.cupy.zeros((2, 2), dtype=dtype))


# ---- what launches have in common


def _channel(m: Moments, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Any, ...]:
    """The kernels' channel arguments; a parameter that is None is marked and takes any array's place."""
    g = m.var if gamma is None else gamma
    b = m.var if beta is None else beta
    return (*m, g, b, gamma is not None, beta is not None, eps)


# ---- the four kernels


@device.on_device
def moments(x: Array, axis: int) -> Moments:
    return _moments(laid_out(x, axis), reference.statistics_dtype(x))


def _moments(x: Dense, dtype: Any) -> Moments:
    shares = device.cupy.empty((4, x.rows, x.channels, x.columns), dtype=dtype)
    count, base, offset, var = (shares[k] for k in range(4))
    kernel("share_moments")(x.flat, *x.walk, count, base, offset, var)
    result = device.cupy.empty((3, x.channels), dtype=dtype)
    m = Moments(result[0], result[1], result[2])
    kernel("pool_moments")(count, base, offset, var, *m, axis=(0, 2))
    return m


@device.on_device
def normalize(
    x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    return _normalize(laid_out(x, axis), moments, gamma, beta, eps, relu)


def _normalize(x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool) -> Array:
    y = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    kernel("normalize")(x.flat, *_channel(m, gamma, beta, eps), relu, *x.walk, y, size=x.threads)
    return x.restored(y)


@device.on_device
def gradient_sums(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Array]:
    dense = laid_out(x, axis)
    return _gradient_sums(memory(dy, dense.order), dense, moments, gamma, beta, eps, relu)


def _gradient_sums(
    dy: Array, x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool
) -> tuple[Array, Array]:
    shares = device.cupy.empty((2, x.rows, x.channels, x.columns), dtype=m.mean.dtype)
    channel = _channel(m, gamma, beta, eps)
    kernel("share_gradients")(dy, x.flat, *channel, relu, *x.walk, shares[0], shares[1])
    sums = device.cupy.empty((2, x.channels), dtype=m.mean.dtype)
    kernel("pool_gradients")(shares[0], shares[1], sums[0], sums[1], axis=(0, 2))
    return sums[0], sums[1]


@device.on_device
def input_gradient(
    dy: Array,
    x: Array,
    moments: Moments,
    sums: tuple[Array, Array],
    count: int,
    gamma: Array | None,
    beta: Array | None,
    axis: int,
    eps: float,
    relu: bool,
) -> Array:
    dense = laid_out(x, axis)
    return _input_gradient(memory(dy, dense.order), dense, moments, sums, count, gamma, beta, eps, relu)


def _input_gradient(
    dy: Array,
    x: Dense,
    m: Moments,
    sums: tuple[Array, Array],
    count: int,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    relu: bool,
) -> Array:
    dx = device.cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    channel = _channel(m, gamma, beta, eps)
    kernel("input_gradient")(dy, x.flat, *channel, *sums, count, relu, *x.walk, dx, size=x.threads)
    return x.restored(dx)


# ---- their compositions


@device.on_device
def forward(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Moments]:
    dense = laid_out(x, axis)
    m = _moments(dense, reference.statistics_dtype(x))
    return _normalize(dense, m, gamma, beta, eps, relu), m


@device.on_device
def backward(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    dense = laid_out(x, axis)
    dy = memory(dy, dense.order)
    sums = _gradient_sums(dy, dense, moments, gamma, beta, eps, relu)
    count = dense.outer * dense.inner
    return _input_gradient(dy, dense, moments, sums, count, gamma, beta, eps, relu), sums


@device.on_device
def given_gradient(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    dense = laid_out(x, axis)
    dx = device.cupy.empty(dense.flat.shape, dtype=x.dtype)
    channel = _channel(moments, gamma, beta, eps)
    kernel("given_gradient")(memory(dy, dense.order), dense.flat, *channel, relu, *dense.walk, dx, size=dense.threads)
    return dense.restored(dx)


@device.on_device
def blend(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, weight: float, unbiased: float
) -> tuple[Array, Array]:
    if batch_mean.dtype != mean.dtype:
        return reference.blend(mean, var, batch_mean, batch_var, weight, unbiased)
    new_mean, new_var = device.cupy.empty(mean.shape, dtype=mean.dtype), device.cupy.empty(var.shape, dtype=mean.dtype)
    kernel("blend")(mean, var, batch_mean, batch_var, weight, unbiased, new_mean, new_var)
    return new_mean, new_var


# ---- the network's other hot operations


@device.on_device
def sigmoid(x: Array) -> Array:
    y = device.cupy.empty(x.shape, dtype=x.dtype)
    kernel("sigmoid")(x, y)
    return y


@device.on_device
def sigmoid_backward(y: Array, dy: Array) -> Array:
    if dy.dtype != y.dtype:
        return reference.sigmoid_backward(y, dy)
    dx = device.cupy.empty(y.shape, dtype=y.dtype)
    kernel("sigmoid_backward")(y, dy, dx)
    return dx


@device.on_device
def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    rows, classes = logits.shape
    terms = device.cupy.empty((3, rows), dtype=reference.statistics_dtype(logits))
    top, total, row_loss = terms[0], terms[1], terms[2]
    kernel("softmax_rows")(logits, top, total, axis=1)
    dlogits = device.cupy.empty(logits.shape, dtype=logits.dtype)
    kernel("softmax_gradient")(logits, labels, top, total, rows, classes, dlogits, row_loss)
    loss = device.cupy.empty((), dtype=terms.dtype)
    kernel("mean_loss")(row_loss, rows, loss)
    return loss, dlogits


# ---- warming up


def _bfloat16() -> tuple[Any, ...]:
    """The dtype of ml_dtypes, which CuPy takes from version 14 on."""
    try:
        import ml_dtypes
    except ImportError:
        return ()
    return (ml_dtypes.bfloat16,) if int(device.cupy.__version__.partition(".")[0]) >= 14 else ()


def _warm_normalization(x: Array) -> None:
    ones = device.cupy.ones(2, dtype=reference.statistics_dtype(x))
    _, m = forward(x, ones, ones, 1, 1e-5, True)
    backward(x, x, m, ones, ones, 1, 1e-5, True)
    given_gradient(x, x, m, ones, ones, 1, 1e-5, True)
    blend(m.mean, m.var, m.mean, m.var, 0.1, 1.0)


def _warm_network(x: Array) -> None:
    sigmoid_backward(sigmoid(x), x)
    softmax_cross_entropy(x, device.cupy.zeros(2, dtype=device.cupy.int64))
    p, g, first, second = ([device.cupy.zeros_like(x)] for _ in range(4))
    scalars = {"rate": 0.1, "eps": 1e-8}
    sgd(p, g, [0.0], rate=0.1)
    momentum(p, g, first, [0.0], rate=0.1, momentum=0.9, nesterov=False)
    rmsprop(p, g, second, [0.0], decay=0.9, **scalars)
    corrections = {"correction1": 0.1, "correction2": 0.001}
    adam(p, g, first, second, [0.0], beta1=0.9, beta2=0.999, decoupled=False, **scalars, **corrections)
