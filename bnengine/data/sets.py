"""Data sets in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .encoding import PLAIN, Encoding
from .readers import HostArray
from .reading import Reading, as_names
from .sources import Source, open_source

ABOUT = ("classes", "columns", "label", "encoding", "span", "notes", "warnings")
"""What a data set has of its source beside the rows."""


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
    encoding: Encoding = PLAIN
    """How the columns of a table became `columns`, where they are not the same."""
    span: tuple[float, float] | None = None
    """Least and largest value of a regression."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the source was read: a line each."""
    warnings: tuple[str, ...] = ()
    """What may be wrong with the source: a line each."""

    @property
    def predicts(self) -> str:
        """What is predicted, in words."""
        name = "the label" if self.label is None else repr(self.label)
        if self.span is not None:
            return f"{name} (regression, {self.span[0]:.6g} to {self.span[1]:.6g})"
        shown = ", ".join(self.classes[:10]) + ", ..." * (len(self.classes) > 10)
        return f"{name} (classification, {len(self.classes)} classes: {shown})"

    @property
    def features(self) -> int:
        """Inputs that a network for it needs."""
        return int(self.x_train.shape[1])

    @property
    def outputs(self) -> int:
        """Outputs that a network for it needs."""
        return len(self.classes) if self.task == "classification" else 1


def load(
    source: str,
    *,
    label: str | None = None,
    task: str = "auto",
    test: float = 0.2,
    seed: int = 0,
    test_data: str | None = None,
    features: Sequence[str] = (),
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    missing: str = "refuse",
    text: str = "refuse",
) -> Dataset:
    """A data set by name or path.

    Parameters
    ----------
    source : str
        "digits", "breast-cancer", "fashion-mnist", a file.npz (x, y and optionally x_test, y_test; x_train and
        y_train are read as x and y), a
        directory with x.npy, y.npy and optionally x_test.npy, y_test.npy, a file.csv with a header, or a
        directory with the four IDX files of the MNIST family.
    label : str, optional
        Column of a CSV that is to be predicted, by name or position (negative from the end); the last by
        default.
    task : {"auto", "classification", "regression"}
        "auto": labels that are text, or whole numbers with at most 50 different values, are classes.
    test : float
        Part of the rows held out for testing, stratified by class, where the source has no test part; 0: none.
    seed : int
        Of that choice.
    test_data : str, optional
        A second CSV or npz file, of the same columns and classes, as the test part.
    features, drop : sequence of str
        Columns of a CSV that are taken as features, or left out, by name or position; all but the label by
        default.
    delimiter : str, optional
        What separates the columns; by default what the first lines show: comma, semicolon, tab or space.
    missing : {"refuse", "impute"}
        Missing values of a CSV: refused with their place, or filled with the median of the training rows;
        each column that lacks some then has a feature beside it that says where.
    text : {"refuse", "onehot"}
        Columns of text of a CSV: refused, or a feature for each text, 1 where it stands and else 0.

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
    columns = as_names("features", features), as_names("drop", drop)
    asked = Reading(label, task, test, seed, test_data, *columns, delimiter=delimiter, missing=missing, text=text)
    return read_dataset(open_source(source, asked))


def read_dataset(source: Source, rank: int = 0, size: int = 1) -> Dataset:
    """The data set of a source, or one rank's share of it."""
    train, test = source.read("train", rank, size), source.read("test", rank, size)
    about = {name: getattr(source, name) for name in ABOUT}
    return Dataset(source.name, source.task, *train, *test, **about)


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
