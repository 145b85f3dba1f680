"""Losses: each gives the mean over samples together with its gradient, because they share their work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

from array_api_compat import array_namespace, device

from .._typing import Array
from ..arguments import number, one_of
from ..kernels import reference, select
from ..recording import again
from . import checks
from .moments import numbers, total_weight

LossName: TypeAlias = Literal[
    "cross_entropy", "binary_cross_entropy", "mse", "absolute_error", "huber", "quantile", "poisson"
]
"""The rows of `functional.LOSSES`."""

Loss: TypeAlias = Callable[..., tuple[Array, Array]]
"""From outputs and targets to the mean loss, 0-dimensional, and its gradient by the outputs; where the rows have
weights, from outputs, targets and weights to the weighted mean."""


def softmax_cross_entropy(
    logits: Array, labels: Array, /, weights: Array | None = None, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
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
    label_smoothing : float
        The part s of each target that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567,
        section 7): the one-hot target times 1 - s, plus s / classes.

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
    number("label_smoothing", label_smoothing, 0, 1)
    if weights is None and label_smoothing == 0:
        return select(logits).softmax_cross_entropy(logits, labels)
    rows, dlogits = reference.cross_entropy_rows(logits, labels)
    if label_smoothing:
        rows, dlogits = _smoothed(rows, dlogits, logits, labels, label_smoothing)
    return _mean(rows, dlogits, weights, logits)


def binary_cross_entropy(
    logits: Array, targets: Array, /, weights: Array | None = None, *, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
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
    label_smoothing : float
        The part s of each target that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567,
        section 7): t * (1 - s) + s / 2.

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
    number("label_smoothing", label_smoothing, 0, 1)
    xp, t = array_namespace(logits), _targets(targets, logits)
    t = t * (1 - label_smoothing) + label_smoothing / 2 if label_smoothing else t
    zero = xp.zeros_like(logits)
    terms = xp.where(logits > 0, logits, zero) - logits * t + xp.log1p(xp.exp(-xp.abs(logits)))
    dterms = select(logits).sigmoid(logits) - t
    return _mean_over_outputs(terms, dterms, weights)


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
    error = _error(predictions, targets)
    return _mean_over_outputs(error * error, 2 * error, weights)


def absolute_error(predictions: Array, targets: Array, /, weights: Array | None = None) -> tuple[Array, Array]:
    r"""Mean of abs(prediction - target) over all elements, and its gradient by the predictions: sign / size, 0 at 0.

    Its minimum is the median. Arguments, results and what is raised as in `mean_squared_error`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.absolute_error(np.asarray([[3.0], [1.0]]), np.asarray([1.0, 1.0]))
    (np.float64(1.0), array([[0.5],
           [0. ]]))
    """
    error = _error(predictions, targets)
    xp = array_namespace(error)
    return _mean_over_outputs(xp.abs(error), xp.sign(error), weights)


def huber(
    predictions: Array, targets: Array, /, weights: Array | None = None, *, delta: float = 1.0
) -> tuple[Array, Array]:
    r"""Squares of small errors, and straight lines from `delta` on (Huber 1964, "Robust estimation", equation 3).

    .. math::
        L = \mathrm{mean}\, \rho(p - t), \qquad
        \rho(e) = \tfrac{1}{2} e^2 \text{ where } |e| \le \delta, \text{ else } \delta (|e| - \tfrac{1}{2} \delta)

    Its gradient is the error cut to [-delta, delta], over size. Other arguments, results and what is raised as in
    `mean_squared_error`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.huber(np.asarray([[3.0], [1.5]]), np.asarray([1.0, 1.0]))
    (np.float64(0.8125), array([[0.5 ],
           [0.25]]))
    """
    number("delta", delta, math.ulp(0.0), words="a positive number")
    error = _error(predictions, targets)
    xp = array_namespace(error)
    size, cut = xp.abs(error), xp.where(error > delta, xp.full_like(error, delta), error)
    cut = xp.where(error < -delta, xp.full_like(error, -delta), cut)
    return _mean_over_outputs(xp.abs(cut) * (size - 0.5 * xp.abs(cut)), cut, weights)


def quantile(
    predictions: Array, targets: Array, /, weights: Array | None = None, *, level: float = 0.5
) -> tuple[Array, Array]:
    r"""Mean of level * (t - p) where the prediction is below the target, else (1 - level) * (p - t); and its gradient.

    Its minimum is that quantile of the targets (Koenker and Bassett 1978, "Regression quantiles", equation 1.4). Other
    arguments, results and what is raised as in `mean_squared_error`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.quantile(np.asarray([[3.0], [1.0]]), np.asarray([1.0, 5.0]), level=0.75)
    (np.float64(1.75), array([[ 0.125],
           [-0.375]]))
    """
    number("level", level, math.ulp(0.0), math.nextafter(1, 0), words="a number between 0 and 1")
    error = _error(predictions, targets)
    xp = array_namespace(error)
    slope = xp.where(error > 0, xp.full_like(error, 1 - level), xp.full_like(error, -level))
    slope = xp.where(error == 0, xp.zeros_like(error), slope)
    return _mean_over_outputs(slope * error, slope, weights)


def poisson(predictions: Array, targets: Array, /, weights: Array | None = None) -> tuple[Array, Array]:
    r"""Half the Poisson deviance of counts from exp(prediction), and its gradient by the predictions.

    .. math::
        L = \mathrm{mean}\big( e^z - t z + t \log t - t \big), \qquad \frac{\partial L}{\partial z} = \frac{e^z - t}{\mathrm{size}}

    Parameters
    ----------
    predictions : array
        z, logarithms of the predicted rates, shape (N, outputs), floating.
    targets : array
        t, counts or rates of at least 0, of the same shape; for one output also shape (N,). A negative one makes the
        loss NaN: on a device, raising would mean to wait for it.
    weights : array, optional
        As in `mean_squared_error`, and so are the results and what is raised.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> loss, dpredictions = bn.poisson(np.log([[2.0], [3.0]]), np.asarray([2, 0]))
    >>> loss.round(4), dpredictions
    (np.float64(1.5), array([[0. ],
           [1.5]]))
    """
    _logits(predictions, "predictions")
    xp, t = array_namespace(predictions), _targets(targets, predictions, of="predictions")
    rates = xp.exp(predictions)
    constant = t * xp.log(xp.where(t == 0, xp.ones_like(t), t)) - t
    return _mean_over_outputs(rates - t * predictions + constant, rates - t, weights)


LOSSES: dict[LossName, Loss] = {
    "cross_entropy": softmax_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mean_squared_error,
    "absolute_error": absolute_error,
    "huber": huber,
    "quantile": quantile,
    "poisson": poisson,
}
"""The losses by the names that `train_step`, `fit` and the command line use."""


def loss_function(loss: LossName | Loss) -> Loss:
    """The loss of that name, or a function of one's own as it is."""
    if callable(loss):
        return loss
    one_of("loss", loss, LOSSES)
    return LOSSES[loss]


