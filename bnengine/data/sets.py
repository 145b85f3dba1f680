"""Data sets, and the order of mini-batches.

With initialisation this is the only place that draws random numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..arguments import instance, integer, number, one_of, shown
from .readers import DataError, HostArray, Table, is_number, read_csv, read_idx, read_npy, read_npz

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
MOST_CLASSES = 50
"""Different whole numbers that are taken for classes where nobody says what they are."""

FASHION_MNIST_DIRECTORY = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Dataset:
    """Rows for training and testing, on the host."""

    name: str
    task: str
    """ "classification" or "regression"."""
    x_train: HostArray
    """Shape (N, features), floating."""
    y_train: HostArray
    """Class numbers (N,) or values (N,)."""
    x_test: HostArray
    y_test: HostArray
    classes: tuple[str, ...] = ()
    """Names of the classes, by number."""
    columns: tuple[str, ...] = ()
    """Names of the features, where the source has them."""
    label: str | None = None
    """Name of the column that is predicted, where the source has them."""

    @property
    def features(self) -> int:
        return int(self.x_train.shape[1])

    @property
    def outputs(self) -> int:
        """Outputs that a network for it needs."""
        return len(self.classes) if self.task == "classification" else 1


def load(source: str, *, label: str | None = None, task: str = "auto", test: float = 0.2, seed: int = 0) -> Dataset:
    """A data set by name or path.

    Parameters
    ----------
    source : str
        "digits", "breast-cancer", "fashion-mnist", a file.npz (x, y and optionally x_test, y_test), a
        directory with x.npy, y.npy and optionally x_test.npy, y_test.npy, a file.csv with a header, or a
        directory with the four IDX files of the MNIST family.
    label : str, optional
        Column of a CSV that is to be predicted, by name or position (negative from the end); the last by
        default.
    task : {"auto", "classification", "regression"}
        "auto": labels that are text, or whole numbers with at most 50 different values, are classes.
    test : float
        Part of the rows held out for testing, stratified by class, where the source has no test part.
    seed : int
        Of that choice.

    Raises
    ------
    DataError
        Naming file, row and column of what cannot be used, or how to get the data.

    Examples
    --------
    >>> from bnengine import data
    >>> digits = data.load("digits")
    >>> digits.x_train.shape, digits.x_test.shape, digits.task, len(digits.classes)
    ((1437, 64), (360, 64), 'classification', 10)
    """
    if type(source) is not str or not source:
        raise DataError(f"data: expected a name or a path, got {shown(source)}")
    one_of("task", task, ("auto", "classification", "regression"))
    _part("test", test)
    integer("seed", seed, 0)
    if label is not None and (type(label) is not str or not source.endswith(".csv")):
        raise DataError(f"label: only a CSV file has a label column to choose, and data is {source}")
    if task == "regression" and (source in NAMED or (Path(source).is_dir() and not Path(source, "x.npy").exists())):
        raise DataError(f"task: {source} has classes to tell apart and no values to predict")
    if source in ("digits", "breast-cancer"):
        return _from_scikit_learn(source, test, seed)
    if source == "fashion-mnist":
        return _fashion_mnist()
    path = Path(source)
    if not path.exists():
        raise DataError(f"data: no file or directory {source}; the data sets by name are {', '.join(NAMED)}")
    if (path / "x.npy").exists():
        return from_arrays(path, read_npy(path), task, test, seed)
    if path.is_dir():
        return _from_idx(path, path.name, check=None)
    if not path.is_file():  # a pipe would be waited for, a device be read for ever
        raise DataError(f"data: expected a regular file or a directory, {source} is neither")
    if path.suffix == ".npz":
        return from_arrays(path, read_npz(path), task, test, seed)
    if path.suffix == ".csv":
        table = read_csv(path, label=label)
        if task == "auto":
            _refuse_strays(path, table)
        dataset = _split(path.stem, table.x, table.y, task, test, seed)
        return replace(dataset, columns=tuple(table.columns), label=table.label)
    raise DataError(f"data: expected .npz, .csv or a directory of .npy or IDX files, got {source}")


def hold_out(x: HostArray, y: HostArray, part: float, *, seed: int, stratify: bool) -> tuple[HostArray, ...]:
    """(x, held x, y, held y): a part of the rows held out, stratified by class where asked and possible."""
    _part("part", part)
    integer("seed", seed, 0)
    instance("stratify", stratify, bool, "True or False")
    x, y = (checked_array(name, v) for name, v in (("x", x), ("y", y)))
    if not x.ndim or y.shape != x.shape[:1] or not len(y):
        raise ValueError(f"x, y: expected rows and a label for each, got shapes {x.shape} and {y.shape}")
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("data: holding out rows needs scikit-learn; install the extra train") from error

    groups = y if stratify and np.unique(y, return_counts=True)[1].min() >= 2 else None
    held = max(math.ceil(part * len(y)), 1 if groups is None else len(np.unique(y)))
    if len(y) - held < 2:
        raise DataError(f"data: {len(y)} rows are too few to hold out {part:g} of them and train on the rest")
    return tuple(train_test_split(x, y, test_size=held, random_state=seed, stratify=groups))


def batches(rows: int, size: int, rng: np.random.Generator) -> list[HostArray]:
    """Row numbers of the mini-batches of an epoch, shuffled.

    What is left over makes a smaller batch, but a single row joins the batch before it: normalisation
    needs two.

    Examples
    --------
    >>> import numpy as np
    >>> from bnengine.data import batches
    >>> [len(batch) for batch in batches(9, 4, np.random.default_rng(0))]
    [4, 5]
    """
    instance("rng", rng, np.random.Generator, "a NumPy random Generator")
    integer("rows", rows, 0, below=2**31)
    if type(size) is not int or rows < 2 or size < 2:
        raise ValueError(
            f"batch_size: expected at least 2 rows in batches of at least 2, got {rows} rows, size {shown(size)}"
        )
    order = rng.permutation(rows)
    starts = list(range(0, rows, size))
    if rows - starts[-1] == 1:
        starts.pop()
    return np.split(order, starts[1:])


def fingerprint(x: HostArray, y: HostArray, first: int = 0) -> int:
    """A number that follows from all values and their order; those of the parts of a data set add up, modulo 2^64.

    `first` is the number of the first row. It tells changed data from the same, not what somebody has made alike.
    """
    keys = np.random.default_rng(0).integers(2**63, size=(2, x.shape[1] + 1), dtype=np.uint64) | np.uint64(1)
    total = 0
    for start in range(0, len(x), 4096):
        rows = np.column_stack([x[start : start + 4096], y[start : start + 4096]]).astype(np.float64, order="C")
        mixed = (rows.view(np.uint64) ^ keys[0]) * keys[1]
        each = np.bitwise_xor.reduce(mixed ^ (mixed >> np.uint64(29)), axis=1)
        place = np.arange(first + start, first + start + len(rows), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        total += int(np.sum((each ^ (each >> np.uint64(31))) * place, dtype=np.uint64))
    return total % 2**64


def checked_array(name: str, value: HostArray) -> HostArray:
    """Refuse what is no array of numbers or text."""
    instance(name, value, np.ndarray, "a NumPy array")
    if value.dtype.kind not in "biufUO":
        raise TypeError(f"{name}: expected numbers or text, got {shown(value)}")
    return value


def _part(name: str, value: float) -> None:
    number(name, value, math.ulp(0.0), math.nextafter(1, 0), words="a part between 0 and 1")


# ---- checks of what was read


def numbers(path: Path, name: str, x: HostArray) -> HostArray:
    """x as rows of finite numbers: more axes are flattened, integers become float32."""
    if x.ndim < 2 or not x.size:
        raise DataError(f"{path}: expected {name} of shape (rows, features), got {x.shape}")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers in {name}, got dtype {x.dtype}")
    x = x.reshape(len(x), -1)
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(
            f"{path}: expected finite numbers in {name}, got {x[row, column]} in row {row}, column {column}"
        )
    return x


# ---- sources


def _from_scikit_learn(name: str, test: float, seed: int) -> Dataset:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"data: {name} comes with scikit-learn; install the extra train") from error
    bunch = datasets.load_digits() if name == "digits" else datasets.load_breast_cancer()
    x, held_x, y, held_y = hold_out(bunch.data, bunch.target, test, seed=seed, stratify=True)
    return Dataset(name, "classification", x, y, held_x, held_y, tuple(map(str, bunch.target_names)))


def _fashion_mnist() -> Dataset:
    names, digests = FASHION_MNIST
    directory = Path(os.environ.get("BNENGINE_FASHION_MNIST", FASHION_MNIST_DIRECTORY))
    if not directory.is_dir():
        raise DataError(
            f"data: no directory {directory} with the Fashion-MNIST files. On Debian or Ubuntu: "
            "apt install dataset-fashion-mnist. Elsewhere put the four files (train-images-idx3-ubyte.gz ...) in a "
            "directory and name it in the environment variable BNENGINE_FASHION_MNIST"
        )
    return replace(_from_idx(directory, "fashion-mnist", check=digests), classes=tuple(names))


def _from_idx(directory: Path, name: str, check: dict[str, str] | None) -> Dataset:
    found = {}
    for stem in FASHION_MNIST[1]:
        path = next((p for p in (directory / stem, directory / f"{stem}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(f"{directory}: expected {stem} or {stem}.gz, found neither")
        found[stem], digest = read_idx(path)
        if check is not None and digest != check[stem]:
            raise DataError(f"{path}: not the published Fashion-MNIST file: SHA-256 of its contents is {digest}")
    x, y, x_test, y_test = (found[stem] for stem in FASHION_MNIST[1])
    for stem, images, labels in (("train", x, y), ("t10k", x_test, y_test)):
        if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(f"{directory}: {stem} has images {images.shape} but labels {labels.shape}")
    x, x_test = (numbers(directory, "images", images) / np.float32(255) for images in (x, x_test))
    classes = tuple(str(i) for i in range(int(max(y.max(), y_test.max())) + 1))
    return Dataset(name, "classification", x, y.astype(np.int64), x_test, y_test.astype(np.int64), classes)


def from_arrays(path: Path, arrays: dict[str, HostArray], task: str, test: float, seed: int) -> Dataset:
    """The data set of the arrays x and y, and x_test and y_test or a part that is held out, of a file or directory."""
    missing = {"x", "y"} - set(arrays)
    if missing or ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(
            f"{path}: expected the arrays x and y, and optionally x_test and y_test, got {', '.join(arrays) or 'none'}"
        )
    x, y = numbers(path, "x", arrays["x"]), targets(path, "y", arrays["y"], len(arrays["x"]))
    if "x_test" not in arrays:
        return _split(path.stem, x, y, task, test, seed)
    x_test = numbers(path, "x_test", arrays["x_test"])
    y_test = targets(path, "y_test", arrays["y_test"], len(x_test))
    if x_test.shape[1] != x.shape[1]:
        raise DataError(f"{path}: x has {x.shape[1]} features but x_test has {x_test.shape[1]}")
    task, classes, both = _as_task(np.concatenate([y, y_test]), task)
    return Dataset(path.stem, task, x, both[: len(y)], x_test, both[len(y) :], classes)


def targets(path: Path, name: str, y: HostArray, rows: int) -> HostArray:
    if y.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{path}: expected {name} of shape ({rows},), got {y.shape}")
    if y.dtype.kind not in "biufU" or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        raise DataError(f"{path}: expected finite numbers or text in {name}, got dtype {y.dtype}")
    return y.reshape(rows)


def _split(name: str, x: HostArray, y: HostArray, task: str, test: float, seed: int) -> Dataset:
    task, classes, y = _as_task(y, task)
    x, held_x, y, held_y = hold_out(x, y, test, seed=seed, stratify=task == "classification")
    return Dataset(name, task, x, y, held_x, held_y, classes)


def class_numbers(y: HostArray, classes: Sequence[str], where: str, lines: Sequence[int] = ()) -> HostArray:
    """Labels as numbers of these classes; a label that is none of them is refused, with its line where known."""
    found = _as_numbers(y)
    names = [str(int(value)) for value in found] if _whole(found) else [str(value) for value in y]
    numbers = {name: i for i, name in enumerate(classes)}
    for row, name in enumerate(names):
        if name not in numbers:
            place = f"line {lines[row]}" if lines else f"row {row}"
            raise DataError(f"{where}, {place}: label {name!r} is none of the classes {', '.join(classes)}")
    return np.asarray([numbers[name] for name in names], np.int64)


def values(y: HostArray, where: str) -> HostArray:
    """Targets of a regression as numbers."""
    found = _as_numbers(y)
    if found is None:
        row = int(np.argmin(np.isfinite([_number(value) for value in y])))
        raise DataError(f"{where}: regression needs finite numbers as targets, got {str(y[row])!r} in row {row + 1}")
    return found


def _refuse_strays(path: Path, table: Table) -> None:
    """Refuse labels that are numbers but for some, which would make a class of each number."""
    if _as_numbers(table.y) is not None:
        return
    found = np.asarray([_number(value) for value in table.y])
    numbers = found[np.isfinite(found)]
    classes = _whole(numbers) and len(np.unique(numbers)) <= MOST_CLASSES
    for label, line, value in zip(table.y, table.lines, found, strict=True):
        stray = not math.isfinite(value) and (not classes or is_number(label))
        if numbers.size and stray:
            raise DataError(
                f"{path}, line {line}: label {str(label)!r} is no finite number, others are; "
                "mend it, or --task classification takes labels as names"
            )


def _number(text: Any) -> float:
    """The value; NaN where it is none."""
    return float(text) if is_number(text) else math.nan


def _as_task(y: HostArray, task: str) -> tuple[str, tuple[str, ...], HostArray]:
    """(task, names of the classes, y as class numbers or values)."""
    found = _as_numbers(y)
    if task == "auto":
        few = found is None or (_whole(found) and len(np.unique(found)) <= MOST_CLASSES)
        task = "classification" if few else "regression"
    if task == "regression":
        return task, (), values(y, "task")
    if _whole(found):
        y = found.astype(np.int64)  # classes in the order of their numbers, not of their text
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"data: expected at least 2 classes, got only {str(classes[0])!r}")
    return task, tuple(map(str, classes)), index


def _whole(found: HostArray | None) -> TypeGuard[HostArray]:
    """Whether these are whole numbers that float64 holds exactly."""
    return found is not None and bool(np.all(found == np.round(found)) and np.all(np.abs(found) <= 2**53))


def _as_numbers(y: HostArray) -> HostArray | None:
    """y in float64, or None where some of it is text."""
    try:
        values = y.astype(np.float64)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
