"""Where the rows of a data set are, on the disk or in memory, and which of them are for what."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..arguments import refuse_nonfinite, shown
from . import labels
from .encoding import PLAIN, Encoding
from .inputs import STANDARD_INPUT
from .layout import Table
from .readers import DataError, HostArray, idx_digest, read_idx, read_npy, read_npz
from .reading import Reading
from .splits import hold_out
from .tables import is_table, read_table

NAMED = ("digits", "breast-cancer", "fashion-mnist")
"""Data sets by name; anything else is a path."""

FASHION_MNIST = (
    ["t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"],
    {  # SHA-256 of the decompressed files
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)
FASHION_MNIST_DIRECTORY = "/usr/share/datasets/fashion-mnist"


class Arrays(NamedTuple):
    """Samples in rows, perhaps on the disk, and class numbers or values."""

    x: HostArray
    y: HostArray
    x_test: HostArray
    """x itself where the source has no test part."""
    y_test: HostArray


@dataclass(frozen=True)
class Source:
    """Arrays, and the numbers of the rows for each part: train, validation and test."""

    where: str
    """The path, for messages."""
    name: str
    task: str
    arrays: Arrays
    rows: dict[str, HostArray]
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    label: str | None = None
    divisor: int = 1
    """Of the features: 255 for pixels."""
    target: tuple[float, float] = (0.0, 1.0)
    """What has been subtracted from the training targets, and what they were divided by."""
    encoding: Encoding = PLAIN
    """How the columns of a table became `columns`."""
    span: tuple[float, float] | None = None
    """Least and largest value of a regression."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the source was read: a line each."""
    warnings: tuple[str, ...] = ()
    """What may be wrong with it."""

    def read(self, part: str, rank: int = 0, size: int = 1) -> tuple[HostArray, HostArray]:
        """(x, y) of a part, or of one rank's share of it, in memory: x in rows of finite floating numbers."""
        x, y = self.arrays[2:] if part == "test" else self.arrays[:2]
        name = "x" if x is self.arrays.x else "x_test"
        numbers = self.rows[part]
        numbers = numbers[len(numbers) * rank // size : len(numbers) * (rank + 1) // size]
        if len(numbers) < len(x) or not np.array_equal(numbers, np.arange(len(x))):  # all of them need no copy
            x, y = x[numbers], y[numbers]
        x = _flatten(f"{self.where}, {name}", np.asarray(x), numbers)
        return x if self.divisor == 1 else x / np.float32(self.divisor), np.asarray(y)

    def hold_out(self, part: float, seed: int) -> Source:
        """The source with so much of its training rows for validation."""
        train = self.rows["train"]
        stratify = self.task == "classification"
        train, held, *_ = hold_out(train, self.arrays.y[train], part, seed=seed, stratify=stratify)
        return replace(self, rows={**self.rows, "train": train, "validation": held})


def open_source(source: str, asked: Reading) -> Source:
    """What `load` reads, as it lies there."""
    found = _open(source, asked)
    y = found.arrays.y
    return replace(found, span=(float(y.min()), float(y.max()))) if found.task == "regression" else found


def _open(source: str, asked: Reading) -> Source:
    if type(source) is not str or not source:
        raise DataError(f"data: expected a name or a path, got {shown(source)}")
    if is_table(source):
        return _open_table(Path(source), asked)
    asked.refuse_columns(source)
    if asked.test_data is not None and not source.endswith(".npz"):
        raise DataError(
            f"test_data: only a CSV or npz file takes another of its kind for testing, and data is {source}"
        )
    if asked.task == "regression" and (
        source in NAMED or (Path(source).is_dir() and not Path(source, "x.npy").exists())
    ):
        raise DataError(f"task: {source} has classes to tell apart and no values to predict")
    if source in ("digits", "breast-cancer"):
        return _open_scikit_learn(source, asked)
    if source == "fashion-mnist":
        return _open_fashion_mnist()
    return _open_path(Path(source), asked)


def _open_path(path: Path, asked: Reading) -> Source:
    check_exists(path)
    if (path / "x.npy").exists():
        return _open_arrays(path, read_npy(path), asked)
    if path.is_dir():
        return _open_idx(path, path.name)
    if path.suffix == ".npz":
        check_regular(path)
        return _open_arrays(path, read_npz(path), asked)
    raise DataError(
        f"data: expected .npz, .csv, .tsv, .gz of these, .parquet, or a directory of .npy or IDX files, got {path}"
    )


def check_exists(path: Path) -> None:
    """Refuse a path where nothing is."""
    if not path.exists():
        raise DataError(f"data: no file or directory {path}; the data sets by name are {', '.join(NAMED)}")


def check_regular(path: Path) -> None:
    """Refuse a pipe, which would be waited for, and a device, which would be read for ever."""
    check_exists(path)
    if not path.is_file():
        words = "standard input is read by --data -"
        raise DataError(f"data: expected a regular file or a directory, {path} is neither; {words}")


def _open_table(path: Path, asked: Reading) -> Source:
    """Of a CSV or TSV file, or of standard input."""
    where = "standard input" if str(path) == STANDARD_INPUT else str(path)
    if str(path) != STANDARD_INPUT:
        check_regular(path)
    table = read_table(path, asked.wanted)
    if asked.task == "auto":
        labels.refuse_strays(Path(where), table)
    found = _split(Path(where), table.x, table.y, asked)
    encoding = Encoding.learn(where, table, found.rows["train"], impute=asked.missing == "impute")
    x = encoding.apply(table)
    doubts = [
        *_column_doubts(table),
        *labels.doubts(table.label or "", found.arrays.y, found.task, found.classes, asked=asked.task),
    ]
    found = replace(
        found,
        name=table_name(path),
        arrays=found.arrays._replace(x=x, x_test=x),
        columns=encoding.features or tuple(table.columns),
        label=table.label,
        encoding=encoding,
        notes=(*separator(where, table, asked.delimiter), *encoding.remarks(where, table)),
        warnings=tuple(f"{where}: {doubt}" for doubt in doubts),
    )
    return found if asked.test_data is None else _with_test_table(found, table, asked)


def _with_test_table(source: Source, table: Table, asked: Reading) -> Source:
    other = _test_file(Path(source.where), asked.test_data or "")
    one_hot = source.encoding.text_columns
    wanted = replace(asked.wanted, label=table.label, columns=table.columns, features=(), drop=(), one_hot=one_hot)
    held = read_table(other, wanted)
    y = labels.of_kind(held.y, source.task, source.classes, str(other), held.lines)
    notes = *source.notes, *source.encoding.remarks(str(other), held)
    return _with_test(replace(source, notes=notes), source.encoding.apply(held), y)


def table_name(path: Path) -> str:
    """What a run of this table is called."""
    return "stdin" if str(path) == STANDARD_INPUT else Path(path.stem).stem if path.suffix == ".gz" else path.stem


def separator(where: str, table: Table, asked: str | None) -> Iterator[str]:
    """What separates the columns of a table, where nobody asked for it and it is no comma."""
    if asked is None and table.delimiter != "," and not where.lower().removesuffix(".gz").endswith(".tsv"):
        yield f"{where}: columns separated by {table.delimiter!r}"


def _column_doubts(table: Table) -> Iterator[str]:
    """Columns that may be no features: without a name, or the first where it counts the rows."""
    first = table.columns[0] == table.header[0]
    counted = np.arange(len(table.x))
    counts = first and table.columns[0] not in table.texts and len(counted) > 2
    if "" in table.columns:
        position = table.header.index("")
        yield f"column {position} has no name, as the index of a data frame has none: --drop {position} leaves it out"
    elif counts and (np.array_equal(table.x[:, 0], counted) or np.array_equal(table.x[:, 0], counted + 1)):
        yield f"the first column, {table.columns[0]}, counts the rows, as an index does: --drop 0 leaves it out"


def _with_test(source: Source, x: HostArray, y: HostArray) -> Source:
    """The source with a test part of its own beside the training rows."""
    rows = {**source.rows, "test": np.arange(len(y))}
    return replace(source, arrays=source.arrays._replace(x_test=x, y_test=y), rows=rows)


def _test_file(path: Path, test_data: str) -> Path:
    other = Path(test_data)
    if not other.is_file() or not (other.suffix == path.suffix or (is_table(path.name) and is_table(other.name))):
        raise DataError(f"test_data: expected a {path.suffix} file as {path} is, got {test_data}")
    return other


def as_features(path: Path, name: str, x: HostArray) -> HostArray:
    """x as rows of finite floating numbers: more axes are flattened, integers become float32."""
    return _flatten(f"{path}, {name}", _check_features(path, name, x))


def _check_features(path: Path, name: str, x: HostArray) -> HostArray:
    if x.ndim < 2 or not x.size:
        raise DataError(f"{path}: expected {name} of shape (rows, features), got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers in {name}, got dtype {x.dtype}")
    return x


def _flatten(name: str, x: HostArray, numbers: HostArray | None = None) -> HostArray:
    x = x.reshape(len(x), math.prod(x.shape[1:]))
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    refuse_nonfinite(name, x, numbers, DataError)
    return x


def _open_scikit_learn(name: str, asked: Reading) -> Source:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"data: {name} comes with scikit-learn; install the extra train") from error
    bunch = datasets.load_digits() if name == "digits" else datasets.load_breast_cancer()
    found = _split(Path(name), bunch.data, bunch.target, replace(asked, task="classification"))
    return replace(found, classes=tuple(map(str, bunch.target_names)))


