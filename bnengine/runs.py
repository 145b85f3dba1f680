"""Runs: from a configuration to a run directory, and from a run directory to predictions."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, checkpoints, data, kernels, readers, report
from .backends import Backend
from .backends import backend as make_backend
from .checkpoints import CheckpointError, Loaded
from .config import Config, ConfigError, resolve, to_toml
from .data import Dataset
from .layers import Sequential, mlp
from .optimizers import BY_NAME, Optimizer, Schedule, cosine, step_decay, warm_up
from .readers import DataError, HostArray
from .training import Fitted, NonFiniteError, evaluate, fit, precise_statistics, predict, statistics_gap

SMALL_PRODUCT = 1e8
"""Floating-point operations of a matrix product, about a millisecond on one processor, that are not worth splitting."""

EpochCallback = Callable[[dict[str, Any]], None]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def train(
    config: Config,
    *,
    on_start: Callable[[str], None] | None = None,
    on_epoch: EpochCallback | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train as configured; return the run directory and the summary that was written there.

    Raises
    ------
    ConfigError, DataError, FileExistsError
        Where the request cannot be met; nothing has been written then.
    NonFiniteError
        Where the loss or a gradient was not finite; the network of the last good epoch has been saved.
    """
    problem = Problem.of(config)
    net, optimizer = problem.net, problem.optimizer
    directory = checkpoints.new_run(config.out, problem.dataset.name, overwrite=config.overwrite, resume=config.resume)
    start = _resumed(directory, problem) if config.resume else None
    if start is None:
        checkpoints.write(directory / "config.toml", to_toml(config))
        checkpoints.write(directory / "metrics.jsonl", "")
    if on_start is not None:
        on_start(problem.described(directory))

    def after_epoch(row: dict[str, Any], now: Fitted) -> None:
        checkpoints.write(directory / "metrics.jsonl", "".join(f"{_json(row)}\n" for row in now.history))
        problem.save(directory / "checkpoint.safetensors", now, {"history": now.history})
        if on_epoch is not None:
            on_epoch(row)

    try:
        with _blas_threads(problem):
            fitted = fit(
                net,
                optimizer,
                problem.train,
                validation=problem.validation,
                loss=problem.loss,
                epochs=config.epochs,
                batch_size=config.batch_size,
                seed=config.seed,
                backend=problem.backend,
                start=start,
                early_stopping=config.early_stopping,
                precise_bn=config.precise_bn,
                on_nonfinite=config.on_nonfinite,
                callback=after_epoch,
                progress=progress,
            )
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_saved(problem, directory, error.last_good)}", error.last_good) from error
    summary = _summary(problem, fitted)
    problem.save(directory / "model.safetensors", fitted)
    checkpoints.write(directory / "summary.json", f"{_json(summary, indent=2)}\n")
    checkpoints.write(directory / "curves.png", report.curves(fitted.history, summary))
    return directory, summary


