"""Readers under random damage: each file is read, or refused by a one-line error, and does nothing else.

    python tests/programs/fuzz.py                      # every reader, 10,000 files each
    python tests/programs/fuzz.py npz --cases 500      # one of them

Memory is limited (RLIMIT_AS), each file has ten seconds, and an audit hook ends the program where reading a file runs
code, starts a process, loads a pickle, connects to anything or opens a file to write.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np

import bnengine as bn
from bnengine import data
from bnengine.runs import config

MEMORY = 512 * 2**20
SECONDS = 10


@dataclass(frozen=True)
class Reader:
    write: Callable[[], list[str]]
    """Writes good files into this directory; gives those that are to be damaged."""
    read: Callable[[str], object]
    source: Callable[[str], str] = lambda file: file
    """What is read, by the file that was damaged."""
    inside: tuple[damage.Damage, ...] = ()
    """Damage to what the file's container holds."""


def write_idx() -> list[str]:
    import gzip
    import struct

    rng = np.random.default_rng(0)
    for stem, rows in (("train", 40), ("t10k", 12)):
        images, labels = rng.integers(0, 256, (rows, 4, 4)), np.arange(rows) % 3
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            raw = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
            packed = name.startswith("t10k")
            Path(f"{name}.gz" if packed else name).write_bytes(gzip.compress(raw, 1) if packed else raw)
    return ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte.gz"]


def write_csv() -> list[str]:
    rows = "".join(f'{i / 7:.6f},{i % 5},"{"cat" if i % 3 else "dog"}"\n' for i in range(60))
    Path("good.csv").write_text(f"width,height,kind\n{rows}")
    return ["good.csv"]


def write_npz() -> list[str]:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((60, 3)), "y": np.arange(60) % 3}
    np.savez("plain.npz", **arrays)
    np.savez_compressed("packed.npz", **arrays, x_test=arrays["x"][:9], y_test=arrays["y"][:9])
    return ["plain.npz", "packed.npz"]


def write_toml() -> list[str]:
    Path("run.toml").write_text(config.to_toml(config.Config(label="y", clip=1.0, early_stopping=3)))
    return ["run.toml"]


def write_checkpoint() -> list[str]:
    net, optimizer = bn.mlp([3, 4, 2], standardize=True), bn.optimizers.adam()
    params, state = net.init(0, backend="numpy")
    metadata = {"task": "classification", "classes": ["a", "b"], "features": 3, "history": [{"epoch": 1}]}
    bn.save("net.safetensors", net, params, state, opt_state=optimizer.init(params), metadata=metadata)
    return ["net.safetensors"]


READERS = {
    "idx": Reader(write_idx, data.load, source=lambda file: ".", inside=(damage.in_gzip,)),
    "csv": Reader(write_csv, data.load),
    "npz": Reader(write_npz, data.load, inside=(damage.in_zip,)),
    "toml": Reader(write_toml, lambda file: config.resolve({}, file)),
    "checkpoint": Reader(write_checkpoint, bn.load, inside=(damage.in_safetensors, damage.in_metadata)),
}


class Forbidden(BaseException):
    """Reading a file did something else."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise Forbidden(f"opened {arguments[0]} to write")
    if event == "exec" and arguments[0].co_filename.startswith("<") and "frozen" not in arguments[0].co_filename:
        raise Forbidden(f"ran {arguments[0].co_filename}")
    if event.startswith(("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.remove", "os.rename",
                         "os.mkdir", "os.symlink", "socket.", "ctypes.dlopen")):  # fmt: skip
        raise Forbidden(f"{event} {arguments}")


watching = False


def outcome(reader: Reader, source: str) -> str:
    """ "read", "refused", or what went wrong."""
    global watching  # noqa: PLW0603  # an audit hook cannot be removed
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal comes through
    watching = True
    try:
        reader.read(source)
    except ValueError as error:
        return "refused" if str(error) else f"no message: {error!r}"
    except BaseException as error:  # noqa: BLE001  # MemoryError, a hang, whatever is no refusal
        return f"{type(error).__name__}: {error}"[:300]
    else:
        return "read"
    finally:
        watching = False
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def fuzz(name: str, cases: int, seed: int) -> dict[str, Any]:
    """Counts of the outcomes over so many damaged files, with the slowest and the memory that they took at most."""
    reader, counts, slowest = READERS[name], Counter[str](), 0.0
    files = {file: Path(file).read_bytes() for file in reader.write()}
    for file in files:
        reader.read(reader.source(file))  # imports what it needs
        assert outcome(reader, reader.source(file)) == "read", file
    _limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    for case in range(cases):
        rng = random.Random(f"{name} {seed} {case}")
        file = rng.choice(sorted(files))
        inside = [kind for kind in reader.inside if kind is not damage.in_gzip or file.endswith(".gz")]
        change = rng.choice([damage.damaged, *inside])
        Path(file).write_bytes(change(files[file], rng))
        start = time.perf_counter()
        found = outcome(reader, reader.source(file))
        slowest = max(slowest, time.perf_counter() - start)
        counts[found if found in ("read", "refused") else f"case {case}: {found}"] += 1
        Path(file).write_bytes(files[file])
    return {
        "reader": name,
        "cases": cases,
        "read": counts.pop("read", 0),
        "refused": counts.pop("refused", 0),
        "wrong": sorted(counts),
        "seconds": round(time.perf_counter() - began, 1),
        "slowest_ms": round(1e3 * slowest, 1),
        "memory_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1),
    }


def _limit_memory() -> None:
    """MEMORY more than is in use now."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="*", choices=[*READERS, []], help="default: all")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _hangs)
    sys.addaudithook(_watch)
    wrong = 0
    with tempfile.TemporaryDirectory() as directory:
        for name in options.reader or READERS:
            place = Path(directory, name)
            place.mkdir()
            os.chdir(place)
            record = fuzz(name, options.cases, options.seed)
            print(json.dumps(record), flush=True)
            wrong += len(record["wrong"])
        os.chdir("/")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
