"""The kernels on the host under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.grid

OVERFLOW = """
import numpy as np
from host_cuda import build, stand_in
from host_cuda.test_harness import BLOCK, BLOCKS, BLOCK_SUM, SIZE
x, total = np.zeros(SIZE, np.float32), np.zeros(BLOCKS, np.float32)
arguments = [stand_in._bytes(x), stand_in._bytes(total)]
build.launch(BLOCK_SUM.replace("parts[warp]", "parts[warp + 1]"), "block_sum", arguments, BLOCKS, BLOCK)
"""


@pytest.mark.parametrize("tests", ["test_kernels_on_host.py", "test_wide.py"])
def test_kernels_are_clean(stand_in: ModuleType, tests: str) -> None:
    path = str(Path(__file__).with_name(tests))
    done = _sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_overflow_of_shared_memory_is_seen(stand_in: ModuleType) -> None:
    done = _sanitized("-c", OVERFLOW)
    assert done.returncode != 0
    assert "AddressSanitizer: global-buffer-overflow" in done.stderr or "runtime error: index" in done.stderr


def _sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers' runtime loaded, and g++ told to use them."""
    libraries = [_library("libasan.so"), _library("libubsan.so")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "BNENGINE_HOST_CUDA_SANITIZE": "address,undefined",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"g++ has no {name}")
    return path
