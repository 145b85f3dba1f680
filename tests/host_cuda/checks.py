"""What every run of the CUDA kernels is held against: float64 formulas, written down once more.

A check takes the kernels' module and a `Device`, so the same checks serve the host, planted bugs and a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from bnengine.kernels.reference import Affine, Moments

EPS = 1e-5

FULL = (((65536, 64), 1), ((32, 64, 56, 56), 1))
"""Shapes that fill a GPU."""
REPEATS = 100
"""Of what has to give the same bits, or the same memory, each time."""
CHAINED = ((2100, 8), (2, 3, 10, 12), (70_000, 4))
"""Rows that a cluster holds, planes that a block holds, and rows shared by blocks that count who comes last."""
LARGE = (37, 64, 29, 31)
BEYOND = (2**21 + 1, 1024)
"""More than 2^31 values."""


class Device(NamedTuple):
    """How values get to where the kernels run, and back."""

    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One input of batch normalisation."""

    shape: tuple[int, ...]
    axis: int
    dtype: str = "float32"
    layout: str = "C"
    offset: float = 0.0
    """The channels' mean, in standard deviations."""
    outliers: bool = False
    """Whether the first value of each channel lies a thousand standard deviations off."""
    relu: bool = True
    parameters: bool = True

    def __str__(self) -> str:
        extra = f"{self.offset:g}{'-outliers' * self.outliers}{'-relu' * self.relu}{'-affine' * self.parameters}"
        return f"{self.dtype}-{'x'.join(map(str, self.shape))}@{self.axis}-{self.layout}-{extra}"


SHAPES = (
    ((2, 1), 1),
    ((37, 5), 1),
    ((5, 37), 0),
    ((33, 5, 7), 1),
    ((2, 3, 300), 1),
    ((9, 4, 5, 130), 3),
    ((3, 2, 5, 4, 3), 2),
    ((2000, 3), 1),
    ((2, 2, 40, 41), 1),
    ((1, 6, 513), 1),
)
"""Shapes whose tails fill no batch of loads, warp or block, with the feature axis first, inside and last."""

LAYOUTS = ("C", "F", "rolled", "strided", "reversed", "shifted")
"""In memory; shifted: contiguous, from an address on that no wide load may have."""
DTYPES = ("float16", "bfloat16", "float32", "float64")


