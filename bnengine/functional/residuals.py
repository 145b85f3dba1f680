"""What batch normalisation hands from the forward to the backward pass, and what comes out of that."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._typing import AllReduce, Array, Implementation
from ..kernels import library, reference
from . import checks
from .moments import Moments, of_weight


class _Residuals(NamedTuple):
    x: Array
    gamma: Array | None
    beta: Array | None
    statistics: reference.Moments
    count: float  # type: ignore[assignment]  # shadows tuple.count, which nobody misses here
    axis: int
    eps: float
    relu: bool
    impl: Implementation | None
    all_reduce: AllReduce | None
    weights: Array | None = None
    correction: tuple[Array, Array] | None = None
    version: int | None = None


class Residuals(_Residuals):
    """What `batch_norm` hands to `batch_norm_backward`, and the statistics of the batch.

    Arrays are kept as they were given, without a copy: x must not change before the backward pass.

    It may leave a `jax.jit` where impl and all_reduce are None, and `batch_norm_backward` then works outside. It cannot
    enter one: axis and relu would be traced. Call both passes in one jitted function.

    Fields: x, gamma and beta as they were given, `statistics` and `count` (values for each channel, or the sum of their
    weights) over all ranks, the settings axis, eps, relu, impl and all_reduce, `weights` in x's shape with 1 on the
    feature axis, `correction`: r and d of `batch_renorm`, and `version`: how often a PyTorch x had been changed in place.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[type[Residuals], tuple[Any, ...]]:
        return type(self), tuple(self)[:-1]  # a copied tensor counts anew

    @property
    def moments(self) -> Moments:
        """The statistics that normalised, as a value to merge or to average in."""
        count = float(self.count) if isinstance(self.count, int) else self.count
        return of_weight(self.statistics, count)

    @property
    def mean(self) -> Array:
        """Mean of each channel, shape (C,), in the statistics dtype (float64 for float64, else float32)."""
        return self.statistics.mean

    @property
    def remainder(self) -> Array:
        """Exact mean minus `mean`, shape (C,)."""
        return self.statistics.remainder

    @property
    def var(self) -> Array:
        """Biased variance of each channel, shape (C,)."""
        return self.statistics.var

    def _replace(self, **changes: Any) -> Residuals:
        """As of every named tuple, and also for mean, remainder and var, such as a variance to be averaged biased."""
        if "moments" in changes:
            changes["statistics"] = reference.Moments(*changes.pop("moments")[:3])
        parts = {name: changes.pop(name) for name in reference.Moments._fields if name in changes}
        if parts:
            changes["statistics"] = changes.get("statistics", self.statistics)._replace(**parts)
        if unknown := changes.keys() - set(self._fields):
            raise ValueError(f"expected fields of Residuals, got {', '.join(sorted(unknown))}")
        return type(self)._make(changes.get(name, value) for name, value in zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_short(value)}" for name, value in zip(self._fields, self, strict=True))
        return f"Residuals({fields})"


class Gradients(NamedTuple):
    """Gradients in the shapes and dtypes of what they belong to; None where the parameter was None."""

    x: Array
    gamma: Array | None
    beta: Array | None


def version_of(x: Any) -> int | None:
    """How often a PyTorch tensor was changed in place; None where nothing counts it."""
    if library(type(x)) != "torch":
        return None
    import torch

    if torch.compiler.is_compiling() or x.is_inference():
        return None
    version: int = x._version
    return version


def _short(value: Any) -> str:
    """An array by its dtype and shape."""
    if isinstance(value, reference.Moments):
        return f"Moments of {_short(value.mean)}"
    return f"{checks.dtype_name(value)}{checks.shape(value)}" if checks.is_array(value) else repr(value)
