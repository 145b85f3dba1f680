"""Activation functions, each with its backward pass, which takes dy and what its rule in `ACTIVATIONS` keeps: x or y."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from array_api_compat import array_namespace

from .._typing import Array, Initialization
from ..arguments import number
from ..kernels import select
from . import checks

__all__ = [
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "identity",
    "identity_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "relu",
    "relu_backward",
    "selu",
    "selu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softplus",
    "softplus_backward",
    "tanh",
    "tanh_backward",
]

ActivationName: TypeAlias = Literal[
    "relu", "leaky_relu", "gelu", "silu", "elu", "selu", "softplus", "sigmoid", "tanh", "identity"
]
"""The rows of `functional.ACTIVATIONS`."""

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""With these, mean 0 and variance 1 are a fixed point (Klambauer et al. 2017, arXiv:1706.02515, equation 14)."""

GELU_RATE, GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
"""The gate of `gelu` is sigmoid(rate * (x + cubic * x^3))."""


def identity(x: Array, /) -> Array:
    """y = x."""
    checks.floating("x", x)
    return x


def identity_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy."""
    _pair(dy, y, "y")
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
    return select(x).relu(x)


def relu_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy where y > 0, else 0 (also at x = 0)."""
    _pair(dy, y, "y")
    return select(y).relu_backward(dy, y)


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
    _pair(dy, y, "y")
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
    return select(x).sigmoid(x)


