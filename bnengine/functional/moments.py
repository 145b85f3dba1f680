"""Statistics of batches as values: taken with weights, and merged exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from .._typing import Array, Native
from ..arguments import instance, number
from ..kernels import reference, select
from . import checks


class Moments(NamedTuple):
    """Statistics of each channel: of a batch, or of several that were merged.

    A named tuple, and so a pytree for JAX; it can be pickled. `mean`, `remainder` and `var` have shape (C,) and the
    statistics dtype: float64 for float64, else float32.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.moments(np.asarray([[1.0], [3.0]])).merge(bn.moments(np.asarray([[8.0]])))
    Moments(mean=array([4.]), remainder=array([0.]), var=array([8.66666667]), weight=3.0)
    """

    mean: Array
    """The mean, rounded to the statistics dtype."""
    remainder: Array
    """Exact mean minus `mean`: at mean/std 1e6 it is 0.03 standard deviations in float32."""
    var: Array
    """Biased variance: the mean of the squares about the mean."""
    weight: Any
    """Values for each channel, or the sum of their weights: a float; of weights that are not NumPy's, a 0-dimensional
    array."""

    def merge(self, other: Moments, /) -> Moments:
        r"""Moments of both batches together.

        .. math::
            w = w_a + w_b, \quad \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \frac{w_b}{w} \delta, \quad
            \sigma^2 = \frac{w_a \sigma_a^2 + w_b \sigma_b^2}{w} + \frac{w_a w_b}{w^2} \delta^2

        Parameters
        ----------
        other : Moments
            Of the same channels, library, device and dtype.

        Returns
        -------
        Moments

        Raises
        ------
        TypeError, ValueError
            Where `other` does not fit.

        Notes
        -----
        The remainders of the means are merged too, so that nothing is lost at any mean/std. A part of weight 0
        changes nothing.

        References
        ----------
        T. Chan, G. Golub and R. LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
        1979, equation 2.1.

        Examples
        --------
        >>> import numpy as np, bnengine as bn
        >>> x = np.arange(10.0).reshape(5, 2)
        >>> merged = bn.moments(x[:2]).merge(bn.moments(x[2:]))
        >>> np.testing.assert_allclose(merged.var, x.var(axis=0))
        """
        _refuse_unlike(self, other)
        xp = array_namespace(self.mean)
        weight = self.weight + other.weight
        share = _scalar(_share(other.weight, weight), self.mean)
        delta = (other.mean - self.mean) + (other.remainder - self.remainder)
        delta = xp.where(share == 0, xp.zeros_like(delta), delta)  # of nothing, which may be NaN
        of_other = xp.where(share == 0, self.var, other.var)
        mean, remainder = _sum_and_rest(self.mean, self.remainder + delta * share)
        var = self.var + (of_other - self.var) * share + delta * (delta * (share * (1 - share)))
        empty = share == 1  # self has weight 0
        mean = xp.where(empty, other.mean, mean)
        remainder = xp.where(empty, other.remainder, remainder)
        return Moments(mean, remainder, xp.where(empty, other.var, var), weight)


def moments(x: Array, /, *, axis: int = 1, weights: Array | None = None) -> Moments:
    r"""Mean and biased variance of each channel, with weights where they are given.

    .. math::
        \mu = \frac{\sum_i w_i x_i}{\sum_i w_i}, \qquad \sigma^2 = \frac{\sum_i w_i (x_i - \mu)^2}{\sum_i w_i}

    Parameters
    ----------
    x : array
        As in `batch_norm`; one row is enough here.
    axis : int
        The feature axis.
    weights : array, optional
        Of shape (N,), one for each sample, or x's shape with 1 on the feature axis, such as (N, 1, H, W) for a mask of
        pixels; boolean, integer or floating. A weight of k stands for the value k times; what has weight 0 may be
        anything. None: 1 each.

    Returns
    -------
    Moments

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described; for NumPy arrays also where a weight is negative or not finite, or all
        are 0. Elsewhere values are not looked at, and weights that sum to 0 give NaN.

    Notes
    -----
    As exact as the statistics of `batch_norm`. Cost: x is read one to three times.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> bn.moments(np.asarray([[1.0], [5.0]]), weights=np.asarray([3, 1]))
    Moments(mean=array([2.]), remainder=array([0.]), var=array([3.]), weight=4.0)
    """
    axis = checks.features(x, axis)
    kernels = select(x)
    if weights is None:
        count = reference._count(x, axis)
        if not count:
            raise ValueError(f"x: expected at least one value for each channel, got shape {checks.shape(x)}")
        return of_weight(kernels.moments(x, axis), float(count))
    w = checked_weights(weights, x, axis)
    total = total_weight(w)
    return of_weight(kernels.weighted_moments(x, w, total, axis), total)


def merge(parts: Iterable[Moments], /) -> Moments:
    """Moments of all batches together: `Moments.merge` over all of them.

    Parameters
    ----------
    parts : iterable of Moments
        At least one.

    Returns
    -------
    Moments

    Raises
    ------
    TypeError, ValueError
        Where there is none, or one does not fit the others.

    Notes
    -----
    Merged in pairs, pairs of pairs and so on, so that rounding grows with the logarithm of their number.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x = np.arange(12.0).reshape(6, 2)
    >>> bn.merge(bn.moments(rows) for rows in (x[:3], x[3:5], x[5:])).var
    array([11.66666667, 11.66666667])
    """
    left = list(parts)
    if not left:
        raise ValueError("parts: expected at least one Moments, got none")
    for part in left:
        instance("parts", part, Moments, "Moments, as bnengine.moments gives them")
    while len(left) > 1:
        pairs = [a.merge(b) for a, b in zip(left[::2], left[1::2], strict=False)]
        left = pairs + left[len(left) - len(left) % 2 :]
    return left[0]


def of_weight(m: reference.Moments, weight: Any) -> Moments:
    """What a kernel found, with its weight."""
    return Moments(m.mean, m.remainder, m.var, weight)


def checked_weights(weights: Any, x: Array, axis: int, *, part: bool = False) -> Array:
    """Weights in the statistics dtype and x's shape with 1 on the feature axis, refused where they do not fit.

    Those of a `part` of a batch may all be 0.
    """
    kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    samples = int(axis == 0)  # the axis of samples
    shaped = tuple(n if i == samples else 1 for i, n in enumerate(x.shape))
    w = numbers("weights", weights, x, part=part)
    if tuple(w.shape) not in ((x.shape[samples],), kept):
        raise ValueError(
            f"weights: expected shape {(x.shape[samples],)} or {kept} for x of shape {checks.shape(x)}, "
            f"got {checks.shape(w)}"
        )
    xp = array_namespace(x)
    w = xp.astype(w if w.ndim > 1 else xp.reshape(w, shaped), reference.statistics_dtype(x))
    return w if tuple(w.shape) == kept else xp.broadcast_to(w, kept)


def numbers(name: str, weights: Any, like: Array, *, part: bool = False) -> Array:
    """Weights that are real numbers beside `like`; of NumPy arrays, refused where one is negative, NaN or infinite."""
    if not checks.is_array(weights):
        raise TypeError(f"{name}: expected an array, got {type(weights).__name__}; convert it first")
    checks.like(name, weights, like)
    if not array_namespace(like).isdtype(weights.dtype, ("bool", "integral", "real floating")):
        raise TypeError(f"{name}: expected booleans, integers or floating numbers, got {weights.dtype}")
    if isinstance(weights, np.ndarray) and weights.size:
        least, sound = weights.min(), np.isfinite(weights).all()
        if not sound or least < 0:
            what = f"one that is {least}" if sound else "one that is not finite"
            raise ValueError(f"{name}: expected finite numbers of at least 0, got {what}")
        if not part and not weights.any():
            raise ValueError(f"{name}: expected at least one above 0, got zeros")
    return weights


def total_weight(weights: Array) -> Any:
    """Their sum over everything: a float of NumPy's, else a 0-dimensional array, which nothing waits for."""
    if isinstance(weights, np.ndarray):
        return float(weights.sum(dtype=np.float64))
    xp = array_namespace(weights)
    flat = xp.reshape(weights, (-1, 1))
    return xp.astype(reference._sum(flat, 1), weights.dtype)[0]


