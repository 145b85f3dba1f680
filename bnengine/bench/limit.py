"""The memory limit: the fastest copy of an array that this machine does, in the process that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._typing import Native
from ..kernels import memory, workers
from .timing import COPY, Contender, threads

PASSES = 2
"""Times that a copy moves the array: read, write. Batch normalisation moves it MINIMUM times."""
MINIMUM = 5
"""Forward: read x, write y. Backward: read x, read dy, write dx."""


def copies(x: Native) -> Iterator[Contender]:
    """Copies of x: into new memory and into kept, on one thread and on all, and past the caches where that compiles."""
    flat = x.reshape(-1)
    kept = memory.empty(flat.shape, flat.dtype)  # aligned, as streaming stores need

    def into_kept(variant: str, copy: Callable[[], None]) -> Contender:
        def error() -> float:
            kept[...] = np.nan
            copy()
            return float(not np.array_equal(kept, flat))

        return Contender(COPY, copy, error, 0, variant)

    yield Contender(COPY, flat.copy, lambda: float(not np.array_equal(flat.copy(), flat)), 0, "new memory")
    yield into_kept(threads(1), lambda: np.copyto(kept, flat))
    if workers.threads() > 1:
        yield into_kept(threads(workers.threads()), lambda: _in_blocks(np.copyto, kept, flat))
    if not memory.past_cache(PASSES * flat.nbytes):
        return  # such stores would only cost, and small memory is not aligned to what they need
    try:
        stream = _streaming()
    except ImportError:
        return
    yield into_kept(f"{threads(workers.threads())}, past the caches", lambda: _in_blocks(stream, kept, flat))


def _in_blocks(copy: Any, to: Native, source: Native) -> None:
    size, step = source.size, memory.ALIGNMENT
    blocks = [
        (first * step, size if last == size // step else last * step)
        for first, last in workers.ranges(size // step, workers.parts(size))
    ]

    def one(i: int) -> None:
        start, stop = blocks[i]
        copy(to[start:stop], source[start:stop])

    workers.run(one, len(blocks))


def _streaming() -> Any:
    """copy(to, source) with stores that leave the caches alone."""
    from ..kernels.cpu.compiling import compiled
    from ..kernels.cpu.vectors import fence, lanes, load, stream

    @compiled
    def copy(to: Native, source: Native) -> None:
        width = lanes(to)
        whole = to.size // width * width
        for i in range(0, whole, width):
            stream(to, i, load(source, i))
        for i in range(whole, to.size):
            to[i] = source[i]
        fence()

    return copy
