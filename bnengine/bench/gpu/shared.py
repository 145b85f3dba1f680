"""Arrays of CuPy as PyTorch's and JAX's, on the same memory and in order on the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from ..._typing import Native
from ...kernels import cuda

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX else takes most of the memory


def dtype_of(name: str) -> Any:
    """A dtype of CuPy; bfloat16 comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    if not cuda._bfloat16():
        raise ImportError("bfloat16 needs ml_dtypes, and CuPy 14 or newer")
    return np.dtype(cuda._bfloat16()[0])


def tensor(a: Native) -> Any:
    """A tensor of PyTorch on the memory of an array."""
    import torch

    return _share(torch.from_dlpack, a, "PyTorch", lambda t: t.view(torch.bfloat16))


def from_tensor(a: Any) -> Native:
    """An array of CuPy on the memory of a tensor."""
    import torch

    if a.dtype is torch.bfloat16:
        return cupy.from_dlpack(a.view(torch.int16)).view(dtype_of("bfloat16"))
    return cupy.from_dlpack(a)


def jax_array(a: Native) -> Any:
    """An array of JAX on the memory of an array, bfloat16 as integers of its bits."""
    import jax

    return _share(jax.dlpack.from_dlpack, a, "JAX", lambda bits: bits)


def with_current_stream(call: Callable[[Any], Any], x: Native) -> Callable[[], None]:
    """`call`, which waits for the current stream as x comes from there, and is waited for as its result goes there."""
    import jax

    return lambda: cupy.from_dlpack(jax.tree.leaves(call(jax_array(x)))[0])


def _share(convert: Callable[[Any], Any], a: Native, library: str, as_bfloat16: Callable[[Any], Any]) -> Any:
    """By DLPack; bfloat16, which CuPy and NumPy do not export, as integers of its bits."""
    bits = a.dtype.name == "bfloat16"
    try:
        there = convert(a.view(np.int16) if bits else a)
    except Exception as error:
        words = next(iter(str(error).splitlines()), type(error).__name__)
        raise ImportError(f"{library} does not take this device's arrays: {words}") from error
    return as_bfloat16(there) if bits else there


def clear() -> None:
    """Give back what the last case's arrays lay in: contenders have pools of their own."""
    cupy.get_default_memory_pool().free_all_blocks()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()
