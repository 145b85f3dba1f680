"""What a record says of where it was made: processor, caches, versions, load, commit; and its text as a file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__

LIBRARIES = (
    *("numpy", "numba", "torch", "triton", "jax", "scikit-learn", "array-api-compat", "threadpoolctl"),
    *("cupy-cuda12x", "cupy-cuda13x", "ml_dtypes", "quack-kernels", "liger-kernel", "cuda-bench"),
)
SETTINGS = (
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_THREAD_TIMEOUT",
    "OPENBLAS_CORETYPE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "CUDA_VISIBLE_DEVICES",
    "CUPY_ACCELERATORS",
    "CUPY_TF32",
    "NVIDIA_TF32_OVERRIDE",
)
"""Environment variables that change what is measured."""


def describe() -> dict[str, Any]:
    """The machine and the software, as plain data."""
    return {
        "processor": processor(),
        "cores": cores(),
        "caches": caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "blas": blas(),
        "environment": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def caches() -> dict[str, str]:
    """Sizes by level, such as {"L1d": "32K", "L2": "1024K", "L3": "32768K"}; empty where the system does not say."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found["L" + level + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return found


def versions() -> dict[str, str]:
    """Of Python, bnengine and the libraries that are installed."""
    found = {"python": platform.python_version(), "bnengine": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def blas() -> str:
    """The library of NumPy's matrix products."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{found['name']} {found['version']}"


def load() -> float | None:
    """Processes that ran or waited for a processor, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def busy() -> str | None:
    """A warning where other work takes processors that the benchmark needs."""
    now, spare = load(), cores() - 1
    if now is None or now <= max(spare, 0.5):
        return None
    return f"the machine is busy (load {now} on {cores()} processors); figures mislead"


def gpu() -> dict[str, Any]:
    """The GPU that CuPy uses, CUDA and the kernels, as plain data."""
    import cupy

    from .kernels.cuda.sources import fingerprints

    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    about = {
        "name": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": device.attributes["MultiProcessorCount"],
        "memory": properties["totalGlobalMem"],
        "l2_cache": device.attributes["L2CacheSize"],
        "driver": ask_gpu("driver_version").get("driver_version"),
        "cuda_driver": runtime.driverGetVersion(),
        "cuda_runtime": runtime.runtimeGetVersion(),
    }
    return {"device": about, "kernels": fingerprints()}


def gpu_clocks() -> dict[str, str]:
    """Clocks in MHz, power in watts and temperature of the GPU now; empty where nvidia-smi is not there."""
    clocks = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem")
    return ask_gpu(*clocks, "power.draw", "power.limit", "temperature.gpu")


def ask_gpu(*names: str) -> dict[str, str]:
    """What nvidia-smi says of the GPU that CuPy uses."""
    import cupy

    command = ["nvidia-smi", f"--id={cupy.cuda.Device().pci_bus_id}", f"--query-gpu={','.join(names)}"]
    try:
        done = subprocess.run([*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(names, done.stdout.strip().split(", "), strict=True))


def commit() -> str | None:
    """The commit of the checkout that is measured, with + where files differ from it; None elsewhere."""
    here = Path(__file__).parent
    try:
        root = _git(here, "rev-parse", "--show-toplevel")
        _git(here, "ls-files", "--error-unmatch", "__init__.py")  # not merely installed inside somebody's checkout
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", ".")
        return _git(here, "rev-parse", "HEAD") + ("+" if changed else "") if root else None
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def to_json(record: Mapping[str, Any]) -> str:
    """The record as a JSON file's text, a row to a line."""
    parts = []
    for name, value in record.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(entry, allow_nan=False) for entry in value) + "\n]"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
