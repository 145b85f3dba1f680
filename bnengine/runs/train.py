"""Runs: from a configuration to a run directory, and from a run directory to predictions."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from .. import __version__, checkpoints, files, kernels
from ..backends import Backend
from ..backends import backend as make_backend
from ..checkpoints import CheckpointError, Loaded
from ..data import readers, sets, shards
from ..data.readers import DataError, HostArray
from ..data.sets import Dataset
from ..networks import Sequential, mlp
from ..optimizers import BY_NAME, Optimizer, Schedule, cosine, step_decay, warm_up
from ..parallel import Alone, Communicator, Shares
from ..training.evaluation import evaluate, predict
from ..training.fitting import Fitted, NonFiniteError, fit
from ..training.running_statistics import precise_statistics, statistics_gap
from . import interrupts, run_directory
from .config import Config, ConfigError, resolve, to_toml
from .curves import curves
from .interrupts import Interrupted

SMALL_PRODUCT = 1e8
"""Floating-point operations of a matrix product, about a millisecond on one processor, that are not worth splitting."""

LEFT_OUT = "in each a group of ranks (--sync-ranks) has fewer than two rows; larger batches leave out fewer"

JUDGED = 100
"""Rows from which their own statistics can tell whether the running ones are far off."""

DESCRIPTION: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "classes": (list,),
    "columns": (list,),
    "label": (str, NoneType),
    "features": (int,),
    "target_mean": (int, float),
    "target_std": (int, float),
}
"""What the metadata of a run's network holds."""

