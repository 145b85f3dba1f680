"""Rows of host data as training and evaluation take them: pairs (x, targets), checked against network and loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._typing import Array
from ..arguments import instance, one_of, refuse_nonfinite, shown
from ..backends import Backend
from ..functional import LOSSES, Loss
from ..functional.losses import LossName
from ..functional.moments import numbers
from ..networks import Sequential
from ..parallel import Communicator

Rows = tuple[Any, Any]
"""Host arrays (x, targets) with a sample in each row."""


def checked_rows(
    name: str, rows: Any, net: Sequential, loss: LossName | Loss, ranks: Communicator | None = None
) -> Rows:
    """Rows as host arrays, refused where they do not fit the network and the loss; one of several ranks may have none."""
    if not isinstance(rows, tuple | list) or len(rows) != 2:
        raise TypeError(f"{name}: expected a pair (x, targets), got {shown(rows)}")
    x, targets = checked_inputs(name, rows[0], net), _as_host(name, rows[1])
    if not len(x) and (ranks is None or ranks.size == 1):
        raise ValueError(f"{name}: expected at least 1 row, got none")
    if not callable(loss):
        one_of("loss", loss, LOSSES)
    if targets.shape[:1] != x.shape[:1]:
        raise ValueError(f"{name}: expected as many targets as rows, got {targets.shape} for {x.shape}")
    if targets.dtype.kind not in "biuf" or not np.isfinite(targets).all():
        raise ValueError(f"{name}: expected finite numbers as targets")
    if callable(loss):  # it knows what it takes
        return x, targets
    if loss != "cross_entropy":
        wanted = (len(x), net.outputs or x.shape[1])
        if targets.shape != wanted and not (targets.ndim == 1 and wanted[1] == 1):
            raise ValueError(f"{name}: expected targets of shape {wanted}, got {targets.shape}")
        return x, targets
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        raise ValueError(f"{name}: expected integer class numbers of shape (N,), got {targets.dtype} {targets.shape}")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < net.outputs:
        raise ValueError(
            f"{name}: expected class numbers 0 to {net.outputs - 1}, the network's outputs, "
            f"got {targets.min()} to {targets.max()}"
        )
    return x, targets.astype(np.int64)


def checked_inputs(name: str, rows: Any, net: Sequential) -> np.ndarray[Any, Any]:
    """The rows as finite floating host values of the network's width."""
    instance("net", net, Sequential, "a Sequential")
    x = _as_host(name, rows)
    if x.ndim != 2 or (net.inputs is not None and x.shape[1] != net.inputs):
        raise ValueError(f"{name}: expected x of shape (N, {net.inputs}), got {x.shape}")
    if x.dtype.kind in "biu":
        x = x.astype(np.float32)
    if x.dtype.kind != "f":
        raise TypeError(f"{name}: expected numbers, got dtype {x.dtype}")
    refuse_nonfinite(name, x)
    return x


def checked_weights(weights: Any, rows: int, ranks: Communicator | None = None) -> np.ndarray[Any, Any] | None:
    """Weights of host rows as float64, refused where they do not fit; those of one of several ranks may all be 0."""
    if weights is None:
        return None
    w = _as_host("weights", weights)
    if w.dtype.kind not in "biuf" or w.shape != (rows,):
        raise ValueError(f"weights: expected numbers of shape ({rows},), one for each row, got {w.dtype} {w.shape}")
    numbers("weights", w, w, part=ranks is not None and ranks.size > 1)
    return w.astype(np.float64)


def on_device(rows: Rows, backend: Backend) -> tuple[Array, Array]:
    """Inputs and targets as arrays of the backend."""
    return backend.asarray(rows[0]), backend.asarray(rows[1])


def _as_host(name: str, given: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array, got {shown(given)}: {error}") from error
