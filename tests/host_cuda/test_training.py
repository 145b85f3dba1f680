"""`bnengine train --backend cupy` from end to end, the host in the place of the device."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

OPTIONS = ("--data", "digits", "--hidden", "16", "--epochs", "2", "--batch-size", "256", "--learning-rate", "0.02")

PROGRAM = """
import json, sys
from host_cuda import library, memory
library.install()
memory.waiting_allowed = True
from bnengine.cli import main
status = main(sys.argv[1:])
print(json.dumps(memory.events))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def run(stand_in: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run's directory, and what host and device did in order."""
    pytest.importorskip("sklearn", reason="no scikit-learn: no digits")
    out = tmp_path_factory.mktemp("cupy") / "run"
    done = _python("-c", PROGRAM, "train", "--backend", "cupy", "--optimizer", "adam", *OPTIONS, "--out", str(out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out, json.loads(done.stdout.splitlines()[-1])


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parents[1]}", "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=path)


def test_nothing_waits_inside_an_epoch(run: tuple[Path, list[str]]) -> None:
    """Every step ends in one update; between those of an epoch no value goes to the host."""
    runs = [
        (event, len(list(same)))
        for event, same in itertools.groupby(e for e in run[1] if e in ("bnengine_update", "to host"))
    ]
    steps = json.loads((run[0] / "summary.json").read_text())["steps"] // 2
    assert [count for event, count in runs if event == "bnengine_update"] == [steps, steps]


def test_the_run_names_its_kernels(run: tuple[Path, list[str]]) -> None:
    summary = json.loads((run[0] / "summary.json").read_text())
    assert (summary["backend"], summary["kernels"]) == ("cupy", "cuda")
    assert {"bnengine_update", "bnengine_blend"} <= set(run[1])


def test_the_same_numbers_as_numpy(run: tuple[Path, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = _python("-m", "bnengine", "train", "--backend", "numpy", "--optimizer", "adam", *OPTIONS, "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (run[0], out)
    ]
    for ours, theirs in zip(*rows, strict=True):
        for name in ("train_loss", "validation_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
