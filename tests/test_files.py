from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bnengine import files

HOLD = "import sys, pathlib; from bnengine import files\nwith files.lock(pathlib.Path('d/.lock')): print('held', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(monkeypatch, call):
    Path("file").write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[call], full)
    with pytest.raises(OSError, match=r"No space left on device: 'file'"):
        files.write("file", "new")
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


def test_content_and_names_are_flushed(monkeypatch):
    """The file before it takes its name, the directory after."""
    calls = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink()
        calls.append("directory" if path == Path.cwd() else f"content {path.read_text()}")
        fsync(handle)

    def renamed(path, target):
        calls.append(f"name {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    files.write("file", "1")
    files.write("file", "2", keep=Path("before"))
    assert calls == ["content 1", "name file", "directory", "content 2", "name before", "name file", "directory"]
    assert (Path("file").read_text(), Path("before").read_text()) == ("2", "1")


def test_a_file_that_is_kept_is_never_without_its_name(monkeypatch):
    """Looked at before each change of a name, as a reader may at any moment, also after a kill between two of them."""
    replace, seen = Path.replace, []

    def renamed(path, target):
        seen.append((Path("file").read_text(), Path("before").exists()))
        return replace(path, target)

    def killed(path, target):
        if target.name == "file":
            raise KeyboardInterrupt
        return replace(path, target)

    files.write("file", "0")
    monkeypatch.setattr(Path, "replace", renamed)
    for number in (1, 2):
        files.write("file", f"{number}", keep=Path("before"))
    assert seen == [("0", False), ("0", True), ("1", True), ("1", True)]
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write("file", "3", keep=Path("before"))
    assert [Path(name).read_text() for name in ("file", "before")] == ["2", "2"]
    monkeypatch.setattr(Path, "replace", replace)
    files.write("file", "3", keep=Path("before"))
    assert {name: Path(name).read_text() for name in os.listdir()} == {"file": "3", "before": "2"}


def test_where_there_are_no_hard_links_one_name_is_there(monkeypatch):
    def refused(path, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    files.write("file", "1")
    files.write("file", "2", keep=Path("before"))
    assert {name: Path(name).read_text() for name in os.listdir()} == {"file": "2", "before": "1"}


def test_links_stay_and_pipes_are_written_to():
    Path("target").write_text("old")
    Path("link").symlink_to("target")
    files.write("link", "new")
    assert Path("link").is_symlink()
    assert Path("target").read_text() == "new"
    os.mkfifo("pipe")
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_text()))
    received: list[str] = []
    reader.start()
    files.write("pipe", "through")
    reader.join()
    assert received == ["through"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    with pytest.raises(OSError, match="nowhere/file"):
        files.write("nowhere/file", "x")


def test_files_are_as_readable_as_others():
    files.write("ours", "x")
    Path("theirs").write_text("x")
    assert stat.S_IMODE(os.stat("ours").st_mode) == stat.S_IMODE(os.stat("theirs").st_mode)


def test_a_lock_is_held_by_one_process_and_never_stale():
    Path("d").mkdir()
    first = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with first:
        with pytest.raises(FileExistsError, match=rf"out: d is in use by process {first.pid}$"):
            files.lock(Path("d/.lock")).__enter__()
        first.kill()
    with files.lock(Path("d/.lock")):
        assert Path("d/.lock").read_text() == f"process {os.getpid()}\n"
