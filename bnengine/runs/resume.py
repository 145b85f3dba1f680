"""What a run goes on from: its last checkpoint, if that is of the same run and the same data."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from .. import checkpoints
from ..arguments import ConfigError
from ..checkpoints import CheckpointError, Loaded
from ..training.fitted import Fitted
from . import run_directory
from .config import Config, read_config
from .problem import Problem


def load_start(directory: Path, problem: Problem) -> tuple[Fitted | None, str]:
    """What the last checkpoint that can be read holds, None where the run had not come so far; and a line to say."""
    if not (directory / run_directory.CONFIG).exists():
        return None, f"nothing at {directory} yet: starting a new run\n"
    if not run_directory.has_checkpoint(directory):
        return None, ""
    _check_configuration(directory, read_config(directory), problem.config)
    check = functools.partial(_check_checkpoint, problem)
    loaded, note = run_directory.last_checkpoint(directory, problem.backend, check)
    _check_rows(problem, loaded)
    history, losses = loaded.metadata["history"], loaded.metadata["losses"]
    note = f"{note}, epoch {len(history)}\n" if note else ""
    best, lost = _load_best(directory, problem, history)
    return Fitted(loaded.params, loaded.state, loaded.opt_state, history, losses, best), note + lost


def _check_checkpoint(problem: Problem, path: Path, loaded: Loaded) -> None:
    """Refuse a checkpoint of another run."""
    if "config" not in loaded.metadata:
        raise CheckpointError(f"{path}: holds a network and no state of its training, so nothing can go on from it")
    if loaded.net != problem.net:
        raise CheckpointError(f"{path}: holds another network than the run's")
    if loaded.dtype != problem.config.dtype:
        raise CheckpointError(f"{path}: holds {loaded.dtype} parameters, the run's are {problem.config.dtype}")
    changed = Config.resolve(loaded.metadata["config"]).changed(problem.config)
    if changed is not None:
        raise CheckpointError(f"{path}: belongs to a run with another {changed}")


def _check_configuration(directory: Path, before: Config, now: Config) -> None:
    name = before.changed(now)
    if name is None:
        return
    words = f"resume: {name} was {getattr(before, name)!r} in {directory} and is {getattr(now, name)!r} now; "
    if name == "epochs" and now.epochs > before.epochs:
        raise ConfigError(
            f"{words}only a run with a constant schedule can be lengthened, this one's is {now.schedule}; "
            f"bnengine train --start {directory} trains its network further, as a run of its own"
        )
    raise ConfigError(f"{words}a resumed run keeps its configuration")


def _check_rows(problem: Problem, loaded: Loaded) -> None:
    """Refuse to go on with other data: old and new rows would be mixed, names put to another network's outputs."""
    source, before = problem.config.data, loaded.metadata.get("rows", {})
    for name, now in problem.rows.items():
        if before.get(name) != now:
            change = "have changed" if name == "values" else f"were {before.get(name)!r} and are {now!r} now"
            raise ConfigError(
                f"data: {source} is not what the run was trained on: its {name} {change}; --overwrite starts anew"
            )


def _load_best(directory: Path, problem: Problem, history: list[dict[str, Any]]) -> tuple[Fitted | None, str]:
    """The best epoch so far, which may be one that the last checkpoint has still to come to; and a line if it is lost."""
    path = directory / run_directory.BEST
    if not any("validation_loss" in row for row in history):
        return None, ""
    try:
        loaded = checkpoints.load(path, backend=problem.backend)
        _check_checkpoint(problem, path, loaded)
    except CheckpointError as error:
        if problem.config.early_stopping is not None:
            raise CheckpointError(f"{error}; early stopping needs the best epoch; --overwrite starts anew") from error
        return None, f"{error}; the best of the epochs to come is kept\n"
    return Fitted(loaded.params, loaded.state, loaded.opt_state, loaded.metadata["history"]), ""
