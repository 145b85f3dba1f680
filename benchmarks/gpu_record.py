"""The record of the CUDA path on a GPU, by one command that needs no network:

    python benchmarks/gpu_record.py --name h100

runs the GPU tests, the kernel benchmark in three dtypes, whole training steps and Fashion-MNIST to the same accuracy, in
this order, and writes benchmarks/results/gpu-NAME.json and .png after each part: what was measured stays when a later
part fails or the time is over. docs/cuda.md says how to read it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bnengine import bench, files, provenance
from bnengine.bench import pictures

GRACE = 0.5
"""Minutes that a part may take beyond its time before it is ended: it ends by itself between two cases."""

Record = dict[str, Any]


class Part(NamedTuple):
    """A command of its own, so that a fault of the device ends nothing but this part."""

    name: str
    until: float
    """Share of the whole time at which it has to be done."""
    words: tuple[str, ...]
    """After `python`; OUT stands for the file that it writes, MINUTES for the time that it has."""


def _bench(*words: str) -> tuple[str, ...]:
    return ("-m", "bnengine", "bench", "--backend", "cupy", "--minutes", "MINUTES", "--out", "OUT", *words)


TESTS = ("-m", "pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider", "--junitxml=OUT")
DEVICE = ("--kernels", "--shapes", "2x2", "--contenders", "bnengine", "--minutes", "0")  # its copy, and what it is
QUICK = ("--kernels", "--contenders", "bnengine,bnengine portable,bnengine reference,pytorch,jax.jit")
SLOW = ("--kernels", "--contenders", "bnengine,torch.compile")  # seconds of compiling for each shape
PARTS = (
    Part("device", 0.05, _bench(*DEVICE)),
    Part("tests", 0.3, (*TESTS, "tests/test_cuda_gpu.py")),
    Part("kernels, float32", 0.5, _bench(*QUICK, "--dtype", "float32")),
    Part("kernels, float16", 0.6, _bench(*QUICK, "--dtype", "float16")),
    Part("kernels, bfloat16", 0.7, _bench(*QUICK, "--dtype", "bfloat16")),
    Part("kernels, float32, compiled", 0.8, _bench(*SLOW, "--dtype", "float32")),
    Part("kernels, float16, compiled", 0.84, _bench(*SLOW, "--dtype", "float16")),
    Part("kernels, bfloat16, compiled", 0.87, _bench(*SLOW, "--dtype", "bfloat16")),
    Part("steps", 0.94, _bench("--steps")),
    Part("time to accuracy", 1.0, ("benchmarks/time_to_accuracy.py", "--minutes", "MINUTES", "--out", "OUT")),
)


def measured(parts: tuple[Part, ...], minutes: float, python: tuple[str, ...]) -> Iterator[Record]:
    """The record after each part."""
    began = time.monotonic()
    record: Record = {
        "format": bench.FORMAT,
        "command": shlex.join(["python", "benchmarks/gpu_record.py", *sys.argv[1:]]),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **provenance.describe(),
        "device": None,
        "kernels": {},
        **{name: {} for name in ("parts", "copies", "clocks", "time_to_accuracy")},
        **{name: [] for name in ("rows", "left_out", "summary")},
    }
    for part in parts:
        left = part.until * (minutes - GRACE) - (time.monotonic() - began) / 60
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "part.json"
            outcome = _run(part, out, max(left, 0.0), python)
            record["parts"][part.name] = outcome
            print(f"{part.name}: {outcome['status']}, {outcome['seconds']:.0f} s {outcome['reason']}", flush=True)
            if out.exists():
                TAKEN.get(part.name.partition(",")[0], _take_rows)(record, part.name, out.read_text(encoding="utf-8"))
        record["summary"] = bench.summary(record["rows"])
        record["seconds"] = round(time.monotonic() - began, 1)
        yield record


def _run(part: Part, out: Path, minutes: float, python: tuple[str, ...]) -> Record:
    """Run a part for so many minutes: how it ended, and its last line where that was not well."""
    given = {"OUT": str(out), "MINUTES": f"{minutes:.2f}"}
    words = [given.get(word, word.replace("OUT", str(out))) for word in part.words]
    paths = [str(ROOT), str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    began, reason = time.monotonic(), ""
    try:
        command = [*python, *words]
        limit = 60 * (minutes + GRACE)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=limit, stderr=subprocess.PIPE, text=True, check=False
        )
        status = {0: "done", 2: "skipped"}.get(done.returncode, "failed")
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:1000]
    except subprocess.TimeoutExpired:
        status, reason = "ended", f"it took more than {minutes + GRACE:.1f} minutes"
    command_line = shlex.join(["python", *part.words])
    return {"command": command_line, "status": status, "reason": reason, "seconds": round(time.monotonic() - began, 1)}


# ---- what a part leaves


def _take_tests(record: Record, name: str, text: str) -> None:  # noqa: ARG001
    """Counts, and the hashes of the kernels where nothing failed: they have been verified on this device."""
    cases = list(ET.fromstring(text).iter("testcase"))
    kinds = {kind: [c for c in cases if c.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    bad = [*kinds["failure"], *kinds["error"]]
    record["tests"] = {
        "passed": len(cases) - len(bad) - len(kinds["skipped"]),
        "failed": [f"{c.get('classname')}::{c.get('name')}" for c in bad],
        "skipped": {c.get("name"): c.find("skipped").get("message") for c in kinds["skipped"]},
    }
    if record["tests"]["passed"] and not bad:
        from bnengine.kernels.cuda.sources import fingerprints

        record["kernels"] = fingerprints()


def _take_rows(record: Record, name: str, text: str) -> None:
    """Rows of the benchmark, each with its samples; copies and clocks stay apart, as processes differ."""
    part = json.loads(text)
    record["copies"][name], record["clocks"][name] = part["copy"], part["clocks"]
    record["rows"] += part["rows"]
    record["left_out"] += [{"part": name, **left} for left in part["left_out"]]


def _take_accuracy(record: Record, name: str, text: str) -> None:  # noqa: ARG001
    record["time_to_accuracy"] = json.loads(text)


def _take_device(record: Record, name: str, text: str) -> None:
    part = json.loads(text)
    record["device"], record["copy"], record["clocks"][name] = part["device"], part["copy"], part["clocks"]


TAKEN: dict[str, Callable[[Record, str, str], None]] = {
    "device": _take_device,
    "tests": _take_tests,
    "time to accuracy": _take_accuracy,
}


def draw(path: Path) -> None:
    """The picture beside a record, where there is something to show and matplotlib to show it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if any("work" in row for row in record["rows"]) and importlib.util.find_spec("matplotlib"):
        files.write(path.with_suffix(".png"), pictures.fractions(record))


def main(
    arguments: list[str] | None = None, python: tuple[str, ...] = (sys.executable,), parts: tuple[Part, ...] = PARTS
) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--name", default="record", help="of the device, in the files' names")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything (default: 20)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the two files")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="only draw the picture of a record")
    options = parser.parse_args(arguments)
    if options.draw is not None:
        draw(options.draw)
        return 0
    for record in measured(parts, options.minutes, python):
        if record["device"] is None:  # without one there is nothing to keep
            return 2
        files.write(options.out / f"gpu-{options.name}.json", bench.to_json(record))
        draw(options.out / f"gpu-{options.name}.json")
    bad = [
        f"{name}: {part['status']}"
        for name, part in record["parts"].items()
        if part["status"] not in ("done", "skipped")
    ]
    print("; ".join(bad) or "everything is done")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
