"""The record of the CUDA path on a GPU, in calls of a few minutes that need no network:

    python benchmarks/gpu_record.py --name h100 --parts device,tests,sanitizer,counters,steps
    python benchmarks/gpu_record.py --name h100 --parts kernels --merge benchmarks/results/gpu-h100.json

runs the parts that are named, or all of them, and writes benchmarks/results/gpu-NAME.json and .png after each: what was
measured stays when a later part fails or the time is over. docs/cuda.md says what the parts are and how to read the record.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime as dt
import importlib.util
import json
import os
import shlex
import shutil
import signal
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

GRACE = 0.25
"""Minutes that a part may take beyond its time before it is interrupted: it ends by itself between two cases."""
PATIENCE = 10.0
"""Seconds that a part which is interrupted has to write what it knows."""

Record = dict[str, Any]


# ---- what a part leaves


def _take_device(record: Record, name: str, text: str) -> None:
    part = json.loads(text)
    record["device"], record["copy"] = part["device"], part["copy"]
    record["clocks"][name] = part["clocks"]


def _take_tests(record: Record, name: str, text: str) -> None:
    """Counts, and the hashes of the kernels where all were run and none failed: they have been verified here."""
    cases = list(ET.fromstring(text).iter("testcase"))
    kinds = {kind: [c for c in cases if c.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    bad = [*kinds["failure"], *kinds["error"]]
    record["tests"] = {
        "passed": len(cases) - len(bad) - len(kinds["skipped"]),
        "failed": [f"{c.get('classname')}::{c.get('name')}" for c in bad],
        "skipped": {c.get("name"): c.find("skipped").get("message") for c in kinds["skipped"]},
    }
    verified = record["parts"][name]["status"] == "done" and record["tests"]["passed"] and not bad
    record["kernels"] = record["sources"] if verified else {}


def _take_rows(record: Record, name: str, text: str) -> None:
    """Rows of the benchmark, each with its samples, in the place of those of the same case in an earlier call."""
    part = json.loads(text)
    record["copies"][name], record["clocks"][name] = part["copy"], part["clocks"]
    rows = [{"part": name, **row} for row in part["rows"]]
    measured = {_case(row) for row in rows}
    record["rows"] = [row for row in record["rows"] if _case(row) not in measured] + rows
    again = [left for left in record["left_out"] if left["part"] != name]
    record["left_out"] = again + [{"part": name, **left} for left in part["left_out"]]


def _case(row: Record) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("part", "group", "case", "dtype"))


def _take_sanitizer(record: Record, name: str, text: str) -> None:
    """The tool's last words, and what it found before them."""
    lines = [line.removeprefix("=========").strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    record["sanitizers"][name] = {"summary": said[-1] if said else "", "lines": said[:200]}


def _take_counters(record: Record, name: str, text: str) -> None:
    """A row for each counter of each launch, as Nsight Compute names them."""
    lines = text.splitlines()
    first = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kept = ("ID", "Kernel Name", "Block Size", "Grid Size", "Metric Name", "Metric Unit", "Metric Value")
    record[name] = [{key: row.get(key) for key in kept} for row in csv.DictReader(lines[first:])]


def _take_whole(record: Record, name: str, text: str) -> None:
    record[name.replace("-", "_")] = json.loads(text)


# ---- the parts


class Part(NamedTuple):
    """A command of its own, so that a fault of the device ends nothing but this part."""

    name: str
    minutes: float
    """That it takes about: its share where the time is less, or more."""
    words: tuple[str, ...]
    """After `python`; OUT stands for the file that it writes, MINUTES for the time that it has."""
    take: Callable[[Record, str, str], None] = _take_rows
    tool: tuple[str, ...] = ()
    """A program that has to be found, and its words: it runs the rest."""
    may_skip: bool = False
    """Whether the exit status 2 means that something it needs is not here."""


def _bench(*words: str) -> tuple[str, ...]:
    return ("-m", "bnengine", "bench", "--backend", "cupy", "--minutes", "MINUTES", "--out", "OUT", *words)


def _sanitizer(tool: str) -> tuple[str, ...]:
    return ("compute-sanitizer", "--tool", tool, "--print-limit", "20", "--log-file", "OUT")


PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider")
PARALLEL = ("-n", str(min(12, provenance.cores()))) if importlib.util.find_spec("xdist") else ()
TESTS = "tests/test_cuda_gpu.py"
UNSEEN = ("-k", "hundred or chain or limits", TESTS)
"""Tests of what no emulation shows: races, barriers and memory of real launches."""

COUNTERS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "launch__registers_per_thread",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
)
NCU = (
    "ncu",
    "--clock-control",
    "none",
    "--csv",
    "--log-file",
    "OUT",
    "--kernel-name",
    "regex:bnengine_(held|split|pass)",
)

