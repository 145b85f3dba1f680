"""The rows that a run trains, judges and tests on: each rank's share of them, which for one process is all.

With several ranks no process keeps all rows. Files of which a part can be read (.npy, IDX that is not compressed)
stay where they are; everything else is unpacked once, by rank 0, into .npy files in a temporary directory.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..parallel import Communicator
from .readers import DataError, HostArray, open_array
from .reading import Reading
from .sets import Dataset, read_dataset
from .sources import Arrays, Source, open_source


class Parts(NamedTuple):
    """The rows of one process."""

    dataset: Dataset
    """Without the rows held out for validation."""
    validation: tuple[HostArray, HostArray] | None
    target: tuple[float, float]
    """Mean and standard deviation of the training targets in regression, which learns standardised ones."""


def load(source: str, ranks: Communicator, asked: Reading, *, validation: float) -> Parts:
    """The rows of a data set for this process, with the part `validation` of the training rows held out.

    Raises
    ------
    DataError
        On every rank, naming file and place of what cannot be used on any of them.
    """

    def split() -> Source:
        found = _standardize_targets(open_source(source, asked))
        return found.hold_out(validation, asked.seed) if validation > 0 else found

    if ranks.size == 1:
        return _read(split(), ranks)
    directory = Path(ranks.once(lambda: tempfile.mkdtemp(prefix="bnengine-")))
    try:
        whole, files = ranks.once(lambda: _write(split(), directory))
        parts: Parts = ranks.each(lambda: _read(_open(whole, files), ranks))
    finally:
        if ranks.rank == 0:  # each has read its share, or none goes on
            shutil.rmtree(directory, ignore_errors=True)
    return parts


def _standardize_targets(source: Source) -> Source:
    """Training targets of a regression with mean 0 and standard deviation 1."""
    if source.task == "classification":
        return source
    y, train = source.arrays.y, source.rows["train"]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(np.mean(y[train])), float(np.std(y[train])) or 1.0
        scaled = (y - mean) / std
    if not np.isfinite([mean, std]).all():
        largest = np.abs(y[train]).max()
        raise DataError(f"data: targets up to {largest:.3g} are too large for a standard deviation; rescale them")
    return replace(source, arrays=source.arrays._replace(y=scaled), target=(mean, std))


def _read(source: Source, ranks: Communicator) -> Parts:
    held = source.read("validation", ranks.rank, ranks.size) if "validation" in source.rows else None
    return Parts(read_dataset(source, ranks.rank, ranks.size), held, source.target)


def _write(source: Source, directory: Path) -> tuple[Source, list[Path]]:
    """The source without its arrays, and the files in which other processes can open them."""
    files: dict[int, Path] = {}
    for name, array in source.arrays._asdict().items():
        mapped = getattr(array, "filename", None)  # of an array that is on the disk
        if mapped is None and id(array) not in files:
            np.save(directory / f"{name}.npy", array)
        files.setdefault(id(array), Path(mapped or directory / f"{name}.npy"))
    return replace(source, arrays=Arrays(*4 * [np.empty(0)])), [files[id(array)] for array in source.arrays]


def _open(source: Source, files: list[Path]) -> Source:
    arrays = {path: open_array(path) for path in set(files)}
    return replace(source, arrays=Arrays(*(arrays[path] for path in files)))
