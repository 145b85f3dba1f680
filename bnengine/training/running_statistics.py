"""Running statistics after training: taken anew over data, and how far they are from such."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import data, trees
from .._typing import Tree
from ..arguments import instance, number
from ..backends import Backend, as_backend, as_numpy
from ..context import Context
from ..functional import RunningStats
from ..layers import BatchNorm, Dropout
from ..networks import Sequential
from ..parallel import Alone, Communicator, Shares
from .rows import checked_inputs
from .step import forward_pass

FAR_MEAN, FAR_VARIANCE = 1.0, 4.0
"""Distance in standard deviations, and factor, from which running statistics are reported as far off."""


def precise_statistics(
    net: Sequential,
    params: Tree,
    state: Tree,
    x: Any,
    *,
    batch_size: int = 128,
    backend: Backend | str | None = None,
    communicator: Communicator | None = None,
) -> Tree:
    """Running statistics as the plain average over batches of x with the parameters as they are now.

    With a communicator, x is this rank's share of the rows. Nothing is dropped (`Dropout`): inference drops nothing.

    Running averages lag behind parameters that still move, and training looks better than inference
    ("precise BN": Wu and Johnson 2021, arXiv:2105.07576, section 3).

    Returns
    -------
    dict
        The state for inference; `state` is left as it is.
    """
    backend, ranks = as_backend(backend), communicator or Alone()
    x = checked_inputs("x", x, net)
    trees.check("state", state, net.shapes.state)
    averaging = net.replace(BatchNorm, momentum=None).replace(Dropout, rate=0.0)
    averaged = forward_pass(averaging, backend, Context(True, None if ranks.size == 1 else ranks.sum))
    new = with_averages(state, {name: own._replace(batches=0) for name, own in running_averages(state).items()})
    device_x = backend.asarray(x)
    shares = Shares.of(ranks, device_x.shape[0])
    if shares.total < 2:
        raise ValueError(f"x: expected at least 2 rows to take statistics of, got {shares.total}")
    for rows in data.batches(shares.total, batch_size, np.random.default_rng(0)):  # sorted rows would mislead
        _, new = averaged(params, new, backend.xp.take(device_x, backend.asarray(shares.own(rows)), axis=0))
    return new


def statistics_gap(state: Tree, precise: Tree, *, eps: float = 1e-5) -> dict[str, float]:
    """How far running statistics are from others, in the worst channel of all layers.

    Returns
    -------
    dict
        `mean_gap`: the distance of the means in standard deviations; `var_ratio`: the larger variance (plus
        eps) over the smaller; `batches`: updates that the running statistics have seen. Empty where there
        are no running statistics.
    """
    number("eps", eps, 0)
    try:
        return _gap(state, precise, eps)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state, precise: expected running statistics of the same network: {error}") from error


def _gap(state: Tree, precise: Tree, eps: float) -> dict[str, float]:
    mean_gap, var_ratio, seen = 0.0, 1.0, []
    for name, own in running_averages(state).items():
        true = RunningStats(*(trees.flatten(precise)[f"{name}.{part}"] for part in RunningStats._fields))
        mean, var, true_mean, true_var = (
            as_numpy(a).astype(np.float64) for a in (own.mean, own.var, true.mean, true.var)
        )
        mean_gap = max(mean_gap, float(np.max(np.abs(mean - true_mean) / np.sqrt(true_var + eps))))
        ratio = (var + eps) / (true_var + eps)
        var_ratio = max(var_ratio, float(np.max(np.maximum(ratio, 1 / ratio))))
        seen.append(int(own.batches))
    return {"mean_gap": mean_gap, "var_ratio": var_ratio, "batches": min(seen)} if seen else {}


def far_apart(gap: dict[str, float]) -> str | None:
    """What is wrong with running statistics that are so far from a few hundred rows' own; None where nothing is.

    Chance alone moves the worst of a thousand channels over 100 rows by 0.4 standard deviations, and its
    variance by a factor of 2.
    """
    if not gap:
        return None
    if gap["batches"] == 0:
        return "running statistics were never updated: inference uses mean 0 and variance 1"
    if gap["mean_gap"] > FAR_MEAN or gap["var_ratio"] > FAR_VARIANCE:
        return (
            f"running statistics are far from the rows': means by up to {gap['mean_gap']:.2g} standard deviations, "
            f"variances by a factor of up to {gap['var_ratio']:.3g}"
        )
    return None


def warn_if_unused(state: Tree) -> None:
    """Warn where running statistics were never updated; a count that is traced or lazy is not looked at."""
    instance("state", state, dict, "a nested dict of arrays such as Sequential.init gives")
    unused = [name for name, own in running_averages(state).items() if type(own.batches) is int and own.batches == 0]
    if unused:
        words = (
            f"running statistics of layer {', '.join(unused)} were never updated: inference uses mean 0 and variance 1"
        )
        warnings.warn(words, RuntimeWarning, stacklevel=3)


def running_averages(state: Tree, prefix: str = "") -> dict[str, RunningStats]:
    """The running statistics in a network's state by the name of their layer: "1", or "3.0" in a part of it."""
    found: dict[str, RunningStats] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            own = value.keys() == set(RunningStats._fields)
            found |= {prefix + key: RunningStats(**value)} if own else running_averages(value, f"{prefix}{key}.")
    return found


def with_averages(state: Tree, averages: dict[str, RunningStats]) -> Tree:
    """The state with other running statistics, by the names of `running_averages`."""
    new = {f"{name}.{part}": value for name, own in averages.items() for part, value in own._asdict().items()}
    return trees.unflatten(trees.flatten(state) | new)