DEVICE = ("--kernels", "--shapes", "2x2", "--contenders", "bnengine", "--minutes", "0")  # its copy, and what it is
QUICK = ("--kernels", "--contenders", "bnengine,bnengine portable,pytorch,jax.jit,rmsnorm of quack,rmsnorm of liger")
SLOW = ("--kernels", "--contenders", "bnengine,torch.compile")  # seconds of compiling for each shape
SMALL = ("--kernels", "--contenders", "bnengine,bnengine reference", "--shapes", "128x512,32x64x14x14,32x256x7x7")
HALVES = ("float32", "float16", "bfloat16")

PARTS = (
    Part("device", 0.3, _bench(*DEVICE), _take_device),
    Part("tests", 1.5, (*PYTEST, "--junitxml=OUT", *PARALLEL, TESTS), _take_tests),
    *(
        Part(f"sanitizer-{tool}", 1.0, (*PYTEST, *UNSEEN), _take_sanitizer, _sanitizer(tool))
        for tool in ("racecheck", "synccheck", "memcheck")
    ),
    Part(
        "counters",
        1.5,
        ("benchmarks/gpu_record.py", "--launch"),
        _take_counters,
        (*NCU, "--metrics", ",".join(COUNTERS)),
    ),
    Part("steps", 2.0, _bench("--steps")),
    *(Part(f"kernels-{dtype}", 2.8, _bench(*QUICK, "--dtype", dtype)) for dtype in HALVES),
    *(Part(f"compiled-{dtype}", 1.5, _bench(*SLOW, "--dtype", dtype)) for dtype in HALVES),
    Part("reference", 0.5, _bench(*SMALL)),
    Part("nvbench", 0.5, ("benchmarks/gpu_nvbench.py", "--out", "OUT"), _take_whole, may_skip=True),
    Part(
        "time-to-accuracy",
        3.0,
        ("benchmarks/time_to_accuracy.py", "--minutes", "MINUTES", "--out", "OUT"),
        _take_whole,
        may_skip=True,
    ),
)


