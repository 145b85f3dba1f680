"""Training a run: from a configuration to a run directory."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, files
from ..data.inputs import Watch
from ..parallel import Alone, Communicator, Shares
from ..training.fitted import Fitted, NonFiniteError
from ..training.fitting import Settings, fit
from ..training.running_statistics import recalibrate, statistics_gap
from . import interrupts, run_directory
from .classes import class_figures
from .config import Config, to_toml
from .curves import confusion_picture, curves
from .interrupts import Interrupted
from .predict import measure
from .problem import Problem, kernels_in_use
from .resume import load_start

SMALL_PRODUCT = 1e8
"""Floating-point operations of a matrix product, about a millisecond on one processor, that are not worth splitting."""

EpochCallback = Callable[[dict[str, Any]], None]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def train(
    config: Config,
    *,
    communicator: Communicator | None = None,
    on_start: Callable[[str], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
    on_read: Watch | None = None,
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
    problem = Problem.of(config, ranks, on_read)
    if on_warning is not None:
        for line in problem.dataset.warnings:
            on_warning(line)
    with ExitStack() as held:
        directory, start, note = ranks.once(lambda: _open(problem, held))
        if on_start is not None:
            on_start(note + problem.describe(directory))
        fitted = _fit(problem, directory, start, on_epoch, progress)
        summary = _summarize(problem, fitted)
        if ranks.rank:
            return directory, summary
        files.write(directory / run_directory.MODEL, problem.to_bytes(fitted))
        files.write(directory / run_directory.SUMMARY, _summary_text(summary))
        files.write(directory / run_directory.CURVES, curves(fitted.history, summary))
        if "confusion" in summary:
            files.write(directory / run_directory.CONFUSION, confusion_picture(summary))
    return directory, summary


def _open(problem: Problem, held: ExitStack) -> tuple[Path, Fitted | None, str]:
    """The directory of the run, locked as long as `held`; what it goes on from; and a line to say."""
    config = problem.config
    directory = held.enter_context(
        run_directory.open_directory(config.out, problem.dataset.name, overwrite=config.overwrite, resume=config.resume)
    )
    start, note = load_start(directory, problem) if config.resume else (None, "")
    files.write(directory / run_directory.CONFIG, to_toml(config))
    _write_metrics(directory, start.history if start else [])
    return directory, start or problem.start, note


def _fit(
    problem: Problem, directory: Path, start: Fitted | None, on_epoch: EpochCallback | None, progress: Progress | None
) -> Fitted:
    """Train, and keep the last and the best epoch in the directory; or say what ended it, with what was kept."""
    settings = Settings(**{name: getattr(problem.config, name) for name in Settings.__dataclass_fields__})

    def after_epoch(row: dict[str, Any], now: Fitted) -> None:
        if problem.ranks.rank:
            return
        _write_metrics(directory, now.history)
        if now.best is not None and now.best.history[-1] is row:
            files.write(directory / run_directory.BEST, problem.to_bytes(now.best, resumable=True))
        _write_checkpoint(problem, directory, now)
        if on_epoch is not None:
            on_epoch(row)

    try:
        with _limit_blas_threads(problem), interrupts.collect_signals() as asked:
            fitted = fit(
                problem.net,
                problem.optimizer,
                problem.train,
                validation=problem.validation,
                loss=problem.loss,
                settings=settings,
                backend=problem.backend,
                start=start,
                communicator=problem.ranks,
                callback=after_epoch,
                progress=progress,
                interrupted=lambda: bool(asked),
            )
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error}; {_save_last_good(problem, directory, error.last_good)}", error.last_good
        ) from error
    signals = [number for each in problem.ranks.gather(asked) for number in each]
    if signals:
        if problem.ranks.rank == 0 and (fitted.losses or not fitted.history):
            _write_checkpoint(problem, directory, fitted)
        step = int(fitted.opt_state["step"])
        raise Interrupted(signals[0], f"interrupted after step {step}; --resume --out {directory} goes on from there")
    return fitted


def _summarize(problem: Problem, fitted: Fitted) -> dict[str, Any]:
    dataset, config, net, ranks = problem.dataset, problem.config, problem.net, problem.ranks
    where: dict[str, Any] = {"backend": problem.backend, "communicator": ranks}
    classified = dataset.task == "classification"
    test: dict[str, Any] = {"loss": None, "accuracy" if classified else "r2": None}
    classes: dict[str, Any] = {}
    if problem.counts[2]:
        rows = dataset.x_test, dataset.y_test
        test = measure(net, fitted, rows, dataset.task, problem.target, **where)
        classes = class_figures(net, fitted, rows, dataset.classes, problem.backend, ranks) if classified else {}
    some = problem.train[0][: Shares.of(ranks, len(problem.train[0])).head(10_000)]
    precise = recalibrate(net, fitted.params, fitted.state, some, batch_size=config.batch_size, **where)
    return {
        **{f"test_{name}": value for name, value in test.items()},
        "epochs": len(fitted.history),
        "kept_epoch": fitted.kept_epoch,
        "stopped_early": len(fitted.history) < config.epochs,
        "steps": fitted.history[-1]["step"],
        "seconds": fitted.history[-1]["seconds"],
        "running_statistics": statistics_gap(fitted.state, precise),
        "data": dataset.name,
        "backend": problem.backend.name,
        "device": str(problem.backend.device or "default"),
        "dtype": config.dtype,
        "kernels": kernels_in_use(problem.backend),
        "parameters": net.parameters,
        "seed": config.seed,
        "ranks": ranks.size,
        "batches_left_out": problem.left_out,
        "reductions": ranks.reductions,
        "reduced_bytes": ranks.bytes,
        "version": __version__,
        **classes,
    }


def kept_words(summary: dict[str, Any], early_stopping: int | None) -> str:
    """Which epoch's network was kept, and why."""
    kept, epochs = summary["kept_epoch"], summary["epochs"]
    if summary["stopped_early"]:
        return f"stopped after epoch {epochs}: validation loss has not fallen since epoch {kept}, whose network is kept"
    if early_stopping is None:
        return f"the network of the last epoch, {kept}, is kept"
    return f"the network of epoch {kept} of {epochs}, that with the lowest validation loss, is kept"


