"""The seam: the same kernels from several modules. `select` is the only place that lists them.

A fast module offers `supports(x)`, which says whether it takes the array as it is, and the kernels of `reference`
that it speeds up; when it is loaded it is given the others. One that compiles offers `warmup(*dtypes)` as well, which
does so ahead for the dtypes of these names, or for all that it takes, and returns where the results are kept.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .._typing import Array, Implementation
from ..arguments import one_of
from . import reference

FAST: dict[str, tuple[str, ...]] = {
    "numpy": ("cpu", "plain"),
    "cupy": ("cuda",),
}
"""Library of the array -> the fast modules for it, the fastest first."""

EXTRAS: dict[str, str] = {"cpu": "cpu", "cuda": "cuda12 or cuda13"}
"""Fast module -> the extra that installs what it needs."""


RENAMED = {"blocked": "plain"}
"""Names of fast modules that `impl` still takes, with a warning -> what they mean."""

DEFINED_IN = {"jaxlib": "jax"}
"""Package that defines a library's arrays -> the library, where they differ: JAX's are of its compiled part."""


def _library(kind: type) -> str:
    """The library that an array type belongs to."""
    package = kind.__module__.partition(".")[0]
    return DEFINED_IN.get(package, package)


library: Callable[[type], str] = functools.cache(_library)


def select(x: Array, impl: Implementation | None = None) -> ModuleType:
    """The kernels for x: the first fast module for its type that is installed and takes it, else the reference."""
    if impl is not None:
        return _forced(x, impl)
    kind: type = type(x)
    fast = _fast(kind)
    return fast if fast is not None and fast.supports(x) else reference


def why_not(name: str) -> str | None:
    """Why the fast module cannot be used here; None where it can."""
    module = _load(name)
    return None if isinstance(module, ModuleType) else str(module)


def load(name: str) -> ModuleType:
    """The fast module of that name, or ImportError naming the extra that is missing."""
    module = _load(name)
    if isinstance(module, ModuleType):
        return module
    raise ImportError(f"impl: {name!r} cannot run here: {module}. Install the extra {EXTRAS[name]}")


def _forced(x: Array, impl: str) -> ModuleType:
    if impl == "reference":
        return reference
    if impl in RENAMED:
        warnings.warn(f"impl: {impl!r} is called {RENAMED[impl]!r} now", DeprecationWarning, stacklevel=4)
        impl = RENAMED[impl]
    owners = {name: library for library, names in FAST.items() for name in names}
    one_of("impl", impl, (None, "reference", *owners))
    owner = owners[impl]
    if owner != library(type(x)):
        raise ValueError(f"impl: {impl!r} runs on {owner} arrays, but x is of {library(type(x))}")
    module = load(impl)
    if not module.supports(x):
        raise ValueError(f"impl: {impl!r} takes no {x.dtype} array of shape {tuple(x.shape)}; use 'reference'")
    return module


@functools.cache
def _fast(kind: Any) -> ModuleType | None:
    modules = (_load(name) for name in FAST.get(library(kind), ()))
    return next((module for module in modules if isinstance(module, ModuleType)), None)


@functools.cache
def _load(name: str) -> ModuleType | ImportError:
    try:
        module = importlib.import_module(f".{name}", __name__)
    except ImportError as error:
        return error
    for public, function in inspect.getmembers(reference, inspect.isfunction):
        if function.__module__ == reference.__name__ and not public.startswith("_"):
            vars(module).setdefault(public, function)
    return module
