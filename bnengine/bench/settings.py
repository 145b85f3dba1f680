"""What contenders set in the process: the fast modules for NumPy arrays, and the threads of matrix products."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from .. import kernels
from .networks import Case, Step
from .timing import Contender, thread_counts, threads


@contextlib.contextmanager
def restore_at_end() -> Iterator[None]:
    """Undo what contenders' `prepare` does to the process."""
    fast, blas = kernels.FAST["numpy"], _blas()
    try:
        with blas.limit(limits=None) if blas is not None else contextlib.nullcontext():
            yield
    finally:
        use(fast)


def use(fast: tuple[str, ...]) -> None:
    """Choose the fast modules for NumPy arrays, as if those left out were not installed."""
    kernels.FAST["numpy"] = fast
    kernels._fast.cache_clear()


@functools.cache
def _blas() -> Any:
    """What sets the threads of the matrix products; None where it is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def blas_variants() -> list[tuple[str, Callable[[], Any]]]:
    """The numbers of threads at which matrix products are tried, in words, and what sets them."""
    blas = _blas()
    if blas is None:
        return [("BLAS as it is", lambda: None)]
    limit = functools.partial(blas.limit, user_api="blas")
    return [(f"BLAS on {threads(count)}", functools.partial(limit, limits=count)) for count in thread_counts()]


def each_blas_count(case: Case, family: str, make: Callable[[], Step], fast: tuple[str, ...]) -> Iterator[Contender]:
    """A contender on NumPy arrays, with its own parameters, at each number of threads of the matrix products."""
    for variant, limit in blas_variants():

        def prepare(limit: Callable[[], Any] = limit) -> None:
            use(fast)
            limit()

        yield case.contender(family, make(), variant, prepare)
