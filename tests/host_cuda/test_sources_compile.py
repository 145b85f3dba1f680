"""Every CUDA source compiles for the architectures that are promised, as CuPy would compile it."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
from types import ModuleType

import numpy as np
import pytest

from bnengine.kernels.reference import Affine

from .checks import DTYPES, SHAPES, Device, dtype_of, laid_out

ARCHITECTURES = (75, 80, 90)


@pytest.fixture
def sources(kernels: ModuleType, stand_in: ModuleType) -> dict[str, str]:
    """The sources of all kernels, dtypes and layouts, which are those that `warmup` compiles ahead."""
    try:
        importlib.metadata.version("nvidia-cuda-nvrtc")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no NVRTC: install nvidia-cuda-nvrtc")
    stand_in.dry = True
    with stand_in.Device():
        kernels.warmup()
    return dict(stand_in.sources)


def test_warmup_reaches_every_kernel(sources: dict[str, str], kernels: ModuleType) -> None:
    names = {*kernels.sources.KERNELS, *kernels.sources.RAW}
    assert {name.removeprefix("bnengine_") for name in sources.values()} == names
    for kernel in names:
        dtypes = sum(name == f"bnengine_{kernel}" for name in sources.values())
        assert dtypes >= 2, f"{kernel}: only {dtypes} sources"


def test_warmup_leaves_nothing_to_compile(
    sources: dict[str, str], kernels: ModuleType, stand_in: ModuleType, device: Device
) -> None:
    for (shape, axis), dtype, layout in itertools.product(SHAPES, DTYPES, ("C", "F", "strided")):
        x = laid_out(device, np.zeros(shape, dtype_of(dtype)), layout)
        _, m = kernels.forward(x, Affine(None, None, 1e-5, False), axis)
        kernels.backward(x, x, m, Affine(None, None, 1e-5, False), axis)
        kernels.normalize(x, m, Affine(None, None, 1e-5, False), axis)
        kernels.gradient_sums(x, x, kernels.moments(x, axis), Affine(None, None, 1e-5, False), axis)
    for rows, classes in ((128, 10), (700, 1000)):
        labels = device.put(np.zeros(rows, np.int64))
        kernels.softmax_cross_entropy(device.put(np.zeros((rows, classes), np.float32)), labels)
    assert [name for code, name in stand_in.sources.items() if code not in sources] == []


def test_sources_compile(sources: dict[str, str]) -> None:
    """Each generated source and some of the raw ones, for one architecture in turn."""
    some = [(code, name) for k, (code, name) in enumerate(sources.items()) if not _raw(code) or k % 12 == 0]
    for number, (code, name) in enumerate(some):
        _compiles(code, name, ARCHITECTURES[number % len(ARCHITECTURES)])


@pytest.mark.grid
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sources_compile_everywhere(sources: dict[str, str], architecture: int) -> None:
    registers = [(_compiles(code, name, architecture), name) for code, name in sources.items()]
    print(f"sm_{architecture}: {len(sources)} sources, no spills, at most {max(registers)} registers")


def _raw(code: str) -> bool:
    return "#include <cuda_fp16.h>" in code


def _compiles(code: str, name: str, architecture: int) -> int:
    from . import source

    clusters = re.search(r"#define CLUSTER ([248])", code)
    compiled = source.cubin(code, 90 if clusters else architecture)
    assert compiled.binary.startswith(b"\x7fELF")
    assert compiled.spilled == 0, f"{name} spills {compiled.spilled} bytes on sm_{architecture}"
    return compiled.registers
