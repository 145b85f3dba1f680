"""Batch normalisation on a GPU: ours, PyTorch's and JAX's, on the same memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np

from ... import functional as F
from ..._typing import Native
from ...kernels import cuda, reference
from ...kernels.cuda.layout import laid_out, memory
from ..normalization import EPS, Shape, equations, largest_error
from ..timing import COMPILED, JAX, OURS, PORTABLE, PYTORCH, REFERENCE, Builder, Contender
from .shared import dtype_of, from_tensor, jax_array, tensor, with_current_stream

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Errors that are allowed, as a part of the largest value: they tell a wrong function, not a less exact one."""

TRAFFIC = {"inference": 2, "training forward": 2, "backward": 3}
"""Passes over x that each kind of work takes at the least: what is read, and what is written."""

_RESNET = (
    *((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28)),
    *((256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7)),
)
"""Channels and side of every batch normalisation of ResNet-50."""
_DECIDING = (
    *((16, 64, 256), (32, 64, 112), (32, 64, 56), (32, 256, 56)),
    *((32, 512, 28), (32, 1024, 14), (32, 2048, 7)),
)
_ALL = (*_DECIDING, *((n, c, side) for n in (32, 256) for c, side in _RESNET))
_ROWS = ((128, 512), (8192, 1024), (65536, 64), (4096, 4096))


def _planes(sizes: tuple[tuple[int, int, int], ...]) -> Iterator[Shape]:
    """Images of these numbers, channels and sides, in both layouts."""
    for n, c, side in sizes:
        yield Shape((n, c, side, side))
        yield Shape((n, side, side, c), -1)


FIRST = 2 * len(_DECIDING) + len(_ROWS)
FIXED = tuple(dict.fromkeys((*_planes(_DECIDING), *map(Shape, _ROWS), *_planes(_ALL))))
"""The shapes that decide come first, `FIRST` of them: the time may be over before the others."""


class Case:
    """Arrays of one shape on the device, and what one kind of work on them should give, in float64."""

    def __init__(self, shape: Shape, dtype: str, work: str, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.shape, self.dtype, self.work, self.axis = shape, dtype, work, shape.axis % len(shape.sizes)
        pool, channels = cupy.asarray(rng.standard_normal(1_000_003, np.float32)), shape.sizes[shape.axis]
        self.x = cupy.resize(pool, shape.sizes).astype(dtype_of(dtype))
        self.dy = cupy.resize(pool[::-1] + np.float32(0.5), shape.sizes).astype(dtype_of(dtype))
        self.gamma, self.beta, self.mean = (cupy.asarray(rng.standard_normal(channels, np.float32)) for _ in range(3))
        self.var = cupy.asarray(rng.uniform(0.5, 2, channels).astype(np.float32))

    @functools.cached_property
    def truth(self) -> tuple[Native, ...]:
        """y; or dx, dgamma, dbeta."""
        x, dy, gamma, beta, mean, var = (
            a.astype(cupy.float64) for a in (self.x, self.dy, self.gamma, self.beta, self.mean, self.var)
        )
        if self.work == "inference":
            wide = tuple(-1 if i == self.axis else 1 for i in range(x.ndim))
            scale = gamma / cupy.sqrt(var + EPS)
            return ((x - mean.reshape(wide)) * scale.reshape(wide) + beta.reshape(wide),)
        y, *gradients = equations(x, gamma, beta, dy, self.axis, relu=False)[0]
        return (y,) if self.work == "training forward" else tuple(gradients)

    def contender(
        self,
        family: str,
        call: Callable[[], Any],
        variant: str = "",
        take: Callable[[Any], Any] = tuple,
        **more: Any,
    ) -> Contender:
        """One whose call returns y, or dx, dgamma, dbeta, and maybe more; `take` brings them to CuPy in order."""
        return Contender(
            family,
            call,
            lambda: largest_error(self.truth, take(call())),
            TOLERANCE[self.dtype],
            variant=variant,
            **more,
        )

    @property
    def floor(self) -> int:
        """Bytes that the work has to move."""
        return TRAFFIC[self.work] * int(self.x.nbytes)


# ---- ours


def _engine(case: Case) -> Iterator[Contender]:
    """The public functions."""
    x, parameters = case.x, (case.gamma, case.beta)
    if case.work == "inference":
        given = (case.mean, case.var, *parameters)
        yield case.contender(OURS, lambda: (F.normalize(x, *given, axis=case.axis, eps=EPS),))
    elif case.work == "training forward":
        yield case.contender(OURS, lambda: F.batch_norm(x, *parameters, axis=case.axis, eps=EPS), take=_first)
    else:
        _, residuals = F.batch_norm(x, *parameters, axis=case.axis, eps=EPS)
        yield case.contender(OURS, lambda: F.batch_norm_backward(case.dy, residuals))


def _portable(case: Case) -> Iterator[Contender]:
    dense = laid_out(case.x, case.axis)
    return _seam(case, PORTABLE, cuda.portable, dense, memory(case.dy, dense.order))


def _reference(case: Case) -> Iterator[Contender]:
    return _seam(case, REFERENCE, reference, case.x, case.dy, case.axis)


def _seam(case: Case, family: str, kernels: Any, x: Any, dy: Native, *axis: int) -> Iterator[Contender]:
    """Kernels by themselves, without the public functions' checks."""
    rest = reference.Affine(case.gamma, case.beta, EPS, False), *axis
    if case.work == "inference":
        given = reference.Moments(case.mean, cupy.zeros_like(case.mean), case.var)
        yield case.contender(family, lambda: (kernels.normalize(x, given, *rest),))
    elif case.work == "training forward":
        yield case.contender(family, lambda: kernels.forward(x, *rest), take=_first)
    else:
        _, m = kernels.forward(x, *rest)
        yield case.contender(family, lambda: kernels.backward(dy, x, m, *rest), take=lambda r: (r[0], *r[1][::-1]))


def _first(results: Any) -> tuple[Native]:
    return (results[0],)


# ---- PyTorch, on the current stream of CuPy


def _torch(case: Case) -> Iterator[Contender]:
    """By its public functions and autograd, on cuDNN and on its own kernels."""
    import torch

    x, dy, gamma, beta, mean, var = _tensors(case)
    leaves = [a.detach().requires_grad_() for a in (x, gamma, beta)]

    def forward() -> tuple[Any]:
        return (torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=EPS),)

    for variant, on in (("cuDNN", True), ("native", False)):
        prepare = functools.partial(setattr, torch.backends.cudnn, "enabled", on)
        prepare()  # the backward pass is of the kernels that the forward pass took
        calls: dict[str, Callable[[], Any]] = {
            "inference": lambda: (torch.nn.functional.batch_norm(x, mean, var, gamma, beta, eps=EPS),),
            "training forward": forward,
            "backward": functools.partial(torch.autograd.grad, forward()[0], leaves, dy, retain_graph=True),
        }
        yield _torch_contender(case, PYTORCH, calls[case.work], variant, prepare=prepare)


