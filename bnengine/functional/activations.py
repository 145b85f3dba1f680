"""Activation functions. Each backward takes the *output* y, so that the input need not be kept."""

from __future__ import annotations

from array_api_compat import array_namespace

from .._typing import Array
from ..arguments import number
from ..kernels import select
from . import checks


def identity(x: Array, /) -> Array:
    """y = x."""
    checks.floating("x", x)
    return x


def identity_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy."""
    _pair(dy, y)
    return dy


def relu(x: Array, /) -> Array:
    """y = max(x, 0); NaN stays NaN.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.relu(np.asarray([-1.0, 2.0]))
    array([0., 2.])
    """
    checks.floating("x", x)
    y: Array = select(x).relu(x)
    return y


def relu_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy where y > 0, else 0 (also at x = 0)."""
    _pair(dy, y)
    dx: Array = select(y).relu_backward(dy, y)
    return dx


def leaky_relu(x: Array, /, *, slope: float = 0.01) -> Array:
    """y = x where x > 0, else slope * x.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.leaky_relu(np.asarray([-1.0, 2.0]))
    array([-0.01,  2.  ])
    """
    checks.floating("x", x)
    _positive(slope)
    return array_namespace(x).where(x <= 0, slope * x, x)


def leaky_relu_backward(dy: Array, y: Array, /, *, slope: float = 0.01) -> Array:
    """dx = dy where y > 0, else slope * dy; y has the sign of x because slope > 0."""
    _pair(dy, y)
    _positive(slope)
    return array_namespace(y).where(y <= 0, slope * dy, dy)


def sigmoid(x: Array, /) -> Array:
    """y = 1 / (1 + exp(-x)), without overflow.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.sigmoid(np.asarray([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    checks.floating("x", x)
    y: Array = select(x).sigmoid(x)
    return y


def sigmoid_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy * y * (1 - y)."""
    _pair(dy, y)
    dx: Array = select(y).sigmoid_backward(dy, y)
    return dx


def tanh(x: Array, /) -> Array:
    """y = tanh(x)."""
    checks.floating("x", x)
    return array_namespace(x).tanh(x)


def tanh_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy * (1 - y * y)."""
    _pair(dy, y)
    return dy * (1 - y * y)


def _pair(dy: Array, y: Array) -> None:
    checks.floating("y", y)
    checks.same_shape("dy", dy, y, of="y")


def _positive(slope: float) -> None:
    number("slope", slope, 1e-6, 1 - 1e-6, words="a number between 0 and 1")
