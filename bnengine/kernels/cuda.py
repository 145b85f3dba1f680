"""The kernels on CuPy arrays: made of ElementwiseKernel and ReductionKernel, so they run on any GPU that CuPy does.

A pass over x is one launch whose threads each visit values of one channel, with scale and shift folded
once for each thread. Statistics and gradient sums take two launches: shares of a channel, then their sum in a
fixed order. There are no atomics, and launch shapes depend on the array's shape alone: the same input gives
the same bits. Kernels run on the array's own device and its current stream, and are compiled when first called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from .._typing import Array
from . import reference
from .cuda_kernels import KERNELS, Reduction, preamble
from .cuda_layout import FEWEST, Dense, laid_out, memory
from .reference import Moments

P = ParamSpec("P")
R = TypeVar("R")

CACHE_ADVICE = "set CUPY_CACHE_DIR to a folder that can be written to"

try:
    import cupy
except OSError as error:  # importing CuPy makes the folder of its kernel cache
    raise ImportError(f"CuPy cannot make its kernel cache: {error}; {CACHE_ADVICE}") from error

DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})

WARM_SHAPES = ((2, 2), (2 * FEWEST, 2), (1, 2, 2 * FEWEST), (2 * FEWEST, 2, 4))
"""Channels that one thread reads, and several: over the outer indices, the inner ones, and both."""

matmul = reference.matmul


def supports(x: Array) -> bool:
    """Whether the kernels take x as it is."""
    return x.dtype.name in DTYPES


def warmup() -> None:
    """Compile every kernel for the current device, for each dtype: later calls find them in CuPy's cache."""
    for dtype in (cupy.float16, cupy.float32, cupy.float64, *_bfloat16()):
        for shape in WARM_SHAPES:
            _warm_normalization(cupy.zeros(shape, dtype=dtype))
        _warm_network(cupy.zeros((2, 2), dtype=dtype))


# ---- what launches have in common


def _on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run on the device of the first argument, and say what to do where CuPy cannot keep compiled kernels."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        try:
            with x.device:
                return function(*args, **kwargs)
        except OSError as error:
            raise RuntimeError(f"CuPy cannot keep compiled kernels: {error}; {CACHE_ADVICE}") from error

    return wrapper


@functools.cache
def _kernel(name: str) -> Any:
    spec = KERNELS[name]
    if isinstance(spec, Reduction):
        return cupy.ReductionKernel(
            spec.inputs,
            spec.outputs,
            spec.map,
            spec.reduce,
            spec.finish,
            spec.identity,
            f"bnengine_{name}",
            reduce_type=spec.reduce_type,
            preamble=preamble(spec),
        )
    return cupy.ElementwiseKernel(
        spec.inputs, spec.outputs, spec.operation, f"bnengine_{name}", preamble=preamble(spec), no_return=True
    )


def _channel(m: Moments, gamma: Array | None, beta: Array | None, eps: float) -> tuple[Any, ...]:
    """The kernels' channel arguments; a parameter that is None is marked and takes any array's place."""
    g = m.var if gamma is None else gamma
    b = m.var if beta is None else beta
    return (*m, g, b, gamma is not None, beta is not None, eps)


# ---- the four kernels


@_on_device
def moments(x: Array, axis: int) -> Moments:
    return _moments(laid_out(x, axis), reference.statistics_dtype(x))


def _moments(x: Dense, dtype: Any) -> Moments:
    shares = cupy.empty((4, x.rows, x.channels, x.columns), dtype=dtype)
    count, base, offset, var = (shares[k] for k in range(4))
    _kernel("share_moments")(x.flat, *x.walk, count, base, offset, var)
    result = cupy.empty((3, x.channels), dtype=dtype)
    m = Moments(result[0], result[1], result[2])
    _kernel("pool_moments")(count, base, offset, var, *m, axis=(0, 2))
    return m