def _torch_compile(case: Case) -> Iterator[Contender]:
    """The operators that autograd would call, compiled for this shape."""
    import torch

    x, dy, gamma, beta, mean, var = _tensors(case)
    forward = functools.partial(torch.native_batch_norm, x, gamma, beta, None, None, True, 0.0, EPS)
    _, mean_of_x, inv_std = forward()
    backward = torch.ops.aten.native_batch_norm_backward
    torch.compiler.reset()

    def compiled(function: Any) -> Any:
        return torch.compile(function, dynamic=False)

    calls: dict[str, Callable[[], Any]] = {
        "inference": lambda: (normalize(x, mean, var, gamma, beta),),
        "training forward": lambda: trained(x, gamma, beta),
        "backward": lambda: pulled(dy, x, gamma, mean_of_x, inv_std),
    }
    normalize = compiled(lambda x, m, v, g, b: torch.nn.functional.batch_norm(x, m, v, g, b, eps=EPS))
    trained = compiled(lambda x, g, b: torch.native_batch_norm(x, g, b, None, None, True, 0.0, EPS))
    pulled = compiled(lambda dy, x, g, m, s: backward(dy, x, g, None, None, m, s, True, EPS, [True] * 3))
    yield _torch_contender(case, COMPILED, calls[case.work])


def _torch_contender(case: Case, family: str, call: Callable[[], Any], variant: str = "", **more: Any) -> Contender:
    def take(results: Any) -> list[Native]:
        got = [from_tensor(a.detach()) for a in results[: len(case.truth)]]
        return [cupy.moveaxis(a, 1, case.axis) if a.ndim > 1 else a for a in got]

    return case.contender(family, call, variant, take, **more)


def _tensors(case: Case) -> list[Any]:
    """x, dy, gamma, beta, mean, var on the same memory, the channels in place 1; channels last stays so in memory."""
    x, dy, *flat = map(tensor, (case.x, case.dy, case.gamma, case.beta, case.mean, case.var))
    return [x.movedim(case.axis, 1), dy.movedim(case.axis, 1), *flat]


# ---- JAX, on streams of its own


