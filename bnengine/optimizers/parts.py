"""What equations and their scalars are made of."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from .._typing import Array
from ..arguments import number
from .schedules import namespace


def weights(**values: Any) -> None:
    """Refuse weights of what an average was before that are no numbers in [0, 1)."""
    for name, value in values.items():
        number(name, value, 0, math.nextafter(1, 0), words="a number in [0, 1)")


def average(old: Array, new: Array, weight: float) -> Array:
    """An average of old values after a new one."""
    return weight * old + (1 - weight) * new


def sqrt(x: Array) -> Array:
    """The root of each element."""
    return array_namespace(x).sqrt(x)


def correction(beta: float, step: Any) -> Any:
    """1 - beta**step, without the cancellation that would cost a traced float32 five digits."""
    if isinstance(step, int) or not is_array_api_obj(step):
        return 1 - beta**step
    return -array_namespace(step).expm1(step * math.log(beta)) if beta else 1.0


def product_of_mu(t: Any, beta1: float, log_q: float) -> Any:
    """The product of beta1 * (1 - q^i / 2) over i = 1 .. t.

    A product that runs along would be a scalar in the state, of whatever dtype its library has. The logarithm of
    each factor is a series in (q^i / 2)^k / k, and its sum over i is a geometric one: 54 terms give float64.
    """
    if beta1 == 0:
        return 0.0
    if log_q == 0:
        return (beta1 / 2) ** t
    xp, k, terms = namespace(t), *_terms(log_q)
    return exp(t * math.log(beta1) + xp.sum(xp.asarray(terms) * xp.expm1(t * xp.asarray(k * log_q))))


def exp(x: Any) -> Any:
    """The exponential of a number or of a traced one."""
    return math.exp(x) if isinstance(x, float) else array_namespace(x).exp(x)


@functools.cache
def _terms(log_q: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """k, and what expm1(t * k * log_q) is multiplied by in the series."""
    k = np.arange(1.0, 55.0)
    return k, np.exp(k * (log_q - math.log(2))) / k / -np.expm1(k * log_q)
