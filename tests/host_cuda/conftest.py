"""The host in the place of the device, and what is left to the whole grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from . import checks

ELSEWHERE = "on a GPU: pytest -m gpu tests/test_cuda_gpu.py"


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    """The stand-in `cupy`; skips, with the reason, where it cannot compile."""
    pytest.importorskip("cupy", reason=f"no CuPy: the CUDA sources cannot be generated; {ELSEWHERE}")
    pytest.importorskip("ml_dtypes", reason=f"no ml_dtypes: no bfloat16; {ELSEWHERE}")
    from . import build, stand_in

    if why := build.missing():
        pytest.skip(f"{why}; {ELSEWHERE}")
    return stand_in


@pytest.fixture
def kernels(stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """bnengine.kernels.cuda with the stand-in for its `cupy`."""
    from bnengine.kernels import load

    cuda = load("cuda")
    device = cuda.device
    monkeypatch.setattr(device, "cupy", stand_in)
    monkeypatch.setattr(stand_in, "schedule", "lowest")
    monkeypatch.setattr(stand_in, "dry", False)
    monkeypatch.setattr(stand_in, "rewrite", str)
    stand_in.launches.clear()
    stand_in.sources.clear()
    device.kernel.cache_clear()
    device.raw.cache_clear()
    cuda.wide.chip_of.cache_clear()
    cuda.wide._launch.cache_clear()
    yield cuda
    device.kernel.cache_clear()
    device.raw.cache_clear()
    cuda.wide._launch.cache_clear()
    cuda.wide.chip_of.cache_clear()


@pytest.fixture
def on_chip(kernels: ModuleType) -> Iterator[Callable[[str], None]]:
    """Make the stand-in one of `memory.CHIPS`: the rule then chooses other kernels."""
    from . import memory

    def use(chip: str) -> None:
        memory.use(chip)
        kernels.wide.chip_of.cache_clear()

    yield use
    use("sm_90")


@pytest.fixture
def device(stand_in: ModuleType) -> checks.Device:
    """NumPy memory as the device's."""
    return checks.Device(stand_in.device, stand_in.host)