EpochCallback = Callable[[dict[str, Any]], None]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def train(
    config: Config,
    *,
    communicator: Communicator | None = None,
    on_start: Callable[[str], None] | None = None,
    on_epoch: EpochCallback | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train as configured; return the run directory and the summary that was written there.

    With a communicator every rank calls this and trains on its part of the rows; rank 0 alone writes.

    Raises
    ------
    ConfigError, DataError, FileExistsError
        Where the request cannot be met; nothing has been written then.
    NonFiniteError
        Where the loss or a gradient was not finite; the network of the last good epoch has been saved.
    """
    ranks = communicator or Alone()
    ranks.agree({**dataclasses.asdict(config), "version": __version__, "numpy": np.__version__})
    problem = Problem.of(config, ranks)
    with ExitStack() as held:
        directory, start, note = ranks.once(lambda: _opened(problem, held))
        if on_start is not None:
            on_start(note + problem.described(directory))
        fitted = _fitted(problem, directory, start, on_epoch, progress)
        summary = _summary(problem, fitted)
        if ranks.rank:
            return directory, summary
        files.write(directory / run_directory.MODEL, problem.packed(fitted))
        files.write(directory / run_directory.SUMMARY, f"{_json(summary, indent=2)}\n")
        files.write(directory / run_directory.CURVES, curves(fitted.history, summary))
    return directory, summary


def _fitted(
    problem: Problem,
    directory: Path,
    start: Fitted | None,
    on_epoch: EpochCallback | None,
    progress: Progress | None,
) -> Fitted:
    """Train, and keep the last and the best epoch in the directory; or say what ended it, with what was kept."""
    config = problem.config

    def after_epoch(row: dict[str, Any], now: Fitted) -> None:
        if problem.ranks.rank:
            return
        _write_metrics(directory, now.history)
        if now.best is not None and now.best.history[-1] is row:
            files.write(directory / run_directory.BEST, problem.packed(now.best, resumable=True))
        _keep(problem, directory, now)
        if on_epoch is not None:
            on_epoch(row)

    try:
        with _blas_threads(problem), interrupts.noted() as asked:
            fitted = fit(
                problem.net,
                problem.optimizer,
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
                communicator=problem.ranks,
                sync_ranks=config.sync_ranks,
                callback=after_epoch,
                progress=progress,
                interrupted=lambda: bool(asked),
            )
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {_saved(problem, directory, error.last_good)}", error.last_good) from error
    signals = [number for each in problem.ranks.gather(asked) for number in each]
    if signals:
        if problem.ranks.rank == 0 and (fitted.losses or not fitted.history):
            _keep(problem, directory, fitted)
        step = int(fitted.opt_state["step"])
        raise Interrupted(signals[0], f"interrupted after step {step}; --resume --out {directory} goes on from there")
    return fitted


@dataclass(frozen=True)
class Problem:
    """A configuration with its data, network and optimiser."""

    config: Config
    dataset: Dataset
    train: tuple[HostArray, HostArray]
    validation: tuple[HostArray, HostArray] | None
    counts: list[int]
    """Rows for training, validation and testing, of all ranks."""
    net: Sequential
    optimizer: Optimizer
    backend: Backend
    target: tuple[float, float]
    """Mean and standard deviation of the training targets in regression, which learns standardised ones."""
    ranks: Communicator
    rows: dict[str, Any]
    """What tells the data from other data: names, how many rows, a number that follows from their values."""
    left_out: int
    """Batches, of all epochs, in which a group of ranks has fewer than the two rows that statistics take."""

    @classmethod
    def of(cls, config: Config, ranks: Communicator) -> Problem:
        backend = make_backend(config.backend, dtype=config.dtype, device=config.device)
        dataset, validation, target = shards.load(config, ranks)
        counts = ranks.sum(
            np.asarray([len(dataset.y_train), len(validation[1]) if validation else 0, len(dataset.y_test)])
        )
        if config.dtype == "float32":
            _held_by_float32(dataset, ranks)
        steps, left_out = _steps(config, Shares.of(ranks, len(dataset.y_train), config.sync_ranks))
        net, optimizer, train = _network(config, dataset), _optimizer(config, steps), (dataset.x_train, dataset.y_train)
        made = net, optimizer, backend, target, ranks, _described_rows(dataset, validation, ranks), left_out
        return cls(config, dataset, train, validation, counts.tolist(), *made)

    @property
    def loss(self) -> str:
        return "cross_entropy" if self.dataset.task == "classification" else "mse"

    def packed(self, fitted: Fitted, *, resumable: bool = False) -> bytes:
        """A file that `predict` can work from alone, or one that training can go on from too.

        The random state is the seed, the epoch and the position in it: each epoch draws its own order.
        """
        metadata: dict[str, Any] = {
            "task": self.dataset.task,
            "classes": self.dataset.classes,
            "columns": self.dataset.columns,
            "label": self.dataset.label,
            "features": self.dataset.features,
            "target_mean": self.target[0],
            "target_std": self.target[1],
            "version": __version__,
        }
        if not resumable:
            return checkpoints.packed(self.net, fitted.params, fitted.state, metadata=metadata)
        metadata |= {
            "config": self.config.kept(),
            "history": fitted.history,
            "epoch": len(fitted.history),
            "position": len(fitted.losses),
            "losses": fitted.losses,
            "rows": self.rows,
        }
        return checkpoints.packed(self.net, fitted.params, fitted.state, opt_state=fitted.opt_state, metadata=metadata)

    def described(self, directory: Path) -> str:
        """What is about to be trained, for a person."""
        train, held, test = self.counts
        rows = f"{train} training" + (f", {held} validation" if held else "")
        task = f"{len(self.dataset.classes)} classes" if self.dataset.task == "classification" else "regression"
        return (
            f"{self.dataset.name}: {rows}, {test} test rows, {self.dataset.features} features, "
            f"{task}\n{self.net.summary()}\n{self.config.optimizer}, {self.backend.name} {self.config.dtype}, "
            f"kernels {_kernels(self.backend)}"
            f"{f', {self.ranks.size} ranks' if self.ranks.size > 1 else ''}, writing to {directory}"
            + (f"\n{self.left_out} batches are left out: {LEFT_OUT}" if self.left_out else "")
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
        dataset = sets.load(config.data, label=config.label, task=task, test=config.test, seed=config.seed)
        for names in ("classes", "columns"):
            if list(getattr(dataset, names)) != loaded.metadata[names]:
                raise DataError(f"{config.data}: its {names} are no longer those that the run was trained on")
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
    return {"data": name, "rows": len(x), **metrics, "running_statistics": _statistics_gap(config, loaded, x, place)}


def predict_run(
    run: str, source: str, *, backend: str = "auto", device: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the predictions of a trained run for raw rows of data.

    Classes come with their probabilities, values in the units of the training targets.
    """
    _, loaded, place = _load_run(run, backend, device)
    x = _unlabelled(source, loaded)
    _same_features(x, loaded, source)
    with np.errstate(over="ignore", invalid="ignore"):  # refused next
        outputs = predict(loaded.net, loaded.params, loaded.state, x, backend=place).astype(np.float64)
    if not np.isfinite(outputs).all():
        row = int(np.argmin(np.isfinite(outputs).all(axis=1)))
        raise DataError(
            f"{source}: row {row + 1}, with values up to {np.abs(x[row]).max():.3g}, is too far from the training rows: "
            "the network's output is not finite"
        )
    if loaded.metadata["task"] == "regression":
        values = outputs[:, 0] * loaded.metadata["target_std"] + loaded.metadata["target_mean"]
        return ["prediction"], [[f"{value:.9g}"] for value in values]
    classes = loaded.metadata["classes"]
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    rows = [[classes[row.argmax()], *(f"{p:.6f}" for p in row)] for row in probabilities]
    return ["prediction", *(f"p({name})" for name in classes)], rows


# ---- parts


def _opened(problem: Problem, held: ExitStack) -> tuple[Path, Fitted | None, str]:
    """The directory of the run, locked as long as `held`; what it goes on from; and a line to say."""
    config = problem.config
    name, overwrite, resume = problem.dataset.name, config.overwrite, config.resume
    directory = held.enter_context(run_directory.opened(config.out, name, overwrite=overwrite, resume=resume))
    start, note = _resumed(directory, problem) if config.resume else (None, "")
    files.write(directory / run_directory.CONFIG, to_toml(config))
    _write_metrics(directory, start.history if start else [])
    return directory, start, note


def _statistics_gap(config: Config, loaded: Loaded, x: HostArray, place: Backend) -> dict[str, float]:
    """How far a run's running statistics are from these rows'; empty for fewer than can tell."""
    some = x[:10_000]
    if len(some) < JUDGED:
        return {}
    options: dict[str, Any] = {"batch_size": config.batch_size, "backend": place}
    return statistics_gap(loaded.state, precise_statistics(loaded.net, loaded.params, loaded.state, some, **options))


def _held_by_float32(dataset: Dataset, ranks: Communicator) -> None:
    """Refuse features of which float32 would keep nothing: far from zero for their spread, or too large to square."""
    x = dataset.x_train
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        mean = ranks.sum(x.sum(axis=0, dtype=np.float64)) / ranks.sum(np.asarray([len(x)]))
        spread = np.sqrt(ranks.sum(np.square(x - mean).sum(axis=0)) / ranks.sum(np.asarray([len(x)])))
    largest = np.max(ranks.gather(np.abs(x).max(axis=0, initial=0).astype(np.float64)), axis=0)
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


def _steps(config: Config, shares: Shares) -> tuple[int, int]:
    """(steps of all epochs, batches that are left out)."""

    def batches(*seed: int) -> list[HostArray]:
        return sets.batches(shares.total, config.batch_size, np.random.default_rng(seed))

    planned = config.epochs * len(batches(0))
    if shares.group.size == shares.ranks.size:
        return planned, 0
    steps = sum(len(shares.whole(batches(config.seed, epoch))) for epoch in range(1, config.epochs + 1))
    return steps, planned - steps


def _optimizer(config: Config, total: int) -> Optimizer:
    """The optimiser, for so many steps in all."""
    rate = config.learning_rate
    rates: dict[str, float | Schedule] = {
        "constant": rate,
        "cosine": cosine(rate, steps=total),
        "step": step_decay(rate, at=(total // 2, 3 * total // 4)),
    }
    chosen = rates[config.schedule]
    if config.warm_up:
        chosen = warm_up(chosen, steps=max(1, config.warm_up * total // config.epochs))
    return BY_NAME[config.optimizer](chosen, weight_decay=config.weight_decay, clip=config.clip)


def _write_metrics(directory: Path, history: list[dict[str, Any]]) -> None:
    files.write(directory / run_directory.METRICS, "".join(f"{_json(row)}\n" for row in history))


def _keep(problem: Problem, directory: Path, now: Fitted) -> None:
    """Write the last checkpoint; the one before it stays as the previous one."""
    content, last = problem.packed(now, resumable=True), directory / run_directory.LAST
    files.write(last, content, keep=directory / run_directory.PREVIOUS)


def _resumed(directory: Path, problem: Problem) -> tuple[Fitted | None, str]:
    """What the last checkpoint that can be read holds, None where the run had not come so far; and a line to say."""
    if not run_directory.has_checkpoint(directory):
        return None, ""
    before = resolve({}, str(directory / run_directory.CONFIG))
    _keeps_its_configuration(directory, before, problem.config)
    check = functools.partial(_fits, problem)
    loaded, note = run_directory.last_checkpoint(directory, problem.backend, check)
    _keeps_its_rows(problem, loaded)
    history, losses = loaded.metadata["history"], loaded.metadata["losses"]
    note = f"{note}, epoch {len(history)}\n" if note else ""
    best, lost = _best(directory, problem, history)
    return Fitted(loaded.params, loaded.state, loaded.opt_state, history, losses, best), note + lost


def _fits(problem: Problem, path: Path, loaded: Loaded) -> None:
    """Refuse a checkpoint of another run."""
    if "config" not in loaded.metadata:
        raise CheckpointError(f"{path}: holds a network and no state of its training, so nothing can go on from it")
    if loaded.net != problem.net:
        raise CheckpointError(f"{path}: holds another network than the run's")
    if loaded.dtype != problem.config.dtype:
        raise CheckpointError(f"{path}: holds {loaded.dtype} parameters, the run's are {problem.config.dtype}")
    changed = resolve(loaded.metadata["config"]).changed(problem.config)
    if changed is not None:
        raise CheckpointError(f"{path}: belongs to a run with another {changed}")


def _keeps_its_configuration(directory: Path, before: Config, now: Config) -> None:
    name = before.changed(now)
    if name is None:
        return
    words = f"resume: {name} was {getattr(before, name)!r} in {directory} and is {getattr(now, name)!r} now; "
    if name == "epochs" and now.epochs > before.epochs:
        raise ConfigError(f"{words}only a run with a constant schedule can be lengthened, this one's is {now.schedule}")
    raise ConfigError(f"{words}a resumed run keeps its configuration")


def _described_rows(
    dataset: Dataset, validation: tuple[HostArray, HostArray] | None, ranks: Communicator
) -> dict[str, Any]:
    names = {"classes": list(dataset.classes), "columns": list(dataset.columns), "label": dataset.label}
    parts = [
        (dataset.x_train, dataset.y_train),
        (dataset.x_test, dataset.y_test),
        *([validation] if validation else []),
    ]
    shares = [Shares.of(ranks, len(y)) for _, y in parts]
    own = [sets.fingerprint(x, y, share.first) for (x, y), share in zip(parts, shares, strict=True)]
    values = [sum(part) % 2**64 for part in zip(*ranks.gather(own), strict=True)]
    return {**names, "rows": [share.total for share in shares], "values": [f"{value:016x}" for value in values]}


def _keeps_its_rows(problem: Problem, loaded: Loaded) -> None:
    """Refuse to go on with other data: old and new rows would be mixed, names put to another network's outputs."""
    source, before = problem.config.data, loaded.metadata.get("rows", {})
    for name, now in problem.rows.items():
        if before.get(name) != now:
            change = "have changed" if name == "values" else f"were {before.get(name)!r} and are {now!r} now"
            raise ConfigError(
                f"data: {source} is not what the run was trained on: its {name} {change}; --overwrite starts anew"
            )


def _best(directory: Path, problem: Problem, history: list[dict[str, Any]]) -> tuple[Fitted | None, str]:
    """The best epoch so far, which may be one that the last checkpoint has still to come to; and a line if it is lost."""
    path = directory / run_directory.BEST
    if not any("validation_loss" in row for row in history):
        return None, ""
    try:
        loaded = checkpoints.load(path, backend=problem.backend)
        _fits(problem, path, loaded)
    except CheckpointError as error:
        if problem.config.early_stopping is not None:
            raise CheckpointError(f"{error}; early stopping needs the best epoch; --overwrite starts anew") from error
        return None, f"{error}; the best of the epochs to come is kept\n"
    return Fitted(loaded.params, loaded.state, loaded.opt_state, loaded.metadata["history"]), ""


def _summary(problem: Problem, fitted: Fitted) -> dict[str, Any]:
    dataset, config, net, place = problem.dataset, problem.config, problem.net, problem.backend
    y_test, ranks = dataset.y_test, problem.ranks
    if dataset.task == "regression":
        y_test = (y_test - problem.target[0]) / problem.target[1]
    test = evaluate(
        net,
        fitted.params,
        fitted.state,
        (dataset.x_test, y_test),
        loss=problem.loss,
        backend=place,
        communicator=ranks,
    )
    if dataset.task == "regression":
        test["rmse"] = _rmse(test, problem.target[1])
    some = problem.train[0][: Shares.of(ranks, len(problem.train[0])).head(10_000)]
    precise = precise_statistics(
        net, fitted.params, fitted.state, some, batch_size=config.batch_size, backend=place, communicator=ranks
    )
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
        "ranks": ranks.size,
        "batches_left_out": problem.left_out,
        "reductions": ranks.reductions,
        "reduced_bytes": ranks.bytes,
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
    path = directory / run_directory.MODEL
    if problem.ranks.rank == 0:
        files.write(path, problem.packed(last_good))
    return f"the network of epoch {len(last_good.history)} is in {path}"


def _json(values: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(values, indent=indent, allow_nan=False)


def _blas_threads(problem: Problem) -> AbstractContextManager[Any]:
    """One thread for the matrix products of NumPy where they are small, or where processes share the machine.

    BLAS splits even a product of a millisecond over all processors, and its threads wait for each other by
    spinning: on a machine that does anything else such a step takes 5 to 20 times as long as on one thread.
    """
    largest = max(math.prod(shape) for name, shape in problem.net.shapes.params.items() if name.endswith("weight"))
    chosen = any(os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    large = 2 * problem.config.batch_size * largest > SMALL_PRODUCT and problem.ranks.size == 1
    if problem.backend.name != "numpy" or chosen or large:
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
    try:
        loaded = checkpoints.load(directory / run_directory.MODEL, backend=place)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; bnengine train --resume --out {run} writes it anew") from error
    _check_metadata(directory / "model.safetensors", loaded)
    return config, loaded, place


def _check_metadata(path: Path, loaded: Loaded) -> None:
    """Refuse a network without the description that `bnengine train` gives it, or with one that does not fit it."""
    for name, kinds in DESCRIPTION.items():
        if not isinstance(loaded.metadata.get(name), kinds):
            raise CheckpointError(f"{path}: no {name} in its metadata, so it is no network of a run")
    found, net = loaded.metadata, loaded.net
    names = [*found["classes"], *found["columns"]]
    outputs = len(found["classes"]) if found["task"] == "classification" else 1
    if found["features"] != net.inputs or outputs != net.outputs or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{path}: its metadata describes {found['features']} features and {outputs} outputs, "
            f"its layers have {net.inputs} and {net.outputs}"
        )


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
        x = sets.numbers(path, f"x{suffix}", arrays[f"x{suffix}"])
        y = sets.targets(path, f"y{suffix}", arrays[f"y{suffix}"], len(x))
    else:
        dataset = sets.load(source, label=label, task=task)
        return dataset.x_test, dataset.y_test
    return x, sets.class_numbers(y, classes, source, lines) if task == "classification" else sets.values(y, source)


def _unlabelled(source: str, loaded: Loaded) -> HostArray:
    path = Path(source)
    if path.suffix == ".csv" and path.is_file():
        return readers.read_csv(path, columns=loaded.metadata["columns"], labelled=False).x
    if path.suffix == ".npz" and path.is_file():
        arrays = readers.read_npz(path)
        if "x" not in arrays:
            raise DataError(f"{path}: expected an array x, got {', '.join(arrays) or 'none'}")
        return sets.numbers(path, "x", arrays["x"])
    return sets.load(source).x_test


def _same_features(x: HostArray, loaded: Loaded, source: str) -> None:
    if x.shape[1] != loaded.metadata["features"]:
        raise DataError(f"{source}: the run was trained on {loaded.metadata['features']} features, got {x.shape[1]}")
