"""`bnengine bench --backend cupy` from end to end, the host in the place of the device: its figures mean nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bnengine.bench import timing
from bnengine.bench.timing import Contender

PEERS = {"PyTorch": "torch", "torch.compile": "torch", "jax.jit": "jax"}
OURS = {"bnengine", "bnengine portable", "bnengine reference"}
CLOCKS = {"cold", "warm", "call"}


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with the host in the place of the device."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, "-m", "host_cuda.program", "-m", "bnengine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def measured(tmp_path_factory: pytest.TempPathFactory, *arguments: str) -> tuple[dict[str, Any], str]:
    out = tmp_path_factory.mktemp("gpu") / "record.json"
    done = program("bench", "--backend", "cupy", "--repeats", "2", *arguments, "--out", out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def run(stand_in: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Kernels and steps in float32: the record and what was printed."""
    return measured(tmp_path_factory)


def expected_families(record: dict[str, Any], asked: set[str] = OURS | set(PEERS)) -> set[str]:
    """Those asked for, but for those whose library is not here: the record names them."""
    absent = {family for family in asked & set(PEERS) if importlib.util.find_spec(PEERS[family]) is None}
    assert {left["contender"] for left in record["left_out"]} == absent
    return asked - absent


def test_every_contender_is_right_and_timed_on_every_clock(run: tuple[dict[str, Any], str]) -> None:
    record, _ = run
    rows = [row for row in record["rows"] if "work" in row]
    cases = {(row["case"], row["work"]) for row in rows}
    assert cases == {("2x6x6x4 nhwc", work) for work in ("inference", "training forward", "backward")}
    found = {(row["case"], row["work"], row["family"], row["clock"]) for row in rows}
    assert found == {
        (*case, family, clock) for case in cases for family in expected_families(record) for clock in CLOCKS
    }
    assert {row["contender"] for row in rows if row["family"] == "PyTorch"} <= {"PyTorch, cuDNN", "PyTorch, native"}
    assert all(row["error"] <= 1e-4 and len(row["samples"]) == 2 and min(row["samples"]) > 0 for row in rows)


def test_parts_of_the_copy_are_counted_on_the_least_traffic(run: tuple[dict[str, Any], str]) -> None:
    record, _ = run
    copy = record["copy"]
    assert copy["bytes_per_second"] == pytest.approx(2 * copy["bytes"] / copy["seconds"]["median"], rel=1e-4)
    for row in record["rows"]:
        if row["clock"] == "call" or "work" not in row:
            assert "of_copy" not in row
            continue
        passes = {"inference": 2, "training forward": 2, "backward": 3}[row["work"]]
        part = passes * 4 * math.prod(row["shape"]) / statistics.median(row["samples"]) / copy["bytes_per_second"]
        assert row["of_copy"]["median"] == pytest.approx(part, rel=1e-3)
        assert row["of_copy"]["p20"] <= row["of_copy"]["median"] <= row["of_copy"]["p80"]


def test_steps_follow_the_float64_network_on_every_library(run: tuple[dict[str, Any], str]) -> None:
    record, _ = run
    rows = [row for row in record["rows"] if "work" not in row]
    assert {row["family"] for row in rows} == expected_families(record) - OURS | {"bnengine"}
    assert {row["group"] for row in rows} == {"steps, loop", "steps, warm", "steps, call"}
    assert all(row["error"] <= 1e-4 for row in rows)


def test_the_record_says_what_it_is_of(run: tuple[dict[str, Any], str]) -> None:
    from bnengine.kernels.cuda.sources import fingerprints

    record, printed = run
    assert record["device"]["name"] == "the host harness: no device"
    assert record["kernels"] == fingerprints()
    assert set(record["clocks"]) == {"start", "end"}
    assert record["repeats"] == 2
    assert printed.startswith("the host harness: no device")


def test_half_types(stand_in: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> None:
    shapes = ("--kernels", "--shapes", "2x4x6x6", "--contenders", "bnengine,pytorch,jax.jit")
    plot = tmp_path_factory.mktemp("plot") / "parts.png"
    record, printed = measured(tmp_path_factory, "--dtype", "bfloat16", *shapes, "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    found = {row["family"] for row in record["rows"]}
    assert found == expected_families(record, {"bnengine", "PyTorch", "jax.jit"})
    assert "2x4x6x6 nchw training forward" in printed


def test_steps_in_half_types_are_refused(stand_in: ModuleType) -> None:
    done = program("bench", "--backend", "cupy", "--dtype", "float16", "--contenders", "bnengine")
    assert done.returncode == 2
    assert done.stderr == "bnengine: --dtype: float16 is for kernels; add --kernels or leave it out\n"


@pytest.fixture
def events(stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    from bnengine.bench.gpu import events

    made = events._scratch, events._hold, events._read
    monkeypatch.setattr(events, "cupy", stand_in)
    stand_in.launches.clear()
    for kept in made:
        kept.cache_clear()
    with stand_in.Device():
        yield events
    for kept in made:
        kept.cache_clear()


def test_the_cache_is_flushed_by_reading(events: Any, stand_in: ModuleType) -> None:
    """What was written lies in it until somebody pays for writing it back."""
    scratch = events._scratch()
    scratch[:] = 2
    events.cold(Contender("a", lambda: stand_in.launches.append("call"), float, 0.0), 0.0)
    assert (stand_in.host(scratch) == 2).all()
    assert stand_in.launches == ["bnengine_read", "bnengine_hold", "call"]


def test_a_contender_has_so_much_time(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow one has few samples, of the first repeats; speeds are of the repeats that both have."""
    now = [0.0]
    monkeypatch.setattr(events.time, "perf_counter", lambda: now[0])
    calls = {"slow": 0, "quick": 0}

    def take(name: str, seconds: float) -> None:
        calls[name] += 1
        now[0] += seconds

    contenders = [
        Contender("slow", lambda: take("slow", 0.4), float, 0.0),
        Contender("quick", lambda: take("quick", 0.001), float, 0.0),
    ]
    samples = events.take_samples(contenders, 20, {"loop": lambda contender, queued: contender.call() or 1.0})
    assert {name: len(taken["loop"]) for name, taken in samples.items()} == {"slow": 4, "quick": 20}
    assert calls == {"slow": 4 + 3, "quick": 20 + events.WARM_UPS}
    rows = [timing.row(c, 0.0, samples[c.name]["loop"]) for c in contenders]
    assert timing.compare(rows)[1]["speed_over"]["slow"]["median"] == 1


def test_shapes_that_decide_come_first() -> None:
    pytest.importorskip("cupy")
    from bnengine.bench.gpu.normalization import FIRST, FIXED

    names = [shape.name for shape in FIXED]
    assert len(names) == len(set(names)) == 54
    assert names[:2] == ["16x64x256x256 nchw", "16x256x256x64 nhwc"]
    assert FIRST == 18
    assert {"32x2048x7x7 nchw", "8192x1024 rows"} <= set(names[:FIRST])
