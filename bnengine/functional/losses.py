"""Losses: each gives the mean over samples together with its gradient, because they share their work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from array_api_compat import array_namespace, device

from .._typing import Array
from ..arguments import one_of
from ..kernels import reference, select
from . import checks
from .moments import numbers, total_weight

LossName: TypeAlias = Literal["cross_entropy", "binary_cross_entropy", "mse"]
"""The rows of `functional.LOSSES`."""

Loss: TypeAlias = Callable[..., tuple[Array, Array]]
"""From outputs and targets to the mean loss, 0-dimensional, and its gradient by the outputs; where the rows have
weights, from outputs, targets and weights to the weighted mean."""


def softmax_cross_entropy(logits: Array, labels: Array, /, weights: Array | None = None) -> tuple[Array, Array]:
    r"""Cross-entropy of softmax(logits) against class labels, and its gradient by the logits.

    .. math::
        L = \frac{1}{N} \sum_i \Big( \log \sum_j e^{z_{ij}} - z_{i, t_i} \Big), \qquad
        \frac{\partial L}{\partial z_{ij}} = \frac{1}{N} (\mathrm{softmax}(z_i)_j - [j = t_i])

    Parameters
    ----------
    logits : array
        z, shape (N, classes), floating.
    labels : array
        t, shape (N,), an integer dtype, values 0 to classes - 1. A label outside them makes the loss NaN:
        on a device, raising would mean to wait for it.
    weights : array, optional
        One for each row, shape (N,): the loss is sum(weight * loss of the row) / sum(weights). As in `moments`.

    Returns
    -------
    loss : array
        0-dimensional, in the statistics dtype.
    dlogits : array
        Shape and dtype of logits.

    Raises
    ------
    TypeError, ValueError
        Where dtypes, shapes, libraries or devices do not fit.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> loss, dlogits = bn.softmax_cross_entropy(np.asarray([[0.0, 0.0]]), np.asarray([1]))
    >>> loss.round(4), dlogits
    (np.float64(0.6931), array([[ 0.5, -0.5]]))
    """
    _logits(logits)
    if logits.ndim != 2:
        raise ValueError(f"logits: expected shape (N, classes), got {checks.shape(logits)}")
    checks.integral("labels", labels, "class numbers")
    checks.like("labels", labels, logits, of="logits")
    if labels.shape != (logits.shape[0],):
        raise ValueError(f"labels: expected shape ({logits.shape[0]},), got {checks.shape(labels)}")
    if weights is None:
        return select(logits).softmax_cross_entropy(logits, labels)
    rows, dlogits = reference.cross_entropy_rows(logits, labels)
    return _weighted(rows, dlogits, weights, logits)


def binary_cross_entropy(logits: Array, targets: Array, /, weights: Array | None = None) -> tuple[Array, Array]:
    r"""Cross-entropy of sigmoid(logits) against targets in [0, 1], and its gradient by the logits.

    .. math::
        L = \mathrm{mean}\big( \max(z, 0) - z t + \log(1 + e^{-|z|}) \big), \qquad
        \frac{\partial L}{\partial z} = \frac{\sigma(z) - t}{\mathrm{size}}

    Parameters
    ----------
    logits : array
        z, shape (N, outputs), floating.
    targets : array
        t, of the same shape; for one output also shape (N,). Floating, integer or boolean.
    weights : array, optional
        One for each row, shape (N,): the loss is sum(weight * loss of the row) / sum(weights). As in `moments`.

    Returns
    -------
    loss : array
        0-dimensional.
    dlogits : array
        Shape and dtype of logits.

    Raises
    ------
    TypeError, ValueError
        Where dtypes, shapes, libraries or devices do not fit.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> loss, dlogits = bn.binary_cross_entropy(np.asarray([[0.0]]), np.asarray([1]))
    >>> loss.round(4), dlogits
    (np.float64(0.6931), array([[-0.5]]))
    """
    _logits(logits)
    xp, t = array_namespace(logits), _targets(targets, logits)
    zero = xp.zeros_like(logits)
    terms = xp.where(logits > 0, logits, zero) - logits * t + xp.log1p(xp.exp(-xp.abs(logits)))
    dterms = select(logits).sigmoid(logits) - t
    if weights is not None:
        return _weighted_over_outputs(terms, dterms, weights)
    return xp.mean(terms), dterms / math.prod(logits.shape)


def mean_squared_error(predictions: Array, targets: Array, /, weights: Array | None = None) -> tuple[Array, Array]:
    r"""Mean of (prediction - target)^2 over all elements, and its gradient by the predictions.

    Parameters
    ----------
    predictions : array
        Shape (N, outputs), floating.
    targets : array
        Of the same shape; for one output also shape (N,).
    weights : array, optional
        One for each row, shape (N,): the loss is sum(weight * loss of the row) / sum(weights). As in `moments`.

    Returns
    -------
    loss : array
        0-dimensional, in squared units of the targets.
    dpredictions : array
        2 * (prediction - target) / size.

    Raises
    ------
    TypeError, ValueError
        Where dtypes, shapes, libraries or devices do not fit.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.mean_squared_error(np.asarray([[3.0], [1.0]]), np.asarray([1.0, 1.0]))
    (np.float64(2.0), array([[2.],
           [0.]]))
    """
    _logits(predictions, "predictions")
    xp = array_namespace(predictions)
    error = predictions - _targets(targets, predictions, of="predictions")
    if weights is not None:
        return _weighted_over_outputs(error * error, 2 * error, weights)
    return xp.mean(error * error), error * (2 / math.prod(predictions.shape))


LOSSES: dict[LossName, Loss] = {
    "cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mean_squared_error,
}
"""The losses by the names that `train_step`, `fit` and the command line use."""


def loss_function(loss: LossName | Loss) -> Loss:
    """The loss of that name, or a function of one's own as it is."""
    if callable(loss):
        return loss
    one_of("loss", loss, LOSSES)
    return LOSSES[loss]


