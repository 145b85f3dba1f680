"""NumPy arrays of any rank and memory order as flat ones seen as (N, C, L), and results back again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._typing import Native
from ..recording import constant
from .reference import Affine, Moments

FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)


def supports(x: Native) -> bool:
    """Whether the NumPy kernels take x as it is."""
    return x.dtype in (FLOAT32, FLOAT64, FLOAT16) and x.size > 0


class View:
    """Arrays of one shape, dtype and memory order, with one feature axis.

    Dense arrays are transposed into the order in which they lie in memory, so that no copy is needed; results
    come back in the same order. Others are copied once. float16 is computed in float32 and rounded once.
    """

    def __init__(self, shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]) -> None:
        stored = shape if order is None else tuple(shape[i] for i in order)
        at = axis if order is None else order.index(axis)
        self.shape = shape
        self.order = order
        self.dtype = dtype
        self.statistics = FLOAT64 if dtype == FLOAT64 else FLOAT32
        self.seen = math.prod(stored[:at]), stored[at], math.prod(stored[at + 1 :])
        """(N, C, L): what is before the feature axis, the features, what is behind."""

    def flat(self, x: Native) -> Native:
        """x as a flat array of the statistics dtype."""
        if self.order is not None:
            x = x.transpose(self.order)
        return plain(x, self.statistics).reshape(-1)

    def weights(self, weights: Native) -> Native:
        """Weights of x's shape with 1 on the feature axis as flat ones, in the order of x's memory."""
        if self.order is not None:
            weights = weights.transpose(self.order)
        return plain(weights, self.statistics).reshape(-1)

    def restored(self, y: Native) -> Native:
        """Flat results in the dtype, shape and memory order of x."""
        if y.dtype != self.dtype:
            y = y.astype(self.dtype)
        if self.order is None:
            return y.reshape(self.shape)
        return y.reshape([self.shape[i] for i in self.order]).transpose(np.argsort(self.order))

    def moments(self, moments: Moments) -> Any:
        """The moments in the statistics dtype, with all that arrays of this library have."""
        dtype = self.statistics
        return Moments(plain(moments.mean, dtype), plain(moments.remainder, dtype), plain(moments.var, dtype))

    def affine(self, affine: Affine) -> Affine:
        """Both parameters as arrays of the statistics dtype."""
        gamma, beta, eps, relu = affine
        g = constant(np.ones(self.seen[1], self.statistics)) if gamma is None else plain(gamma, self.statistics)
        b = constant(np.zeros(self.seen[1], self.statistics)) if beta is None else plain(beta, self.statistics)
        return affine if g is gamma and b is beta else Affine(g, b, eps, relu)


def order(x: Native) -> tuple[int, ...] | None:
    """The order of axes in which x is contiguous; None for C order, and where there is none and x is to be copied."""
    if x.flags.c_contiguous:
        return None
    axes = tuple(sorted(range(x.ndim), key=lambda i: -x.strides[i]))
    return axes if x.transpose(axes).flags.c_contiguous else None


def plain(x: Native, dtype: np.dtype[Any]) -> Native:
    """x as a C-contiguous, aligned array of that dtype which looks writable: itself or a view where it can be."""
    if x.flags.carray and x.dtype == dtype and type(x) is np.ndarray:
        return x
    x = np.require(np.asarray(x, dtype), requirements=("C", "A"))
    return x if x.flags.writeable else np.asarray(_Readable(x))


def writable(grads: list[Native], *donated: list[Native]) -> bool:
    """Whether optimisers may write into the donated leaves: contiguous, writable, float32 or float64 like the gradients."""
    dtypes = {leaf.dtype for leaves in (grads, *donated) for leaf in leaves}
    return dtypes in ({FLOAT32}, {FLOAT64}) and all(leaf.flags.carray for leaves in donated for leaf in leaves)


class _Readable:
    """A read-only array seen as writable, for which Numba would compile once more. Nobody writes to it."""

    def __init__(self, x: Native) -> None:
        self.__array_interface__ = {**x.__array_interface__, "data": (x.__array_interface__["data"][0], False)}
        self.x = x