def of_ones_own(loss: Loss, *given: Array) -> tuple[Array, Array]:
    """A loss of the user's at outputs, targets and, where there are any, weights; told through `again`."""
    try:
        return cast("tuple[Array, Array]", again(loss, *given))
    except TypeError as error:
        called = "loss(outputs, targets, weights)" if len(given) > 2 else "loss(outputs, targets)"
        raise TypeError(f"loss: called as {called}, it failed: {error}") from error


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
    given = (output, targets) if weights is None else (output, targets, weights)
    value, doutput = of_ones_own(loss, *given) if callable(loss) else loss_function(loss)(*given)
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


def _mean(rows: Array, drows: Array, weights: Array | None, like: Array) -> tuple[Array, Array]:
    """The mean of the losses of the rows, weighted where they have weights, and its gradient from theirs."""
    if weights is not None:
        return _weighted(rows, drows, weights, like)
    return array_namespace(rows).mean(rows), drows / like.shape[0]


def _mean_over_outputs(terms: Array, dterms: Array, weights: Array | None) -> tuple[Array, Array]:
    """The same of the mean over each row's outputs."""
    xp, each = array_namespace(terms), math.prod(terms.shape[1:])
    if weights is None:
        return xp.mean(terms), dterms / math.prod(terms.shape)
    flat = xp.reshape(terms, (terms.shape[0], -1))
    return _weighted(xp.sum(flat, axis=1) / each, dterms / each, weights, terms)


def _smoothed(rows: Array, drows: Array, logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    """Cross-entropies and their gradients where a part of each target is spread over all classes."""
    xp, classes = array_namespace(logits), logits.shape[1]
    numbers_ = xp.reshape(xp.arange(classes, dtype=labels.dtype, device=device(logits)), (1, -1))
    spread = xp.astype(numbers_ == xp.reshape(labels, (-1, 1)), logits.dtype) - 1 / classes
    return rows + smoothing * xp.sum(spread * logits, axis=1), drows + smoothing * spread


def _error(predictions: Array, targets: Array) -> Array:
    _logits(predictions, "predictions")
    return predictions - _targets(targets, predictions, of="predictions")


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