def dtype_of(name: str) -> np.dtype:
    """A NumPy dtype; bfloat16 comes from ml_dtypes, as CuPy's does."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def statistics_dtype(name: str) -> np.dtype:
    return np.dtype(np.float64 if name == "float64" else np.float32)


def laid_out(device: Device, values: np.ndarray, layout: str) -> Any:
    """Values on the device, in memory as the layout says."""
    axes = tuple(range(values.ndim))
    if layout == "F":
        return device.put(np.ascontiguousarray(values.T)).T
    if layout == "rolled":
        rolled = device.put(np.ascontiguousarray(values.transpose(*axes[1:], 0)))
        return rolled.transpose(axes[-1], *axes[:-1])
    if layout == "strided":
        return device.put(np.repeat(values, 2, axis=-1))[..., ::2]
    if layout == "shifted":
        return device.put(np.append(values.flat[:1], values))[1:].reshape(values.shape)
    if layout == "reversed":
        return device.put(np.ascontiguousarray(values[::-1]))[::-1]
    return device.put(np.asarray(values, order="C"))


# ---- batch normalisation


class Inputs(NamedTuple):
    """Arrays of a case on the host, in the dtypes that the kernels get."""

    x: np.ndarray
    dy: np.ndarray
    gamma: np.ndarray | None
    beta: np.ndarray | None


def inputs(case: Case) -> Inputs:
    random = np.random.default_rng(7)
    channels, statistics = case.shape[case.axis], statistics_dtype(case.dtype)
    spread = random.uniform(0.5, 3, along(channels, case))
    x = random.standard_normal(case.shape) * spread + case.offset * spread
    if case.outliers:
        first = tuple(slice(None) if i == case.axis else 0 for i in range(len(case.shape)))
        x[first] += 1000 * spread.reshape(-1)
    x = x.astype(dtype_of(case.dtype))
    gamma = random.uniform(0.5, 2, channels).astype(statistics) if case.parameters else None
    beta = random.standard_normal(channels).astype(statistics) if case.parameters else None
    dy = random.standard_normal(case.shape)
    if case.relu:  # values so near to zero that rounding decides the mask carry no gradient
        before = expected(case, Inputs(x, dy, gamma, beta)).before
        dy[np.abs(before) < 1e-5 * np.abs(before).max()] = 0
    return Inputs(x, dy.astype(dtype_of(case.dtype)), gamma, beta)


class Expected(NamedTuple):
    """Batch normalisation in float64."""

    mean: np.ndarray
    rest: np.ndarray
    """What rounding the mean to float64 lost."""
    var: np.ndarray
    before: np.ndarray
    """y before ReLU."""
    y: np.ndarray
    dy: np.ndarray
    """dy where ReLU was on."""
    xhat: np.ndarray
    scale: np.ndarray
    sums: tuple[np.ndarray, np.ndarray]
    dx: np.ndarray


def along(shape: Any, case: Case) -> tuple[int, ...]:
    """(C,) as a shape that broadcasts against x."""
    return tuple(shape if i == case.axis else 1 for i in range(len(case.shape)))


def expected(case: Case, given: Inputs) -> Expected:
    x, dy = given.x.astype(np.float64), given.dy.astype(np.float64)
    axes = tuple(i for i in range(x.ndim) if i != case.axis)
    mean = x.mean(axes, keepdims=True)
    rest = (x - mean).mean(axes, keepdims=True)
    centered = x - mean - rest
    var = (centered**2).mean(axes, keepdims=True)
    inv_std = 1 / np.sqrt(var + EPS)
    xhat = centered * inv_std
    gamma = np.ones(1) if given.gamma is None else given.gamma.astype(np.float64).reshape(mean.shape)
    beta = np.zeros(1) if given.beta is None else given.beta.astype(np.float64).reshape(mean.shape)
    before = xhat * gamma + beta
    y = np.where(before <= 0, 0, before) if case.relu else before
    dy = np.where(before <= 0, 0, dy) if case.relu else dy
    sum_dy, sum_dy_xhat = dy.sum(axes, keepdims=True), (dy * xhat).sum(axes, keepdims=True)
    count = math.prod(x.shape[i] for i in axes)
    dx = gamma * inv_std * (dy - sum_dy / count - xhat * sum_dy_xhat / count)
    sums = sum_dy.reshape(-1), sum_dy_xhat.reshape(-1)
    return Expected(mean.reshape(-1), rest.reshape(-1), var.reshape(-1), before, y, dy, xhat, gamma * inv_std, sums, dx)


ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0, "float64": 0.0}
"""What storing a result costs at most, as a fraction of it; for float32 it is part of the promised 1e-6."""


def near(name: str, got: np.ndarray, want: np.ndarray, dtype: str, size: float) -> None:
    """Within 1e-6 of `size` (1e-12 in float64), and within what storing the result in its dtype costs."""
    assert got.dtype == dtype_of(dtype), f"{name}: dtype {got.dtype}"
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    promise = (1e-12 if dtype == "float64" else 1e-6) * size
    subnormal = 2**-24 if dtype == "float16" else 0.0
    error = np.abs(got.astype(np.float64) - want) - ROUNDING[dtype] * 1.01 * np.abs(want) - subnormal
    assert not np.isnan(error).any(), f"{name}: NaN"
    assert error.max(initial=0) <= promise, f"{name}: {error.max():.3g} off, allowed {promise:.3g}"


def check_normalization(kernels: ModuleType, device: Device, case: Case) -> None:
    """All kernels of batch normalisation on one input, one by one and in their compositions."""
    given = inputs(case)
    want = expected(case, given)
    x, dy = laid_out(device, given.x, case.layout), laid_out(device, given.dy, case.layout)
    gamma, beta = (None if v is None else device.put(v) for v in (given.gamma, given.beta))
    end = (Affine(gamma, beta, EPS, case.relu), case.axis)
    y, m = kernels.forward(x, *end)
    _check_moments(device, m, want, case)
    near("y", device.get(y), want.y, case.dtype, np.abs(want.before).max())
    alone = kernels.normalize(x, kernels.moments(x, case.axis), *end)
    near("normalize", device.get(alone), want.y, case.dtype, np.abs(want.before).max())
    dx, sums = kernels.backward(dy, x, m, *end)
    _check_gradients(device, dx, sums, want, case)
    again = kernels.gradient_sums(dy, x, m, *end)
    count = math.prod(case.shape) // case.shape[case.axis]
    _check_gradients(device, kernels.input_gradient(dy, x, m, again, count, *end), again, want, case)
    given_dx = kernels.given_gradient(dy, x, m, *end)
    near("given_gradient", device.get(given_dx), want.scale * want.dy, case.dtype, np.abs(want.scale * want.dy).max())
    _check_other_order(kernels, device, case, given, (x, m, *end), dx)


def _check_moments(device: Device, m: Any, want: Expected, case: Case) -> None:
    mean, remainder, var = (device.get(v) for v in m)
    dtype, std = statistics_dtype(case.dtype), np.sqrt(want.var)
    assert mean.dtype == remainder.dtype == var.dtype == dtype
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    error = (mean.astype(np.float64) - want.mean) + (remainder - want.rest)
    assert (np.abs(error) <= tolerance * std).all(), "mean + remainder"
    assert (np.abs(remainder) <= np.spacing(np.abs(mean))).all(), "remainder: more than the mean's rounding"
    assert (np.abs(var - want.var) <= tolerance * want.var).all(), "var"


def _check_gradients(device: Device, dx: Any, sums: Any, want: Expected, case: Case) -> None:
    axes = tuple(i for i in range(len(case.shape)) if i != case.axis)
    statistics = str(statistics_dtype(case.dtype))
    terms = np.abs(want.dy).sum(axes), np.abs(want.dy * want.xhat).sum(axes)
    for name, got, value, size in zip(("sum_dy", "sum_dy_xhat"), sums, want.sums, terms, strict=True):
        near(name, device.get(got), value, statistics, float(size.max()) + 1e-30)
    near("dx", device.get(dx), want.dx, case.dtype, np.abs(want.scale * want.dy).max())


def _check_other_order(
    kernels: ModuleType, device: Device, case: Case, given: Inputs, rest: tuple[Any, ...], dx: Any
) -> None:
    """dy may lie in another order of memory than x."""
    other = laid_out(device, given.dy, "F" if case.layout == "C" else "C")
    _same(device, "dy in another layout", kernels.backward(other, *rest)[0], dx)


def _same(device: Device, name: str, got: Any, want: Any) -> None:
    assert device.get(got).tobytes() == device.get(want).tobytes(), f"{name}: other bits than the composition"


def check_special_values(kernels: ModuleType, device: Device) -> None:
    """A constant channel gives beta; NaN and infinity stay in their channels; huge values do not overflow."""
    x = np.random.default_rng(0).standard_normal((200, 5)).astype(np.float32)
    x[:, 0], x[3, 1], x[5, 2], x[:, 3] = 1e6 + 1 / 16, np.nan, np.inf, x[:, 3] * 1e18
    gamma, beta = (np.asarray(v, np.float32) for v in ([2, 1, 1, 1, 1], [0.1, 0, 0, 0, 0]))
    y, m = kernels.forward(device.put(x), Affine(device.put(gamma), device.put(beta), EPS, True), 1)
    dx, _ = kernels.backward(device.put(x), device.put(x), m, Affine(device.put(gamma), device.put(beta), EPS, True), 1)
    got, dx = device.get(y), device.get(dx)
    assert (got[:, 0] == np.float32(0.1)).all(), "constant channel"
    assert np.isnan(got[:, 1:3]).all(), "NaN and infinity survive ReLU"
    assert np.isfinite(got[:, 3:]).all(), "a channel of its own, or 1e18, is not finite"
    assert np.isfinite(dx[:, [0, 3, 4]]).all(), "dx"
    wide = x[:, 3].astype(np.float64)
    assert np.allclose(got[:, 3], np.maximum((wide - wide.mean()) / wide.std(), 0), rtol=0, atol=3e-6), "values of 1e18"


def check_empty(kernels: ModuleType, device: Device) -> None:
    """No samples, as on a rank without a share: sums of zero, and results without values."""
    x, ones = device.put(np.zeros((0, 3, 4), np.float32)), device.put(np.ones(3, np.float32))
    rest = (x, Moments(ones, ones, ones), Affine(ones, ones, EPS, True), 1)
    assert all((device.get(v) == 0).all() and v.shape == (3,) for v in kernels.gradient_sums(x, *rest)), "sums"
    assert kernels.normalize(*rest).shape == kernels.given_gradient(x, *rest).shape == x.shape
    flat = device.put(np.zeros((3, 0), np.float32))
    sums = kernels.gradient_sums(flat, flat, *rest[1:3], 0)
    assert all((device.get(v) == 0).all() for v in sums), "sums over an empty inner axis"
    none = device.put(np.zeros((5, 0), np.float32))
    y, m = kernels.forward(none, Affine(None, None, EPS, False), 1)
    assert y.shape == (5, 0)
    assert m.mean.shape == (0,)


def check_blend(kernels: ModuleType, device: Device) -> None:
    old, new = np.asarray([[1, -2, 3], [4, 5, 6]], np.float32), np.asarray([[7, 8, -9], [1, 2, 3]], np.float32)
    mean, var = kernels.blend(*map(device.put, (*old, *new)), 0.25, 1.5)
    near("mean", device.get(mean), old[0] * 0.75 + new[0] * 0.25, "float32", 9)
    near("var", device.get(var), old[1] * 0.75 + new[1] * 1.5 * 0.25, "float32", 9)


# ---- the network's other operations


def check_sigmoid(kernels: ModuleType, device: Device, dtype: str) -> None:
    x = np.linspace(-20, 20, 301).reshape(7, 43).astype(dtype_of(dtype))
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)
    y = kernels.sigmoid(device.put(x))
    want = 1 / (1 + np.exp(-x.astype(np.float64)))
    near("sigmoid", device.get(y), want, dtype, 1)
    relative = np.abs(device.get(y).astype(np.float64) / want - 1).max()
    assert dtype == "float16" or relative <= {"bfloat16": 2**-8, "float32": 4e-7, "float64": 1e-15}[dtype] * 1.01
    ends = device.get(kernels.sigmoid(device.put(np.asarray([-1000, 1000]).astype(x.dtype))))
    assert ends.tolist() == [0, 1], "overflow"
    kept = device.get(y).astype(np.float64)
    dx = kernels.sigmoid_backward(device.put(dy).T.T, y)
    near("sigmoid_backward", device.get(dx), dy.astype(np.float64) * kept * (1 - kept), dtype, 1)


def check_softmax(kernels: ModuleType, device: Device, shape: tuple[int, int], dtype: str, layout: str = "C") -> None:
    random = np.random.default_rng(2)
    logits = (random.standard_normal(shape) * 5 + 50).astype(dtype_of(dtype))
    labels = random.integers(0, shape[1], shape[0])
    loss, dz = kernels.softmax_cross_entropy(laid_out(device, logits, layout), device.put(labels))
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    p, rows = np.exp(z) / np.exp(z).sum(1, keepdims=True), np.arange(shape[0])
    want = -np.log(p[rows, labels]).mean()
    near("loss", device.get(loss), np.asarray(want), str(statistics_dtype(dtype)), max(1.0, want))
    p[rows, labels] -= 1
    near("dlogits", device.get(dz), p / shape[0], dtype, 1 / shape[0])


def check_labels_outside(kernels: ModuleType, device: Device) -> None:
    """A label that is no class makes the loss and its row NaN, and no other row."""
    logits = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
    for label in (3, -1, 1000):
        loss, dz = kernels.softmax_cross_entropy(device.put(logits), device.put(np.asarray([0, label, 2, 1])))
        assert np.isnan(device.get(loss)), f"label {label}"
        assert (np.isnan(device.get(dz)) == [[False], [True], [False], [False]]).all(), f"label {label}"


# ---- optimisers, in place


class Update(NamedTuple):
    """One call of an optimiser and its formula in float64."""

    name: str
    slots: int
    scalars: dict[str, Any]
    formula: Callable[..., tuple[np.ndarray, ...]]


def _sgd(p: np.ndarray, g: np.ndarray, d: float, *, rate: float) -> tuple[np.ndarray, ...]:
    return (p - rate * (g + d * p),)


def _momentum(
    p: np.ndarray, g: np.ndarray, v: np.ndarray, d: float, *, rate: float, momentum: float, nesterov: bool = False
) -> tuple[np.ndarray, ...]:
    g = g + d * p
    v = momentum * v + g
    return p - rate * (g + momentum * v if nesterov else v), v


def _rmsprop(
    p: np.ndarray, g: np.ndarray, s: np.ndarray, d: float, *, rate: float, decay: float, eps: float
) -> tuple[np.ndarray, ...]:
    g = g + d * p
    s = decay * s + (1 - decay) * g**2
    return p - rate * g / (np.sqrt(s) + eps), s


def _adam(
    p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, d: float, *, decoupled: bool = False, **k: Any
) -> tuple[np.ndarray, ...]:
    p, g = (p * (1 - k["rate"] * d), g) if decoupled else (p, g + d * p)
    m = k["beta1"] * m + (1 - k["beta1"]) * g
    v = k["beta2"] * v + (1 - k["beta2"]) * g**2
    root = np.sqrt(v / k["correction2"]) + k["eps"]
    return p - k["rate"] * m / k["correction1"] / root, m, v


_ADAM = {"rate": 0.1, "beta1": 0.8, "beta2": 0.7, "eps": 0.3, "correction1": 0.4, "correction2": 0.6}
UPDATES = (
    Update("sgd", 0, {"rate": 0.1}, _sgd),
    Update("momentum", 1, {"rate": 0.1, "momentum": 0.7}, _momentum),
    Update("nesterov", 1, {"rate": 0.1, "momentum": 0.7}, functools.partial(_momentum, nesterov=True)),
    Update("rmsprop", 1, {"rate": 0.1, "decay": 0.8, "eps": 0.3}, _rmsprop),
    Update("adam", 2, _ADAM, _adam),
    Update("adamw", 2, _ADAM, functools.partial(_adam, decoupled=True)),
)


LEAVES = (
    ((3, 130), "F"),
    ((7,), "C"),
    ((), "C"),
    ((0, 3), "C"),
    ((2300,), "C"),
    ((5, 4), "strided"),
    *[((2,), "C")] * 62,
)
"""Shapes and layouts: more than one launch takes, one of several blocks, some that have to be copied."""


def check_update(kernels: ModuleType, device: Device, update: Update, dtype: str) -> None:
    """Leaves with their own weight decays, written where they lie; the gradients are left alone."""
    random, decays = np.random.default_rng(5), [0.2 * (k % 3) for k in range(len(LEAVES))]
    trees = [[np.asarray(random.uniform(0.5, 2, s)).astype(dtype_of(dtype)) for s, _ in LEAVES] for _ in range(4)]
    trees = [trees[0], [np.asarray(-g) for g in trees[1]], *trees[2 : 2 + update.slots]]
    there = [[laid_out(device, leaf, layout) for leaf, (_, layout) in zip(tree, LEAVES, strict=True)] for tree in trees]
    assert kernels.update(update.name, there[0], there[1], there[2:], decays, update.scalars)
    for k, decay in enumerate(decays):
        want = update.formula(*(np.asarray(tree[k]).astype(np.float64) for tree in trees), decay, **update.scalars)
        for got, value in zip([there[0], *there[2:]], want, strict=True):
            near(update.name, device.get(got[k]), value, dtype, 4)
        assert device.get(there[1][k]).tobytes() == trees[1][k].tobytes(), f"{update.name}: wrote into a gradient"


# ---- all of it, small


def wide_cases() -> tuple[Case, ...]:
    """Small inputs that the kernels on wide loads hold in a cluster of two, or share between two blocks."""
    return (
        Case((300, 8), 1, offset=1e6),
        Case((300, 16), 1, "float16", outliers=True),
        Case((2, 1, 40, 40), 1, "bfloat16", "rolled"),
        Case((4300, 4), 1, relu=False, outliers=True, parameters=False),
        Case((50, 4, 2, 84), 2, "float32", "F", offset=1e6),  # many planes, of no power of two: each index divided
    )


def smallest(*, wide: bool) -> Iterator[Callable[[ModuleType, Device], None]]:
    """Checks that touch every line of the device code, one after the other."""
    if wide:
        for case in wide_cases():
            yield lambda kernels, device, case=case: check_normalization(kernels, device, case)
        yield check_special_values
        return
    for case in (
        Case((37, 5, 11), 1, layout="rolled"),
        Case((70, 3), 1, "float64", offset=1e6, layout="strided"),
        Case((70, 3), 1, offset=1e6, relu=False),
        Case((5, 600), 0, outliers=True),
        Case((2, 3, 300), 1, parameters=False),
    ):
        yield lambda kernels, device, case=case: check_normalization(kernels, device, case)
    yield check_special_values
    yield check_empty
    yield check_blend
    yield lambda kernels, device: check_sigmoid(kernels, device, "float32")
    yield lambda kernels, device: check_softmax(kernels, device, (9, 37), "float32")
    yield lambda kernels, device: check_softmax(kernels, device, (300, 3), "float32")
    yield check_labels_outside
    for update in UPDATES:
        yield lambda kernels, device, update=update: check_update(kernels, device, update, "float32")
