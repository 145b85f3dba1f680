"""How good a network is: its loss and accuracy, and its outputs, in inference over rows of host data."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .._typing import Array, BackendName, Tree
from ..backends import Backend, as_backend, as_numpy
from ..context import Context
from ..functional import Loss, loss_sum
from ..functional.losses import LossName
from ..networks import Sequential
from ..parallel import Alone, Communicator
from .rows import Rows, checked_inputs, checked_rows, checked_weights, on_device
from .running_statistics import warn_if_unused
from .step import forward_pass

SCORED = ("cross_entropy", "binary_cross_entropy")
"""Losses of classes, which have an accuracy."""

INFERRED = 8192
"""Rows that inference takes at a time."""


def evaluate(
    net: Sequential,
    params: Tree,
    state: Tree,
    rows: Rows,
    *,
    loss: LossName | Loss = "cross_entropy",
    backend: Backend | BackendName | None = None,
    communicator: Communicator | None = None,
    weights: Any = None,
) -> dict[str, float | None]:
    """Loss, and accuracy or r2 ("mse"), of a network in inference over rows of host data.

    With a communicator, over the rows of all ranks. With weights, host numbers of shape (N,), each row counts as often
    as its weight says. r2 is None where all targets are the same. Warns where running statistics were never updated.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net = bn.Sequential((bn.Linear(1, 2),))
    >>> params, state = {"0": {"weight": np.asarray([[-9.0, 9.0]]), "bias": np.zeros(2)}}, {}
    >>> rows = np.asarray([[-1.0], [1.0]]), np.asarray([0, 1])
    >>> bn.evaluate(net, params, state, rows, backend=bn.backend("numpy", dtype="float64"))["accuracy"]
    1.0
    """
    backend, ranks = as_backend(backend), communicator or Alone()
    checked = checked_rows("rows", rows, net, loss, ranks)
    warn_if_unused(state)
    w = checked_weights(weights, len(checked[0]), ranks)
    return measured(net, params, state, on_device(checked, backend), loss, backend, ranks, w)


def predict(
    net: Sequential, params: Tree, state: Tree, x: Any, *, backend: Backend | BackendName | None = None
) -> np.ndarray[Any, Any]:
    """The network's outputs (logits, or predicted values) for rows of host data, on the host.

    Warns where running statistics were never updated.
    """
    backend = as_backend(backend)
    x = checked_inputs("x", x, net)
    warn_if_unused(state)
    return as_numpy(_outputs(net, params, state, backend.asarray(x), backend))


def measured(
    net: Sequential,
    params: Tree,
    state: Tree,
    data: tuple[Array, Array],
    loss: LossName | Loss,
    backend: Backend,
    ranks: Communicator,
    weights: np.ndarray[Any, Any] | None = None,
) -> dict[str, float | None]:
    """Metrics over the rows of all ranks, from sums over the rows of each."""
    x, targets = data
    outputs = _outputs(net, params, state, x, backend)
    on_host = np.ones(x.shape[0]) if weights is None else weights
    given = None if weights is None else backend.asarray(weights)
    rows = float(on_host.sum())
    value = float(loss_sum(loss, outputs, targets, given)[0])
    if callable(loss) or loss not in (*SCORED, "mse"):  # what else to measure is not known
        total, value = ranks.sum(np.asarray([rows, value], np.float64)).tolist()
        return {"loss": value / total}
    if loss == "mse":
        t, w = as_numpy(targets).astype(np.float64).reshape(outputs.shape), on_host[:, None]
        total, value, *sums = ranks.sum(np.asarray([rows, value, *(w * t).sum(axis=0)]))
        spread = float(np.mean(ranks.sum((w * (t - np.asarray(sums) / total) ** 2).sum(axis=0)))) / total
        return {"loss": float(value / total), "r2": float(1 - value / total / spread) if spread else None}
    found, truth = as_numpy(outputs), as_numpy(targets)  # not on the device: argmax gives int64, which not each one has
    guess = found.argmax(axis=1) if loss == "cross_entropy" else found.reshape(truth.shape) > 0
    hits = guess == (truth if loss == "cross_entropy" else truth > 0.5)
    right = float((on_host * hits.reshape(len(hits), -1).mean(axis=1)).sum()) if len(hits) else 0.0
    total, value, right = ranks.sum(np.asarray([rows, value, right], np.float64)).tolist()
    return {"loss": value / total, "accuracy": right / total}


def _outputs(net: Sequential, params: Tree, state: Tree, x: Array, backend: Backend) -> Array:
    """Inference in blocks, so that hidden layers of all rows need not fit in memory."""
    rows = x.shape[0]
    blocks = [x[i : min(i + INFERRED, rows), ...] for i in range(0, max(rows, 1), INFERRED)]
    infer = forward_pass(net, backend, Context(training=False))
    outputs = [infer(params, state, block)[0] for block in blocks]
    return outputs[0] if len(outputs) == 1 else array_namespace(x).concat(outputs)
