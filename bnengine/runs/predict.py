"""A trained run applied: measured on data, or asked for predictions of raw rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from .. import checkpoints
from .._typing import BackendName
from ..arguments import ConfigError, quantity
from ..backends import Backend
from ..backends import backend as make_backend
from ..checkpoints import CheckpointError, Loaded
from ..data import labels, readers, sets
from ..data.encoding import Encoding
from ..data.inputs import STANDARD_INPUT, Watch
from ..data.layout import Table, Wanted
from ..data.readers import DataError, HostArray
from ..data.sources import as_features, check_regular, open_source, separator
from ..data.tables import is_table, read_table
from ..networks import Sequential
from ..parallel import Alone
from ..training.evaluation import evaluate, predict
from ..training.fitted import Fitted
from ..training.running_statistics import precise_statistics, statistics_gap
from . import run_directory
from .classes import class_figures
from .config import Config, read_config

Tell = Callable[[str], None]


def ignore(line: str) -> None:
    """Tell nobody."""


class Listener(NamedTuple):
    """Who is told of what is read."""

    warn: Tell = ignore
    """Missing values that were filled, and texts that the training file had not: a line each."""
    note: Tell = ignore
    """How a file beside the run's own was read."""
    watch: Watch | None = None
    """How far it has been read."""


NOBODY = Listener()

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


def evaluate_run(
    run: str,
    *,
    source: str | None = None,
    label: str | None = None,
    delimiter: str | None = None,
    backend: BackendName = "auto",
    device: str | None = None,
    listener: Listener = NOBODY,
) -> dict[str, Any]:
    """Metrics of a trained run on the test part of its own data, or on other data."""
    if label is not None and source is None:
        raise ConfigError("label: says which column of --data holds the labels, but data is not given")
    config, loaded, place = load_run(run, backend, device)
    task, target = loaded.metadata["task"], (loaded.metadata["target_mean"], loaded.metadata["target_std"])
    if source is None:
        if config.data == STANDARD_INPUT:
            raise ConfigError("data: the run read its rows by standard input; name other rows with --data")
        dataset = sets.read_dataset(
            open_source(config.data, replace(config.reading(), task=task, watch=listener.watch))
        )
        for names in ("classes", "columns"):
            if list(getattr(dataset, names)) != loaded.metadata[names]:
                raise DataError(f"{config.data}: its {names} are no longer those that the run was trained on")
        if dataset.encoding != encoding_of(loaded):
            raise DataError(f"{config.data}: its values are no longer those that the run was trained on")
        if not len(dataset.y_test):
            raise ConfigError(f"data: the run was trained on all rows of {config.data}; name other rows with --data")
        x, y, name = dataset.x_test, dataset.y_test, f"{dataset.name}, test part"
    else:
        x, y = _read_labelled(source, label, delimiter, loaded, listener)
        name = source
    _check_features(x, loaded, source or config.data)
    metrics = measure(loaded.net, loaded, (x, y), task, target, backend=place)
    if task == "classification":
        metrics |= class_figures(loaded.net, loaded, (x, y), loaded.metadata["classes"], place, Alone())
    return {"data": name, "rows": len(x), **metrics, "running_statistics": _gap_from(config, loaded, x, place)}


def measure(
    net: Sequential,
    found: Fitted | Loaded,
    rows: tuple[HostArray, HostArray],
    task: str,
    target: tuple[float, float],
    **where: Any,
) -> dict[str, Any]:
    """Metrics on these rows; of a regression also the root of the mean squared error in the units of the targets."""
    (x, y), (mean, std) = rows, target
    if task == "classification":
        return evaluate(net, found.params, found.state, (x, y), loss="cross_entropy", **where)
    metrics = evaluate(net, found.params, found.state, (x, (y - mean) / std), loss="mse", **where)
    return {**metrics, "rmse": math.sqrt(metrics["loss"] or 0.0) * std}