@dataclass(frozen=True)
class Problem:
    """A configuration with its data, network and optimiser."""

    config: Config
    dataset: Dataset
    train: tuple[HostArray, HostArray]
    validation: tuple[HostArray, HostArray] | None
    net: Sequential
    optimizer: Optimizer
    backend: Backend
    target: tuple[float, float]
    """Mean and standard deviation of the training targets in regression, which learns standardised ones."""

    @classmethod
    def of(cls, config: Config) -> Problem:
        backend = make_backend(config.backend, dtype=config.dtype, device=config.device)
        dataset = data.load(config.data, label=config.label, task=config.task, test=config.test, seed=config.seed)
        x, y = dataset.x_train, dataset.y_train
        target = (0.0, 1.0)
        if dataset.task == "regression":
            target = float(np.mean(y)), float(np.std(y)) or 1.0
            y = (y - target[0]) / target[1]
        validation = None
        if config.validation > 0:
            stratify = dataset.task == "classification"
            x, held_x, y, held_y = data.hold_out(x, y, config.validation, seed=config.seed, stratify=stratify)
            validation = held_x, held_y
        if config.dtype == "float32":
            _held_by_float32(x, dataset)
        net = _network(config, dataset)
        optimizer = _optimizer(config, steps=len(data.batches(len(x), config.batch_size, np.random.default_rng(0))))
        return cls(config, dataset, (x, y), validation, net, optimizer, backend, target)

    @property
    def loss(self) -> str:
        return "cross_entropy" if self.dataset.task == "classification" else "mse"

    def save(self, path: Path, fitted: Fitted, more: dict[str, Any] | None = None) -> None:
        """A file that `predict` can work from alone; with `more`, one that training can go on from."""
        metadata = {
            "task": self.dataset.task,
            "classes": self.dataset.classes,
            "columns": self.dataset.columns,
            "label": self.dataset.label,
            "features": self.dataset.features,
            "target_mean": self.target[0],
            "target_std": self.target[1],
            "version": __version__,
        }
        state = fitted.opt_state if more is not None else None
        checkpoints.save(path, self.net, fitted.params, fitted.state, opt_state=state, metadata=metadata | (more or {}))

    def described(self, directory: Path) -> str:
        """What is about to be trained, for a person."""
        rows = f"{len(self.train[1])} training"
        rows += f", {len(self.validation[1])} validation" if self.validation else ""
        task = f"{len(self.dataset.classes)} classes" if self.dataset.task == "classification" else "regression"
        return (
            f"{self.dataset.name}: {rows}, {len(self.dataset.y_test)} test rows, {self.dataset.features} features, "
            f"{task}\n{self.net.summary()}\n{self.config.optimizer}, {self.backend.name} {self.config.dtype}, "
            f"kernels {_kernels(self.backend)}, writing to {directory}"
        )


def evaluate_run(
    run: str, *, source: str | None = None, label: str | None = None, backend: str = "auto", device: str | None = None
) -> dict[str, Any]:
    """Metrics of a trained run on the test part of its own data, or on other data."""
    if label is not None and source is None:
        raise ConfigError("label: says which column of --data holds the labels, but data is not given")
    config, loaded, place = _load_run(run, backend, device)
    task, mean, std = loaded.metadata["task"], loaded.metadata["target_mean"], loaded.metadata["target_std"]
    if source is None:
        dataset = data.load(config.data, label=config.label, task=task, test=config.test, seed=config.seed)
        x, y, name = dataset.x_test, dataset.y_test, f"{dataset.name}, test part"
    else:
        x, y = _labelled(source, label, loaded)
        name = source
    _same_features(x, loaded, source or config.data)
    loss = "cross_entropy" if task == "classification" else "mse"
    targets = y if task == "classification" else (y - mean) / std
    metrics = evaluate(loaded.net, loaded.params, loaded.state, (x, targets), loss=loss, backend=place)
    if task == "regression":
        metrics["rmse"] = _rmse(metrics, std)
    return {"data": name, "rows": len(x), **metrics}


