"""The host harness on kernels written by hand: it runs the right ones and catches what is undefined on a device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

BLOCK_SUM = """
#include <cupy/carray.cuh>
extern "C" __global__ void block_sum(const CArray<float, 1, 1, 1> x, CArray<float, 1, 1, 1> total) {
  __shared__ float parts[3];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  ptrdiff_t i = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x;
  float value = i < x.size() ? x[i] : 0;
  for (int step = 16; step; step /= 2) value += __shfl_down_sync(0xffffffff, value, step);
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) total[blockIdx.x] = parts[0] + parts[1] + parts[2];
}
"""
SCHEDULES = ("lowest", "highest", "rotating", "random")
BLOCK, BLOCKS, SIZE = 96, 3, 250


@pytest.fixture
def block_sum(stand_in: ModuleType) -> Callable[[str, str], bool]:
    """Whether the sums of a source are right on a schedule."""
    from . import build

    def run(code: str, schedule: str) -> bool:
        x, total = np.arange(SIZE, dtype=np.float32), np.full(BLOCKS, np.nan, np.float32)
        build.launch(code, "block_sum", [stand_in._bytes(x), stand_in._bytes(total)], BLOCKS, BLOCK, schedule)
        want = [x[BLOCK * k : BLOCK * (k + 1)].sum() for k in range(BLOCKS)]
        return bool((total == want).all())

    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_right_kernel(block_sum: Callable[[str, str], bool], schedule: str) -> None:
    assert block_sum(BLOCK_SUM, schedule)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("  __syncthreads();\n", "", id="missing barrier"),
        pytest.param("parts[warp] = value", "if (warp < 2) parts[warp] = value", id="shared memory not written"),
        pytest.param("int step = 16", "int step = 8", id="half a warp"),
        pytest.param("i < x.size() ? x[i] : 0", "1", id="input not read"),
    ],
)
def test_wrong_result_shows(block_sum: Callable[[str, str], bool], right: str, wrong: str) -> None:
    """On at least one schedule: the proof runs several because one may hide the bug."""
    assert right in BLOCK_SUM
    assert not all(block_sum(BLOCK_SUM.replace(right, wrong), schedule) for schedule in SCHEDULES)


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        pytest.param("i < x.size() ? x[i] : 0", "x[i]", "outside its array", id="read past the end"),
        pytest.param("total[blockIdx.x]", "total[blockIdx.x - 1]", "outside its array", id="write before the start"),
        pytest.param(
            "  __syncthreads();", "  if (warp) return;\n  __syncthreads();", "only some", id="partial barrier"
        ),
        pytest.param("  __syncthreads();", "  if (lane) __syncwarp(); else __syncthreads();", "never", id="deadlock"),
    ],
)
def test_undefined_behaviour_is_named(block_sum: Callable[[str, str], bool], right: str, wrong: str, says: str) -> None:
    from .build import HostError

    assert right in BLOCK_SUM
    with pytest.raises(HostError, match=says):
        block_sum(BLOCK_SUM.replace(right, wrong), "lowest")


def test_what_does_not_compile_is_shown(block_sum: Callable[[str, str], bool]) -> None:
    with pytest.raises(RuntimeError, match="valuee"):
        block_sum(BLOCK_SUM.replace("float value", "float valuee"), "lowest")
