"""CUDA source to a function of the host: g++, CuPy's own headers and those of the CUDA wheels."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import source

SCHEDULES = ("lowest", "highest", "rotating", "random")
"""Which thread runs next, where several can."""

ERRORS = {
    1: "__syncthreads() was reached by only some threads of a block",
    2: "threads wait at barriers that the others never reach",
    3: "an index lies outside its array",
    4: "it ran for longer than any kernel here should",
    5: "an address lies outside the dynamic shared memory of the cluster",
}

SECONDS = 120.0
"""Of processor time that a launch may take."""

SHIM = "shim.hpp"
"""What is included in front of every kernel: the parts, and CuPy's headers."""
PARTS = [Path(__file__).with_name(name) for name in ("device.hpp", "intrinsics.hpp")]
FLAGS = ["-std=c++17", "-O1", "-w", "-fPIC", "-fno-strict-aliasing", "-march=native", "-ffp-contract=fast"]
SANITIZERS = os.environ.get("BNENGINE_HOST_CUDA_SANITIZE", "")
"""What g++ takes for -fsanitize=, such as "address,undefined"; the process must have loaded its runtime."""
if SANITIZERS:
    FLAGS += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=undefined", "-g"]


class HostError(RuntimeError):
    """A kernel did on the host what is undefined on a device."""


def missing() -> str | None:
    """What the host proof lacks here; None where it can run."""
    if shutil.which("g++") is None:
        return "no g++"
    if cuda_headers() is None:
        return "no CUDA headers: install nvidia-cuda-runtime and nvidia-cuda-crt"
    return None


@functools.cache
def cuda_headers() -> Path | None:
    """The folder that the wheels nvidia-cuda-runtime and nvidia-cuda-crt share."""
    found = [_header("nvidia-cuda-runtime", "cuda_fp16.h"), _header("nvidia-cuda-crt", "host_defines.h")]
    return None if None in found else found[0]


def _header(wheel: str, name: str) -> Path | None:
    """The folder of a header in a wheel."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())).parent for f in files if f.name == name), None)


@functools.cache
def function(code: str, name: str) -> Callable[..., int]:
    """The kernel `name` of the source, ready to launch."""
    code = f"{_on_host(code)}\n{_entry(code, name)}"
    folder, flags = _prepared()
    library = folder / f"{hashlib.sha256(code.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            text, built = Path(scratch) / "kernel.cpp", Path(scratch) / "kernel.so"
            text.write_text(code, encoding="utf-8")
            _compile(*flags, "-include", str(folder / SHIM), "-shared", str(text), "-o", str(built))
            built.replace(library)
    launch: Callable[..., int] = ctypes.CDLL(str(library)).launch
    return launch


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_int),
        ("shared", ctypes.c_int),
        ("schedule", ctypes.c_int),
        ("fibers", ctypes.c_int),
        ("seconds", ctypes.c_double),
    )


def launch(
    code: str,
    name: str,
    arguments: list[bytes],
    blocks: int,
    threads: int,
    schedule: str = SCHEDULES[0],
    *,
    cluster: int = 1,
    shared: int = 0,
) -> None:
    """Run every block of a launch; HostError where a thread does what is undefined on a device."""
    buffers = [ctypes.create_string_buffer(a, len(a)) for a in arguments]
    pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(b) for b in buffers))
    fibers = any(word in code for word in ("__sync", "__shfl", "cluster_sync"))
    order = SCHEDULES.index(schedule)
    how = _Launch((blocks, 1, 1), (threads, 1, 1), cluster, shared, order, fibers, SECONDS)
    outcome = function(code, name)(pointers, ctypes.byref(how))
    if outcome:
        raise HostError(f"{name}: {ERRORS[outcome]}")


def _on_host(code: str) -> str:
    """Shared arrays come from the shim, which fills them with NaN for each block."""
    code = re.sub(r"extern __shared__ ([\w:]+) (\w+)\[\];", r"\1* \2 = (\1*)host::dynamic_shared();", code)
    pattern = r"__shared__\s+([\w:<>]+)\s+(\w+)\[([^\]]+)\];"
    counter = iter(range(1000))
    return re.sub(
        pattern, lambda m: f"{m[1]} (&{m[2]})[{m[3]}] = host::shared<{m[1]}[{m[3]}], {next(counter)}>();", code
    )


def _entry(code: str, name: str) -> str:
    """A C function that takes the kernel's arguments as pointers, as a launch does."""
    found = re.search(rf"__global__[^;{{]*?\s{name}\s*\((.*?)\)\s*\{{", code, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"no kernel {name} in the source")
    types = [re.sub(r"\s*\w+$", "", p.strip()).removeprefix("const ") for p in _parameters(found[1])]
    values = ", ".join(f"*({t}*)a[{k}]" for k, t in enumerate(types))
    return f"""static void entry(void** a) {{ {name}({values}); }}
extern "C" int launch(void** a, const host::Launch* how) {{ return host::launch(entry, a, *how); }}
"""


def _parameters(text: str) -> list[str]:
    """A parameter list split at the commas outside angle brackets."""
    return [p for p in re.split(r",(?![^<]*>)", text) if p.strip()]


@functools.cache
def _prepared() -> tuple[Path, list[str]]:
    """The folder of compiled kernels, with the headers compiled ahead, and the compiler's flags."""
    state = "\0".join([_shim(), source.cupy.__version__, *FLAGS])
    folder = Path(tempfile.gettempdir()) / f"bnengine-host-cuda-{os.getuid()}" / _digest(state)
    flags = [*FLAGS, f"-I{folder}", *source.include_options(), f"-I{cuda_headers()}"]
    if not (folder / f"{SHIM}.gch").exists():
        _write_headers(folder)
        _compile(*flags, "-x", "c++-header", str(folder / SHIM), "-o", str(folder / f"{SHIM}.gch"))
    return folder, flags


def _write_headers(folder: Path) -> None:
    """The shim, and a copy of CuPy's array class that checks its indices."""
    (folder / "cupy").mkdir(parents=True, exist_ok=True)
    array = (Path(source.include_path()) / "cupy" / "carray.cuh").read_text(encoding="utf-8")
    head = "operator[](ptrdiff_t idx) const {"
    if head not in array:
        raise RuntimeError("CuPy's carray.cuh has changed: the check of indices no longer fits it")
    (folder / "cupy" / "carray.cuh").write_text(array.replace(head, f"{head}\n idx = host::inside(idx, size_);"))
    (folder / SHIM).write_text(f"{_shim()}\n#include <cupy/carray.cuh>\n#include <cupy/math_constants.h>\n")


def _shim() -> str:
    return "\n".join(part.read_text(encoding="utf-8") for part in PARTS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _compile(*arguments: str) -> None:
    done = subprocess.run(["g++", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ refuses a kernel:\n{done.stderr[:4000]}")
