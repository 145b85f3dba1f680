"""benchmarks/gpu_record.py from end to end, the host in the place of the device: every part runs, no record is kept."""

from __future__ import annotations

import importlib.util
import json
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
    """The parts, each as small as it can be."""
    device, tests, *kernels, steps, accuracy = script.PARTS
    quick = ("--data", "digits", "--hidden", "8", "--target", "0.1", "--seeds", "1")
    return (
        device,
        tests._replace(words=(*tests.words, "-k", HERE)),
        *(part._replace(words=(*part.words, *SMALL)) for part in (kernels[2], steps)),
        accuracy._replace(words=(*accuracy.words, *quick)),
    )


def test_every_part_runs_to_its_end(script: ModuleType, stand_in: ModuleType, tmp_path: Path) -> None:
    from bnengine.kernels.cuda.sources import fingerprints

    pytest.importorskip("sklearn", reason="no scikit-learn: no data")
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    status = script.main(["--out", str(tmp_path), "--name", "host"], PYTHON, short(script))
    record = json.loads((tmp_path / "gpu-host.json").read_text())
    assert {name: part["status"] for name, part in record["parts"].items()} == dict.fromkeys(record["parts"], "done")
    assert status == 0
    assert record["device"]["name"] == "the host harness: no device"
    assert record["tests"]["failed"] == []
    assert record["tests"]["passed"] >= 12
    assert record["tests"]["skipped"] == {}
    assert record["kernels"] == fingerprints()
    assert {row["dtype"] for row in record["rows"]} == {"float32", "bfloat16"}  # steps, kernels
    assert {"bnengine"} <= {row["family"] for row in record["rows"] if row["group"] == "steps, loop"}
    assert {run["family"] for run in record["time_to_accuracy"]["rows"]} >= {"bnengine"}
    assert (tmp_path / "gpu-host.png").read_bytes().startswith(b"\x89PNG")
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


DEVICE = {"device": {"name": "a"}, "copy": {}, "clocks": {}, "rows": [], "left_out": [{"case": "a"}]}


def test_what_was_measured_stays_when_a_part_fails(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is well; one that fails, one that is skipped, one that takes too long; then one that is well."""
    monkeypatch.setattr(script, "GRACE", 0.005)
    write = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({json.dumps(json.dumps(DEVICE))})"
    parts = (
        script.Part("device", 1.0, ("-c", write, "OUT")),
        script.Part("fails", 1.0, ("-c", "raise SystemError('the device is lost')")),
        script.Part("skipped", 1.0, ("-c", "import sys; sys.exit(2)")),
        script.Part("long", 0.0, ("-c", "import time; time.sleep(60)")),
        script.Part("well", 1.0, ("-c", write, "OUT")),
    )
    assert script.main(["--out", str(tmp_path)], (sys.executable,), parts) == 1
    record = json.loads((tmp_path / "gpu-record.json").read_text())
    assert [part["status"] for part in record["parts"].values()] == ["done", "failed", "skipped", "ended", "done"]
    assert record["parts"]["fails"]["reason"] == "SystemError: the device is lost"
    assert record["left_out"] == [{"part": "well", "case": "a"}]
    assert record["kernels"] == {}


def test_kernels_count_as_verified_only_where_every_test_passed(script: ModuleType, stand_in: ModuleType) -> None:
    cases = '<testsuites><testsuite><testcase name="a"/><testcase name="b">{}</testcase></testsuite></testsuites>'
    for inside, verified in (
        ("", True),
        ('<skipped message="one GPU"/>', True),
        ("<failure/>", False),
        ("<error/>", False),
    ):
        record: dict[str, Any] = {"kernels": {}}
        script._take_tests(record, "tests", cases.format(inside))
        assert bool(record["kernels"]) == verified, inside


def test_without_a_gpu_no_record_is_written(
    script: ModuleType, stand_in: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--out", str(tmp_path)]) == 2
    reason = "bnengine: --backend: cupy cannot be used here: CuPy is installed but no GPU answers"
    assert capsys.readouterr().out.strip().endswith(reason)
    assert list(tmp_path.iterdir()) == []