def _write_metrics(directory: Path, history: list[dict[str, Any]]) -> None:
    files.write(directory / run_directory.METRICS, "".join(f"{_json(row)}\n" for row in history))


def _write_checkpoint(problem: Problem, directory: Path, now: Fitted) -> None:
    """Write the last checkpoint; the one before it stays as the previous one."""
    content, last = problem.to_bytes(now, resumable=True), directory / run_directory.LAST
    files.write(last, content, keep=directory / run_directory.PREVIOUS)


def _save_last_good(problem: Problem, directory: Path, last_good: Fitted) -> str:
    """Save what the last whole epoch left, if there was one; say so."""
    if not last_good.history:
        return "no epoch was good, so no network is saved"
    path = directory / run_directory.MODEL
    if problem.ranks.rank == 0:
        files.write(path, problem.to_bytes(last_good))
    return f"the network of epoch {len(last_good.history)} is in {path}"


def _json(values: Any) -> str:
    return json.dumps(values, allow_nan=False)


def _summary_text(summary: dict[str, Any]) -> str:
    """The summary as JSON, with a line for each entry, each class and each row of counts."""
    entries = {name: _json(value) for name, value in summary.items()}
    if "classes" in summary:
        figures = (f"    {_json(name)}: {_json(own)}" for name, own in summary["classes"].items())
        entries["classes"] = "{\n" + ",\n".join(figures) + "\n  }"
    if "confusion" in summary:
        entries["confusion"] = "[\n" + ",\n".join(f"    {_json(row)}" for row in summary["confusion"]) + "\n  ]"
    return "{\n" + ",\n".join(f"  {_json(name)}: {text}" for name, text in entries.items()) + "\n}\n"


def _limit_blas_threads(problem: Problem) -> AbstractContextManager[Any]:
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
