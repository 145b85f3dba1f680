"""The array libraries that the suite runs on, as pairs of ways in and out of NumPy."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnengine.backends import as_numpy

NAMES = ["numpy", "numpy-readonly", "strict", "strict-device1", "strict-no_float64", "torch", "jax", "dask"]
UNNAMED = ["ndonnx", "cubed"]
"""Those that no backend names: functions of arrays take them all the same."""

WITHOUT_FLOAT64 = ("strict-no_float64", "jax")


def need(module: str) -> Any:
    """The module; skip where it is not installed, fail where everything has to run."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if os.environ.get("BNENGINE_TEST_ALL"):
            raise
        pytest.skip(f"needs {module}: {error}")


@dataclass(frozen=True)
class Library:
    name: str
    asarray: Callable[[Any], Any]
    host: Callable[[Any], np.ndarray] = as_numpy


def library(name: str) -> Library:
    if name == "numpy":
        return Library(name, np.asarray)
    if name == "numpy-readonly":
        return Library(name, _readonly)
    if name.startswith("strict"):
        strict = need("array_api_strict")
        strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=())
        _, _, device = name.partition("-")
        place = strict.Device(device) if device else None
        return Library(name, lambda a: strict.asarray(a, device=place))
    if name == "torch":
        torch = need("torch")
        return Library(name, lambda a: torch.asarray(np.array(a)))
    if name == "jax":
        return Library(name, need("jax.numpy").asarray)
    if name == "ndonnx":
        return Library(name, need("ndonnx").asarray, lambda a: a.unwrap_numpy())
    if name == "cubed":
        cubed = need("cubed.array_api")
        return Library(name, lambda a: cubed.asarray(np.asarray(a), chunks=tuple(min(n, 5) for n in np.shape(a))))
    dask = need("dask.array")
    return Library(name, lambda a: dask.from_array(np.asarray(a)))


def _readonly(a: Any) -> np.ndarray:
    copy = np.array(a)
    copy.flags.writeable = False
    return copy
