"""Batch normalisation with ReLU, forward and backward: ours, NumPy's, PyTorch's and JAX's, on the same arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from .. import functional as F
from .. import kernels
from .._typing import DTypeName, Implementation, Native
from ..backends import as_numpy, backend
from .limit import copies
from .timing import (
    COPY,
    JAX,
    NUMPY,
    OPERATORS,
    OURS,
    PYTORCH,
    WEIGHTED,
    WITHOUT_NUMBA,
    Builder,
    Contender,
    nothing,
    thread_counts,
    threads,
)

EPS = 1e-5
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}
"""Errors that are allowed, as a part of the largest value: they tell a wrong function, not a less exact one."""

LARGEST_DRAWN = 1 << 23
"""Values of a drawn shape at most."""


class Shape(NamedTuple):
    """An array's sizes and its feature axis: 1, or -1 for channels last."""

    sizes: tuple[int, ...]
    axis: int = 1

    @property
    def name(self) -> str:
        """Its sizes and layout, such as "32x64x56x56 nchw"."""
        layout = ("nchw" if self.axis == 1 else "nhwc") if len(self.sizes) > 2 else "rows"
        return f"{'x'.join(map(str, self.sizes))} {layout}"


FIXED = (
    Shape((60, 100)),
    Shape((128, 256)),
    Shape((256, 1024)),
    Shape((4096, 512)),
    Shape((32, 64, 56, 56)),
    Shape((16, 256, 14, 14)),
    Shape((64, 3, 224, 224)),
    Shape((32, 56, 56, 64), -1),
    Shape((16, 14, 14, 256), -1),
)
"""Shapes of fully connected and convolutional networks, from one that fits in a cache to one that fits in none."""


def draw_shapes(count: int, seed: int) -> list[Shape]:
    """Shapes drawn by seed: rows, channels first or last, all sizes spread evenly over their logarithms."""
    rng = np.random.default_rng(seed)
    shapes: list[Shape] = []
    while len(shapes) < count:
        kind = int(rng.integers(3))
        high = [(16, 8192), (2, 2048)] if kind == 0 else [(2, 64), (3, 512), (4, 112)]
        sizes = [round(math.exp(rng.uniform(math.log(low), math.log(top)))) for low, top in high]
        if kind:
            n, c, side = sizes
            sizes = [n, c, side, side] if kind == 1 else [n, side, side, c]
        if math.prod(sizes) <= LARGEST_DRAWN:
            shapes.append(Shape(tuple(sizes), -1 if kind == 2 else 1))
    return shapes


class Values(NamedTuple):
    """Results of a forward and a backward pass."""

    y: Native
    dx: Native
    dgamma: Native
    dbeta: Native


def largest_error(truth: Iterable[Native], results: Iterable[Native], but: Native | None = None) -> float:
    """The largest error of any result, as a part of that result's largest value, `but` for some of its places."""
    worst = 0.0
    for right, got in zip(truth, results, strict=False):
        if got.shape != right.shape:
            raise ValueError(f"expected a result of shape {right.shape}, got {got.shape}")
        off = abs(got.astype(np.float64) - right)
        if but is not None and off.shape == but.shape:
            off[but] = 0.0
        worst = float(np.maximum(worst, float(off.max() / abs(right).max())))  # maximum keeps NaN
    return worst


class Case:
    """Arrays of one shape, and the results in float64 that contenders are checked against."""

    steady = False
    """Whether page faults are worth counting: results of new memory cost some by their nature."""

    def __init__(self, shape: Shape, dtype: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        kind: Any = np.dtype(dtype)
        channels = shape.sizes[shape.axis]
        self.shape, self.dtype, self.axis = shape, dtype, shape.axis % len(shape.sizes)
        self.x = rng.standard_normal(shape.sizes, kind)
        self.dy = rng.standard_normal(shape.sizes, kind) + kind.type(0.5)
        self.gamma = 2 + rng.standard_normal(channels, kind)
        self.beta = rng.standard_normal(channels, kind)

    @functools.cached_property
    def truth(self) -> tuple[Values, Native]:
        """Results in float64, and where the pre-activation is too near zero to say on which side it falls."""
        x, gamma, beta, dy = (a.astype(np.float64) for a in (self.x, self.gamma, self.beta, self.dy))
        values, z = equations(x, gamma, beta, dy, self.axis)
        return values, np.abs(z) < TOLERANCE[self.dtype]

    def contender(
        self,
        family: str,
        call: Callable[[], Any],
        variant: str = "",
        prepare: Callable[[], Any] = nothing,
        host: Callable[[Any], Values] | None = None,
    ) -> Contender:
        """One whose call returns y, dx, dgamma, dbeta; `host` brings them to NumPy in the case's layout."""
        bring = host or (lambda values: Values(*map(as_numpy, values)))

        def error() -> float:
            return largest_error(self.truth[0], bring(call()), but=self.truth[1])

        return Contender(family, call, error, TOLERANCE[self.dtype], variant, prepare)


# ---- ours


def _engine(family: str, impl: Implementation | None, case: Case) -> Iterator[Contender]:
    kernels.select(case.x, impl)  # raises where it cannot run

    def call() -> Values:
        y, residuals = F.batch_norm(case.x, case.gamma, case.beta, axis=case.axis, activation="relu", impl=impl)
        return Values(y, *F.batch_norm_backward(case.dy, residuals))

    yield case.contender(family, call)


def _weighted(case: Case) -> Iterator[Contender]:
    """The same with a weight of 1 for each sample, which takes all that other weights take."""
    samples = int(case.axis == 0)
    weights = np.ones(case.x.shape[samples], case.x.dtype)

    def call() -> Values:
        how: dict[str, Any] = {"axis": case.axis, "activation": "relu", "weights": weights}
        y, residuals = F.batch_norm(case.x, case.gamma, case.beta, **how)
        return Values(y, *F.batch_norm_backward(case.dy, residuals))

    yield case.contender(WEIGHTED, call)


# ---- NumPy


def equations(
    x: Native, gamma: Native, beta: Native, dy: Native, axis: int, *, relu: bool = True
) -> tuple[Values, Native]:
    """The equations as people write them in NumPy, and the pre-activation; of CuPy's arrays too."""
    axes = tuple(i for i in range(x.ndim) if i != axis)
    wide = tuple(x.shape[i] if i == axis else 1 for i in range(x.ndim))
    n = x.size // x.shape[axis]
    inv_std = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + x.dtype.type(EPS))
    xhat = (x - x.mean(axis=axes, keepdims=True)) * inv_std
    z = gamma.reshape(wide) * xhat + beta.reshape(wide)
    dz = dy * (z > 0) if relu else dy
    dbeta, dgamma = dz.sum(axis=axes), (dz * xhat).sum(axis=axes)
    dx = gamma.reshape(wide) * inv_std / n * (n * dz - dbeta.reshape(wide) - xhat * dgamma.reshape(wide))
    return Values(np.maximum(z, 0) if relu else z, dx, dgamma, dbeta), z


