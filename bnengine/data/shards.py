"""The rows that a run trains, judges and tests on: all of them in one process, or each rank's part.

With several ranks no process keeps all rows. Files of which a part can be read (.npy, IDX that is not compressed)
are mapped where they are; everything else is unpacked once, by rank 0, into .npy files in a temporary directory.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..parallel import Communicator
from ..runs.config import Config
from . import sets
from .readers import DataError, HostArray, read_idx, read_npy
from .sets import Dataset

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IMAGES = {"x_train": "train", "x_test": "t10k"}
"""How the files of the MNIST family begin."""


class Parts(NamedTuple):
    """The rows of one process."""

    dataset: Dataset
    """Without the rows held out for validation."""
    validation: tuple[HostArray, HostArray] | None
    target: tuple[float, float]
    """Mean and standard deviation of the training targets in regression, which learns standardised ones."""


def load(config: Config, ranks: Communicator) -> Parts:
    """The rows of this process as configured.

    Raises
    ------
    DataError
        On every rank, naming file and place of what cannot be used on any of them.
    """
    if ranks.size == 1:
        source = sets.load(config.data, label=config.label, task=config.task, test=config.test, seed=config.seed)
        return _held_out(source, config)
    directory = Path(ranks.once(lambda: tempfile.mkdtemp(prefix="bnengine-")))
    try:
        plan: Parts = ranks.once(lambda: _plan(config, directory))
        own: Parts = ranks.each(lambda: _read(plan, ranks.rank, ranks.size))
    finally:
        if ranks.rank == 0:  # each has read its part, or none goes on
            shutil.rmtree(directory, ignore_errors=True)
    return own


def _held_out(dataset: Dataset, config: Config) -> Parts:
    """The rows for validation, and targets of regression standardised."""
    x, y, target, held = dataset.x_train, dataset.y_train, (0.0, 1.0), None
    classes = dataset.task == "classification"
    if not classes:
        with np.errstate(over="ignore", invalid="ignore"):
            target = float(np.mean(y)), float(np.std(y)) or 1.0
        if not np.isfinite(target).all():
            largest = np.abs(y).max()
            raise DataError(f"data: targets up to {largest:.3g} are too large for a standard deviation; rescale them")
        y = (y - target[0]) / target[1]
    if config.validation > 0:
        x, held_x, y, held_y = sets.hold_out(x, y, config.validation, seed=config.seed, stratify=classes)
        held = held_x, held_y
    return Parts(replace(dataset, x_train=x, y_train=y), held, target)


# ---- several ranks


@dataclass(frozen=True)
class Stored:
    """Rows of an array in a file."""

    path: Path
    shape: tuple[int, ...] = ()
    """Of an IDX file; an .npy file says it itself."""
    chosen: HostArray | None = None
    """The numbers of the rows; None: all."""

    def mapped(self) -> HostArray:
        """The whole array, on the disk."""
        if self.shape:
            return np.memmap(self.path, np.uint8, "r", 4 + 4 * len(self.shape), self.shape)
        array: HostArray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return array

    def read(self, rank: int, size: int) -> HostArray:
        """The part of one of so many ranks, in memory: rows as finite floating numbers, targets as they are."""
        stored = self.mapped()
        chosen = np.arange(len(stored)) if self.chosen is None else self.chosen
        rows = chosen[len(chosen) * rank // size : len(chosen) * (rank + 1) // size]
        part: HostArray = np.asarray(stored[rows])
        if stored.ndim == 1:
            return part
        part = part.reshape(len(part), stored[0].size)
        part = part if part.dtype.kind == "f" else part.astype(np.float32)
        if not np.isfinite(part).all():
            row, column = np.argwhere(~np.isfinite(part))[0]
            raise DataError(f"{self.path}: expected finite numbers, got {part[row, column]} in row {rows[row]}")
        return part / np.float32(255) if self.shape else part


def _plan(config: Config, directory: Path) -> Parts:
    """Where the rows are: `Parts` with `Stored` in the place of arrays. Rank 0 makes it for all."""
    source = Path(config.data)
    if (source / "x.npy").exists():
        dataset, files = _of_npy(source, config)
    elif all((source / f"{stem}-images-idx3-ubyte").exists() for stem in IMAGES.values()):
        dataset, files = _of_idx(source)
    else:
        dataset = sets.load(config.data, label=config.label, task=config.task, test=config.test, seed=config.seed)
        files = {}
    parts = _held_out(dataset, config)

    def stored(name: str, array: HostArray) -> Any:
        file = files.get(name.replace("validation", "train"))
        if file is not None:
            return replace(file, chosen=array[:, 0].astype(np.int64))
        np.save(directory / f"{name}.npy", array)
        return Stored(directory / f"{name}.npy")

    arrays = {name: stored(name, getattr(parts.dataset, name)) for name in ARRAYS}
    held = parts.validation
    if held is not None:
        held = stored("x_validation", held[0]), stored("y_validation", held[1])
    return Parts(replace(parts.dataset, **arrays), held, parts.target)


def _of_npy(source: Path, config: Config) -> tuple[Dataset, dict[str, Stored]]:
    """(the data set with numbers of rows in the place of rows, the files that hold those)."""
    arrays = read_npy(source)
    rows = {name: array for name, array in arrays.items() if name in ("x", "x_test")}
    shapes = {array.shape[1:] for array in rows.values() if array.dtype.kind in "biuf" and array.size}
    if len(shapes) != 1 or () in shapes:
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in rows.items())
        raise DataError(f"{source}: expected numbers of shape (rows, features) in x and x_test, got {found}")
    numbered = {name: _row_numbers(array) for name, array in rows.items()}
    dataset = sets.from_arrays(source, arrays | numbered, config.task, config.test, config.seed)
    return dataset, {"x_train": Stored(source / "x.npy"), "x_test": Stored(source / f"{list(rows)[-1]}.npy")}


def _of_idx(source: Path) -> tuple[Dataset, dict[str, Stored]]:
    """As `_of_npy`, of the MNIST family's files where the images are not compressed."""
    files, numbers, labels = {}, {}, {}
    for name, stem in IMAGES.items():
        files[name] = _images(source / f"{stem}-images-idx3-ubyte")
        plain = source / f"{stem}-labels-idx1-ubyte"
        labels[name], _ = read_idx(plain if plain.exists() else Path(f"{plain}.gz"))
        if labels[name].shape != files[name].shape[:1]:
            raise DataError(f"{source}: {stem} has images {files[name].shape} but labels {labels[name].shape}")
        numbers[name] = _row_numbers(labels[name])
    y, y_test = (labels[name].astype(np.int64) for name in IMAGES)
    classes = tuple(str(i) for i in range(int(max(y.max(), y_test.max())) + 1))
    dataset = Dataset(source.name, "classification", numbers["x_train"], y, numbers["x_test"], y_test, classes)
    return dataset, files


def _images(path: Path) -> Stored:
    with path.open("rb") as file:
        header = file.read(16)
    shape = struct.unpack(">3I", header[4:].ljust(12, b"\0"))
    if header[:4] != b"\x00\x00\x08\x03" or path.stat().st_size != 16 + math.prod(shape):
        raise DataError(
            f"{path}: expected an IDX file of images, whole, got {path.stat().st_size} bytes of {header[:4]!r}"
        )
    return Stored(path, shape)


def _row_numbers(array: HostArray) -> HostArray:
    """A column of the numbers of rows, exact in float64, to be split as the rows would be."""
    return np.arange(len(array), dtype=np.float64)[:, None]


def _read(plan: Parts, rank: int, size: int) -> Parts:
    own: dict[str, Any] = {name: getattr(plan.dataset, name).read(rank, size) for name in ARRAYS}
    stored: Any = plan.validation
    held = stored and (stored[0].read(rank, size), stored[1].read(rank, size))
    return plan._replace(dataset=replace(plan.dataset, **own), validation=held)