def predict_run(
    run: str,
    source: str,
    *,
    delimiter: str | None = None,
    backend: BackendName = "auto",
    device: str | None = None,
    listener: Listener = NOBODY,
) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the predictions of a trained run for raw rows of data.

    Classes come with their probabilities, values in the units of the training targets.
    """
    _, loaded, place = load_run(run, backend, device)
    x = _read_unlabelled(source, delimiter, loaded, listener)
    _check_features(x, loaded, source)
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


def load_run(run: str, backend: BackendName, device: str | None) -> tuple[Config, Loaded, Backend]:
    """The configuration and the network of a finished run, and the backend that the network is on."""
    config = read_config(_finished(run))
    place = make_backend(backend, dtype=config.dtype, device=device)
    return config, load_network(run, place), place


def load_network(run: str, place: Backend) -> Loaded:
    """The network of a finished run, with the description of its data that `bnengine train` gives it."""
    path = _finished(run) / run_directory.MODEL
    try:
        loaded = checkpoints.load(path, backend=place)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; bnengine train --resume --out {run} writes it anew") from error
    _check_metadata(path, loaded)
    return loaded


def _finished(run: str) -> Path:
    if not Path(run, run_directory.MODEL).exists():
        raise CheckpointError(f"{run}: expected the directory of a finished run, with model.safetensors in it")
    return Path(run)


def _check_metadata(path: Path, loaded: Loaded) -> None:
    """Refuse a network without the description that `bnengine train` gives it, or with one that does not fit it."""
    for name, kinds in DESCRIPTION.items():
        if not isinstance(loaded.metadata.get(name), kinds):
            raise CheckpointError(f"{path}: no {name} in its metadata, so it is no network of a run")
    found, net = loaded.metadata, loaded.net
    try:
        features = encoding_of(loaded).features
    except ValueError as error:
        raise CheckpointError(f"{path}: encoding in its metadata: {error}") from error
    if features and list(features) != found["columns"]:
        raise CheckpointError(f"{path}: its metadata describes columns that do not become its features")
    names = [*found["classes"], *found["columns"]]
    outputs = len(found["classes"]) if found["task"] == "classification" else 1
    if found["features"] != net.inputs or outputs != net.outputs or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{path}: its metadata describes {quantity(found['features'], 'feature')} and {quantity(outputs, 'output')}, "
            f"its layers have {net.inputs} and {net.outputs}"
        )


def _gap_from(config: Config, loaded: Loaded, x: HostArray, place: Backend) -> dict[str, float]:
    """How far a run's running statistics are from these rows'; empty for fewer than can tell."""
    some = x[:10_000]
    if len(some) < JUDGED:
        return {}
    options: dict[str, Any] = {"batch_size": config.batch_size, "backend": place}
    return statistics_gap(loaded.state, precise_statistics(loaded.net, loaded.params, loaded.state, some, **options))


def encoding_of(loaded: Loaded) -> Encoding:
    """What the columns of a table become for the network of a run."""
    return Encoding.from_metadata(loaded.metadata.get("encoding"))


def _read_table(source: str, loaded: Loaded, listener: Listener, **wanted: Any) -> Table:
    """The run's columns of a table, as the network takes them."""
    encoding = encoding_of(loaded)
    columns = [column.name for column in encoding.columns] or loaded.metadata["columns"]
    more: dict[str, Any] = {
        "columns": columns,
        "impute": encoding.impute,
        "one_hot": encoding.text_columns,
        "hints": False,
        "watch": listener.watch,
    }
    if source != STANDARD_INPUT:
        check_regular(Path(source))
    table = read_table(Path(source), Wanted(**wanted, **more))
    where = "standard input" if source == STANDARD_INPUT else source
    for line in separator(where, table, wanted["delimiter"]):
        listener.note(line)
    for line in encoding.remarks(where, table):
        listener.warn(line)
    return table._replace(x=encoding.apply(table))


def _read_labelled(
    source: str, label: str | None, delimiter: str | None, loaded: Loaded, listener: Listener
) -> tuple[HostArray, HostArray]:
    """(x, y) to evaluate on: the test part where the source has one, else all of its rows."""
    task, classes, path = loaded.metadata["task"], loaded.metadata["classes"], Path(source)
    lines: Sequence[int] = ()
    if is_table(source):
        table = _read_table(source, loaded, listener, label=label or loaded.metadata["label"], delimiter=delimiter)
        x, y, lines = table.x, table.y, table.lines
    elif path.suffix == ".npz" and path.is_file():
        arrays = readers.read_npz(path)
        suffix = "_test" if "x_test" in arrays else ""
        if f"x{suffix}" not in arrays or f"y{suffix}" not in arrays:
            raise DataError(f"{path}: expected the arrays x and y, got {', '.join(arrays) or 'none'}")
        x = as_features(path, f"x{suffix}", arrays[f"x{suffix}"])
        y = labels.targets(path, f"y{suffix}", arrays[f"y{suffix}"], len(x))
    else:
        dataset = sets.load(source, label=label, task=task)
        return dataset.x_test, dataset.y_test
    return x, labels.of_kind(y, task, classes, source, lines)


def _read_unlabelled(source: str, delimiter: str | None, loaded: Loaded, listener: Listener) -> HostArray:
    path = Path(source)
    if is_table(source):
        return _read_table(source, loaded, listener, labelled=False, delimiter=delimiter).x
    if path.suffix == ".npz" and path.is_file():
        arrays = readers.read_npz(path)
        if "x" not in arrays:
            raise DataError(f"{path}: expected an array x, got {', '.join(arrays) or 'none'}")
        return as_features(path, "x", arrays["x"])
    return sets.load(source).x_test


def _check_features(x: HostArray, loaded: Loaded, source: str) -> None:
    if x.shape[1] != loaded.metadata["features"]:
        raise DataError(
            f"{source}: the run was trained on {quantity(loaded.metadata['features'], 'feature')}, got {x.shape[1]}"
        )