def chosen(names: str | None, parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """The parts of these names, or whose names begin with them; the device always."""
    if names is None:
        return parts
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(part.name == name or part.name.startswith(f"{name}-") for part in parts):
            raise ValueError(f"--parts: expected some of {', '.join(part.name for part in parts)}, got {name!r}")
    first, *rest = parts
    return (first, *(p for p in rest if any(p.name == name or p.name.startswith(f"{name}-") for name in wanted)))


# ---- the record


def begun(options: argparse.Namespace) -> Record:
    """An empty record, or that of the calls before."""
    from bnengine.kernels.cuda.sources import fingerprints

    call = {
        "command": shlex.join(["python", "benchmarks/gpu_record.py", *sys.argv[1:]]),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
    record: Record = {
        "format": bench.FORMAT,
        "date": call["date"],
        **provenance.describe(),
        "device": None,
        "kernels": {},
        "sources": fingerprints(),
        "calls": [],
        **{name: {} for name in ("parts", "copies", "clocks", "sanitizers", "time_to_accuracy")},
        **{name: [] for name in ("counters", "rows", "left_out", "summary")},
    }
    if options.commit is not None:
        record["commit"] = options.commit
    if options.merge is not None:
        before = json.loads(options.merge.read_text(encoding="utf-8"))
        for what in ("format", "commit", "sources"):
            if before[what] != record[what]:
                raise ValueError(f"--merge: {options.merge} is of another {what}; begin a new record")
        record |= before
    record["calls"].append(call)
    return record


def measured(record: Record, parts: tuple[Part, ...], minutes: float, python: tuple[str, ...]) -> Iterator[Record]:
    """The record after each part. What a part does not take of its time is the others'."""
    began, before = time.monotonic(), record["device"]
    for k, part in enumerate(parts):
        left = minutes - GRACE - (time.monotonic() - began) / 60
        share = max(left, 0.0) * part.minutes / sum(p.minutes for p in parts[k:])
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "part.json"
            outcome = _run(part, out, share, python)
            record["parts"][part.name] = outcome
            print(f"{part.name}: {outcome['status']}, {outcome['seconds']:.0f} s {outcome['reason']}", flush=True)
            if out.exists():
                _take(record, part, out)
        if before is not None and record["device"]["name"] != before["name"]:
            raise ValueError(f"--merge: it is of {before['name']}, this is {record['device']['name']}")
        record["summary"] = _summary(record["rows"])
        record["calls"][-1]["seconds"] = round(time.monotonic() - began, 1)
        yield record


def _summary(rows: list[Record]) -> list[Record]:
    """The means of each dtype: their cases are called alike."""
    dtypes = dict.fromkeys(row["dtype"] for row in rows)
    return [{"dtype": d, **mean} for d in dtypes for mean in bench.summary([row for row in rows if row["dtype"] == d])]


def _take(record: Record, part: Part, out: Path) -> None:
    """What the part wrote, into the record; a file that was cut off is named."""
    try:
        part.take(record, part.name, out.read_text(encoding="utf-8"))
    except (ValueError, KeyError, ET.ParseError) as error:
        record["parts"][part.name] |= {"status": "failed", "reason": f"what it wrote cannot be read: {error}"}


def _run(part: Part, out: Path, minutes: float, python: tuple[str, ...]) -> Record:
    """Run a part for so many minutes: how it ended, and its last line where that was not well."""
    given = {"OUT": str(out), "MINUTES": f"{minutes:.2f}"}
    command_line = shlex.join([*part.tool, "python", *part.words])
    outcome = {"command": command_line, "status": "skipped", "reason": "", "seconds": 0.0}
    tool = (_found(part.tool[0]) or "", *part.tool[1:]) if part.tool else ()
    if part.tool and not tool[0]:
        return outcome | {"reason": f"{part.tool[0]} is not here"}
    tool, words = (tuple(given.get(w, w.replace("=OUT", f"={out}")) for w in ws) for ws in (tool, part.words))
    began = time.monotonic()
    with (out.parent / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [*tool, *python, *words], cwd=ROOT, env=_environment(), stderr=errors, start_new_session=True
        )
        status = _ended(process, 60 * (minutes + GRACE))
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    outcome["seconds"] = round(time.monotonic() - began, 1)
    if status is None:
        return outcome | {"status": "ended", "reason": f"it took more than {minutes + GRACE:.1f} minutes"}
    if status == 0:
        return outcome | {"status": "done"}
    reason = (lines or [f"exit status {status}"])[-1][:1000]
    return outcome | {"status": "skipped" if status == 2 and part.may_skip else "failed", "reason": reason}


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status; None where it took longer: it is interrupted, so that it writes what it knows, then killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it has started too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _found(tool: str) -> str | None:
    """Where a tool of CUDA is: on the path, or in the folders that toolkits are installed in."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [f"{home}/bin" for home in (*homes, "/usr/local/cuda")]
    folders += map(str, sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True))
    return shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


def launch() -> None:
    """Every pass of batch normalisation on the shapes that decide, once each: for a profiler."""
    from bnengine.bench.gpu import normalization
    from bnengine.kernels import cuda
    from bnengine.kernels.reference import Affine

    for dtype in HALVES:
        for shape in normalization.FIXED[: normalization.FIRST]:
            case = normalization.Case(shape, dtype, "backward")
            rest = Affine(case.gamma, case.beta, normalization.EPS, False), case.axis
            _, m = cuda.forward(case.x, *rest)
            cuda.normalize(case.x, m, *rest)
            cuda.backward(case.dy, case.x, m, *rest)
            del case


def draw(path: Path) -> None:
    """The picture beside a record, where there is something to show and matplotlib to show it."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not any("work" in row for row in record["rows"]) or not importlib.util.find_spec("matplotlib"):
        return
    try:
        files.write(path.with_suffix(".png"), pictures.fractions(record))
    except Exception as error:  # noqa: BLE001  a picture must not cost the parts that follow
        print(f"no picture: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--name", default="record", help="of the device, in the files' names")
    parser.add_argument(
        "--parts", metavar="NAME,...", help="those that are run, such as tests,kernels; all where not given"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for this call (default: 9)")
    parser.add_argument(
        "--merge", type=Path, metavar="FILE.json", help="the record of earlier calls, which this one adds to"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the two files")
    parser.add_argument(
        "--commit", default=os.environ.get("BNENGINE_COMMIT"), help="of the code, where there is no .git"
    )
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="that has its four files")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="only draw the picture of a record")
    parser.add_argument("--launch", action="store_true", help="only launch every kernel once, for a profiler")
    return parser


def main(
    arguments: list[str] | None = None, python: tuple[str, ...] = (sys.executable,), parts: tuple[Part, ...] = PARTS
) -> int:
    options = _parser().parse_args(arguments)
    if options.launch or options.draw is not None:
        launch() if options.launch else draw(options.draw)
        return 0
    if options.fashion_mnist is not None:
        os.environ["BNENGINE_FASHION_MNIST"] = str(options.fashion_mnist.resolve())
    path = options.out / f"gpu-{options.name}.json"
    try:
        parts = chosen(options.parts, parts)
        for record in measured(begun(options), parts, options.minutes, python):
            if record["device"] is None:  # without one there is nothing to keep
                return 2
            files.write(path, bench.to_json(record))
            draw(path)
    except (ImportError, OSError, ValueError) as error:
        print(f"gpu_record: {error}", file=sys.stderr)
        return 2
    here = {part.name: record["parts"][part.name]["status"] for part in parts}
    bad = [f"{name}: {status}" for name, status in here.items() if status not in ("done", "skipped")]
    print("; ".join(bad) or "everything is done")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
