"""Gradients whose norm is limited."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from .._typing import Array
from ..arguments import number, shown
from ..functional.checks import floating, is_array
from ..kernels.reference import statistics_dtype

SMALLEST = math.ulp(0.0)
"""The smallest positive number."""


def clip_by_norm(grads: list[Array], largest: float) -> list[Array]:
    """Gradients scaled down together where their norm exceeds `largest`.

    Each is multiplied by min(1, largest / (norm + 1e-6)), where norm is the root of the sum of all squares
    (Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1; the 1e-6 is PyTorch's). A norm that is
    NaN makes all of them NaN, an infinite one makes finite gradients zero.

    Parameters
    ----------
    grads : list of arrays
        Floating arrays of one library. float16 and bfloat16 are squared and summed in float32.
    largest : float

    Returns
    -------
    list of arrays
        New ones, in the dtypes of `grads`. Nothing waits for the device.

    Raises
    ------
    TypeError
        For what is no list of floating arrays.
    ValueError
        Where `largest` is not a positive number.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.optimizers.clip_by_norm([np.asarray([3.0]), np.asarray([4.0])], 1.0)
    [array([0.59999988]), array([0.79999984])]
    """
    number("largest", largest, SMALLEST, words="a positive number")
    if type(grads) not in (list, tuple) or not grads or not all(map(is_array, grads)):
        raise TypeError(f"grads: expected a list of arrays, got {shown(grads)}")
    for g in grads:
        floating("grads", g)
    xp = array_namespace(grads[0])
    wide = [xp.astype(g, statistics_dtype(g), copy=False) for g in grads]
    factor = largest / (xp.sqrt(sum(xp.sum(g * g) for g in wide)) + 1e-6)
    factor = xp.where(factor > 1, xp.ones_like(factor), factor)  # > and not <: NaN stays NaN
    return [xp.astype(w * factor, g.dtype, copy=False) for w, g in zip(wide, grads, strict=True)]
