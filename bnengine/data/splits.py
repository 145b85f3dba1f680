"""Which rows are held out, and the order of mini-batches.

With initialisation this is the only place that draws random numbers.
"""

from __future__ import annotations

import math

import numpy as np

from ..arguments import instance, integer, number, shown
from .readers import DataError, HostArray


def hold_out(x: HostArray, y: HostArray, part: float, *, seed: int, stratify: bool) -> tuple[HostArray, ...]:
    """(x, held x, y, held y): a part of the rows held out, stratified by class where asked and possible."""
    check_part("part", part)
    integer("seed", seed, 0)
    instance("stratify", stratify, bool, "True or False")
    x, y = (_check_array(name, v) for name, v in (("x", x), ("y", y)))
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
    needs two. Batches of one row are for networks without it.

    Examples
    --------
    >>> import numpy as np
    >>> from bnengine.data import batches
    >>> [len(batch) for batch in batches(9, 4, np.random.default_rng(0))]
    [4, 5]
    """
    instance("rng", rng, np.random.Generator, "a NumPy random Generator")
    integer("rows", rows, 0, below=2**31)
    if type(size) is not int or rows < 2 or size < 1:
        raise ValueError(
            f"batch_size: expected at least 2 rows in batches of at least 1, got {rows} rows, size {shown(size)}"
        )
    order = rng.permutation(rows)
    starts = list(range(0, rows, size))
    if size > 1 and rows - starts[-1] == 1:
        starts.pop()
    return np.split(order, starts[1:])


def _check_array(name: str, value: HostArray) -> HostArray:
    """Refuse what is no array of numbers or text."""
    instance(name, value, np.ndarray, "a NumPy array")
    if value.dtype.kind not in "biufUO":
        raise TypeError(f"{name}: expected numbers or text, got {shown(value)}")
    return value


def check_part(name: str, value: float, *, least: float = math.ulp(0.0)) -> None:
    """Refuse what is no part of a whole: `least` or more, and below 1."""
    number(name, value, least, math.nextafter(1, 0), words="a part between 0 and 1")
