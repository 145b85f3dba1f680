"""Losses as scikit-learn counts them: summed over outputs, the mean over rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .. import functional as F
from .._typing import Array

Objective = Callable[..., tuple[Array, Array]]

LOSSES: dict[str, tuple[Objective, float]] = {
    "log_loss": (F.binary_cross_entropy, 1.0),
    "squared_error": (F.mean_squared_error, 0.5),
    "absolute_error": (F.absolute_error, 1.0),
    "huber": (F.huber, 1.0),
    "quantile": (F.quantile, 1.0),
    "poisson": (F.poisson, 1.0),
}
"""Functions that take the mean over outputs, and factors."""

VALUES = tuple(LOSSES)[1:]
"""Those of values."""


@functools.cache
def objective(name: str, **options: Any) -> Objective:
    """The loss of that name; the same function each time, because JAX compiles each new one again."""
    if name == "softmax":
        return functools.partial(_given, functools.partial(F.softmax_cross_entropy, **options))
    loss, factor = LOSSES[name]
    return functools.partial(_summed, functools.partial(loss, **options), factor)


def _given(loss: Objective, outputs: Array, targets: Array, weights: Array | None = None) -> tuple[Array, Array]:
    return loss(outputs, targets) if weights is None else loss(outputs, targets, weights)


def _summed(
    loss: Objective, factor: float, outputs: Array, targets: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    value, gradient = _given(loss, outputs, targets, weights)
    scale = factor * outputs.shape[1]
    return value * scale, gradient * scale
