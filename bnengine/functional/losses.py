"""Losses: each gives the mean over samples together with its gradient, because they share their work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from array_api_compat import array_namespace, device

from .._typing import Array, Native
from ..arguments import one_of
from ..kernels import select
from . import checks

LossName: TypeAlias = Literal["cross_entropy", "binary_cross_entropy", "mse"]
"""The rows of `functional.LOSSES`."""

Loss: TypeAlias = Callable[[Native, Native], tuple[Array, Array]]
"""From outputs and targets to the mean loss, 0-dimensional, and its gradient by the outputs."""


def softmax_cross_entropy(logits: Array, labels: Array, /) -> tuple[Array, Array]:
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
    return select(logits).softmax_cross_entropy(logits, labels)


def binary_cross_entropy(logits: Array, targets: Array, /) -> tuple[Array, Array]:
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
    return xp.mean(terms), (select(logits).sigmoid(logits) - t) / math.prod(logits.shape)


def mean_squared_error(predictions: Array, targets: Array, /) -> tuple[Array, Array]:
    r"""Mean of (prediction - target)^2 over all elements, and its gradient by the predictions.

    Parameters
    ----------
    predictions : array
        Shape (N, outputs), floating.
    targets : array
        Of the same shape; for one output also shape (N,).

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


def loss_sum(loss: LossName | Loss, output: Array, targets: Array) -> tuple[Array, Array]:
    """The loss summed over rows and its gradient; of no rows, 0 and nothing."""
    rows = output.shape[0]
    if rows == 0:
        return array_namespace(output).zeros((), dtype=output.dtype, device=device(output)), output
    value, doutput = loss_function(loss)(output, targets)
    return value * rows, doutput * rows


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
