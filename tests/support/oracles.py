"""Batch normalisation in float64, written from the paper and sharing no code with the engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    y: np.ndarray
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    scale: float
    """Largest |gamma / std * dy|: what an error of dx is measured against."""
    z: np.ndarray
    """y before ReLU."""
    terms: tuple[np.ndarray, np.ndarray]
    """What |dy| and |dy * xhat| add up to: what errors of dbeta and dgamma are measured against."""


def batch_norm(x, gamma, beta, dy, *, axis=1, eps=1e-5, relu=False, statistics=None, wide=np.float64) -> Truth:
    """Values and gradients in float64, or wider; statistics=(mean, var) are constants where given."""
    x, gamma, beta, dy = (np.asarray(v, wide) for v in (x, gamma, beta, dy))
    x, dy = np.moveaxis(x, axis, -1), np.moveaxis(dy, axis, -1)
    axes = tuple(range(x.ndim - 1))
    if statistics is None:
        mean = x.mean(axes)
        mean = mean + (x - mean).mean(axes)
        var = ((x - mean) ** 2).mean(axes)
    else:
        mean, var = (np.asarray(v, wide) for v in statistics)
    inv_std = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * inv_std
    z = xhat * gamma + beta
    if relu:
        dy = dy * (z > 0)
    dx = gamma * inv_std * dy
    scale = np.abs(dx).max()
    if statistics is None:
        dx = gamma * inv_std * (dy - dy.mean(axes) - xhat * (dy * xhat).mean(axes))
    y, dx, z = (np.moveaxis(v, -1, axis) for v in (np.maximum(z, 0) if relu else z, dx, z))
    terms = np.abs(dy).sum(axes), np.abs(dy * xhat).sum(axes)
    return Truth(y, dx, (dy * xhat).sum(axes), dy.sum(axes), mean, var, scale, z, terms)


CASES = {
    "ratio 0": lambda x: x,
    "ratio 1": lambda x: x - 1,
    "ratio 1e2": lambda x: x + 1e2,
    "ratio 1e4": lambda x: x - 1e4,
    "ratio 1e5": lambda x: x + 1e5,
    "ratio 1e6": lambda x: x + 1e6,
    "outlier first": lambda x: _replaced(x, 0, 1e6),
    "outlier last": lambda x: _replaced(x, -1, -1e6),
    "sorted": lambda x: np.sort(x + 10, axis=0),
    "huge": lambda x: x * 1e17,
    "largest": lambda x: x / np.abs(x).max() * 1e18,
    "tiny": lambda x: x * 1e-30,
    "denormal": lambda x: x * 1e-42,
    "constant": lambda x: np.full_like(x, 7.7),
    "two values": lambda x: np.where(x > 1, 1e6, -1e6),
}
"""Inputs that lose precision in common implementations, from standard normal rows."""


def _replaced(x, row, value):
    x = x.copy()
    x[row] = value
    return x
