"""What launches have in common: CuPy, the device of the arrays, kernels built when they are first called."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..._typing import Native
from ..reference import Moments
from .sources import KERNELS, RAW, Reduction, preamble

__all__ = ["cupy", "kernel", "on_device", "raw"]

P = ParamSpec("P")
R = TypeVar("R")

CACHE_ADVICE = "set CUPY_CACHE_DIR to a folder that can be written to"

try:
    import cupy
except OSError as error:  # importing CuPy makes the folder of its kernel cache
    raise ImportError(f"CuPy cannot make its kernel cache: {error}; {CACHE_ADVICE}") from error

C_NAMES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float", "float64": "double"}
"""What a dtype is called in the source of a RawKernel."""


FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

name_of: Callable[[Any], str] = functools.cache(operator.attrgetter("name"))
"""The name of a dtype, which NumPy puts together anew each time it is asked: 2 us."""


def statistics_dtype(x: Native) -> np.dtype[Any]:
    """float64 for float64, else float32: the reference's, without asking for a namespace."""
    return FLOAT64 if x.dtype == FLOAT64 else FLOAT32


class Given(Moments):
    """Statistics without a remainder: any array stands in its place, and no kernel reads it."""

    __slots__ = ()


def on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run on the device of the first argument, and say what to do where CuPy cannot keep compiled kernels."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        try:
            with x.device:
                return function(*args, **kwargs)
        except OSError as error:
            if error.filename is None:  # a library that cannot be loaded, not a file of the cache
                raise
            raise RuntimeError(f"CuPy cannot keep compiled kernels: {error}; {CACHE_ADVICE}") from error

    return wrapper


@functools.cache
def kernel(name: str) -> Any:
    """An ElementwiseKernel or ReductionKernel of `sources.KERNELS`."""
    spec = KERNELS[name]
    if isinstance(spec, Reduction):
        *parts, reduce_type, _ = spec
        return cupy.ReductionKernel(*parts, f"bnengine_{name}", reduce_type=reduce_type, preamble=preamble(spec))
    *parts, _ = spec
    return cupy.ElementwiseKernel(*parts, f"bnengine_{name}", preamble=preamble(spec), no_return=True)


@functools.cache
def raw(name: str, types: tuple[tuple[str, str], ...], **constants: int | str) -> Any:
    """A RawKernel of `sources.RAW`, for these dtypes by the letters of its source, with these constants in front."""
    lines = [
        "#include <cuda_bf16.h>",
        "#include <cuda_fp16.h>",
        "#include <cupy/math_constants.h>",
        *(f"typedef {C_NAMES[dtype]} {letter};" for letter, dtype in types),
        *(f"#define {constant} {value}" for constant, value in constants.items()),
        preamble(RAW[name]),
    ]
    return cupy.RawKernel("\n".join(lines), f"bnengine_{name}", options=("--std=c++17",))


SHARED = 48 * 1024
"""Bytes of shared memory that any kernel may have."""


@functools.cache
def allow_shared(kernel: Any, number: int, size: int) -> None:
    """Let a RawKernel have so much shared memory on the device of that number, and two of its blocks side by side."""
    with cupy.cuda.Device(number):
        kernel.max_dynamic_shared_size_bytes = size
        kernel.preferred_shared_memory_carveout = 100  # per cent: the driver's own choice may leave room for one block
