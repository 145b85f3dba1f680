"""How the CPU kernels are compiled: on first use, kept on disk, with a word to the user while it happens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import config, njit
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Products and sums may fuse. Sums are never reordered: that would fold (x - mean) - remainder
    # into x - (mean + remainder), which is the cancellation that the remainder is there to avoid.
    "fastmath": {"contract"},
}


if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and these kernels run compiled only")

FILES = [file.stat() for file in Path(__file__).parent.glob("*.py")]
STAMP = max(file.st_mtime for file in FILES), sum(file.st_size for file in FILES)
"""What compiled functions are kept with. Numba takes the stamp of a function's own file, and would go on using
what was compiled of functions from the other files, which it calls, before those changed."""


def compiled(function: F) -> F:
    """Compile for each combination of dtypes when it is first called, and keep the result on disk.

    Numba refuses to decorate where no cache folder is writable; then every process compiles anew. So it does where
    Numba has renamed the stamp, which is private.
    """
    try:
        result: Any = njit(cache=True, **OPTIONS)(function)
        kept = result._cache._cache_file
    except (RuntimeError, AttributeError):
        kept = None
    if not hasattr(kept, "_source_stamp"):
        return cast("F", njit(**OPTIONS)(function))
    kept._source_stamp = STAMP
    return cast("F", result)


def cache_folder(function: Any) -> str:
    """Where what was compiled of a function is kept."""
    return function.stats.cache_path or "no folder, as none can be written to: set NUMBA_CACHE_DIR to one"


class _Notice(event.Listener):  # type: ignore[misc]  # numba has no type information
    """One line on standard error when a kernel of this package is compiled, not when it is loaded."""

    told = False

    def on_start(self, event: Any) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith(__package__)
        if ours and not self.told:
            self.told = True
            words = "once; cached" if event.data["dispatcher"].stats.cache_path else "again in each process: see warmup"
            print(f"bnengine: compiling CPU kernels ({words})", file=sys.stderr, flush=True)  # noqa: T201

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Notice())