def sigmoid_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy * y * (1 - y)."""
    _pair(dy, y, "y")
    return select(y).sigmoid_backward(dy, y)


def tanh(x: Array, /) -> Array:
    """y = tanh(x)."""
    checks.floating("x", x)
    return array_namespace(x).tanh(x)


def tanh_backward(dy: Array, y: Array, /) -> Array:
    """dx = dy * (1 - y * y)."""
    _pair(dy, y, "y")
    return dy * (1 - y * y)


def gelu(x: Array, /) -> Array:
    """y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))): the tanh form of the Gaussian error linear unit.

    Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2. PyTorch's `gelu(approximate="tanh")`; the exact form,
    x times the normal distribution function, differs by less than 5e-4.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.gelu(np.asarray([-1.0, 0.0, 2.0])).round(4)
    array([-0.1588,  0.    ,  1.9546])
    """
    checks.floating("x", x)
    return x * _gelu_gate(x)[0]


def gelu_backward(dy: Array, x: Array, /) -> Array:
    """dx = dy * (gate + x * slope of the gate)."""
    _pair(dy, x, "x")
    gate, near = _gelu_gate(x)
    return dy * (gate + near * (gate * (1 - gate)) * (GELU_RATE * (1 + 3 * GELU_CUBIC * near * near)))


def _gelu_gate(x: Array) -> tuple[Array, Array]:
    """(1 + tanh) / 2, as a sigmoid that keeps its digits where it is small; and x up to where it is 0 or 1."""
    xp = array_namespace(x)
    near = xp.where(x > 16, xp.full_like(x, 16.0), xp.where(x < -16, xp.full_like(x, -16.0), x))  # its cube is finite
    return select(x).sigmoid(GELU_RATE * (near + GELU_CUBIC * near * near * near)), near


def silu(x: Array, /) -> Array:
    """y = x * sigmoid(x), also called swish (Ramachandran et al. 2017, arXiv:1710.05941).

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.silu(np.asarray([-1.0, 0.0, 2.0])).round(4)
    array([-0.2689,  0.    ,  1.7616])
    """
    checks.floating("x", x)
    return x * select(x).sigmoid(x)


def silu_backward(dy: Array, x: Array, /) -> Array:
    """dx = dy * s * (1 + x * (1 - s)), for s = sigmoid(x)."""
    _pair(dy, x, "x")
    s = select(x).sigmoid(x)
    return dy * (s + x * (s * (1 - s)))


def elu(x: Array, /) -> Array:
    """y = x where x > 0, else exp(x) - 1 (Clevert et al. 2015, arXiv:1511.07289, equation 15, alpha 1).

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.elu(np.asarray([-1.0, 0.0, 2.0])).round(4)
    array([-0.6321,  0.    ,  2.    ])
    """
    checks.floating("x", x)
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.expm1(_not_positive(x)))


def elu_backward(dy: Array, x: Array, /) -> Array:
    """dx = dy where x > 0, else dy * exp(x)."""
    _pair(dy, x, "x")
    xp = array_namespace(x)
    return dy * xp.exp(_not_positive(x))


def selu(x: Array, /) -> Array:
    """y = scale * x where x > 0, else scale * alpha * (exp(x) - 1): `SELU_SCALE` and `SELU_ALPHA`.

    Klambauer et al. 2017, arXiv:1706.02515, equation 2. Made for weights of standard deviation sqrt(1 / inputs),
    the initialization "lecun".

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.selu(np.asarray([-1.0, 0.0, 2.0])).round(4)
    array([-1.1113,  0.    ,  2.1014])
    """
    checks.floating("x", x)
    xp = array_namespace(x)
    return SELU_SCALE * xp.where(x > 0, x, SELU_ALPHA * xp.expm1(_not_positive(x)))


def selu_backward(dy: Array, x: Array, /) -> Array:
    """dx = dy * scale where x > 0, else dy * scale * alpha * exp(x)."""
    _pair(dy, x, "x")
    xp = array_namespace(x)
    falling = SELU_SCALE * SELU_ALPHA * xp.exp(_not_positive(x))
    return dy * xp.where(x > 0, xp.full_like(x, SELU_SCALE), falling)


def softplus(x: Array, /) -> Array:
    """y = log(1 + exp(x)), without overflow.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.softplus(np.asarray([-1000.0, 0.0, 1000.0])).round(4)
    array([0.000e+00, 6.931e-01, 1.000e+03])
    """
    checks.floating("x", x)
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x)))


def softplus_backward(dy: Array, x: Array, /) -> Array:
    """dx = dy * sigmoid(x)."""
    _pair(dy, x, "x")
    return dy * select(x).sigmoid(x)


class Rule(NamedTuple):
    """An activation as layers use it."""

    forward: Callable[[Array], Array]
    """y from x."""
    backward: Callable[[Array, Array], Array]
    """dx from dy and what is kept."""
    keeps: Literal["x", "y"]
    """What the backward pass needs."""
    initialization: Initialization
    """Spread of the weights before it."""


ACTIVATIONS: dict[ActivationName, Rule] = {
    "relu": Rule(relu, relu_backward, "y", "he"),
    "leaky_relu": Rule(leaky_relu, leaky_relu_backward, "y", "he"),
    "gelu": Rule(gelu, gelu_backward, "x", "he"),
    "silu": Rule(silu, silu_backward, "x", "he"),
    "elu": Rule(elu, elu_backward, "x", "he"),
    "selu": Rule(selu, selu_backward, "x", "lecun"),
    "softplus": Rule(softplus, softplus_backward, "x", "glorot"),
    "sigmoid": Rule(sigmoid, sigmoid_backward, "y", "glorot"),
    "tanh": Rule(tanh, tanh_backward, "y", "glorot"),
    "identity": Rule(identity, identity_backward, "y", "glorot"),
}
"""The activations by the names that layers and the command line use."""


def _pair(dy: Array, kept: Array, name: str) -> None:
    checks.floating(name, kept)
    checks.same_shape("dy", dy, kept, of=name)


def _positive(slope: float) -> None:
    number("slope", slope, 1e-6, 1 - 1e-6, words="a number between 0 and 1")


def _not_positive(x: Array) -> Array:
    """min(x, 0), so that exp does not overflow on the side that is not used; NaN stays NaN."""
    xp = array_namespace(x)
    return xp.where(x > 0, xp.zeros_like(x), x)
