from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import checkpoints, trees

NET = bn.mlp([4, 6, 3], standardize=True)


def trained(backend=None):
    backend = backend or bn.backend("numpy")
    params, state = NET.init(3, backend=backend)
    optimizer = bn.optimizers.adam()
    opt_state = optimizer.init(params)
    x = np.random.default_rng(0).standard_normal((8, 4))
    return bn.train_step(
        NET, optimizer, params, state, opt_state, backend.asarray(x), backend.asarray(np.arange(8) % 3)
    )[:3]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array-api-strict"])
def test_what_is_saved_comes_back(name):
    need(name.replace("-", "_"))
    params, state, opt_state = trained(bn.backend(name))
    bn.save("net.safetensors", NET, params, state, opt_state=opt_state, metadata={"classes": ["a", "ü"]})
    for other in ("numpy", name):
        loaded = bn.load("net.safetensors", backend=bn.backend(other))
        assert loaded.net == NET
        assert loaded.metadata == {"classes": ["a", "ü"]}
        assert loaded.opt_state["step"] == 1
        assert loaded.state["2"]["batches"] == 1
        assert type(loaded.state["2"]["batches"]) is int
        for mine, theirs in zip((params, state, opt_state), loaded[1:4], strict=True):
            for a, b in zip(trees.leaves(mine), trees.leaves(theirs, mine), strict=True):
                np.testing.assert_array_equal(checkpoints.as_numpy(a), checkpoints.as_numpy(b))


def test_strided_and_fortran_arrays_are_written_right():
    """safetensors itself writes their memory in the order in which it lies."""
    params, state, _ = trained()
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2], weight[::-1, ::-1]):
        params["1"]["weight"] = view
        bn.save("net.safetensors", NET, params, state)
        np.testing.assert_array_equal(bn.load("net.safetensors").params["1"]["weight"], view)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(monkeypatch):
    Path("file").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write("file", "new")
    assert Path("file").read_text() == "old"
    assert os.listdir() == ["file"]


def test_links_stay_and_pipes_are_written_to():
    Path("target").write_text("old")
    Path("link").symlink_to("target")
    checkpoints.write("link", "new")
    assert Path("link").is_symlink()
    assert Path("target").read_text() == "new"
    os.mkfifo("pipe")
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_text()))
    received: list[str] = []
    reader.start()
    checkpoints.write("pipe", "through")
    reader.join()
    assert received == ["through"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    with pytest.raises(OSError, match="nowhere/file"):
        checkpoints.write("nowhere/file", "x")


def test_saving_something_else_is_refused():
    params, _, _ = trained()
    with pytest.raises(
        ValueError, match=r"params, state: expected the arrays 0.mean, 0.var, 1.weight, .*, got 1.weight"
    ):
        bn.save("net.safetensors", NET, params, {})


def test_files_are_as_readable_as_others():
    checkpoints.write("ours", "x")
    Path("theirs").write_text("x")
    assert stat.S_IMODE(os.stat("ours").st_mode) == stat.S_IMODE(os.stat("theirs").st_mode)


def test_damaged_files_are_refused():
    params, state, _ = trained()
    bn.save("net.safetensors", NET, params, state)
    raw = Path("net.safetensors").read_bytes()
    for broken in (b"", raw[:5], raw[:200], raw[:-1], raw + b"\0", b"\xff" * 8 + raw[8:]):
        Path("broken").write_bytes(broken)
        with pytest.raises(bn.CheckpointError, match="broken: not a whole safetensors file"):
            bn.load("broken")
    with pytest.raises(bn.CheckpointError, match="nowhere: no such file"):
        bn.load("nowhere")


def test_files_of_something_else_are_refused():
    from safetensors.numpy import save_file

    params, state, _ = trained()
    arrays = {**trees.flatten(params), **{name: np.asarray(leaf) for name, leaf in trees.flatten(state).items()}}
    good = {"format": checkpoints.FORMAT, "network": json.dumps(checkpoints.to_spec(NET)), "metadata": "{}"}
    save_file(arrays, "file", {**good, "format": "bnengine network 2"})
    with pytest.raises(bn.CheckpointError, match="expected format 'bnengine network 1', got 'bnengine network 2'"):
        bn.load("file")
    save_file(arrays, "file", {**good, "network": '[{"layer": "Linear", "inputs": -1}]'})
    with pytest.raises(bn.CheckpointError, match="its description of the network cannot be read"):
        bn.load("file")
    save_file({**arrays, "1.weight": np.zeros((4, 5), np.float32)}, "file", good)
    with pytest.raises(bn.CheckpointError, match=r"1.weight should have shape \(4, 6\), it has \(4, 5\)"):
        bn.load("file")
    save_file({name: leaf for name, leaf in arrays.items() if name != "2.gamma"}, "file", good)
    with pytest.raises(bn.CheckpointError, match=r"2.gamma should have shape \(6,\), it has None"):
        bn.load("file")


def test_run_directories_are_not_mixed_up():
    first = checkpoints.new_run(None, "digits", overwrite=False, resume=False)
    second = checkpoints.new_run(None, "digits", overwrite=False, resume=False)
    assert (str(first), str(second)) == ("runs/digits-001", "runs/digits-002")
    assert str(checkpoints.new_run(None, "../../etc/x y", overwrite=False, resume=False)) == "runs/etc-x-y-001"
    assert checkpoints.new_run("new/deep", "x", overwrite=False, resume=False) == Path("new/deep")
    (first / "config.toml").write_text("")
    (first / "own-notes.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="exists; --resume goes on with it, --overwrite starts anew in it"):
        checkpoints.new_run(str(first), "x", overwrite=False, resume=False)
    checkpoints.new_run(str(first), "x", overwrite=True, resume=False)
    assert os.listdir(first) == ["own-notes.txt"]
    with pytest.raises(FileExistsError, match=r"holds own-notes.txt and no config.toml, so it is no run"):
        checkpoints.new_run(str(first), "x", overwrite=True, resume=False)
    Path("file").write_text("")
    with pytest.raises(FileExistsError, match="out: file is a file, expected a directory"):
        checkpoints.new_run("file", "x", overwrite=False, resume=False)
