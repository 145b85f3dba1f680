"""Running statistics after training: taken anew over data, and how far they are from such."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any, cast, get_args

import numpy as np
from array_api_compat import array_namespace

from .. import data, trees
from .._typing import Array, BackendName, Estimator, Tree
from ..arguments import instance, integer, number, one_of
from ..backends import Backend, as_backend, as_numpy
from ..context import Context
from ..functional import RunningStats
from ..functional.moments import unbiased_factor
from ..layers import BatchNorm, Dropout, Layer
from ..networks import Sequential
from ..parallel import Alone, Communicator, Shares
from .rows import checked_inputs, checked_weights
from .step import forward_pass

FAR_MEAN, FAR_VARIANCE = 1.0, 4.0
"""Distance in standard deviations, and factor, from which running statistics are reported as far off."""


def recalibrate(
    net: Sequential,
    params: Tree,
    state: Tree,
    x: Any,
    *,
    estimator: Estimator = "population",
    batch_size: int = 128,
    backend: Backend | BackendName | None = None,
    communicator: Communicator | None = None,
    weights: Any = None,
) -> Tree:
    """Running statistics taken anew over x, with the parameters as they are now.

    Running averages lag behind parameters that still move, and training looks better than inference
    ("precise BN": Wu and Johnson 2021, arXiv:2105.07576, section 3). Nothing is dropped (`Dropout`): inference
    drops nothing. Frozen normalisations (`BatchNorm(statistics="running")`) keep theirs.

    Parameters
    ----------
    net, params, state
    x : array
        Host rows, shape (N, inputs); with a communicator this rank's share of them.
    estimator : {"population", "batches"}
        "population": the statistics of all rows, those that one batch of everything would have, however the rows
        are cut. "batches": the average over batches, each normalised with its own statistics and weighted by its
        rows, as training would find it.
    batch_size : int
        Rows that are gone through at a time.
    backend, communicator
        As in `fit`.
    weights : array, optional
        Host numbers of shape (N,): how often each row counts.

    Returns
    -------
    dict
        The state for inference; `state` is left as it is.

    Raises
    ------
    ValueError
        Where an argument does not fit, or there are fewer than two rows.

    Notes
    -----
    "population" goes over x once for each batch normalisation: the input of one depends on the statistics of those
    before it. Parts are merged in float64 (Chan, Golub and LeVeque 1979). Variances are unbiased, those of a BatchNorm
    with `unbiased=False` too.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net, x = bn.Sequential((bn.BatchNorm(1),)), np.asarray([[1.0], [2.0], [3.0], [6.0], [8.0]])
    >>> params, state = net.init(0, backend="numpy")
    >>> state = bn.recalibrate(net, params, state, x, batch_size=2)
    >>> state["0"]["mean"], state["0"]["var"]  # of all five rows; the variance unbiased
    (array([4.], dtype=float32), array([8.5], dtype=float32))
    """
    one_of("estimator", estimator, get_args(Estimator))
    rows = _Rows(net, params, state, x, batch_size, backend, communicator, weights)
    return rows.each_batch_by_itself() if estimator == "batches" else rows.all_as_one(prior=0.0)


precise_statistics = recalibrate
"""The name of `recalibrate` up to version 0.1."""


def adapt(
    net: Sequential,
    params: Tree,
    state: Tree,
    x: Any,
    *,
    prior: float,
    batch_size: int = 128,
    backend: Backend | BackendName | None = None,
    communicator: Communicator | None = None,
    weights: Any = None,
) -> Tree:
    """Running statistics merged with those of other rows, for data that have moved since training.

    The running statistics count as those of `prior` rows, and the new ones are those of these and x's rows together.
    With prior 0 this is `recalibrate`, with a large one nothing changes.

    Parameters
    ----------
    net, params, state, x
        As in `recalibrate`; targets are not needed.
    prior : float
        Rows, at least 0.
    batch_size, backend, communicator, weights
        As in `recalibrate`.

    Returns
    -------
    dict
        The state for inference; `state` is left as it is.

    Raises
    ------
    ValueError
        Where an argument does not fit, or there are fewer than two rows.

    References
    ----------
    Schneider et al. 2020, Improving robustness against common corruptions by covariate shift adaptation,
    arXiv:2006.16971, equation 3, here with the spread between both means.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net, x = bn.Sequential((bn.BatchNorm(1),)), np.asarray([[1.0], [2.0], [3.0], [6.0], [8.0]])
    >>> params, state = net.init(0, backend="numpy")
    >>> before = bn.recalibrate(net, params, state, x[:3])
    >>> bn.adapt(net, params, before, x[3:], prior=3)["0"]["var"]  # of all five rows
    array([8.5], dtype=float32)
    """
    number("prior", prior, 0)
    return _Rows(net, params, state, x, batch_size, backend, communicator, weights).all_as_one(prior=float(prior))


class _Rows:
    """The rows to take statistics of, for a network and its parameters as they are now."""

    def __init__(
        self,
        net: Sequential,
        params: Tree,
        state: Tree,
        x: Any,
        batch_size: int,
        backend: Backend | BackendName | None,
        communicator: Communicator | None,
        weights: Any,
    ) -> None:
        self.backend, self.ranks = as_backend(backend), communicator or Alone()
        integer("batch_size", batch_size, 1)
        x = checked_inputs("x", x, net)
        trees.check("state", state, net.shapes.state)
        self.params, self.state = params, state
        w = checked_weights(weights, len(x), self.ranks)
        if w is not None:
            x, w = x[w > 0], w[w > 0]
        self.x, self.weights = self.backend.asarray(x), w
        self.shares = Shares.of(self.ranks, len(x))
        if self.shares.total < 2:
            raise ValueError(f"x: expected at least 2 rows to take statistics of, got {self.shares.total}")
        size = 2 if batch_size == 1 else batch_size  # of a network trained row by row, with other norms or none
        rng = np.random.default_rng(0)  # sorted rows would mislead
        self.batches = data.batches(self.shares.total, size, rng)
        # The new state then is the batch's own, its variance unbiased.
        self.net = net.replace(BatchNorm, momentum=1.0, unbiased=True).replace(Dropout, rate=0.0)
        self.norms = [n for n, layer in net.named() if isinstance(layer, BatchNorm) and layer.statistics != "running"]
        zeros = {name: _zero(own) for name, own in running_averages(state).items() if name in self.norms}
        self.blank = with_averages(state, zeros)

    def each_batch_by_itself(self) -> Tree:
        """The average over batches."""
        found = self.found(self.net, self.blank, _Merged(self.norms, as_one=False))
        return with_averages(self.blank, found.unbiased(self.backend))

    def all_as_one(self, prior: float) -> Tree:
        """Those that one batch of everything would have, and of `prior` rows before it."""
        now, new, old = self.blank, self.state, running_averages(self.state)
        for i, name in enumerate(self.norms):
            position = iter(range(len(self.norms)))
            network = self.net.map(lambda layer: _freeze(layer, position, i))  # noqa: B023  # called at once
            merged = _Merged([name], as_one=True)
            if prior:
                merged.add(prior, {name: old[name]})
            found = self.found(network, now, merged)
            now = with_averages(now, found.biased(self.backend))  # which normalises a batch of everything on its way
            new = with_averages(new, found.unbiased(self.backend))
        return new

    def found(self, network: Sequential, now: Tree, into: _Merged) -> _Merged:
        """Statistics of all batches, on their way through the network in this state."""
        context = Context(True, None if self.ranks.size == 1 else self.ranks.sum)
        run = forward_pass(network, self.backend, context)
        for rows in self.batches:
            own = self.shares.own(rows)
            batch = self.backend.xp.take(self.x, self.backend.asarray(own), axis=0)
            weight, given = float(len(rows)), list[Array]()
            if self.weights is not None:
                w = self.weights[own]
                weight, given = float(self.ranks.sum(np.asarray([w.sum()]))[0]), [self.backend.asarray(w)]
            into.add(weight, running_averages(run(self.params, now, batch, *given)[1]))
        return into


def _freeze(layer: Any, position: Iterator[int], below: int) -> Layer:
    """The layer, frozen if it is one of the first batch normalisations that are not so already."""
    if not isinstance(layer, BatchNorm) or layer.statistics == "running":
        return cast("Layer", layer)
    return dataclasses.replace(layer, statistics="running" if next(position) < below else "batch")


def _zero(own: RunningStats) -> RunningStats:
    """So that the average with weight 1 of a batch is the batch's statistics to the last bit."""
    xp = array_namespace(own.mean)  # not times 0: what is to be replaced may be NaN
    return RunningStats(xp.zeros_like(own.mean), xp.zeros_like(own.var), 0)