def predict_run(
    run: str, source: str, *, backend: str = "auto", device: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the predictions of a trained run for raw rows of data.

    Classes come with their probabilities, values in the units of the training targets.
    """
    _, loaded, place = _load_run(run, backend, device)
    x = _unlabelled(source, loaded)
    _same_features(x, loaded, source)
    outputs = predict(loaded.net, loaded.params, loaded.state, x, backend=place).astype(np.float64)
    if loaded.metadata["task"] == "regression":
        values = outputs[:, 0] * loaded.metadata["target_std"] + loaded.metadata["target_mean"]
        return ["prediction"], [[f"{value:.9g}"] for value in values]
    classes = loaded.metadata["classes"]
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    rows = [[classes[row.argmax()], *(f"{p:.6f}" for p in row)] for row in probabilities]
    return ["prediction", *(f"p({name})" for name in classes)], rows


# ---- parts


def _held_by_float32(x: HostArray, dataset: Dataset) -> None:
    """Refuse features of which float32 would keep nothing: far from zero for their spread, or too large to square."""
    spread, largest = x.std(axis=0, dtype=np.float64), np.abs(x).max(axis=0).astype(np.float64)
    lost = (spread > 0) & (largest * 2.0**-25 > 0.1 * spread)  # a quarter of a unit in the last place
    for column in np.flatnonzero(lost | (largest > 1e18))[:1]:
        name = dataset.columns[column] if dataset.columns else column
        raise DataError(
            f"dtype: feature {name} has values up to {largest[column]:.3g} with standard deviation "
            f"{spread[column]:.3g}, which float32 cannot hold; use --dtype float64, or rescale or shift it"
        )


def _network(config: Config, dataset: Dataset) -> Sequential:
    return mlp(
        [dataset.features, *config.hidden, dataset.outputs],
        norm="batch" if config.norm == "batch" else None,
        activation=config.activation,
        norm_position=config.norm_position,
        standardize=config.standardize,
        initialization=None if config.initialization == "auto" else config.initialization,
        scale=config.initial_scale,
    )


def _optimizer(config: Config, steps: int) -> Optimizer:
    """The optimiser, for so many steps an epoch."""
    total, rate = steps * config.epochs, config.learning_rate
    rates: dict[str, float | Schedule] = {
        "constant": rate,
        "cosine": cosine(rate, steps=total),
        "step": step_decay(rate, at=(total // 2, 3 * total // 4)),
    }
    chosen = rates[config.schedule]
    if config.warm_up:
        chosen = warm_up(chosen, steps=config.warm_up * steps)
    return BY_NAME[config.optimizer](chosen, weight_decay=config.weight_decay, clip=config.clip)


def _resumed(directory: Path, problem: Problem) -> Fitted | None:
    """The last epoch's checkpoint; None where the run had not come so far."""
    path = directory / "checkpoint.safetensors"
    if not path.exists():
        return None
    before = resolve({}, str(directory / "config.toml"))
    if before != problem.config:
        changed = [
            f.name for f in dataclasses.fields(Config) if getattr(before, f.name) != getattr(problem.config, f.name)
        ]
        name = changed[0]
        raise ConfigError(
            f"resume: {name} was {getattr(before, name)!r} in {directory} and is {getattr(problem.config, name)!r} now; "
            "a resumed run keeps its configuration"
        )
    loaded = checkpoints.load(path, backend=problem.backend)
    if loaded.net != problem.net:
        raise CheckpointError(f"{path}: holds another network than {directory / 'config.toml'} describes")
    return Fitted(loaded.params, loaded.state, loaded.opt_state, loaded.metadata["history"])


def _summary(problem: Problem, fitted: Fitted) -> dict[str, Any]:
    dataset, config, net, place = problem.dataset, problem.config, problem.net, problem.backend
    y_test = dataset.y_test
    if dataset.task == "regression":
        y_test = (y_test - problem.target[0]) / problem.target[1]
    test = evaluate(net, fitted.params, fitted.state, (dataset.x_test, y_test), loss=problem.loss, backend=place)
    if dataset.task == "regression":
        test["rmse"] = _rmse(test, problem.target[1])
    some = problem.train[0][:10_000]
    precise = precise_statistics(net, fitted.params, fitted.state, some, batch_size=config.batch_size, backend=place)
    return {
        **{f"test_{name}": value for name, value in test.items()},
        "epochs": len(fitted.history),
        "steps": fitted.history[-1]["step"],
        "seconds": fitted.history[-1]["seconds"],
        "running_statistics": statistics_gap(fitted.state, precise),
        "data": dataset.name,
        "backend": place.name,
        "device": str(place.device or "default"),
        "dtype": config.dtype,
        "kernels": _kernels(place),
        "parameters": net.parameters,
        "seed": config.seed,
        "version": __version__,
    }


def _kernels(backend: Backend) -> str:
    probe = backend.xp.zeros((2, 1), dtype=backend.dtype, device=backend.device)
    return kernels.select(probe).__name__.rpartition(".")[2]


def _rmse(metrics: dict[str, float | None], std: float) -> float:
    """Root of the mean squared error in the units of the targets, which training saw divided by std."""
    return math.sqrt(metrics["loss"] or 0.0) * std


def _saved(problem: Problem, directory: Path, last_good: Fitted) -> str:
    """Save what the last whole epoch left, if there was one; say so."""
    if not last_good.history:
        return "no epoch was good, so no network is saved"
    problem.save(directory / "model.safetensors", last_good)
    return f"the network of epoch {len(last_good.history)} is in {directory / 'model.safetensors'}"


def _json(values: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(values, indent=indent, allow_nan=False)


def _blas_threads(problem: Problem) -> AbstractContextManager[Any]:
    """One thread for the matrix products of NumPy where they are small.

    BLAS splits even a product of a millisecond over all processors, and its threads wait for each other by
    spinning: on a machine that does anything else such a step takes 5 to 20 times as long as on one thread.
    """
    largest = max(math.prod(shape) for name, shape in problem.net.shapes().items() if name.endswith("weight"))
    chosen = any(os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if problem.backend.name != "numpy" or chosen or 2 * problem.config.batch_size * largest > SMALL_PRODUCT:
        return nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _load_run(run: str, backend: str, device: str | None) -> tuple[Config, Loaded, Backend]:
    directory = Path(run)
    if not (directory / "model.safetensors").exists():
        raise CheckpointError(f"{run}: expected the directory of a finished run, with model.safetensors in it")
    config = resolve({}, str(directory / "config.toml"))
    place = make_backend(backend, dtype=config.dtype, device=device)
    return config, checkpoints.load(directory / "model.safetensors", backend=place), place


def _labelled(source: str, label: str | None, loaded: Loaded) -> tuple[HostArray, HostArray]:
    """(x, y) to evaluate on: the test part where the source has one, else all of its rows."""
    task, classes, path = loaded.metadata["task"], loaded.metadata["classes"], Path(source)
    lines: Sequence[int] = ()
    if path.suffix == ".csv" and path.is_file():
        label = label or loaded.metadata["label"]
        *_, x, y, lines = readers.read_csv(path, label=label, columns=loaded.metadata["columns"])
    elif path.suffix == ".npz" and path.is_file():
        arrays = readers.read_npz(path)
        suffix = "_test" if "x_test" in arrays else ""
        if f"x{suffix}" not in arrays or f"y{suffix}" not in arrays:
            raise DataError(f"{path}: expected the arrays x and y, got {', '.join(arrays) or 'none'}")
        x = data.numbers(path, f"x{suffix}", arrays[f"x{suffix}"])
        y = data.targets(path, f"y{suffix}", arrays[f"y{suffix}"], len(x))
    else:
        dataset = data.load(source, label=label, task=task)
        return dataset.x_test, dataset.y_test
    return x, data.class_numbers(y, classes, source, lines) if task == "classification" else data.values(y, source)


def _unlabelled(source: str, loaded: Loaded) -> HostArray:
    path = Path(source)
    if path.suffix == ".csv" and path.is_file():
        return readers.read_csv(path, columns=loaded.metadata["columns"], labelled=False).x
    if path.suffix == ".npz" and path.is_file():
        arrays = readers.read_npz(path)
        if "x" not in arrays:
            raise DataError(f"{path}: expected an array x, got {', '.join(arrays) or 'none'}")
        return data.numbers(path, "x", arrays["x"])
    return data.load(source).x_test


def _same_features(x: HostArray, loaded: Loaded, source: str) -> None:
    if x.shape[1] != loaded.metadata["features"]:
        raise DataError(f"{source}: the run was trained on {loaded.metadata['features']} features, got {x.shape[1]}")
