"""The specification: every kernel written once in the array API.

Batch normalisation of a channel with values x_1 .. x_n (Ioffe and Szegedy 2015, arXiv 1502.03167,
algorithm 1 and the gradients below it):

    moments         mean = sum(x) / n,   var = sum((x - mean)^2) / n
    normalize       xhat = (x - mean) / sqrt(var + eps),   y = gamma * xhat + beta
    gradient_sums   sum(dy),   sum(dy * xhat)              (the gradients of beta and gamma)
    input_gradient  dx = gamma / sqrt(var + eps) * (dy - sum(dy) / n - xhat * sum(dy * xhat) / n)

With weights w_1 .. w_n of the values, 1 / n is w_i / sum(w) in the statistics and in dx: a weight of k stands for the
value k times. Weights have x's shape with 1 on the feature axis, in the statistics dtype, and sum to `total`.

`x` has any rank, `axis` >= 0 is its feature axis; statistics and parameters have shape (C,).
Gradients come before what they are gradients by, and the pair of sums is (sum(dy), sum(dy * xhat)), everywhere.
Arguments are checked at the public door (bnengine.functional), never here.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from .._typing import Array, DType


class Moments(NamedTuple):
    """Statistics of each channel, in the statistics dtype (float64 for float64, else float32)."""

    mean: Array
    """The mean, rounded to the statistics dtype."""
    remainder: Array
    """What that rounding lost: at mean/std 1e6 it is 0.03 standard deviations in float32."""
    var: Array
    """The biased variance."""


class Affine(NamedTuple):
    """What y = gamma * xhat + beta takes besides x and its statistics, and whether ReLU follows."""

    gamma: Array | None
    """Shape (C,); None: 1."""
    beta: Array | None
    """Shape (C,); None: 0."""
    eps: float
    relu: bool


BLOCK = 16
"""Values that are added in order where there is no float64."""


def statistics_dtype(x: Array) -> DType:
    """float64 for float64, else float32."""
    xp = array_namespace(x)
    return xp.float64 if x.dtype == xp.float64 else xp.float32


# ---- the four kernels


def moments(x: Array, axis: int) -> Moments:
    """Mean, what its rounding lost, and biased variance of each channel, in the statistics dtype."""
    xp, n = array_namespace(x), _count(x, axis)
    x = xp.astype(x, statistics_dtype(x))
    # Subtracting one value of the channel first makes the mean of a constant channel exact whatever order the
    # library adds in.
    first = xp.reshape(x[tuple(slice(None) if i == axis else 0 for i in range(x.ndim))], (x.shape[axis],))
    return _moments_about(first, x, axis, lambda values: values / n)


def weighted_moments(x: Array, weights: Array, total: Any, axis: int) -> Moments:
    """The same of weighted values; what has weight 0 may be anything, NaN too."""
    xp = array_namespace(x)
    x = xp.where(weights == 0, xp.zeros_like(weights), xp.astype(x, weights.dtype))
    shares = weights / total
    first = xp.astype(_sum(x * shares, axis), x.dtype)  # the second sum, about it, makes a constant's mean exact
    return _moments_about(first, x, axis, lambda values: values * shares)


def _moments_about(first: Array, x: Array, axis: int, share: Any) -> Moments:
    """Moments about a value near the mean; share(values) are the parts of the values in a mean of them."""
    # Two passes about a rounded mean, never E[x^2] - E[x]^2.
    xp, dtype = array_namespace(x), x.dtype
    mean = first + xp.astype(_sum(share(x - _along(first, x, axis)), axis), dtype)
    centered = x - _along(mean, x, axis)
    remainder = xp.astype(_sum(share(centered), axis), dtype)
    centered = centered - _along(remainder, x, axis)
    # A share before the sum: a million squares of 1e18 would overflow float32.
    var = xp.astype(_sum(centered * share(centered), axis), dtype)
    return Moments(mean, remainder, var)


def given(mean: Array, var: Array, x: Array) -> Moments:
    """Statistics that somebody gave, as moments; a mean of more precision than theirs is split, not rounded."""
    xp, dtype = array_namespace(x), statistics_dtype(x)
    rounded = xp.astype(mean, dtype)
    return Moments(rounded, xp.astype(mean - xp.astype(rounded, mean.dtype), dtype), xp.astype(var, dtype))


def normalize(x: Array, moments: Moments, affine: Affine, axis: int) -> Array:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, and max(y, 0) with a fused ReLU."""
    xp = array_namespace(x)
    y = _line(xp.astype(x, moments.mean.dtype), moments, affine, axis)
    if affine.relu:
        y = xp.where(y <= 0, xp.zeros_like(y), y)  # <= and not >: NaN stays NaN
    return xp.astype(y, x.dtype)


