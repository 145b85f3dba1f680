"""One trial: train a network, look at it at fixed steps, and say what came out."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import data
from .._typing import Array, Tree
from ..backends import Backend, as_numpy
from ..backends import backend as make_backend
from ..context import Context
from ..data.readers import DataError, HostArray
from ..fully_connected import mlp
from ..layers import Activation, BatchNorm, Layer, Linear, Standardize
from ..networks import Sequential
from ..optimizers import BY_NAME
from ..training.compiled import compiled
from ..training.evaluation import evaluate
from . import geometry
from .experiments import WIDTH, Trial
from .records import Curve, Row

PARTS = {"test": "test_accuracy", "validation": "validation_accuracy"}
"""Of the rows, those that are looked at, and what a row and a curve call their accuracy."""

LOOKED = 2000
"""Rows of each part at most, the first ones, that a look during training takes; the end takes all."""

VALIDATION = 0.1
"""Part of the training rows that settings are chosen by; the test rows say how well what was chosen does."""

PERCENTILES = (15, 50, 85)
"""Of the paper's figure 1."""


@dataclass(frozen=True)
class Problem:
    """Classes to learn: rows with standardised features, on the host."""

    x: HostArray
    y: HostArray
    x_validation: HostArray
    y_validation: HostArray
    x_test: HostArray
    y_test: HostArray
    classes: int

    @classmethod
    def of(cls, source: str) -> Problem:
        """The data set, each feature with mean 0 and variance 1 over the training rows."""
        dataset = data.load(source)
        if dataset.task != "classification":
            raise DataError(f"data: the study needs classes to learn, and {source} has values")
        x, x_validation, y, y_validation = data.hold_out(
            dataset.x_train, dataset.y_train, VALIDATION, seed=0, stratify=True
        )
        layer, backend = Standardize(dataset.features), make_backend("numpy")
        state = layer.measure(x, backend)
        x, x_validation, x_test = (
            as_numpy(layer.forward({}, state, backend.asarray(rows), Context(training=False))[0])
            for rows in (x, x_validation, dataset.x_test)
        )
        return cls(x, y, x_validation, y_validation, x_test, dataset.y_test, len(dataset.classes))

    @property
    def chance(self) -> float:
        """The test accuracy of guessing."""
        return 1 / self.classes


def looks(steps: int) -> list[int]:
    """The steps at which a trial is evaluated: the last, and backwards by factors of the square root of two to 10.

    Examples
    --------
    >>> from bnengine.study.trial import looks
    >>> looks(100)
    [12, 18, 25, 35, 50, 71, 100]
    """
    return sorted({round(steps / 2 ** (k / 2)) for k in range(60) if steps / 2 ** (k / 2) >= min(10, steps)})


def train(trial: Trial, problem: Problem, target: float) -> tuple[Row, Curve]:
    """Train as described; the row of results, and what was seen at each look.

    A trial whose loss is not finite stops there. It counts with the accuracy of guessing, as one that is not trained
    does.
    """
    began = time.perf_counter()
    curve: Curve = {name: [] for name in ("step", "loss", *PARTS.values())}
    diverged_at = None
    for step, loss, seen in _steps(trial, problem, curve):
        if not np.isfinite([loss, *(part["loss"] for part in seen.values())]).all():
            diverged_at = step
            break
        if seen:
            curve["step"].append(step)
            curve["loss"].append(loss if trial.dtype == "float64" else float(f"{loss:.6g}"))
            for part, name in PARTS.items():
                curve[name].append(seen[part]["accuracy"])
    row: Any = {
        **dataclasses.asdict(trial),
        "network": trial.network,
        "seconds": round(time.perf_counter() - began, 2),
        **{name: problem.chance if diverged_at or not trial.steps else curve[name][-1] for name in PARTS.values()},
        "steps_to_target": _first_step(curve, "test_accuracy", target),
        "validation_steps_to_target": _first_step(curve, "validation_accuracy", target),
        "diverged": diverged_at is not None,
        "diverged_at": diverged_at,
    }
    return row, curve


def _first_step(curve: Curve, name: str, target: float) -> int | None:
    """The first step looked at that reaches the target; None where none does."""
    return next((step for step, seen in zip(curve["step"], curve[name], strict=True) if seen >= target), None)