class _Merged:
    """Statistics of batches in float64 on the host: merged into those of all rows as one, or averaged by weight."""

    def __init__(self, names: list[str], *, as_one: bool) -> None:
        self.as_one = as_one
        self.weight = 0.0
        self.mean: dict[str, Any] = dict.fromkeys(names, 0.0)
        self.var: dict[str, Any] = dict.fromkeys(names, 0.0)
        """Biased for all rows as one, else the average of unbiased ones."""

    def add(self, weight: float, found: dict[str, RunningStats]) -> None:
        """Statistics of so many rows, their variance unbiased."""
        self.weight += weight
        share = weight / self.weight
        for name in self.mean:
            mean, var = (as_numpy(a).astype(np.float64) for a in (found[name].mean, found[name].var))
            apart = mean - self.mean[name]
            self.mean[name] = self.mean[name] + apart * share
            if self.as_one:
                var = var / unbiased_factor(weight) + apart * apart * (1 - share)
            self.var[name] = self.var[name] + (var - self.var[name]) * share

    def biased(self, backend: Backend, factor: float = 1.0) -> dict[str, RunningStats]:
        return {
            name: RunningStats(backend.asarray(self.mean[name]), backend.asarray(var * factor), 1)
            for name, var in self.var.items()
        }

    def unbiased(self, backend: Backend) -> dict[str, RunningStats]:
        return self.biased(backend, unbiased_factor(self.weight) if self.as_one else 1.0)


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