def _numpy(case: Case) -> Iterator[Contender]:
    yield case.contender(NUMPY, lambda: equations(case.x, case.gamma, case.beta, case.dy, case.axis)[0])


# ---- PyTorch


def _torch(case: Case) -> Iterator[Contender]:
    """By its public functions and autograd, as its users do."""
    import torch

    x, gamma, beta, dy = _tensors(case)
    leaves = [a.detach().requires_grad_() for a in (x, gamma, beta)]

    def call() -> Values:
        y = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=EPS)
        y = torch.nn.functional.relu(y, inplace=True)
        return Values(y, *torch.autograd.grad(y, leaves, dy))

    return _at_each_thread_count(case, PYTORCH, call)


def _torch_operators(case: Case) -> Iterator[Contender]:
    """By the operators that autograd would call, without the cost of autograd: what no user writes."""
    import torch

    x, gamma, beta, dy = _tensors(case)
    backward = torch.ops.aten.native_batch_norm_backward

    def call() -> Values:
        y, mean, inv_std = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)
        y = torch.relu_(y)
        dz = torch.ops.aten.threshold_backward(dy, y, 0)
        return Values(y, *backward(dz, x, gamma, None, None, mean, inv_std, True, EPS, [True, True, True]))

    return _at_each_thread_count(case, OPERATORS, call)


def _tensors(case: Case) -> tuple[Any, Any, Any, Any]:
    """x, gamma, beta, dy on the same memory, the channels in place 1; channels last stays so in memory."""
    import torch

    x, gamma, beta, dy = map(torch.from_numpy, (case.x, case.gamma, case.beta, case.dy))
    return x.movedim(case.axis, 1), gamma, beta, dy.movedim(case.axis, 1)


def _at_each_thread_count(case: Case, family: str, call: Callable[[], Values]) -> Iterator[Contender]:
    import torch

    def host(values: Values) -> Values:
        y, dx, dgamma, dbeta = map(as_numpy, values)
        return Values(np.moveaxis(y, 1, case.axis), np.moveaxis(dx, 1, case.axis), dgamma, dbeta)

    for count in thread_counts():
        yield case.contender(family, call, threads(count), functools.partial(torch.set_num_threads, count), host)


# ---- JAX


def _jax(case: Case) -> Iterator[Contender]:
    """Both passes compiled together, which spares XLA the intermediate results between them."""
    xp = backend("jax", dtype=cast("DTypeName", case.dtype)).xp  # raises where it has no float64
    import jax

    axes = tuple(i for i in range(case.x.ndim) if i != case.axis)
    wide = tuple(-1 if i == case.axis else 1 for i in range(case.x.ndim))

    def forward(x: Native, gamma: Native, beta: Native) -> Native:
        inv_std = jax.lax.rsqrt(x.var(axis=axes, keepdims=True) + EPS)
        xhat = (x - x.mean(axis=axes, keepdims=True)) * inv_std
        return jax.nn.relu(gamma.reshape(wide) * xhat + beta.reshape(wide))

    @jax.jit  # type: ignore[untyped-decorator]
    def both(x: Native, gamma: Native, beta: Native, dy: Native) -> Values:
        y, pull = jax.vjp(forward, x, gamma, beta)
        return Values(y, *pull(dy))

    arrays = [xp.asarray(a) for a in (case.x, case.gamma, case.beta, case.dy)]
    yield case.contender(JAX, lambda: jax.block_until_ready(both(*arrays)))


BUILDERS: dict[str, Builder] = {
    OURS: functools.partial(_engine, OURS, None),
    WITHOUT_NUMBA: functools.partial(_engine, WITHOUT_NUMBA, "plain"),
    WEIGHTED: _weighted,
    "bnengine reference": functools.partial(_engine, "bnengine reference", "reference"),
    NUMPY: _numpy,
    PYTORCH: _torch,
    OPERATORS: _torch_operators,
    JAX: _jax,
    COPY: lambda case: copies(case.x),
}
"""Family -> its contenders."""
