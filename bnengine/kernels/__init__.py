"""The seam: the same kernels from several modules. `select` is the only place that lists them.

A fast module offers every public name of `reference` (what it does not speed up it re-exports) and
`supports(x)`, which says whether it takes the array as it is.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from .._typing import Array
from . import reference

FAST: dict[str, str] = {
    "cupy": "cuda",
}
"""Library of the array -> the fast module for it."""

EXTRAS: dict[str, str] = {"cpu": "cpu", "cuda": "cuda12 or cuda13"}
"""Fast module -> the extra that installs what it needs."""


def library(kind: type) -> str:
    """The library that an array type belongs to."""
    return kind.__module__.partition(".")[0].removesuffix("lib")


def select(x: Array, impl: str | None = None) -> ModuleType:
    """The kernels for x: the fast module for its type where there is one that takes it, else the reference."""
    if impl is not None:
        return _forced(x, impl)
    fast = _fast(type(x))
    return fast if fast is not None and fast.supports(x) else reference


def why_not(name: str) -> str | None:
    """Why the fast module cannot be used here; None where it can."""
    module = _load(name)
    return None if isinstance(module, ModuleType) else str(module)


def _forced(x: Array, impl: str) -> ModuleType:
    if impl == "reference":
        return reference
    if impl not in EXTRAS:
        raise ValueError(f"impl: expected None, 'reference', 'cpu' or 'cuda', got {impl!r}")
    if FAST.get(library(type(x))) != impl:
        owner = {"cpu": "NumPy", "cuda": "CuPy"}[impl]
        raise ValueError(f"impl: {impl!r} runs on {owner} arrays, but x is {type(x).__module__}.{type(x).__name__}")
    module = _load(impl)
    if not isinstance(module, ModuleType):
        raise ImportError(f"impl: {impl!r} cannot run here: {module}. Install the extra {EXTRAS[impl]}")
    return module


@functools.cache
def _fast(kind: type) -> ModuleType | None:
    name = FAST.get(library(kind))
    module = None if name is None else _load(name)
    return module if isinstance(module, ModuleType) else None


@functools.cache
def _load(name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f".{name}", __name__)
    except ImportError as error:
        return error
