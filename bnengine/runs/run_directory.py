"""The directory of a run: made, locked, and its checkpoints, the last of which may be damaged."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import checkpoints, files
from ..arguments import ConfigError
from ..backends import Backend
from ..checkpoints import CheckpointError, Loaded

CONFIG, METRICS, SUMMARY, MODEL, CURVES, CONFUSION = (
    *("config.toml", "metrics.jsonl", "summary.json"),
    *("model.safetensors", "curves.png", "confusion.png"),
)
LAST, PREVIOUS, BEST = "checkpoint.safetensors", "previous.safetensors", "best.safetensors"
FILES = (CONFIG, METRICS, SUMMARY, MODEL, LAST, PREVIOUS, BEST, CURVES, CONFUSION)
LOCK = ".lock"


@contextmanager
def open_directory(
    out: str | None, name: str, *, overwrite: bool, resume: bool, known: tuple[str, ...] = FILES
) -> Iterator[Path]:
    """The directory of a run, locked: a new one under runs/, or the one asked for.

    `known` are the files that it may hold; the first of them tells it from other directories.

    Raises
    ------
    ConfigError
        Where `resume` was asked for, nothing is there, and a run beside it has almost the same name.
    FileExistsError
        Where it exists and neither `resume` nor `overwrite` was asked for, holds what is no run's, or
        another process uses it.
    """
    path = _make_numbered(Path("runs"), name) if out is None else Path(out)
    if out is not None:
        _check(path, known, overwrite=overwrite, resume=resume)
        path.mkdir(parents=True, exist_ok=True)
    files.flush_directory(path.parent)
    with files.lock(path / LOCK):
        for file in files.leftovers(path, known):
            file.unlink()
        if overwrite:
            for old in reversed(known):  # what tells it last: without it it would be no run
                (path / old).unlink(missing_ok=True)
        yield path


def has_checkpoint(directory: Path) -> bool:
    """Whether training can go on from something, damaged or not."""
    return any((directory / name).exists() for name in (LAST, PREVIOUS))


def last_checkpoint(directory: Path, backend: Backend, check: Callable[[Path, Loaded], None]) -> tuple[Loaded, str]:
    """The last checkpoint that can be read and passes the check, and a line about one before it that does not.

    Raises
    ------
    CheckpointError
        Where there is none, with the reason for each.
    """
    refused: list[str] = []
    for path in (directory / LAST, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            loaded = checkpoints.load(path, backend=backend)
            check(path, loaded)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return loaded, f"{refused[0]}; going on from {path}" if refused else ""
    raise CheckpointError(f"{'; '.join(refused)}; --overwrite starts anew")


def _check(path: Path, known: tuple[str, ...], *, overwrite: bool, resume: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"out: {path} is a file, expected a directory")
    if not path.exists():
        if resume:
            _refuse_slip(path, known[0])
        return
    ours = {LOCK, *(file.name for file in files.leftovers(path, known))}  # killed before it had written anything
    found = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    links = [name for name in (*known, LOCK) if (path / name).is_symlink()]
    if links:  # what is in a directory may come from somebody else
        raise FileExistsError(f"out: {path / links[0]} is a link, and a run writes nowhere but in its own directory")
    if found and known[0] not in found:
        raise FileExistsError(f"out: {path} holds {found[0]} and no {known[0]}, so it is no run; choose another")
    if found and not overwrite and not resume:
        raise FileExistsError(f"out: {path} exists; --resume goes on with it, --overwrite starts anew in it")


def _refuse_slip(path: Path, known: str) -> None:
    """Refuse a new name that is almost a run's beside it, but for its digits: those tell runs of a series apart."""
    digits = re.sub(r"\D", "", path.name)
    beside = [entry.name for entry in path.parent.glob("*") if (entry / known).is_file()]
    alike = [name for name in beside if re.sub(r"\D", "", name) == digits]
    for close in difflib.get_close_matches(path.name, alike, 1, 0.8):
        raise ConfigError(
            f"out: nothing at {path}; did you mean {path.parent / close}? Without --resume a new run starts there"
        )


def _make_numbered(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "run"
    number = 1
    while True:
        path = parent / f"{safe}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