def network(trial: Trial, inputs: int, outputs: int) -> Sequential:
    """The trial's network; its inputs are standardised already."""
    net = mlp(
        [inputs, *[WIDTH] * trial.hidden, outputs],
        norm=None if trial.norm == "none" else trial.norm,
        activation=trial.activation,
        norm_position=trial.norm_position,
        scale=trial.scale,
    )
    return _with_bias(net) if trial.bias == "with" else net


def _with_bias(net: Sequential) -> Sequential:
    """The biases that `Sequential` refuses; an identity between them and the normalisation hides them from it."""
    layers: list[Layer] = []
    for layer in net.layers:
        if isinstance(layer, Linear) and not layer.bias:
            layers += [dataclasses.replace(layer, bias=True), Activation("identity")]
        else:
            layers.append(layer)
    return Sequential(tuple(layers))


def _draw_biases(params: Tree, seed: int, backend: Backend) -> None:
    """Biases that would matter if the normalisation did not cancel them; the output's stays as it is."""
    rng = np.random.default_rng([seed, 0])  # epochs, which shuffle by the same seed, count from 1
    *hidden, _ = [layer for layer in params.values() if "bias" in layer]
    for layer in hidden:
        layer["bias"] = backend.asarray(rng.standard_normal(layer["bias"].shape))


def _steps(trial: Trial, problem: Problem, curve: Curve) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """(step, loss of its batch, loss and accuracy of each of `PARTS` at a look) for each step."""
    backend = make_backend(trial.backend, dtype=trial.dtype, device=trial.device)
    net = network(trial, problem.x.shape[1], problem.classes)
    optimizer = BY_NAME[trial.optimizer](trial.learning_rate)
    params, state = net.init(trial.seed, backend=backend)
    if trial.bias == "with":
        _draw_biases(params, trial.seed, backend)
    if trial.experiment == "geometry":
        rows = next(_batches(trial, len(problem.x)))
        curve.update(geometry.by_layer(net, params, state, backend.asarray(problem.x[rows])))
    opt_state = optimizer.init(params)
    at, train = set(looks(trial.steps)), compiled(net, optimizer, backend=backend)
    parts = {"test": (problem.x_test, problem.y_test), "validation": (problem.x_validation, problem.y_validation)}
    parts = {name: (x.astype(trial.dtype, copy=False), labels) for name, (x, labels) in parts.items()}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # some trials diverge: that is a result
        for step, rows in enumerate(itertools.islice(_batches(trial, len(problem.x)), trial.steps), 1):
            x, labels = backend.asarray(problem.x[rows]), backend.asarray(problem.y[rows])
            params, state, opt_state, loss = train(params, state, opt_state, x, labels)
            seen: dict[str, Any] = {}
            if step in at:
                some = slice(None if step == trial.steps else LOOKED)
                for part, (x, labels) in parts.items():
                    seen[part] = evaluate(net, params, state, (x[some], labels[some]), backend=backend)
                if trial.experiment == "section_4_1":
                    _watch(net, params, state, backend.asarray(parts["test"][0][:LOOKED]), curve)
            yield step, float(loss), seen


def _batches(trial: Trial, rows: int) -> Iterator[HostArray]:
    """Row numbers of mini-batches, epoch after epoch; the same for every trial with this seed and batch size."""
    for epoch in itertools.count(1):
        yield from data.batches(rows, trial.batch_size, np.random.default_rng([trial.seed, epoch]))


def _watch(net: Sequential, params: Tree, state: Tree, x: Array, curve: Curve) -> None:
    """The input of the last hidden layer's first unit, and what that layer's gamma and beta have become."""
    below = Sequential(net.layers[:-2])  # all but the last activation and the output
    inputs = as_numpy(below.forward(params, state, x, training=False)[0])[:, 0]
    curve.setdefault("input_percentiles", []).append(np.percentile(inputs, PERCENTILES).tolist())
    if isinstance(below.layers[-1], BatchNorm):
        for name in ("gamma", "beta"):
            learned = as_numpy(params[str(len(below.layers) - 1)][name])
            curve.setdefault(name, []).append(float(learned[0]))
            curve.setdefault(f"{name}_percentiles", []).append(np.percentile(learned, PERCENTILES).tolist())
