from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnengine.runs import run_directory


def opened(out, name, *, overwrite=False, resume=False):
    """Its name, after it was closed."""
    with run_directory.open_directory(out, name, overwrite=overwrite, resume=resume) as path:
        return str(path)


def test_nothing_is_written_through_a_link():
    """A run directory may come from somebody else."""
    Path("own.txt").write_text("mine")
    for name in (*run_directory.FILES, run_directory.LOCK):
        run = Path(f"from-{name}")
        run.mkdir()
        (run / "config.toml").touch()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(Path("own.txt").resolve())
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(FileExistsError, match=f"out: {run / name} is a link"):
                opened(str(run), "x", **options)
    assert Path("own.txt").read_text() == "mine"
    assert len(opened(None, "x" * 300)) < 120


def test_run_directories_are_not_mixed_up():
    first = opened(None, "digits")
    assert (first, opened(None, "digits")) == ("runs/digits-001", "runs/digits-002")
    assert opened(None, "../../etc/x y") == "runs/etc-x-y-001"
    assert opened("new/deep", "x") == "new/deep"
    Path(first, "config.toml").write_text("")
    Path(first, "own-notes.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="exists; --resume goes on with it, --overwrite starts anew in it"):
        opened(first, "x")
    opened(first, "x", overwrite=True)
    assert sorted(os.listdir(first)) == [".lock", "own-notes.txt"]
    with pytest.raises(FileExistsError, match=r"holds own-notes.txt and no config.toml, so it is no run"):
        opened(first, "x", overwrite=True)
    Path("file").write_text("")
    with pytest.raises(FileExistsError, match="out: file is a file, expected a directory"):
        opened("file", "x")


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_what_a_killed_run_left_before_its_first_file_is_no_obstacle(flags):
    Path("run").mkdir()
    Path("run/.config.toml.x1y2z3").write_text("data = ")
    opened("run", "x", **flags)
    assert os.listdir("run") == [".lock"]


def test_a_directory_in_use_is_refused():
    with (
        run_directory.open_directory("run", "x", overwrite=False, resume=True),
        pytest.raises(FileExistsError, match=rf"out: run is in use by process {os.getpid()}$"),
    ):
        opened("run", "x", resume=True)
