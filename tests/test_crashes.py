"""A part of crashes.py: runs that are killed, go on, and end with the bits of a run that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import crashes
import pytest

import bnengine as bn
from bnengine.runs import run_directory

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="kills need POSIX signals and limits")
SHORT = ["--data", "digits.npz", "--hidden", "16", "--epochs", "3", "--early-stopping", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that was left alone, beside its data."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(place)
        crashes.write_data()
        assert crashes.finished("whole", options=SHORT)[0] == 0
    return place


def test_killed_inside_writes_and_between_them(whole, monkeypatch):
    """In config.toml, in the first checkpoint, before the new one takes the old one's place, at the very end."""
    monkeypatch.chdir(whole)
    limits = [("--size", "300"), ("--size", "3000"), ("--change", "18"), ("--change", "31")]
    for limit in limits:
        status, errors = crashes.finished("cut", *limit, options=SHORT)
        assert status in crashes.KILLED, (limit, errors)
    assert crashes.finished("cut", options=SHORT) == (0, "")
    assert crashes.differences("cut", "whole") == []


@pytest.mark.usefixtures("usual_signals")
def test_signals_leave_a_checkpoint_of_the_step(whole, monkeypatch):
    monkeypatch.chdir(whole)
    options = [*SHORT[:-4], "--epochs", "6", "--early-stopping", "6"]
    assert crashes.finished("long", options=options)[0] == 0
    signals = ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129))
    for step, (number, status) in zip((10, 20, 30), signals, strict=True):
        found = crashes.finished("stopped", "--signal", str(int(number)), "--step", "10", options=options)
        words = f"bnengine: interrupted after step {step}; --resume --out stopped goes on from there\n"
        assert found == (status, words)
        loaded = bn.load(Path("stopped", run_directory.LAST))
        assert loaded.opt_state["step"] == step == 7 * loaded.metadata["epoch"] + loaded.metadata["position"]
    assert crashes.finished("stopped", options=options) == (0, "")
    assert crashes.differences("stopped", "long") == []


def test_a_hang_up_is_ignored_under_nohup(whole, monkeypatch):
    monkeypatch.chdir(whole)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does: the child inherits it
    try:
        assert crashes.finished("nohup", "--signal", str(int(signal.SIGHUP)), "--step", "10", options=SHORT) == (0, "")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert crashes.differences("nohup", "whole") == []


def test_a_full_disk(whole, monkeypatch):
    monkeypatch.chdir(whole)
    status, errors = crashes.finished("full", "--size", "3000", "--full", options=SHORT)
    assert status == 1
    assert errors.strip() in (f"bnengine: full/{name}: File too large" for name in run_directory.FILES)
    assert crashes.finished("full", options=SHORT) == (0, "")
    assert crashes.differences("full", "whole") == []


def test_a_damaged_checkpoint_gives_way_to_the_one_before(whole, monkeypatch):
    monkeypatch.chdir(whole)
    assert crashes.finished("bad", options=SHORT)[0] == 0
    last = Path("bad", run_directory.LAST)
    raw = bytearray(last.read_bytes())
    raw[-5] ^= 1
    last.write_bytes(raw)
    process = crashes.start("bad", options=SHORT)
    out, errors = process.communicate()
    note = "bad/checkpoint.safetensors: damaged: its content does not have its checksum; going on from "
    assert out.startswith(f"{note}bad/previous.safetensors, epoch 2\n")
    assert (process.returncode, errors) == (0, "")
    assert crashes.differences("bad", "whole") == []
