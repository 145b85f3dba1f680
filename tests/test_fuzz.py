"""A part of what `nox -s fuzz` does: see fuzz.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_damaged_files_are_read_or_refused_and_do_nothing_else(reader):
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, Path(fuzz.__file__), reader, "--cases", "400"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stderr
    record = json.loads(result.stdout)
    assert record["wrong"] == []
    assert record["refused"] > 200
    assert record["read"] + record["refused"] == 400


def test_the_watch_sees_what_reading_a_file_must_not_do():
    code = """
import pickle, signal, sys
import fuzz
sys.addaudithook(fuzz._watch)
signal.signal(signal.SIGALRM, fuzz._hangs)
fuzz.SECONDS = 1
for act in (lambda s: open("written", "w"), lambda s: exec("1"), lambda s: pickle.loads(pickle.dumps(len)),
            lambda s: [0 for _ in iter(int, 1)], lambda s: {}["x"], lambda s: int("x"), lambda s: 0):
    print(fuzz.outcome(fuzz.Reader(list, act), "").split(":")[0])
"""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{Path(fuzz.__file__).parent}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == ["Forbidden"] * 3 + ["TimeoutError", "KeyError", "refused", "read"]