def unbiased_factor(weight: Any) -> Any:
    """w / (w - 1), by which an unbiased variance is larger; at most 2, for weights that are no counts and sum to less."""
    if isinstance(weight, int | float):
        return weight / max(weight - 1, weight / 2)
    return weight / array_namespace(weight).maximum(weight - 1, weight / 2)


def _refuse_unlike(a: Moments, b: Any) -> None:
    instance("other", b, Moments, "Moments, as bnengine.moments gives them")
    checks.like("other", b.mean, a.mean, of="these moments")
    if b.mean.dtype != a.mean.dtype or b.mean.shape != a.mean.shape:
        raise ValueError(
            f"other: expected moments of shape {checks.shape(a.mean)} and {a.mean.dtype}, "
            f"got {checks.shape(b.mean)} and {b.mean.dtype}"
        )
    for part in (a, b):
        if isinstance(part.weight, int | float):
            number("weight", part.weight, 0)


def _share(part: Any, whole: Any) -> Any:
    """part / whole; 0 of nothing."""
    if isinstance(whole, int | float):
        return part / whole if whole else 0.0
    return part / array_namespace(whole).where(whole == 0, whole + 1, whole)


def _scalar(value: Any, like: Array) -> Native:
    """A number, or a 0-dimensional array, in the dtype of `like`."""
    xp = array_namespace(like)
    if checks.is_array(value):
        return xp.astype(value, like.dtype)
    return xp.asarray(value, dtype=like.dtype, device=device(like))


def _sum_and_rest(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and exactly what that lost (Knuth 1969, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
