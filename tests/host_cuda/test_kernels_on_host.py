"""Every CUDA kernel run on the host from CuPy's own source, through the call sites of bnengine.kernels.cuda."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from .checks import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    UPDATES,
    Case,
    Device,
    Update,
    check_blend,
    check_empty,
    check_labels_outside,
    check_normalization,
    check_sigmoid,
    check_softmax,
    check_special_values,
    check_update,
)

SCHEDULES = ("lowest", "highest", "rotating", "random")

SOME = [
    *(Case(shape, axis, dtype) for (shape, axis), dtype in zip(SHAPES, itertools.cycle(DTYPES), strict=False)),
    *(Case((37, 5, 11), 1, dtype, layout) for layout, dtype in zip(LAYOUTS, itertools.cycle(DTYPES), strict=False)),
    *(Case((600, 3), 1, dtype) for dtype in DTYPES),
    *(Case((40, 3, 11), 1, "float32", offset=offset, relu=relu) for offset in (1e3, 1e6) for relu in (False, True)),
    Case((2000, 2), 1, "float32", outliers=True),
    Case((37, 5), 1, "float16", relu=False, parameters=False),
    Case((37, 5), 1, "float64", offset=1e6),
]

WHOLE = [
    Case(shape, axis, dtype, layout, relu=relu, parameters=relu)
    for (shape, axis), dtype, layout, relu in itertools.product(SHAPES, DTYPES, LAYOUTS, (False, True))
]


@pytest.mark.parametrize(
    ("case", "schedule"),
    [
        *zip(SOME, itertools.cycle(SCHEDULES), strict=False),
        *(pytest.param(*pair, marks=pytest.mark.grid) for pair in itertools.product(WHOLE, SCHEDULES)),
    ],
    ids=str,
)
def test_normalization(
    kernels: ModuleType,
    stand_in: ModuleType,
    device: Device,
    on_chip: Callable[[str], None],
    case: Case,
    schedule: str,
) -> None:
    on_chip("sm_60")
    stand_in.schedule = schedule
    check_normalization(kernels, device, case)


@pytest.mark.grid
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("chip", ["sm_60", "sm_90"])
def test_a_million_rows(
    kernels: ModuleType, device: Device, on_chip: Callable[[str], None], chip: str, offset: float
) -> None:
    on_chip(chip)
    check_normalization(kernels, device, Case((1_000_000, 2), 1, "float32", offset=offset))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_special_values(
    kernels: ModuleType, stand_in: ModuleType, device: Device, on_chip: Callable[[str], None], schedule: str
) -> None:
    on_chip("sm_60")
    stand_in.schedule = schedule
    check_special_values(kernels, device)


@pytest.mark.parametrize("chip", ["sm_60", "sm_90"])
def test_empty(kernels: ModuleType, device: Device, on_chip: Callable[[str], None], chip: str) -> None:
    on_chip(chip)
    check_empty(kernels, device)


def test_blend(kernels: ModuleType, device: Device) -> None:
    check_blend(kernels, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid(kernels: ModuleType, device: Device, dtype: str) -> None:
    check_sigmoid(kernels, device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "layout"), [((1, 1), "C"), ((13, 10), "F"), ((5, 1000), "strided"), ((700, 3), "C")])
def test_softmax(
    kernels: ModuleType, stand_in: ModuleType, device: Device, shape: tuple[int, int], layout: str, dtype: str
) -> None:
    stand_in.schedule = SCHEDULES[(shape[0] + DTYPES.index(dtype)) % len(SCHEDULES)]
    check_softmax(kernels, device, shape, dtype, layout)


def test_labels_outside(kernels: ModuleType, device: Device) -> None:
    check_labels_outside(kernels, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
def test_optimizers(kernels: ModuleType, device: Device, update: Update, dtype: str) -> None:
    check_update(kernels, device, update, dtype)


POSITIONS = """
#include <cupy/carray.cuh>
{walk}
extern "C" __global__ void positions(const CArray<long long, 1, 1, 1> a, CArray<long long, 1, 1, 1> visited) {{
  Walk walk(a[0], a[1], a[2], a[3], a[4], a[5]);
  ptrdiff_t at[IN_FLIGHT];
  ptrdiff_t k = 0;
  while (int taken = k < visited.size() ? walk.take(at) : 0)
    for (int i = 0; i < taken && k < visited.size(); ++i) visited[k++] = at[i];
}}
"""


@pytest.mark.parametrize(
    ("outer", "channels", "inner", "rows", "columns"),
    [(5, 3, 2**36, 2, 2**29), (2**33 + 3, 3, 2, 2**28, 2), (3, 2**30, 7, 1, 1)],
)
def test_positions_beyond_32_bits(
    kernels: ModuleType, stand_in: ModuleType, outer: int, channels: int, inner: int, rows: int, columns: int
) -> None:
    """The last thread of an array far beyond 2^31 values visits the positions that exact integers give."""
    from . import build

    thread = rows * channels * columns - 1
    want = [
        (n * channels + channels - 1) * inner + j
        for n in range(rows - 1, outer, rows)
        for j in range(columns - 1, inner, columns)
    ]
    given = np.asarray([thread, outer, channels, inner, rows, columns], np.int64)
    visited = np.full(len(want) + 1, -1, np.int64)  # one more than there should be
    sources = kernels.sources
    code = POSITIONS.format(walk=sources.preamble(sources.KERNELS["normalize"]))
    build.launch(code, "positions", [stand_in._bytes(given), stand_in._bytes(visited)], 1, 1)
    assert visited.tolist() == [*want, -1]