def loss_sum(
    loss: LossName | Loss, output: Array, targets: Array, weights: Array | None = None
) -> tuple[Array, Array, Any]:
    """The loss summed over rows, its gradient, and the number of rows or the sum of their weights.

    Of no rows, or of weights that are all 0: 0, zeros and 0.
    """
    rows, xp = output.shape[0], array_namespace(output)
    total = rows if weights is None or not rows else total_weight(row_weights(weights, output, part=True))
    if isinstance(total, int | float) and not total:
        return xp.zeros((), dtype=output.dtype, device=device(output)), xp.zeros_like(output), 0
    given = () if weights is None else (weights,)
    value, doutput = loss_function(loss)(output, targets, *given)
    if isinstance(total, int | float):
        return value * total, doutput * total, total
    some = total > 0  # on a device: the mean of nothing is NaN there
    value = xp.where(some, value * total, xp.zeros_like(value))
    return value, xp.where(some, doutput * xp.astype(total, doutput.dtype), xp.zeros_like(doutput)), total


def row_weights(weights: Array, like: Array, *, part: bool = False) -> Array:
    """Weights of the rows of `like` in the statistics dtype, checked."""
    w = numbers("weights", weights, like, part=part)
    if tuple(w.shape) != (like.shape[0],):
        raise ValueError(f"weights: expected shape {(like.shape[0],)}, one for each row, got {checks.shape(w)}")
    return array_namespace(like).astype(w, reference.statistics_dtype(like))


def _weighted(rows: Array, drows: Array, weights: Array, like: Array) -> tuple[Array, Array]:
    """The weighted mean of the losses of the rows, and its gradient from theirs."""
    xp, w = array_namespace(like), row_weights(weights, like)
    shares = w / total_weight(w)
    zero = xp.zeros_like(shares)
    loss = xp.sum(xp.where(w == 0, zero, xp.astype(rows, w.dtype) * shares))
    along = xp.reshape(shares, (-1,) + (1,) * (like.ndim - 1))
    return loss, xp.astype(xp.where(along == 0, xp.zeros_like(along), drows * along), like.dtype)


def _weighted_over_outputs(terms: Array, dterms: Array, weights: Array) -> tuple[Array, Array]:
    """The same of the mean over each row's outputs."""
    xp, each = array_namespace(terms), math.prod(terms.shape[1:])
    flat = xp.reshape(terms, (terms.shape[0], -1))
    return _weighted(xp.sum(flat, axis=1) / each, dterms / each, weights, terms)


def _logits(logits: Array, name: str = "logits") -> None:
    checks.floating(name, logits)
    if logits.ndim < 1 or 0 in logits.shape:
        raise ValueError(f"{name}: expected at least one sample and output, got shape {checks.shape(logits)}")


def _targets(targets: Array, like: Array, of: str = "logits") -> Array:
    """Targets in the dtype and shape of `like`."""
    if not checks.is_array(targets):
        raise TypeError(f"targets: expected an array, got {type(targets).__name__}")
    checks.like("targets", targets, like, of=of)
    xp = array_namespace(like)
    if not xp.isdtype(targets.dtype, ("real floating", "integral", "bool")):
        raise TypeError(f"targets: expected a real dtype, got {targets.dtype}")
    if targets.shape == (like.shape[0],) and math.prod(like.shape) == like.shape[0]:
        targets = xp.reshape(targets, like.shape)
    if targets.shape != like.shape:
        raise ValueError(f"targets: expected shape {checks.shape(like)} like {of}, got {checks.shape(targets)}")
    return xp.astype(targets, like.dtype)