def _jax(case: Case) -> Iterator[Contender]:
    """Each pass compiled, from and to memory that is shared; the backward pass takes the forward pass's statistics."""
    x, dy, gamma, beta, mean, var = map(jax_array, (case.x, case.dy, case.gamma, case.beta, case.mean, case.var))
    forward, backward, normalize = _jax_passes(case)
    function, rest = {
        "inference": (normalize, (mean, var, gamma, beta)),
        "training forward": (forward, (gamma, beta)),
        "backward": (backward, (dy, gamma, *forward(x, gamma, beta)[1:])),
    }[case.work]

    def take(results: Any) -> list[Native]:
        got = [cupy.from_dlpack(a) for a in results[: len(case.truth)]]
        return [got[0].view(case.x.dtype), *got[1:]]

    yield case.contender(
        JAX,
        lambda: function(x, *rest),
        take=take,
        on_stream=with_current_stream(lambda x: function(x, *rest), case.x),
    )


def _jax_passes(case: Case) -> tuple[Any, Any, Any]:
    """forward, backward and inference on the bits of a half type or on float32; mathematics in float32."""
    import jax

    axes = tuple(i for i in range(case.x.ndim) if i != case.axis)
    wide = tuple(-1 if i == case.axis else 1 for i in range(case.x.ndim))
    half = jax.numpy.bfloat16 if case.dtype == "bfloat16" else None

    def value(x: Native) -> Native:
        return (jax.lax.bitcast_convert_type(x, half) if half else x).astype(jax.numpy.float32)

    def store(y: Native, x: Native) -> Native:
        return jax.lax.bitcast_convert_type(y.astype(half), x.dtype) if half else y.astype(x.dtype)

    def normalize(x: Native, mean: Native, var: Native, gamma: Native, beta: Native) -> tuple[Native]:
        scale = gamma * jax.lax.rsqrt(var + EPS)
        return (store((value(x) - mean.reshape(wide)) * scale.reshape(wide) + beta.reshape(wide), x),)

    def forward(x: Native, gamma: Native, beta: Native) -> tuple[Native, Native, Native]:
        mean, var = value(x).mean(axes), value(x).var(axes)
        return (*normalize(x, mean, var, gamma, beta), mean, jax.lax.rsqrt(var + EPS))

    def backward(x: Native, dy: Native, gamma: Native, mean: Native, inv_std: Native) -> tuple[Native, Native, Native]:
        d, n = value(dy), x.size // gamma.size
        xhat = (value(x) - mean.reshape(wide)) * inv_std.reshape(wide)
        dbeta, dgamma = d.sum(axes), (d * xhat).sum(axes)
        dx = (gamma * inv_std).reshape(wide) * (d - dbeta.reshape(wide) / n - xhat * dgamma.reshape(wide) / n)
        return store(dx, x), dgamma, dbeta

    return jax.jit(forward), jax.jit(backward), jax.jit(normalize)


# ---- anchors: another normalisation that reads x once and writes y, by kernels that are known to be fast


def _anchor(case: Case, family: str, load: Callable[[], Callable[[Any, Any], Any]]) -> Iterator[Contender]:
    """RMS normalisation of each row: what the chip lets a kernel of this kind reach. Nothing where x is no rows."""
    if case.work != "training forward" or case.x.ndim != 2:
        return
    norm, x, gamma = load(), tensor(case.x), tensor(case.gamma)

    def error() -> float:
        wide = case.x.astype(cupy.float64)
        truth = wide / cupy.sqrt((wide * wide).mean(axis=1, keepdims=True) + EPS) * case.gamma
        return largest_error((truth,), (from_tensor(norm(x, gamma)),))

    yield Contender(family, lambda: norm(x, gamma), error, TOLERANCE[case.dtype])


def _quack() -> Callable[[Any, Any], Any]:
    from quack import rmsnorm

    return lambda x, gamma: rmsnorm(x, gamma, eps=EPS)


def _liger() -> Callable[[Any, Any], Any]:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda x, gamma: LigerRMSNormFunction.apply(x, gamma, EPS)


QUACK, LIGER = "RMSNorm of QuACK", "RMSNorm of Liger"

BUILDERS: dict[str, Builder] = {
    OURS: _engine,
    PORTABLE: _portable,
    REFERENCE: _reference,
    PYTORCH: _torch,
    COMPILED: _torch_compile,
    JAX: _jax,
    QUACK: functools.partial(_anchor, family=QUACK, load=_quack),
    LIGER: functools.partial(_anchor, family=LIGER, load=_liger),
}
"""Family -> its contenders."""
