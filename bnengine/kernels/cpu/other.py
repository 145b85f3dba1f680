"""What a training step needs besides normalisation, matrix products and updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..._typing import Native
from ...recording import call, constant, item
from .. import memory, plain, reference, views
from ..views import FLOAT32, FLOAT64
from ..views import plain as plainly
from .compiling import compiled
from .vectors import power_of_two

LABELS = np.dtype(np.int64)


@compiled
def _softmax_cross_entropy(z: Native, labels: Native, dz: Native, mean: Native) -> None:
    rows, classes = z.shape
    share, loss = z.dtype.type(1 / rows), 0.0
    for i in range(rows):
        largest = z[i, 0]
        for j in range(1, classes):
            largest = max(largest, z[i, j])
        total = 0.0
        for j in range(classes):
            e = math.exp(z[i, j] - largest)
            dz[i, j] = e
            total += e
        label = labels[i]
        if 0 <= label < classes:
            loss += math.log(total) - (z[i, label] - largest)
        else:
            loss, total = math.nan, math.nan
        scale = z.dtype.type(share / total)
        for j in range(classes):
            dz[i, j] *= scale
        if 0 <= label < classes:
            dz[i, label] -= share
    mean[0] = loss / rows


@compiled
def _blend(
    mean: Native, var: Native, batch_mean: Native, batch_var: Native, weights: Native, new_mean: Native, new_var: Native
) -> None:
    weight, unbiased = weights
    for c in range(mean.size):
        new_mean[c] = mean[c] + (batch_mean[c] - mean[c]) * weight
        new_var[c] = var[c] + (batch_var[c] * unbiased - var[c]) * weight


@compiled
def _add_bias(z: Native, bias: Native) -> None:
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] += bias[j]


@compiled
def _column_sums(x: Native, sums: Native) -> None:
    sums[:] = 0
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            sums[j] += x[i, j]


@compiled
def _relu(x: Native, y: Native) -> None:
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = zero if x[i] <= zero else x[i]  # noqa: FURB136  # max would lose a NaN


# exp(t) = 2**k * exp(r) for a whole number k and |r| <= log(2) / 2; the polynomial of Cephes' expf (S. Moshier).
LOG2E, LN2_HIGH, LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
C0, C1, C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C3, C4, C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ONE, HALF = np.float32(1), np.float32(0.5)
WHOLE = np.float32(3 << 22)  # adding it leaves whole numbers, and taking it away again gives them
LEAST = np.float32(-110)  # where exp is 0 in float32


@compiled
def _sigmoid(x: Native, y: Native) -> None:
    """float32 alone: NumPy has a fast exp too, but takes four passes."""
    for i in range(x.size):
        t = -abs(x[i])
        t = max(LEAST, t)
        k = (t * LOG2E + WHOLE) - WHOLE
        half = (k * HALF + WHOLE) - WHOLE
        r = (t - k * LN2_HIGH) - k * LN2_LOW
        p = ((((C0 * r + C1) * r + C2) * r + C3) * r + C4) * r + C5
        small = (p * (r * r) + r + ONE) * power_of_two(half) * power_of_two(k - half)
        value = (small if x[i] < 0 else ONE) / (ONE + small)
        y[i] = value if x[i] == x[i] else x[i]


@compiled
def _relu_backward(dy: Native, y: Native, dx: Native) -> None:
    zero = y.dtype.type(0)
    for i in range(y.size):
        dx[i] = zero if y[i] <= zero else dy[i]


@compiled
def _sigmoid_backward(dy: Native, y: Native, dx: Native) -> None:
    one = y.dtype.type(1)
    for i in range(y.size):
        dx[i] = dy[i] * (y[i] * (one - y[i]))


def softmax_cross_entropy(logits: Native, labels: Native) -> tuple[Native, Native]:
    """Loss and gradient, a row at a time while it is in the cache."""
    z = plainly(logits, FLOAT64 if logits.dtype == FLOAT64 else FLOAT32)
    dz, mean = memory.empty_like(z), np.empty(1, z.dtype)
    call(_softmax_cross_entropy, (z, plainly(labels, LABELS), dz, mean), (dz, mean))
    return item(mean.reshape(())), dz.astype(logits.dtype, copy=False)


def add_bias(z: Native, bias: Native) -> Native:
    """In place."""
    if not (_fits(z) and _fits(bias) and z.ndim == 2 and z.dtype == bias.dtype):
        return plain.add_bias(z, bias)
    call(_add_bias, (z, bias))
    return z


def column_sums(x: Native) -> Native:
    """In the order of the rows."""
    if not (_fits(x) and x.ndim == 2):
        return plain.column_sums(x)
    sums = np.empty(x.shape[1], x.dtype)
    call(_column_sums, (x, sums), (sums,))
    return sums


def relu(x: Native) -> Native:
    """In one pass, in the order in which x lies in memory."""
    return _mapped(_relu, x) if x.dtype in (FLOAT32, FLOAT64) else plain.relu(x)


def sigmoid(x: Native) -> Native:
    """In one pass, in the order in which x lies in memory; float32 alone."""
    return _mapped(_sigmoid, x) if x.dtype == FLOAT32 else plain.sigmoid(x)


def _fits(x: Native) -> bool:
    """Whether a compiled loop may go through it as it lies in memory."""
    return x.flags.carray and x.dtype in (FLOAT32, FLOAT64)


def _mapped(loop: Callable[[Native, Native], None], x: Native) -> Native:
    order = views.order(x)
    if order is not None:
        return _mapped(loop, x.transpose(order)).transpose(np.argsort(order))
    x = plainly(x, x.dtype)
    y = memory.empty_like(x)
    flat = y.reshape(-1)
    call(loop, (x.reshape(-1), flat), (flat,))
    return y


def blend(
    mean: Native, var: Native, batch_mean: Native, batch_var: Native, weight: float, unbiased: float
) -> tuple[Native, Native]:
    """In one pass, where all four lie alike in one dtype and the factors are numbers."""
    given = mean, var, batch_mean, batch_var
    # A factor that is an array follows from weights of rows: it changes, and must not become a constant.
    plain_numbers = type(weight) in (int, float) and type(unbiased) in (int, float)
    if not plain_numbers or not all(a.dtype == mean.dtype and _fits(a) for a in given):
        return reference.blend(*given, weight, unbiased)
    new_mean, new_var = np.empty_like(mean), np.empty_like(var)
    weights = constant(np.asarray((weight, unbiased), mean.dtype))
    call(_blend, (*given, weights, new_mean, new_var), (new_mean, new_var))
    return new_mean, new_var


def relu_backward(dy: Native, y: Native) -> Native:
    """In one pass where dy and y lie alike."""
    return _through(_relu_backward, dy, y) if _alike(dy, y) else reference.relu_backward(dy, y)


def sigmoid_backward(dy: Native, y: Native) -> Native:
    """In one pass where dy and y lie alike."""
    return _through(_sigmoid_backward, dy, y) if _alike(dy, y) else reference.sigmoid_backward(dy, y)


def _alike(dy: Native, y: Native) -> bool:
    """Whether a compiled loop may go through both side by side."""
    return y.dtype == dy.dtype and y.dtype in (FLOAT32, FLOAT64)


def _through(loop: Callable[[Native, Native, Native], None], dy: Native, y: Native) -> Native:
    """The loop over both in the order in which y lies in memory, which is that of the result too."""
    order = views.order(y)
    if order is not None:
        return _through(loop, dy.transpose(order), y.transpose(order)).transpose(np.argsort(order))
    dy, y = plainly(dy, y.dtype), plainly(y, y.dtype)
    dx = memory.empty_like(y)
    flat = dx.reshape(-1)
    call(loop, (dy.reshape(-1), y.reshape(-1), flat), (flat,))
    return dx


def warmup(dtype: np.dtype[Any]) -> None:
    """Compile every loop for that dtype."""
    one, row = np.zeros(1, dtype), np.zeros((1, 1), dtype)
    for backward in (relu_backward, sigmoid_backward):
        backward(one, one)
    for forward in (relu, sigmoid):
        forward(one)
    softmax_cross_entropy(row, np.zeros(1, np.int64))
    blend(one, one, one, one, 0.5, 1.0)
    column_sums(add_bias(row, one))
