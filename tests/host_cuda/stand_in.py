"""A `cupy` over NumPy memory whose kernels run on the host: what bnengine.kernels.cuda needs of CuPy, no more.

Kernels are CuPy's own objects: they decide types, generate the source and refuse what they refuse. Only the
launch is replaced. `library` makes a whole array library of it.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np

from . import build, memory, source, streams
from .memory import Device, device, empty, host, ndarray, ones, zeros, zeros_like
from .source import Scalar

__all__ = ["Device", "asnumpy", "device", "empty", "host", "ndarray", "ones", "zeros", "zeros_like"]
__version__ = cupy.__version__
float16, float32, float64, int64, uint32 = np.float16, np.float32, np.float64, np.int64, np.uint32

asnumpy = host
cuda = streams.cuda

BLOCK = 128
"""Threads of an ElementwiseKernel's block, as in CuPy."""

schedule = build.SCHEDULES[0]
dry = False
"""Whether launches only note the source and compute nothing."""
rewrite: Callable[[str], str] = str
"""What is done to the generated source before it runs: planted bugs."""
launches: list[str] = []
"""Names of the kernels launched so far."""
sources: dict[str, str] = {}
"""Every source launched so far, with its kernel's name."""


class ElementwiseKernel:
    """CuPy's kernel, run on the host."""

    def __init__(self, *definition: Any, **options: Any) -> None:
        self.kernel = cupy.ElementwiseKernel(*definition, **options)

    def __call__(self, *arguments: Any, size: int | None = None) -> None:
        k = self.kernel
        memory.refuse_off_device()
        assert len(arguments) == k.nargs, f"{k.name} takes {k.nargs} arguments, got {len(arguments)}"
        dtypes, letters = source.elementwise_types(k, list(arguments[: k.nin]), list(arguments[k.nin :]))
        shape = _loop(k, arguments, size)
        if 0 in shape:
            return
        arguments, shape = _collapse(_params(k), _broadcast(k, arguments, shape), shape)
        values = _values(arguments, dtypes)
        code = source.elementwise(k, values, shape, letters)
        count = math.prod(shape)
        blocks, threads = -(-count // BLOCK), min(BLOCK, count)
        _launch(code, k.name, [*(_bytes(v) for v in values), _indexer(shape)], blocks, threads)


class ReductionKernel:
    """CuPy's kernel, run on the host."""

    def __init__(self, *definition: Any, **options: Any) -> None:
        self.kernel = cupy.ReductionKernel(*definition, **options)

    def __call__(self, *arguments: Any, axis: Any = None) -> None:
        k = self.kernel
        memory.refuse_off_device()
        assert len(arguments) == k.nargs, f"{k.name} takes {k.nargs} arguments, got {len(arguments)}"
        inputs, outputs = list(arguments[: k.nin]), list(arguments[k.nin :])
        dtypes, letters = source.reduction_types(k, inputs, outputs)
        shape = np.broadcast_shapes(*(a.shape for a in inputs if isinstance(a, np.ndarray)))
        reduced, kept = source.reduction_axes(axis, len(shape))
        for out in outputs:
            assert out.shape == tuple(shape[i] for i in kept), f"{k.name}: out shape is mismatched"
        if math.prod(shape[i] for i in kept) == 0:
            return
        inputs = [np.broadcast_to(host(a), shape).transpose(reduced + kept) if _array(a) else a for a in inputs]
        self._run(inputs, outputs, tuple(shape[i] for i in reduced + kept), len(kept), dtypes, letters)

    def _run(
        self, inputs: list[Any], outputs: list[Any], shape: tuple[int, ...], kept: int, dtypes: Any, letters: Any
    ) -> None:
        k = self.kernel
        out_shape = shape[len(shape) - kept :]
        contiguous = max(_contiguous_outputs(a, kept) for a in inputs if _array(a))
        inputs, shape = _collapse(k.in_params, inputs, shape)
        outputs, out_shape = _collapse(k.out_params, [host(a) for a in outputs], out_shape)
        block, stride, blocks = source.reduction_launch(math.prod(shape), math.prod(out_shape), contiguous)
        values = _values([*inputs, *outputs], dtypes)
        code = source.reduction(k, values, shape, out_shape, block, letters)
        packed = [*(_bytes(v) for v in values), _indexer(shape), _indexer(out_shape), np.int32(stride).tobytes()]
        _launch(code, k.name, packed, blocks, block)


class RawKernel:
    """CuPy's kernel, run on the host."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        cupy.RawKernel(code, name, options=options)  # refuses what CuPy refuses
        self.code, self.name = code, name

    def compile(self) -> None:
        sources[self.code] = self.name

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...], shared_mem: int = 0) -> None:
        memory.refuse_off_device()
        assert shared_mem <= self.max_dynamic_shared_size_bytes, f"{self.name}: more shared memory than it asked for"
        found = re.search(r"#define CLUSTER (\d+)", self.code)
        cluster = int(found[1]) if found else 1
        assert grid[0] % cluster == 0, f"{self.name}: {grid[0]} blocks are no clusters of {cluster}"
        _launch(self.code, self.name, list(map(_raw_bytes, arguments)), *grid, *block, cluster, shared_mem)


def get_default_memory_pool() -> Any:
    """One that keeps nothing."""
    return SimpleNamespace(free_all_blocks=lambda: None, used_bytes=int, total_bytes=int)


def is_available() -> bool:
    """A device answers: this one."""
    return True


def _raw_bytes(a: Any) -> bytes:
    """An argument of a RawKernel: the address of an array on the device, or a value of NumPy as it is."""
    if isinstance(a, ndarray):
        return np.uint64(a.data.ptr).tobytes()
    assert isinstance(a, np.generic) or (isinstance(a, np.ndarray) and a.size == 1), f"{type(a)}: no dtype of its own"
    return a.tobytes()


def _launch(
    code: str, name: str, arguments: list[bytes], blocks: int, threads: int, cluster: int = 1, shared: int = 0
) -> None:
    code = rewrite(code)
    launches.append(name)
    memory.events.append(name)
    sources[code] = name
    if not dry:
        memory.queue(functools.partial(_run, code, name, arguments, blocks, threads, cluster, shared))


def _run(code: str, name: str, arguments: list[bytes], blocks: int, threads: int, cluster: int, shared: int) -> None:
    build.launch(code, name, arguments, blocks, threads, schedule, cluster=cluster, shared=shared)
    memory.check_margins(name)


# ---- what CuPy does to arguments before it launches


def _params(k: Any) -> list[Any]:
    """The declared parameters: `params` of a kernel also holds the index of its loop."""
    return [*k.in_params, *k.out_params]


def _array(a: Any) -> bool:
    return isinstance(a, np.ndarray)


def _loop(k: Any, arguments: Any, size: int | None) -> tuple[int, ...]:
    """The shape that an ElementwiseKernel loops over."""
    shapes = [a.shape for p, a in zip(_params(k), arguments, strict=True) if _array(a) and not p.raw]
    assert bool(shapes) == (size is None), f"{k.name}: size goes with raw arrays only"
    shape = (size,) if size is not None else np.broadcast_shapes(*shapes)
    for p, a in list(zip(_params(k), arguments, strict=True))[k.nin :]:
        assert p.raw or a.shape == shape, f"{k.name}: out shape is mismatched"
    return tuple(shape)


def _broadcast(k: Any, arguments: Any, shape: tuple[int, ...]) -> list[Any]:
    pairs = list(zip(_params(k), arguments, strict=True))
    wide = [np.broadcast_to(host(a), shape) if _array(a) and not p.raw else a for p, a in pairs[: k.nin]]
    return [*wide, *arguments[k.nin :]]


def _collapse(params: Any, arrays: Any, shape: tuple[int, ...]) -> tuple[list[Any], tuple[int, ...]]:
    """Neighbouring axes joined where every array steps through them as through one."""
    looped = [a for p, a in zip(params, arrays, strict=True) if _array(a) and not p.raw]
    kept: list[int] = []
    for i, n in enumerate(shape):
        if n == 1:
            continue
        if kept and all(a.strides[kept[-1]] == n * a.strides[i] for a in looped):
            kept[-1] = i
        else:
            kept.append(i)
    if not kept:
        kept = [len(shape) - 1] if shape else []
    sizes = _joined(shape, kept)
    joined = [
        np.lib.stride_tricks.as_strided(a, sizes, tuple(a.strides[i] for i in kept)) if _array(a) and not p.raw else a
        for p, a in zip(params, arrays, strict=True)
    ]
    return joined, sizes


def _joined(shape: tuple[int, ...], kept: list[int]) -> tuple[int, ...]:
    """The sizes of axes that end at the kept ones."""
    ends = [-1, *kept[:-1], len(shape) - 1] if kept else []
    return tuple(math.prod(shape[a + 1 : b + 1]) for a, b in itertools.pairwise(ends))


def _contiguous_outputs(a: Any, kept: int) -> int:
    """How many outputs lie beside each other in an input whose reduced axes come first."""
    count = 1
    for i in range(a.ndim - 1, a.ndim - 1 - kept, -1):
        if a.strides[i] != count * a.itemsize:
            break
        count *= a.shape[i]
    return count


def _values(arguments: Any, dtypes: list[np.dtype]) -> list[Any]:
    return [host(a) if _array(a) else Scalar(a, t) for a, t in zip(arguments, dtypes, strict=True)]


def _bytes(value: Any) -> bytes:
    """An argument as a launch passes it: a scalar, or the address, size, shape and strides of an array."""
    if isinstance(value, Scalar):
        return np.asarray(value.value).astype(value.dtype).tobytes()
    return np.array([value.ctypes.data, value.size, *value.shape, *value.strides], np.int64).tobytes()


def _indexer(shape: tuple[int, ...]) -> bytes:
    return np.array([math.prod(shape), *shape, *(0 for _ in shape)], np.int64).tobytes()
