"""Any value of any option of any command ends in an exit status and, where it is not 0, one line that says why."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnengine.cli import main
from bnengine.options import fields
from bnengine.runs.config import Config

TRAIN = ["train", "--data", "good.csv", "--epochs", "1", "--hidden", "2", "--batch-size", "20", "--device", "cpu"]
COMMANDS = {
    "train": ([*TRAIN, "--overwrite", "--out", "new"], [*fields(Config), "config"]),
    "resume": ([*TRAIN, "--resume", "--out", "run"], [*fields(Config), "config"]),
    "evaluate": (["evaluate", "run", "--data", "good.csv"], ["data", "label", "backend", "device"]),
    "predict": (["predict", "run", "--data", "good.csv"], ["data", "out", "backend", "device"]),
    "bench": (
        ["bench", "--kernels", "--shapes", "4x3", "--repeats", "1", "--contenders", "bnengine"],
        ["shapes", "layout", "draw", "contenders", "dtype", "backend", "minutes", "out", "plot", "config"],
    ),
    # Fewer steps than a study takes, so that none begins.
    "study": (
        ["study", "--data", "good.csv", "--steps", "5", "--out", "study"],
        ["experiment", "data", "seeds", "target", "backend", "device", "dtype", "jobs", "out", "config"],
    ),
    "warmup": (["warmup", "--dtype", "none"], ["dtype"]),
    "backends": (["backends"], ["debug"]),
    "nothing": ([], ["version-of", "help-me"]),
}
FOREVER = {"epochs", "repeats"}
"""Options whose larger values are right and only take long."""

VALUES = st.one_of(
    st.sampled_from(
        ["", "-1", "0", "1e999", "nan", "-inf", "good.csv", "bad.csv", "empty.npz", ".", "run", "/dev/null", "pipe.csv",
         "../x", "\x1b[2J", "9" * 30, "1,2", "1,,2", "2x3", "0x0", "2", "0.5", "true", "--", "auto", "torch:9", "run/config.toml"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=5),
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    rows = "".join(f"{i},{i * i % 7},{'ab'[i % 2]}\n" for i in range(40))
    (place / "good.csv").write_text(f"x,y,kind\n{rows}")
    (place / "bad.csv").write_text("x,y,kind\n1,2\n")
    np.savez(place / "empty.npz")
    os.mkfifo(place / "pipe.csv")
    with contextlib.chdir(place):
        assert ended([*TRAIN, "--out", "run"])[0] == 0
    return place


def ended(arguments: list[str]) -> tuple[object, str]:
    """(exit status, standard error)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status: object = main(arguments)
        except SystemExit as stop:  # argparse
            status = stop.code
    return status, err.getvalue()


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(COMMANDS)), st.data())
def test_any_option_ends_in_a_status_and_a_line(files, command, data):
    arguments, options = COMMANDS[command]
    options = [option for option in options if option not in FOREVER]
    chosen = data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True))
    given_values = [(f"--{option.replace('_', '-')}", data.draw(VALUES)) for option in chosen]
    shutil.rmtree(files / "new", ignore_errors=True)
    with contextlib.chdir(files):
        before = {path.name for path in files.parent.iterdir()}
        status, err = ended([*arguments, *(word for pair in given_values for word in pair)])
        added = {path.name for path in files.parent.iterdir()} - before
    assert status in (0, 1, 2)
    assert "Traceback" not in err
    assert added <= {"x"}  # what was asked for as ../x
    lines = [line for line in err.splitlines() if not line.startswith(("bnengine: warning: ", "bnengine: compiling "))]
    assert status == 0 or arguments == [] or (len(lines) == 1 and lines[0].startswith("bnengine: ")), err