def gradient_sums(dy: Array, x: Array, moments: Moments, affine: Affine, axis: int) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * xhat) of each channel: the gradients of beta and gamma."""
    xp = array_namespace(x)
    dtype = moments.mean.dtype
    x = xp.astype(x, dtype)
    dy = _masked(dy, x, moments, affine, axis)
    xhat = _normalized(x, moments, axis, affine.eps)
    return xp.astype(_sum(dy, axis), dtype), xp.astype(_sum(dy * xhat, axis), dtype)


def input_gradient(
    dy: Array, x: Array, moments: Moments, sums: tuple[Array, Array], count: int, affine: Affine, axis: int
) -> Array:
    """dx = gamma / sqrt(var + eps) * (dy - sum(dy) / count - xhat * sum(dy * xhat) / count)."""
    xp = array_namespace(x)
    wide = xp.astype(x, moments.mean.dtype)
    dy = _masked(dy, wide, moments, affine, axis)
    xhat = _normalized(wide, moments, axis, affine.eps)
    sum_dy, sum_dy_xhat = sums
    dx = dy - _along(sum_dy / count, x, axis) - xhat * _along(sum_dy_xhat / count, x, axis)
    return xp.astype(dx * _along(_scale(moments, affine), x, axis), x.dtype)


def weighted_gradient(
    dy: Array,
    x: Array,
    moments: Moments,
    sums: tuple[Array, Array],
    weights: Array,
    total: Any,
    affine: Affine,
    axis: int,
) -> Array:
    """dx_i = gamma / sqrt(var + eps) * (dy_i - w_i / total * (sum(dy) + xhat_i * sum(dy * xhat)))."""
    xp = array_namespace(x)
    wide = xp.astype(x, moments.mean.dtype)
    dy = _masked(dy, wide, moments, affine, axis)
    sum_dy, sum_dy_xhat = (_along(v / total, x, axis) for v in sums)
    through = sum_dy + _normalized(wide, moments, axis, affine.eps) * sum_dy_xhat
    dx = dy - xp.where(weights == 0, xp.zeros_like(weights), weights * through)
    return xp.astype(dx * _along(_scale(moments, affine), x, axis), x.dtype)


# ---- their compositions, which fast modules fuse


def forward(x: Array, affine: Affine, axis: int) -> tuple[Array, Moments]:
    """y and the moments of the batch that normalise it."""
    m = moments(x, axis)
    return normalize(x, m, affine, axis), m


def backward(dy: Array, x: Array, moments: Moments, affine: Affine, axis: int) -> tuple[Array, tuple[Array, Array]]:
    """dx and the gradient sums, where this process has the whole batch."""
    sums = gradient_sums(dy, x, moments, affine, axis)
    return input_gradient(dy, x, moments, sums, _count(x, axis), affine, axis), sums


def given_gradient(dy: Array, x: Array, moments: Moments, affine: Affine, axis: int) -> Array:
    """The input gradient for statistics that do not depend on x."""
    xp = array_namespace(x)
    dy = _masked(dy, xp.astype(x, moments.mean.dtype), moments, affine, axis)
    return xp.astype(dy * _along(_scale(moments, affine), x, axis), x.dtype)


def blend(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, weight: float, unbiased: float
) -> tuple[Array, Array]:
    """Running statistics: old * (1 - weight) + batch * weight; `unbiased` multiplies the biased batch variance."""
    return mean + (batch_mean - mean) * weight, var + (batch_var * unbiased - var) * weight


# ---- what they are made of


def _line(x: Array, moments: Moments, affine: Affine, axis: int) -> Array:
    """gamma * xhat + beta, for x in the statistics dtype."""
    y = _centered(x, moments, axis) * _along(_scale(moments, affine), x, axis)
    return y if affine.beta is None else y + _along(array_namespace(x).astype(affine.beta, x.dtype), x, axis)


def _masked(dy: Array, x: Array, moments: Moments, affine: Affine, axis: int) -> Array:
    """dy in the statistics dtype, zero where a fused ReLU was off: the mask is recomputed from x, y need not be kept."""
    xp = array_namespace(x)
    dy = xp.astype(dy, x.dtype)
    if not affine.relu:
        return dy
    return xp.where(_line(x, moments, affine, axis) <= 0, xp.zeros_like(dy), dy)


def _centered(x: Array, moments: Moments, axis: int) -> Array:
    # In this order: x - mean is exact where both are close, mean + remainder would round the remainder away.
    return (x - _along(moments.mean, x, axis)) - _along(moments.remainder, x, axis)


def _normalized(x: Array, moments: Moments, axis: int, eps: float) -> Array:
    return _centered(x, moments, axis) * _along(_inv_std(moments, eps), x, axis)


def _inv_std(moments: Moments, eps: float) -> Array:
    return 1 / array_namespace(moments.var).sqrt(moments.var + eps)


def _scale(moments: Moments, affine: Affine) -> Array:
    inv_std, gamma = _inv_std(moments, affine.eps), affine.gamma
    return inv_std if gamma is None else inv_std * array_namespace(gamma).astype(gamma, inv_std.dtype)


def _along(v: Array, x: Array, axis: int) -> Array:
    """v of shape (C,), shaped to broadcast against x."""
    return array_namespace(v).reshape(v, tuple(n if i == axis else 1 for i, n in enumerate(x.shape)))


def _count(x: Array, axis: int) -> int:
    """Values for each channel."""
    count: int = math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :])  # no generator: torch.compile stops at one
    return count


def _sum(x: Array, axis: int) -> Array:
    """Sum over every axis but `axis`: in float64 where there is one, else in blocks of blocks."""
    xp = array_namespace(x)
    wide = _float64(x)
    if wide is not None:
        return xp.sum(x, axis=tuple(i for i in range(x.ndim) if i != axis), dtype=wide)
    rows = xp.reshape(xp.moveaxis(x, axis, -1), (_count(x, axis), x.shape[axis]))
    while rows.shape[0] > BLOCK:  # a float32 sum of a million rows in order would lose 2e-4
        whole = rows.shape[0] // BLOCK * BLOCK
        blocks = xp.sum(xp.reshape(rows[:whole, :], (-1, BLOCK, x.shape[axis])), axis=1)
        rows = blocks if whole == rows.shape[0] else xp.concat([blocks, rows[whole:, :]])
    return xp.sum(rows, axis=0)


def _float64(x: Array) -> DType | None:
    """float64, where the array's library and device have it."""
    xp = array_namespace(x)
    if x.dtype == xp.float64:
        return xp.float64
    return xp.__array_namespace_info__().dtypes(device=device(x), kind="real floating").get("float64")


