"""benchmarks/gpu_record.py from end to end, the host in the place of the device: every part runs, no record is kept."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m", "host_cuda.program")
SMALL = ("--contenders", "bnengine", "--repeats", "2")
HERE = "chain or stream or pool or hundred or 2_31 or device or blend or sgd"
"""GPU tests whose bodies the host can run in seconds; the others call checks that it runs in tests of their own."""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_record", ROOT / "benchmarks" / "gpu_record.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def short(script: ModuleType) -> tuple[Any, ...]:
    """A part of each kind, as small as it can be."""
    quick = ("--data", "digits", "--hidden", "8", "--target", "0.1", "--seeds", "1")
    words = {
        "tests": (*script.PYTEST, "--junitxml=OUT", script.TESTS, "-k", HERE),  # one process: the stand-in is its own
        "sanitizer-racecheck": ("-m", "host_cuda.checks"),
    }
    more = {"steps": SMALL, "kernels-bfloat16": SMALL, "time-to-accuracy": quick, "nvbench": ()}
    parts = {part.name: part for part in script.PARTS}
    names = ("device", "tests", "sanitizer-racecheck", "counters", *more)
    return tuple(
        parts[name]._replace(words=words.get(name, (*parts[name].words, *more.get(name, ())))) for name in names
    )


TOOL = """#!/bin/sh
# Stands in for a tool of CUDA: runs the program behind its options, and writes what the tool would.
while [ $# -gt 0 ]; do
  case "$1" in
    --log-file) log=$2; shift 2 ;;
    --tool | --print-limit | --clock-control | --kernel-name | --metrics) shift 2 ;;
    --csv) shift ;;
    *) break ;;
  esac
done
cat > "$log" <<'END'
{words}
END
exec "$@"
"""
COUNTED = """==PROF== Connected to process 1
==PROF== Profiling "bnengine_held_forward" - 0: 0%....50%....100% - 1 pass
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","python","127.0.0.1","bnengine_held_forward","1","7","(512, 1, 1)","(64, 1, 1)","0","9.0",\
"Command line profiler metrics","launch__registers_per_thread","register/thread","56"
""".replace("\\\n", "")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """compute-sanitizer and ncu on the path."""
    folder = tmp_path / "tools"
    folder.mkdir()
    said = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors"
    for name, words in (("compute-sanitizer", said), ("ncu", COUNTED)):
        (folder / name).write_text(TOOL.replace("{words}", words))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_every_part_runs_to_its_end(script: ModuleType, stand_in: ModuleType, tools: None, tmp_path: Path) -> None:
    """In two calls: the second adds to the record of the first."""
    from bnengine.kernels.cuda.sources import fingerprints

    pytest.importorskip("sklearn", reason="no scikit-learn: no data")
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    file, rest = tmp_path / "gpu-host.json", ("--out", str(tmp_path), "--name", "host", "--commit", "1234abc")
    parts = short(script)
    for k, names in enumerate(("tests,sanitizer,counters,steps", "kernels,nvbench,time-to-accuracy")):
        merged = ("--merge", str(file)) if k else ()
        assert script.main([*rest, "--parts", names, *merged], PYTHON, parts) == 0
    record = json.loads(file.read_text())
    assert list(record["parts"]) == [part.name for part in parts]
    found = {name: part["status"] for name, part in record["parts"].items() if name != "nvbench"}
    assert found == dict.fromkeys(found, "done")
    assert record["parts"]["nvbench"]["status"] == "skipped"
    assert (record["commit"], len(record["calls"])) == ("1234abc", 2)
    assert record["device"]["name"] == "the host harness: no device"
    assert record["tests"]["failed"] == []
    assert record["tests"]["passed"] >= 12
    assert record["tests"]["skipped"] == {}
    assert record["kernels"] == record["sources"] == fingerprints()
    assert record["sanitizers"]["sanitizer-racecheck"]["summary"] == "ERROR SUMMARY: 0 errors"
    assert [row["Metric Value"] for row in record["counters"]] == ["56"]
    assert {(row["part"], row["dtype"]) for row in record["rows"]} == {
        ("steps", "float32"),
        ("kernels-bfloat16", "bfloat16"),
    }
    assert {"bnengine"} <= {row["family"] for row in record["rows"] if row["group"] == "steps, loop"}
    assert {run["family"] for run in record["time_to_accuracy"]["rows"]} >= {"bnengine"}
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


def part_of(case: str, *, device: str = "a", error: str = "") -> tuple[str, ...]:
    """A program that writes what a benchmark writes, and then may end badly."""
    row = {
        "case": case,
        "group": "g",
        "dtype": "float32",
        "clock": "cold",
        "seconds": {"median": 1.0},
        "speed_over": {},
    }
    left = {"copy": {}, "clocks": {}, "rows": [row | {"family": "bnengine"}], "left_out": [{"case": f"not {case}"}]}
    text = json.dumps({"device": {"name": device}, **left})
    write = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({text!r})"
    return ("-c", f"{write}; {error}", "OUT")


def test_what_was_measured_stays_when_a_part_fails(
    script: ModuleType, stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails, is skipped, refuses, takes too long, has no tool or a picture that cannot be drawn; then one that is well."""
    monkeypatch.setattr(script, "GRACE", 0.005)
    monkeypatch.setattr(script.pictures, "fractions", lambda record: 1 / 0)
    parts = (
        script.Part("device", 1.0, part_of("none"), script._take_device),
        script.Part("fails", 1.0, part_of("first", error="raise SystemError('the device is lost')")),
        script.Part("skipped", 1.0, ("-c", "import sys; sys.exit(2)"), may_skip=True),
        script.Part("refuses", 1.0, ("-c", "import sys; sys.exit(2)")),
        script.Part("long", 0.0, part_of("second", error="import time; time.sleep(60)")),
        script.Part("no tool", 1.0, ("-c", ""), tool=("compute-sanitizer-that-is-not-here",)),
        script.Part("cut off", 1.0, ("-c", "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{')", "OUT")),
        script.Part("well", 1.0, part_of("third")),
    )
    monkeypatch.setattr(script, "PATIENCE", 0.5)
    assert script.main(["--out", str(tmp_path)], (sys.executable,), parts) == 1
    record = json.loads((tmp_path / "gpu-record.json").read_text())
    status = {name: part["status"] for name, part in record["parts"].items()}
    assert list(status.values()) == ["done", "failed", "skipped", "failed", "ended", "skipped", "failed", "done"]
    assert record["parts"]["fails"]["reason"] == "SystemError: the device is lost"
    assert record["parts"]["no tool"]["reason"] == "compute-sanitizer-that-is-not-here is not here"
    assert [row["case"] for row in record["rows"]] == ["first", "second", "third"]
    assert [left["part"] for left in record["left_out"]] == ["fails", "long", "well"]
    assert record["kernels"] == {}


