"""The host harness on kernels written by hand: it runs the right ones and catches what is undefined on a device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from .checks import Device, dtype_of

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
CLUSTER_SUM = """
#include <cupy/carray.cuh>
#define CLUSTER 4
extern "C" __global__ void block_sum(const CArray<float, 1, 1, 1> x, CArray<float, 1, 1, 1> total) {
  extern __shared__ float part[];
  float sum = 0;
  for (ptrdiff_t i = blockIdx.x * blockDim.x; i < x.size() && i < (blockIdx.x + 1) * blockDim.x; ++i) sum += x[i];
  if (threadIdx.x == 0) part[0] = sum;
  cluster_sync();
  float all = 0;
  for (unsigned rank = 0; rank < CLUSTER; ++rank) all += *cluster_peer(part, rank);
  if (threadIdx.x == 0) total[blockIdx.x] = all;
  cluster_sync();
}
"""
SCHEDULES = ("lowest", "highest", "rotating", "random")
BLOCK, BLOCKS, SIZE = 96, 3, 250


@pytest.fixture
def block_sum(stand_in: ModuleType) -> Callable[[str, str], bool]:
    """Whether the sums of a source, of blocks or of clusters of blocks, are right on a schedule."""
    from . import build

    def run(code: str, schedule: str) -> bool:
        x = np.arange(SIZE, dtype=np.float32)
        if "CLUSTER" in code:
            want, threads, more = np.repeat([x[:128].sum(), x[128:].sum()], 4), 32, {"cluster": 4, "shared": 4}
        else:
            want, threads, more = [x[BLOCK * k : BLOCK * (k + 1)].sum() for k in range(BLOCKS)], BLOCK, {}
        total = np.full(len(want), np.nan, np.float32)
        arguments = [stand_in._bytes(x), stand_in._bytes(total)]
        build.launch(code, "block_sum", arguments, len(want), threads, schedule, **more)
        return bool((total == want).all())

    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("code", [BLOCK_SUM, CLUSTER_SUM], ids=["block", "cluster"])
def test_right_kernel(block_sum: Callable[[str, str], bool], code: str, schedule: str) -> None:
    assert block_sum(code, schedule)


@pytest.mark.parametrize(
    ("code", "right", "wrong"),
    [
        pytest.param(BLOCK_SUM, "  __syncthreads();\n", "", id="missing barrier"),
        pytest.param(BLOCK_SUM, "parts[warp] = value", "if (warp < 2) parts[warp] = value", id="shared memory not written"),
        pytest.param(BLOCK_SUM, "int step = 16", "int step = 8", id="half a warp"),
        pytest.param(BLOCK_SUM, "i < x.size() ? x[i] : 0", "1", id="input not read"),
        pytest.param(CLUSTER_SUM, "part[0] = sum;\n  cluster_sync();", "part[0] = sum;\n  __syncthreads();", id="block's barrier"),
        pytest.param(CLUSTER_SUM, "= all;\n  cluster_sync();", "= all;", id="a block leaves while others read its memory"),
        pytest.param(CLUSTER_SUM, "cluster_peer(part, rank)", "cluster_peer(part, 0)", id="another block's part"),
    ],
)  # fmt: skip
def test_wrong_result_shows(block_sum: Callable[[str, str], bool], code: str, right: str, wrong: str) -> None:
    """On at least one schedule: the proof runs several because one may hide the bug."""
    assert right in code
    assert not all(block_sum(code.replace(right, wrong), schedule) for schedule in SCHEDULES)


@pytest.mark.parametrize(
    ("code", "right", "wrong", "says"),
    [
        pytest.param(BLOCK_SUM, "i < x.size() ? x[i] : 0", "x[i]", "outside its array", id="read past the end"),
        pytest.param(BLOCK_SUM, "total[blockIdx.x]", "total[blockIdx.x - 1]", "outside its array", id="write before the start"),
        pytest.param(BLOCK_SUM, "  __syncthreads();", "  if (warp) return;\n  __syncthreads();", "only some", id="partial barrier"),
        pytest.param(BLOCK_SUM, "  __syncthreads();", "  if (lane) __syncwarp(); else __syncthreads();", "never", id="deadlock"),
        pytest.param(CLUSTER_SUM, "cluster_peer(part, rank)", "cluster_peer(part + 1, rank)", "outside the dynamic", id="address"),
        pytest.param(CLUSTER_SUM, "cluster_sync();", "if (blockIdx.x % 4) return; cluster_sync();", "only some", id="barrier"),
    ],
)  # fmt: skip
def test_undefined_behaviour_is_named(
    block_sum: Callable[[str, str], bool], code: str, right: str, wrong: str, says: str
) -> None:
    from .build import HostError

    assert right in code
    with pytest.raises(HostError, match=says):
        block_sum(code.replace(right, wrong, 1), "lowest")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_kernel_without_end_is_stopped(
    block_sum: Callable[[str, str], bool], monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    """With barriers and without, and the next launch is none the worse."""
    from . import build

    monkeypatch.setattr(build, "SECONDS", 0.1)
    for endless in ("while (x.size()) __syncwarp();", "for (volatile int k = 0; k >= 0;) k = 0;"):
        with pytest.raises(build.HostError, match="longer than any kernel"):
            block_sum(BLOCK_SUM.replace("int lane", f"{endless} int lane"), schedule)
    assert block_sum(BLOCK_SUM, schedule)


FILL = """
#include <cuda_fp16.h>
extern "C" __global__ void fill(float* y) { y[threadIdx.x] = 1; }
"""


@pytest.mark.parametrize(("slip", "says"), [("+ 1", "behind an array"), ("- 1", "before an array")])
def test_writing_beside_an_array_shows(
    kernels: ModuleType, stand_in: ModuleType, device: Device, slip: str, says: str
) -> None:
    """Pointers of raw kernels carry no size: margins around every array show what goes astray."""
    with stand_in.Device():
        y = stand_in.empty(32, np.float32)
        stand_in.RawKernel(FILL, "fill")((1,), (32,), (y,))
        assert (device.get(y) == 1).all()
        with pytest.raises(AssertionError, match=says):
            stand_in.RawKernel(FILL.replace("threadIdx.x", f"(int)threadIdx.x {slip}"), "fill")((1,), (32,), (y,))


CHANGE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
typedef NAME T;
extern "C" __global__ void change(const T* x, T* y) { y[threadIdx.x] = T(CHANGED); }
"""


@pytest.mark.parametrize("changed", ["0.5 * (double)y[threadIdx.x]", "x[threadIdx.x]"], ids=["in place", "copy"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float16", "__half"), ("bfloat16", "__nv_bfloat16"), ("float32", "float"), ("float64", "double")],
)
def test_writing_what_was_read_beside_an_array_shows(
    kernels: ModuleType, stand_in: ModuleType, device: Device, dtype: str, name: str, changed: str
) -> None:
    """An update of a value too many, or a copy of it from one margin to another, leaves no margin as it was."""
    code = CHANGE.replace("NAME", name).replace("CHANGED", changed)
    with stand_in.Device():
        x, y = device.put(np.ones(32, dtype_of(dtype))), device.put(np.ones(32, dtype_of(dtype)))
        kernel = stand_in.RawKernel(code, "change")
        kernel((1,), (32,), (x, y))
        with pytest.raises(AssertionError, match="behind an array"):
            kernel((1,), (33,), (x, y))


def test_what_does_not_compile_is_shown(block_sum: Callable[[str, str], bool]) -> None:
    with pytest.raises(RuntimeError, match="valuee"):
        block_sum(BLOCK_SUM.replace("float value", "float valuee"), "lowest")
