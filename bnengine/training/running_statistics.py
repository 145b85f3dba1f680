"""Running statistics after training: taken anew over data, and how far they are from such."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import data, trees
from .._typing import Tree
from ..arguments import number
from ..backends import Backend, as_backend, as_numpy
from ..layers import Sequential
from ..parallel import Alone, Communicator, Shares
from .evaluation import compiled
from .rows import checked_inputs

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

    With a communicator, x is this rank's share of the rows.

    Running averages lag behind parameters that still move, and training looks better than inference
    ("precise BN": Wu and Johnson 2021, arXiv:2105.07576, section 3).

    Returns
    -------
    dict
        The state for inference; `state` is left as it is.
    """
    backend, ranks = as_backend(backend), communicator or Alone()
    x = checked_inputs("x", x, net)
    trees.check("state", state, net.shapes_of_state())
    averaging = net.with_norms(momentum=None, all_reduce=None if ranks.size == 1 else ranks.sum)
    new = {key: {**value, "batches": 0} if "batches" in value else value for key, value in state.items()}
    averaged = compiled(averaging, backend, True)
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
    layers = [key for key, value in state.items() if "batches" in value]
    if not layers:
        return {}
    mean_gap, var_ratio = 0.0, 1.0
    for key in layers:
        mean, var = (as_numpy(state[key][name]).astype(np.float64) for name in ("mean", "var"))
        true_mean, true_var = (as_numpy(precise[key][name]).astype(np.float64) for name in ("mean", "var"))
        mean_gap = max(mean_gap, float(np.max(np.abs(mean - true_mean) / np.sqrt(true_var + eps))))
        ratio = (var + eps) / (true_var + eps)
        var_ratio = max(var_ratio, float(np.max(np.maximum(ratio, 1 / ratio))))
    seen = min(int(state[key]["batches"]) for key in layers)
    return {"mean_gap": mean_gap, "var_ratio": var_ratio, "batches": seen}


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
