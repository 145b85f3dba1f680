"""What the layers of an untrained network make of a mini-batch: its rank, and the angles between its rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._typing import Array, Tree
from ..backends import as_numpy
from ..context import Context
from ..data.readers import HostArray
from ..layers import Linear
from ..networks import Sequential
from .records import Curve

PERCENTILES = (15, 50, 85)
"""Of the angles between two rows."""


def rank(rows: HostArray) -> float:
    """trace(M)^2 / |M|^2 of M = rows @ rows.T, which is at most the rank, and 1 where all rows lie on one line.

    Daneshmand et al. 2020, arXiv:2003.01652, section 3, where it bounds the number of singular values that count.

    Examples
    --------
    >>> import numpy as np
    >>> from bnengine.study.geometry import rank
    >>> rank(np.eye(3)), rank(np.ones((3, 3)))
    (3.0, 1.0)
    """
    rows = rows / np.abs(rows).max()  # the squares of very small values would be zero
    products = rows @ rows.T
    return float(np.trace(products) ** 2 / np.sum(products * products))


def angles(rows: HostArray) -> HostArray:
    """Degrees between every two rows, shape (N, N - 1): those of a row to each of the others.

    Examples
    --------
    >>> import numpy as np
    >>> from bnengine.study.geometry import angles
    >>> angles(np.asarray([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0]])).round()
    array([[45., 90.],
           [45., 45.],
           [90., 45.]])
    """
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    between = np.degrees(np.arccos(np.clip(units @ units.T, -1, 1)))
    return between[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)


def by_layer(net: Sequential, params: Tree, state: Tree, x: Array) -> Curve:
    """Rank, percentiles of the angles, and the median angle of the row that is furthest from the others, by layer.

    Layer 0 is the input, and those after it what the next `Linear` is given, by the statistics of this mini-batch. A
    row of zeros has no direction, and is left out.
    """
    found: Curve = {"layer": [], "rank": [], "angle_percentiles": [], "furthest": []}
    for i, layer in enumerate(net.layers):
        if isinstance(layer, Linear):
            _look(found, as_numpy(x).astype(np.float64))
        own: dict[str, Any] = {"params": params.get(str(i), {}), "state": state.get(str(i), {})}
        x, _, _ = layer.forward(**own, x=x, context=Context(training=True))
    return found


def _look(found: Curve, rows: HostArray) -> None:
    rows = rows[np.any(rows != 0, axis=1)]
    found["layer"].append(len(found["layer"]))
    found["rank"].append(_shorten(rank(rows)))
    between = angles(rows)
    found["angle_percentiles"].append([_shorten(value) for value in np.percentile(between, PERCENTILES)])
    found["furthest"].append(_shorten(np.median(between, axis=1).max()))


def _shorten(value: float) -> float:
    return float(f"{value:.4g}")
