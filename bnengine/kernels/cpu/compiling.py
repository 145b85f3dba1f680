"""How the CPU kernels are compiled: on first use, kept on disk, with a word to the user while it happens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Products and sums may fuse. Sums are never reordered: that would fold (x - mean) - remainder
    # into x - (mean + remainder), which is the cancellation that the remainder is there to avoid.
    "fastmath": {"contract"},
}


def compiled(function: F) -> F:
    """Compile for each combination of dtypes when it is first called, and keep the result on disk.

    Numba refuses to decorate where no cache folder is writable; then every process compiles anew.
    A cached function is renewed when its own file changes, not when one that it calls from
    elsewhere does.
    """
    try:
        result: F = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        result = njit(**OPTIONS)(function)
    return result


class _Notice(event.Listener):  # type: ignore[misc]  # numba has no type information
    """One line on standard error when a kernel of this package is compiled, not when it is loaded."""

    told = False

    def on_start(self, event: Any) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith(__package__)
        if ours and not self.told:
            self.told = True
            print("bnengine: compiling CPU kernels (once; cached)", file=sys.stderr, flush=True)  # noqa: T201

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Notice())
