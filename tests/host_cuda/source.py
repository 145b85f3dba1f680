"""The CUDA source that CuPy generates for a kernel and its arguments, without a device.

CuPy makes it with private functions, which any release may move: the import then fails with advice.
"""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

import cupy
import numpy as np

try:
    from cupy._core import _carray, core
    from cupy._core._kernel import _ArgInfo, _decide_params_type, _get_elementwise_kernel_code, _TypeMap
    from cupy._core._reduction import _get_axis, _get_block_specs, _ReductionKernel_get_cached_function_code
    from cupy.cuda.compiler import _NVRTCProgram
except ImportError as error:
    raise RuntimeError(
        f"CuPy {cupy.__version__} has moved the private functions that generate its source ({error}): "
        "tests/host_cuda/source.py must follow them before the host proof means anything"
    ) from error

NDARRAY, INDEXER, SCALAR = 1, 2, 3


class Scalar(NamedTuple):
    """A kernel argument passed by value."""

    value: Any
    dtype: np.dtype


def elementwise_types(kernel: Any, inputs: list[Any], outputs: list[Any]) -> tuple[list[np.dtype], Any]:
    """The dtype of each argument and what the kernel's letters stand for, as CuPy decides them."""
    found = kernel._decide_params_type(_dtypes(inputs), tuple(a.dtype for a in outputs))
    return [np.dtype(t) for t in (*found[0], *found[1])], found[2]


def reduction_types(kernel: Any, inputs: list[Any], outputs: list[Any]) -> tuple[list[np.dtype], Any]:
    """The same for a ReductionKernel, which also has a type for the index of its loop."""
    found = _decide_params_type(
        kernel.in_params, kernel.out_params, _dtypes(inputs), tuple(a.dtype.type for a in outputs)
    )
    return [np.dtype(t) for t in (*found[0], *found[1])], _TypeMap((*found[2]._pairs, ("IndexT", "int32")))


def _dtypes(inputs: list[Any]) -> tuple[Any, ...]:
    return tuple(a.dtype.type if isinstance(a, np.ndarray) else None for a in inputs)


def elementwise(kernel: Any, arguments: list[Any], shape: tuple[int, ...], letters: Any) -> str:
    """Source of an ElementwiseKernel for arrays and scalars, looping over `shape`."""
    infos = (*(_info(a) for a in arguments), _indexer(shape))
    return str(
        _get_elementwise_kernel_code(
            infos, letters, kernel.params, kernel.operation, kernel.name, kernel.preamble, **kernel.kwargs
        )
    )


def reduction(
    kernel: Any, arguments: list[Any], shape: tuple[int, ...], out_shape: tuple[int, ...], block: int, letters: Any
) -> str:
    """Source of a ReductionKernel over `shape`, reduced axes first, for a block of so many threads."""
    stride = Scalar(0, np.dtype(np.int32))
    infos = (*(_info(a) for a in arguments), _indexer(shape), _indexer(out_shape), _info(stride))
    return str(
        _ReductionKernel_get_cached_function_code(
            kernel.nin,
            kernel.nout,
            kernel._params,
            infos,
            letters,
            kernel.name,
            block,
            kernel.reduce_type,
            kernel.identity,
            kernel.map_expr,
            kernel.reduce_expr,
            kernel.post_map_expr,
            kernel.preamble,
            kernel.options,
        )
    )


def _info(a: Any) -> Any:
    if isinstance(a, Scalar):
        return _ArgInfo(SCALAR, type(None), a.dtype, 0, True, True)
    return _ArgInfo(NDARRAY, cupy.ndarray, a.dtype, a.ndim, bool(a.flags.c_contiguous), a.nbytes < 2**31)


def _indexer(shape: tuple[int, ...]) -> Any:
    return _ArgInfo(INDEXER, _carray.Indexer, None, len(shape), True, np.prod(shape, dtype=np.int64) < 2**31)


def reduction_axes(axis: Any, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The reduced axes and the kept ones."""
    reduced, kept = _get_axis(axis, ndim)
    return tuple(reduced), tuple(kept)


def reduction_launch(size: int, out_size: int, contiguous: int) -> tuple[int, int, int]:
    """Threads of a block, outputs that a block works on at once, and blocks, as CuPy chooses them."""
    block, stride, blocks = _get_block_specs(size, out_size, contiguous, -1)
    return block, stride, blocks


def include_path() -> str:
    """The folder of CuPy's headers."""
    return str(core._get_header_dir_path())


def include_options() -> list[str]:
    """The compiler options that lead to CuPy's headers and those that it ships."""
    return [option for option in core.assemble_cupy_compiler_options(()) if option.startswith("-I")]


class Cubin(NamedTuple):
    """A kernel compiled for one architecture, and what the assembler says of it."""

    binary: bytes
    registers: int
    spilled: int
    """Bytes stored and loaded because registers ran out."""


def cubin(source: str, architecture: int) -> Cubin:
    """The source compiled for sm_<architecture> as CuPy compiles it, by NVRTC: no device is needed."""
    raw = "#include <cuda_fp16.h>" in source  # a RawKernel has all that it includes in its source
    headers = "" if raw else "".join(f"#include <{header}>\n" for header in core._cupy_header_list)
    options = core.assemble_cupy_compiler_options(())
    program, log = _NVRTCProgram(headers + source, "kernel.cu", method="cubin"), io.StringIO()
    extra = ("-ftz=true", f"-arch=sm_{architecture}", "--device-as-default-execution-space", "--ptxas-options=-v")
    binary, _ = program.compile((*options, *extra), log)
    registers = re.findall(r"Used (\d+) registers", log.getvalue())
    spilled = re.findall(r"(\d+) bytes spill", log.getvalue())
    return Cubin(bytes(binary), int(registers[0]), sum(map(int, spilled)))
