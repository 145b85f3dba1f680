"""Compile kernels ahead, so that no run waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .. import backends, kernels


def warmup(dtypes: Sequence[str] = ()) -> Iterator[str]:
    """Compile what can run here; yields a line on each fast module: how long it took and where the result is kept.

    Parameters
    ----------
    dtypes : sequence of str
        Such as "float32". Empty: all that each module takes.

    Raises
    ------
    ImportError
        Where nothing can be compiled here; the message names the extra.
    """
    usable = [name for library, names in kernels.FAST.items() if backends.unusable(library) is None for name in names]
    modules = {name: kernels.load(name) for name in usable if kernels.why_not(name) is None}
    compiling = {name: module for name, module in modules.items() if hasattr(module, "warmup")}
    if not compiling:
        kernels.load(next(iter(kernels.EXTRAS)))
    for name, module in compiling.items():
        began = time.perf_counter()
        kept = module.warmup(*dtypes)
        words = f"{name}, {' and '.join(dtypes)}" if dtypes else name
        yield f"{words}: {time.perf_counter() - began:.1f} s, kept in {kept}"
