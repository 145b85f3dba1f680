"""Compile kernels ahead, so that no run waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import backends, kernels


def warmup(dtypes: Sequence[str]) -> Iterator[str]:
    """Compile what can run here; yields a line on each: how long it took and where the result is kept.

    Parameters
    ----------
    dtypes : sequence of str
        "float32", "float64"; of the kernels for the processor. Those for a GPU are compiled for every dtype.

    Raises
    ------
    ImportError
        Where nothing can be compiled here; the message names the extra.
    """
    gpu = backends.unusable("cupy") is None
    if kernels.why_not("cpu") is not None and not gpu:
        kernels.load("cpu")
    if kernels.why_not("cpu") is None:
        cpu = kernels.load("cpu")
        began = time.perf_counter()
        cpu.warmup(*dtypes)
        yield f"cpu, {' and '.join(dtypes)}: {time.perf_counter() - began:.1f} s, {_numba_cache()}"
    if gpu:
        import cupy

        began = time.perf_counter()
        kernels.load("cuda").warmup()
        yield f"cuda: {time.perf_counter() - began:.1f} s, kept in {cupy.cuda.compiler.get_cache_dir()}"


def _numba_cache() -> str:
    from ..kernels.cpu import planes

    compiled: Any = planes.normalize
    folder = compiled.stats.cache_path
    return f"kept in {folder}" if folder else "not kept: no folder can be written to; set NUMBA_CACHE_DIR to one"