@_on_device
def normalize(
    x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    return _normalize(laid_out(x, axis), moments, gamma, beta, eps, relu)


def _normalize(x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool) -> Array:
    y = cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    _kernel("normalize")(x.flat, *_channel(m, gamma, beta, eps), relu, *x.walk, y, size=x.threads)
    return x.restored(y)


@_on_device
def gradient_sums(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Array]:
    dense = laid_out(x, axis)
    return _gradient_sums(memory(dy, dense.order), dense, moments, gamma, beta, eps, relu)


def _gradient_sums(
    dy: Array, x: Dense, m: Moments, gamma: Array | None, beta: Array | None, eps: float, relu: bool
) -> tuple[Array, Array]:
    shares = cupy.empty((2, x.rows, x.channels, x.columns), dtype=m.mean.dtype)
    channel = _channel(m, gamma, beta, eps)
    _kernel("share_gradients")(dy, x.flat, *channel, relu, *x.walk, shares[0], shares[1])
    sums = cupy.empty((2, x.channels), dtype=m.mean.dtype)
    _kernel("pool_gradients")(shares[0], shares[1], sums[0], sums[1], axis=(0, 2))
    return sums[0], sums[1]


@_on_device
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
    dx = cupy.empty(x.flat.shape, dtype=x.flat.dtype)
    channel = _channel(m, gamma, beta, eps)
    _kernel("input_gradient")(dy, x.flat, *channel, *sums, count, relu, *x.walk, dx, size=x.threads)
    return x.restored(dx)


# ---- their compositions


@_on_device
def forward(
    x: Array, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, Moments]:
    dense = laid_out(x, axis)
    m = _moments(dense, reference.statistics_dtype(x))
    return _normalize(dense, m, gamma, beta, eps, relu), m


@_on_device
def backward(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> tuple[Array, tuple[Array, Array]]:
    dense = laid_out(x, axis)
    dy = memory(dy, dense.order)
    sums = _gradient_sums(dy, dense, moments, gamma, beta, eps, relu)
    count = dense.outer * dense.inner
    return _input_gradient(dy, dense, moments, sums, count, gamma, beta, eps, relu), sums


@_on_device
def given_gradient(
    dy: Array, x: Array, moments: Moments, gamma: Array | None, beta: Array | None, axis: int, eps: float, relu: bool
) -> Array:
    dense = laid_out(x, axis)
    dx = cupy.empty(dense.flat.shape, dtype=x.dtype)
    channel = _channel(moments, gamma, beta, eps)
    _kernel("given_gradient")(memory(dy, dense.order), dense.flat, *channel, relu, *dense.walk, dx, size=dense.threads)
    return dense.restored(dx)


@_on_device
def blend(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, weight: float, unbiased: float
) -> tuple[Array, Array]:
    if batch_mean.dtype != mean.dtype:
        return reference.blend(mean, var, batch_mean, batch_var, weight, unbiased)
    new_mean, new_var = cupy.empty(mean.shape, dtype=mean.dtype), cupy.empty(var.shape, dtype=mean.dtype)
    _kernel("blend")(mean, var, batch_mean, batch_var, weight, unbiased, new_mean, new_var)
    return new_mean, new_var


# ---- the network's other hot operations


relu, relu_backward = reference.relu, reference.relu_backward


@_on_device
def sigmoid(x: Array) -> Array:
    y = cupy.empty(x.shape, dtype=x.dtype)
    _kernel("sigmoid")(x, y)
    return y


@_on_device
def sigmoid_backward(y: Array, dy: Array) -> Array:
    if dy.dtype != y.dtype:
        return reference.sigmoid_backward(y, dy)
    dx = cupy.empty(y.shape, dtype=y.dtype)
    _kernel("sigmoid_backward")(y, dy, dx)
    return dx


@_on_device
def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    rows, classes = logits.shape
    terms = cupy.empty((3, rows), dtype=reference.statistics_dtype(logits))
    top, total, row_loss = terms[0], terms[1], terms[2]
    _kernel("softmax_rows")(logits, top, total, axis=1)
    dlogits = cupy.empty(logits.shape, dtype=logits.dtype)
    _kernel("softmax_gradient")(logits, labels, top, total, rows, classes, dlogits, row_loss)
    loss = cupy.empty((), dtype=terms.dtype)
    _kernel("mean_loss")(row_loss, rows, loss)
    return loss, dlogits


# ---- optimisers: one launch for each leaf, in place


def sgd(params: list[Array], grads: list[Array], decays: list[float], *, rate: float) -> tuple[list[Array]]:
    for p, g, decay in zip(params, grads, decays, strict=True):
        _update("sgd", (p,), g, decay, rate)
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
    for p, g, v, decay in zip(params, grads, velocity, decays, strict=True):
        _update("momentum", (p, v), g, decay, rate, momentum, nesterov)
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
    for p, g, s, weight_decay in zip(params, grads, square, decays, strict=True):
        _update("rmsprop", (p, s), g, weight_decay, rate, decay, eps)
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
    step, root = rate / correction1, correction2**0.5
    for p, g, m, v, decay in zip(params, grads, first, second, decays, strict=True):
        shrink, l2 = (1 - rate * decay, 0.0) if decoupled else (1.0, decay)
        _update("adam", (p, m, v), g, l2, shrink, step, beta1, beta2, eps, root)
    return params, first, second


def _update(name: str, leaf: tuple[Array, ...], g: Array, *scalars: float) -> None:
    """One leaf, with its slots, written in place."""
    _in_place(leaf[0], name, leaf, g, scalars)


@_on_device
def _in_place(p: Array, name: str, leaf: tuple[Array, ...], g: Array, scalars: tuple[float, ...]) -> None:
    _kernel(name)(p, g, *leaf[1:], *scalars, *leaf)


# ---- warming up


def _bfloat16() -> tuple[Any, ...]:
    """The dtype of ml_dtypes, which CuPy takes from version 14 on."""
    try:
        import ml_dtypes
    except ImportError:
        return ()
    return (ml_dtypes.bfloat16,) if int(cupy.__version__.partition(".")[0]) >= 14 else ()


def _warm_normalization(x: Array) -> None:
    ones = cupy.ones(2, dtype=reference.statistics_dtype(x))
    _, m = forward(x, ones, ones, 1, 1e-5, True)
    backward(x, x, m, ones, ones, 1, 1e-5, True)
    given_gradient(x, x, m, ones, ones, 1, 1e-5, True)
    blend(m.mean, m.var, m.mean, m.var, 0.1, 1.0)


def _warm_network(x: Array) -> None:
    sigmoid_backward(sigmoid(x), x)
    softmax_cross_entropy(x, cupy.zeros(2, dtype=cupy.int64))
    p, g, first, second = ([cupy.zeros_like(x)] for _ in range(4))
    scalars = {"rate": 0.1, "eps": 1e-8}
    sgd(p, g, [0.0], rate=0.1)
    momentum(p, g, first, [0.0], rate=0.1, momentum=0.9, nesterov=False)
    rmsprop(p, g, second, [0.0], decay=0.9, **scalars)
    corrections = {"correction1": 0.1, "correction2": 0.001}
    adam(p, g, first, second, [0.0], beta1=0.9, beta2=0.999, decoupled=False, **scalars, **corrections)