def test_a_later_call_adds_to_the_record(
    script: ModuleType, stand_in: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a case that is measured again take the place of the old ones; another device or commit is refused."""

    def call(*arguments: str, device: str = "a", case: str = "first", **changed: Any) -> int:
        parts = (
            script.Part("device", 1.0, part_of("none", device=device), script._take_device),
            script.Part("kernels-a", 1.0, part_of(case)),
            script.Part("kernels-b", 1.0, part_of("other")),
        )
        return script.main(["--out", str(tmp_path), "--commit", "1", *arguments], (sys.executable,), parts)

    file = tmp_path / "gpu-record.json"
    assert call("--parts", "kernels-a") == 0
    assert call("--parts", "kernels", "--merge", str(file), case="second") == 0
    assert call("--parts", "kernels-a", "--merge", str(file), case="first") == 0
    record = json.loads(file.read_text())
    assert sorted((row["part"], row["case"]) for row in record["rows"]) == [
        *(("kernels-a", case) for case in ("first", "second")),
        ("kernels-b", "other"),
    ]
    assert len(record["calls"]) == 3
    kept = file.read_bytes()
    assert call("--merge", str(file), device="b") == 2
    assert call("--merge", str(file), "--commit", "2") == 2
    assert call("--parts", "kernels-c") == 2
    reasons = capsys.readouterr().err.splitlines()
    assert reasons[0] == "gpu_record: --merge: it is of a, this is b"
    assert reasons[1] == f"gpu_record: --merge: {file} is of another commit; begin a new record"
    assert reasons[2] == "gpu_record: --parts: expected some of device, kernels-a, kernels-b, got 'kernels-c'"
    assert file.read_bytes() == kept


def test_tests_that_are_interrupted_still_say_what_they_know(script: ModuleType, tmp_path: Path) -> None:
    """pytest writes its report when it is asked to end, and not when it is killed; no kernel counts as verified then."""
    tests = tmp_path / "test_slow.py"
    tests.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    words = ("-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--junitxml=OUT", str(tests))
    out = tmp_path / "out.xml"
    outcome = script._run(script.Part("tests", 1.0, words), out, 6 / 60 - script.GRACE, (sys.executable,))
    assert outcome["status"] == "ended"
    record: dict[str, Any] = {"parts": {"tests": outcome}, "sources": {"a": "b"}}
    script._take_tests(record, "tests", out.read_text())
    assert record["tests"]["passed"] >= 1
    assert record["kernels"] == {}


def test_kernels_count_as_verified_only_where_every_test_passed(script: ModuleType, stand_in: ModuleType) -> None:
    cases = '<testsuites><testsuite><testcase name="a"/><testcase name="b">{}</testcase></testsuite></testsuites>'
    for inside, verified in (
        ("", True),
        ('<skipped message="one GPU"/>', True),
        ("<failure/>", False),
        ("<error/>", False),
    ):
        record: dict[str, Any] = {"sources": {"a": "b"}, "parts": {"tests": {"status": "done"}}}
        script._take_tests(record, "tests", cases.format(inside))
        assert bool(record["kernels"]) == verified, inside


def test_without_a_gpu_no_record_is_written(
    script: ModuleType, stand_in: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--out", str(tmp_path)]) == 2
    reason = "bnengine: --backend: cupy cannot be used here: CuPy is installed but no GPU answers"
    assert capsys.readouterr().out.strip().endswith(reason)
    assert list(tmp_path.iterdir()) == []
