"""What is handed in: whole numbers of Python's and NumPy's, and arrays of any library."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from ..arguments import shown
from ..backends import as_numpy
from ..kernels import library


def whole(name: str, value: Any, least: int, or_else: str = "") -> None:
    """Refuse what is no whole number of Python's or NumPy's of at least that size."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name}: expected {or_else}an int of at least {least}, got {shown(value)}")


def on_host(a: Any) -> np.ndarray[Any, Any]:
    """Any array as NumPy's; a sparse one filled."""
    return as_numpy(a.toarray() if hasattr(a, "toarray") else a)


def library_of(X: Any) -> str:
    """The name of its backend: of sparse rows NumPy's, which they become."""
    name = library(type(X)).replace("_", "-")
    return "numpy" if name == "scipy" else name


def device_words(X: Any) -> str | None:
    """The device of an array, as `backend` takes it; None: its library's default."""
    name = library_of(X)
    if name == "array-api-strict":
        return str(X.device).partition("'")[2].rstrip("')")
    return str(X.device) if name == "torch" else f"cuda:{X.device.id}" if name == "cupy" else None


def wide(leaf: Any) -> Any:
    """A leaf of a tree in float64 on the host; a count as it is."""
    return leaf if isinstance(leaf, int) else as_numpy(leaf).astype(np.float64)