def _open_fashion_mnist() -> Source:
    names, digests = FASHION_MNIST
    directory = Path(os.environ.get("BNENGINE_FASHION_MNIST", FASHION_MNIST_DIRECTORY))
    if not directory.is_dir():
        raise DataError(
            f"data: no directory {directory} with the Fashion-MNIST files. On Debian or Ubuntu: "
            "apt install dataset-fashion-mnist. Elsewhere put the four files (train-images-idx3-ubyte.gz ...) in a "
            "directory and name it in the environment variable BNENGINE_FASHION_MNIST"
        )
    return replace(_open_idx(directory, "fashion-mnist", digests), classes=tuple(names))


def _open_idx(directory: Path, name: str, digests: dict[str, str] | None = None) -> Source:
    found = {}
    for stem in FASHION_MNIST[1]:
        path = next((p for p in (directory / stem, directory / f"{stem}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"{directory}: expected {stem} or {stem}.gz, found neither")
        found[stem] = read_idx(path)
        if digests is not None and (digest := idx_digest(found[stem])) != digests[stem]:
            raise DataError(f"{path}: not the published Fashion-MNIST file: SHA-256 of its contents is {digest}")
    x, y, x_test, y_test = found.values()
    for stem, images, marks in (("train", x, y), ("t10k", x_test, y_test)):
        if images.ndim < 2 or not images.size or marks.ndim != 1 or len(images) != len(marks):
            raise DataError(f"{directory}: {stem} has images {images.shape} but labels {marks.shape}")
    classes = tuple(str(i) for i in range(int(max(y.max(), y_test.max())) + 1))
    rows = {"train": np.arange(len(x)), "test": np.arange(len(x_test))}
    arrays = Arrays(x, y.astype(np.int64), x_test, y_test.astype(np.int64))
    return Source(str(directory), name, "classification", arrays, rows, classes, divisor=255)


def _open_arrays(path: Path, arrays: dict[str, HostArray], asked: Reading) -> Source:
    """Of the arrays x and y, and x_test and y_test or a part that is held out, of a file or directory."""
    if asked.test_data is not None:
        other = _test_file(path, asked.test_data)
        if "x_test" in arrays:
            raise DataError(f"test_data: {path} has a test part of its own, x_test")
        held = read_npz(other)
        arrays = {**arrays, **{f"{name}_test": held[name] for name in ("x", "y") if name in held}}
    missing = {"x", "y"} - set(arrays)
    if missing or ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(
            f"{path}: expected the arrays x and y, and optionally x_test and y_test, got {', '.join(arrays) or 'none'}"
        )
    x = _check_features(path, "x", arrays["x"])
    y = labels.targets(path, "y", arrays["y"], len(x))
    if "x_test" not in arrays:
        return _split(path, x, y, asked)
    x_test = _check_features(path, "x_test", arrays["x_test"])
    y_test = labels.targets(path, "y_test", arrays["y_test"], len(x_test))
    if math.prod(x_test.shape[1:]) != math.prod(x.shape[1:]):
        raise DataError(f"{path}: x has {math.prod(x.shape[1:])} features but x_test has {math.prod(x_test.shape[1:])}")
    task, classes, both = labels.find_task(np.concatenate([y, y_test]), asked.task)
    rows = {"train": np.arange(len(y)), "test": np.arange(len(y_test))}
    return Source(str(path), path.stem, task, Arrays(x, both[: len(y)], x_test, both[len(y) :]), rows, classes)


def _split(path: Path, x: HostArray, y: HostArray, asked: Reading) -> Source:
    """Rows for training and for testing; all for training where none are to be held out."""
    task, classes, y = labels.find_task(y, asked.task)
    train, held = np.arange(len(y)), np.arange(0)
    if asked.test > 0 and asked.test_data is None:
        train, held, *_ = hold_out(train, y, asked.test, seed=asked.seed, stratify=task == "classification")
    elif len(y) < 2:
        raise DataError(f"{path}: 1 row is too few to train on, expected at least 2")
    return Source(str(path), path.stem, task, Arrays(x, y, x, y), {"train": train, "test": held}, classes)