# ---- the network's other hot operations


def matmul(a: Array, b: Array) -> Array:
    """a @ b."""
    return array_namespace(a, b).matmul(a, b)


def add_bias(z: Array, bias: Array) -> Array:
    """z + bias, for a z that is the caller's alone: in place where the library's arrays can change."""
    z += bias
    return z


def column_sums(x: Array) -> Array:
    """The sum over rows, in x's dtype."""
    return array_namespace(x).sum(x, axis=0)


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays NaN."""
    xp = array_namespace(x)
    return xp.where(x <= 0, xp.zeros_like(x), x)


def relu_backward(dy: Array, y: Array) -> Array:
    """dy where y > 0, else 0."""
    xp = array_namespace(y)
    return xp.where(y <= 0, xp.zeros_like(dy), dy)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow and to full relative precision on both sides."""
    xp = array_namespace(x)
    small = xp.exp(-xp.abs(x))
    return xp.where(x < 0, small, xp.ones_like(x)) / (1 + small)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dy * y * (1 - y)."""
    return dy * y * (1 - y)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Mean of log(sum(exp(z))) - z[label] over rows, and its gradient (softmax(z) - onehot) / rows."""
    xp, rows = array_namespace(logits), logits.shape[0]
    losses, dlogits = cross_entropy_rows(logits, labels)
    return xp.sum(losses) / rows, xp.astype(dlogits / rows, logits.dtype)


def cross_entropy_rows(logits: Array, labels: Array) -> tuple[Array, Array]:
    """log(sum(exp(z))) - z[label] of each row, and softmax(z) - onehot, in the statistics dtype."""
    xp, dtype = array_namespace(logits), statistics_dtype(logits)
    z = xp.astype(logits, dtype)
    z = z - xp.max(z, axis=1, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=1, keepdims=True)
    onehot = _onehot(labels, logits.shape[1], dtype)
    losses = xp.log(total) - xp.sum(z * onehot, axis=1, keepdims=True)
    return xp.reshape(losses, (-1,)), e / total - onehot


def _onehot(labels: Array, classes: int, dtype: DType) -> Array:
    """Row i is one at labels[i]; NaN throughout where the label is no class, so that it cannot pass unseen."""
    xp = array_namespace(labels)
    columns = xp.reshape(xp.arange(classes, dtype=labels.dtype, device=device(labels)), (1, -1))
    labels = xp.reshape(labels, (-1, 1))
    onehot = xp.astype(labels == columns, dtype)
    outside = (labels < 0) | (labels >= classes)
    return xp.where(outside, xp.full_like(onehot, math.nan), onehot)
