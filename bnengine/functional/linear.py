"""Linear maps z = x W + b and their gradients."""

from __future__ import annotations

from typing import NamedTuple

from .._typing import Array
from ..arguments import instance
from ..kernels import select
from . import checks


class LinearGradients(NamedTuple):
    """Gradients of `linear`; None where it was not asked for or the bias was None."""

    x: Array | None
    weight: Array
    bias: Array | None


def linear(x: Array, weight: Array, bias: Array | None = None, /) -> Array:
    """z = x @ weight + bias.

    Parameters
    ----------
    x : array
        Inputs, shape (N, inputs), floating.
    weight : array
        Shape (inputs, outputs), of x's dtype.
    bias : array, optional
        Shape (outputs,). A bias in front of batch normalisation changes nothing: the mean subtraction
        cancels it.

    Returns
    -------
    array
        Shape (N, outputs).

    Raises
    ------
    TypeError, ValueError
        Where libraries, devices, dtypes or shapes do not fit.

    Notes
    -----
    N * inputs * outputs multiply-adds, in the library's matrix product.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.linear(np.asarray([[1.0, 2.0]]), np.asarray([[1.0], [10.0]]), np.asarray([0.5]))
    array([[21.5]])
    """
    checks.floating("x", x)
    _matrix("weight", weight, x)
    if x.ndim != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(f"x: expected shape (N, {weight.shape[0]}) for this weight, got {checks.shape(x)}")
    kernels = select(x)
    z: Array = kernels.matmul(x, weight)
    if bias is None:
        return z
    checks.floating("bias", bias)
    checks.like("bias", bias, x)
    if bias.shape != (weight.shape[1],):
        raise ValueError(f"bias: expected shape ({weight.shape[1]},), got {checks.shape(bias)}")
    if bias.dtype != x.dtype:
        raise TypeError(f"bias: expected dtype {x.dtype} like x, got {bias.dtype}; cast one of them")
    return kernels.add_bias(z, bias)  # ours alone


def linear_backward(
    dz: Array, x: Array, weight: Array, /, *, need_dx: bool = True, need_bias: bool = True
) -> LinearGradients:
    """Gradients of `linear`: dx = dz @ weight.T, dweight = x.T @ dz, dbias = sum of dz over samples.

    Parameters
    ----------
    dz : array
        Gradient of the loss by z, shape (N, outputs).
    x, weight : array
        As they were given to `linear`.
    need_dx, need_bias : bool
        False leaves that gradient out: a first layer needs no dx.

    Returns
    -------
    LinearGradients
        `(dx, dweight, dbias)`.

    Raises
    ------
    TypeError, ValueError
        Where libraries, devices, dtypes or shapes do not fit.

    Notes
    -----
    Two matrix products of the forward pass's size, one without dx.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x, weight = np.asarray([[1.0, 2.0]]), np.asarray([[1.0], [10.0]])
    >>> dx, dweight, dbias = bn.linear_backward(np.asarray([[2.0]]), x, weight)
    >>> dx, dweight, dbias
    (array([[ 2., 20.]]), array([[2.],
           [4.]]), array([2.]))
    """
    checks.floating("x", x)
    _matrix("weight", weight, x)
    checks.floating("dz", dz)
    checks.like("dz", dz, x)
    if x.ndim != 2 or x.shape[1] != weight.shape[0]:
        raise ValueError(f"x: expected shape (N, {weight.shape[0]}) for this weight, got {checks.shape(x)}")
    if checks.shape(dz) != (x.shape[0], weight.shape[1]):
        raise ValueError(f"dz: expected shape {(x.shape[0], weight.shape[1])}, got {checks.shape(dz)}")
    instance("need_dx", need_dx, bool, "True or False")
    instance("need_bias", need_bias, bool, "True or False")
    kernels = select(x)
    dx = kernels.matmul(dz, weight.T) if need_dx else None
    return LinearGradients(dx, kernels.matmul(x.T, dz), kernels.column_sums(dz) if need_bias else None)


def _matrix(name: str, weight: Array, x: Array) -> None:
    checks.floating(name, weight)
    checks.like(name, weight, x)
    if weight.ndim != 2:
        raise ValueError(f"{name}: expected shape (inputs, outputs), got {checks.shape(weight)}")
    if weight.dtype != x.dtype:
        raise TypeError(f"x: expected dtype {weight.dtype} like {name}, got {x.dtype}; cast x (backend.asarray does)")
