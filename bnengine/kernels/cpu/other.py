"""What a training step needs besides normalisation, matrix products and updates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..._typing import Native
from ...recording import call, constant, item
from .. import memory, reference, views
from ..views import FLOAT32, FLOAT64, plain
from .compiling import compiled

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
    z = plain(logits, FLOAT64 if logits.dtype == FLOAT64 else FLOAT32)
    dz, mean = memory.empty_like(z), np.empty(1, z.dtype)
    call(_softmax_cross_entropy, (z, plain(labels, LABELS), dz, mean), (dz, mean))
    return item(mean.reshape(())), dz.astype(logits.dtype, copy=False)


def blend(
    mean: Native, var: Native, batch_mean: Native, batch_var: Native, weight: float, unbiased: float
) -> tuple[Native, Native]:
    """In one pass, where all four lie alike in one dtype."""
    given = mean, var, batch_mean, batch_var
    if not all(a.dtype == mean.dtype and a.dtype in (FLOAT32, FLOAT64) and a.flags.carray for a in given):
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
    dy, y = plain(dy, y.dtype), plain(y, y.dtype)
    dx = memory.empty_like(y)
    flat = dx.reshape(-1)
    call(loop, (dy.reshape(-1), y.reshape(-1), flat), (flat,))
    return dx
