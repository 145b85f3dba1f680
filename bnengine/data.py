"""Data sets and readers, and the order of mini-batches.

With initialisation this is the only place that draws random numbers.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

HostArray = np.ndarray[Any, Any]

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


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the place in it."""


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
        file.csv with a header, or a directory with the four IDX files of the MNIST family.
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
    if label is not None and not source.endswith(".csv"):
        raise DataError(f"label: only a CSV file has a label column to choose, and data is {source}")
    if source in ("digits", "breast-cancer"):
        return _from_scikit_learn(source, test, seed)
    if source == "fashion-mnist":
        return _fashion_mnist()
    path = Path(source)
    if not path.exists():
        raise DataError(f"data: no file or directory {source}; the data sets by name are {', '.join(NAMED)}")
    if path.is_dir():
        return _from_idx(path, path.name, check=None)
    if path.suffix == ".npz":
        return _from_npz(path, task, test, seed)
    if path.suffix == ".csv":
        columns, name, x, y = read_csv(path, label=label)
        return replace(_split(path.stem, x, y, task, test, seed), columns=tuple(columns), label=name)
    raise DataError(f"data: expected .npz, .csv or a directory of IDX files, got {source}")


def hold_out(x: HostArray, y: HostArray, part: float, *, seed: int, stratify: bool) -> tuple[HostArray, ...]:
    """(x, held x, y, held y): a part of the rows held out, stratified by class where asked and possible."""
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
    if type(size) is not int or rows < 2 or size < 2:
        raise ValueError(f"batch_size: expected at least 2 rows in batches of at least 2, got {rows} rows, size {size}")
    order = rng.permutation(rows)
    starts = list(range(0, rows, size))
    if rows - starts[-1] == 1:
        starts.pop()
    return np.split(order, starts[1:])


# ---- readers


def read_csv(
    path: Path, *, label: str | None = None, columns: Sequence[str] = (), labelled: bool = True
) -> tuple[list[str], str | None, HostArray, HostArray]:
    """(names of the feature columns and of the label, x in float64, y as text) of a CSV file with a header.

    The features are `columns` in that order where given, else all columns but the label, which is the
    last one by default. Not `labelled`: there is no label, and y is empty.
    """
    header, rows = _csv_rows(path)
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; its columns are {', '.join(header)}")
    target = _position(path, header, "-1" if label is None else label) if labelled else None
    chosen = [header.index(name) for name in columns] or [i for i in range(len(header)) if i != target]
    if not chosen:
        raise DataError(f"{path}: expected a label and at least one feature column, got {header}")
    x = np.empty((len(rows), len(chosen)))
    for i, (line, row) in enumerate(rows):
        x[i] = [_number(path, line, header[column], row[column]) for column in chosen]
    y = [] if target is None else [_text(path, line, header[target], row[target]) for line, row in rows]
    return [header[column] for column in chosen], None if target is None else header[target], x, np.asarray(y)


def _csv_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other rows with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    if not header:
        raise DataError(f"{path}: expected a header in the first line, got an empty file")
    if len(header) == 1 and (separator := next((s for s in ";\t|" if s in header[0]), None)):
        raise DataError(f"{path}: expected columns separated by commas, but {separator!r} separates them")
    if len(set(header)) < len(header):
        raise DataError(f"{path}: expected a header with a different name for each column, got {header}")
    numbers = [name for name in header if _is_number(name)]
    if len(numbers) == len(header) or any("." in name or "-" in name for name in numbers):
        raise DataError(f"{path}: expected a header in the first line, got numbers: {', '.join(numbers[:5])}")
    if not rows:
        raise DataError(f"{path}: expected rows below the header, got none")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: expected {len(header)} columns, got {len(row)}")
    return header, rows


def _position(path: Path, header: list[str], name: str) -> int:
    if name in header:
        return header.index(name)
    try:
        return range(len(header))[int(name)]
    except (ValueError, IndexError):
        raise DataError(f"{path}: no column {name!r}; its columns are {', '.join(header)}") from None


def _number(path: Path, line: int, column: str, text: str) -> float:
    if not text.strip():
        raise DataError(f"{path}, line {line}, column {column}: missing value; fill it or leave the row out")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{path}, line {line}, column {column}: expected a number, got {text!r}") from None
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}, column {column}: expected a finite number, got {text!r}")
    return value


def _text(path: Path, line: int, column: str, text: str) -> str:
    if not text.strip():
        raise DataError(f"{path}, line {line}, column {column}: missing label; fill it or leave the row out")
    return text.strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_npz(path: Path) -> dict[str, HostArray]:
    """The arrays of an npz file; pickled objects are refused."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:
        reason = "it is no npz file, or holds Python objects" if "pickle" in str(error) else error
        raise DataError(f"{path}: cannot be read as npz: {reason}") from error


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


def read_idx(path: Path) -> tuple[HostArray, str]:
    """(array of unsigned bytes, SHA-256 of the decompressed file) of an IDX file, plain or gzip."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes, which begins 00 00 08, got {raw[:4].hex(' ')}"
        )
    start = 4 + 4 * raw[3]
    shape = struct.unpack(f">{raw[3]}I", raw[4:start].ljust(4 * raw[3], b"\0"))
    if len(raw) != start + math.prod(shape):
        raise DataError(f"{path}: expected {start + math.prod(shape)} bytes for shape {shape}, got {len(raw)}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape), hashlib.sha256(raw).hexdigest()


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
        path = next((p for p in (directory / stem, directory / f"{stem}.gz") if p.exists()), None)
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


def _from_npz(path: Path, task: str, test: float, seed: int) -> Dataset:
    arrays = read_npz(path)
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


def class_numbers(y: HostArray, classes: Sequence[str], where: str) -> HostArray:
    """Labels as numbers of these classes; a label that is none of them is refused."""
    found = _as_numbers(y)
    names = [str(int(value)) for value in found] if _whole(found) else [str(value) for value in y]
    numbers = {name: i for i, name in enumerate(classes)}
    for row, name in enumerate(names):
        if name not in numbers:
            raise DataError(f"{where}: label {name!r} in row {row} is none of the classes {', '.join(classes)}")
    return np.asarray([numbers[name] for name in names], np.int64)


def values(y: HostArray, where: str) -> HostArray:
    """Targets of a regression as numbers."""
    found = _as_numbers(y)
    if found is None:
        raise DataError(f"{where}: regression needs finite numbers as targets, got for example {str(y[0])!r}")
    return found


def _as_task(y: HostArray, task: str) -> tuple[str, tuple[str, ...], HostArray]:
    """(task, names of the classes, y as class numbers or values)."""
    found = _as_numbers(y)
    if task == "auto":
        few = found is None or (_whole(found) and len(np.unique(found)) <= 50)
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
