from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import backends, checkpoints, trees

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
                np.testing.assert_array_equal(backends.as_numpy(a), backends.as_numpy(b))


def test_strided_and_fortran_arrays_are_written_right():
    """safetensors itself writes their memory in the order in which it lies."""
    params, state, _ = trained()
    weight = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2], weight[::-1, ::-1]):
        params["1"]["weight"] = view
        bn.save("net.safetensors", NET, params, state)
        np.testing.assert_array_equal(bn.load("net.safetensors").params["1"]["weight"], view)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": 3}, "path: expected a path, got 3"),
        ({"path": "a\0b"}, "path: expected a path, got 'a"),
        ({"net": None}, "net: expected a Sequential, got None"),
        ({"params": None}, "params: expected a dict, got None"),
        ({"state": [1]}, r"state: expected a dict, got \[1\]"),
        ({"opt_state": 3}, "opt_state: expected a dict, got 3"),
        ({"opt_state": {"step": "3"}}, "opt_state: expected arrays and counts, got '3'"),
        ({"metadata": [3]}, r"metadata: expected a dict, got \[3\]"),
        ({"metadata": {"a": b"b"}}, "metadata: expected what JSON can hold: Object of type bytes"),
    ],
)
def test_arguments_of_another_kind_are_refused(change, message):
    params, state, _ = trained()
    with pytest.raises(TypeError, match=message):
        bn.save(**{"path": "net.safetensors", "net": NET, "params": params, "state": state} | change)
    assert os.listdir() == []
    if "path" in change:
        with pytest.raises(TypeError, match=message):
            bn.load(change["path"])


def test_trees_of_another_network_are_not_saved():
    params, state, _ = trained()
    for tree, name in ((params, "params"), (state, "state")):
        layer = tree["2"]
        key = next(iter(layer))
        tree["2"] = layer | {key: np.ones(7)}
        with pytest.raises(ValueError, match=rf"{name}: expected 2.{key} of shape \(6,\) for this network, got \(7,\)"):
            bn.save("net.safetensors", NET, params, state)
        tree["2"] = layer


def test_any_numbers_of_an_optimizer_come_back():
    params, state, _ = trained()
    opt_state = {"step": 3, "seen": np.arange(3), "scale": np.asarray(0.5, np.float32)}
    bn.save("net.safetensors", NET, params, state, opt_state=opt_state)
    back = bn.load("net.safetensors").opt_state
    assert (type(back["step"]), back["step"], float(back["scale"])) == (int, 3, 0.5)
    np.testing.assert_array_equal(back["seen"], np.arange(3))


def test_saving_something_else_is_refused():
    params, _, _ = trained()
    with pytest.raises(
        ValueError, match=r"params, state: expected the arrays 1.weight, .*, 0.mean, 0.var, .*, got 1.weight"
    ):
        bn.save("net.safetensors", NET, params, {})


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
    good = {"format": "bnengine network 1", "network": json.dumps(checkpoints.to_spec(NET)), "metadata": "{}"}

    def refused(words, header, arrays=arrays):
        """With a checksum, so that it is refused for what it is."""
        save_file(arrays, "file", {**header, "sha256": checkpoints._digest(header, arrays)})
        with pytest.raises(bn.CheckpointError, match=words):
            bn.load("file")

    refused(
        "its format 2 is newer than 1, which this bnengine reads; update it", {**good, "format": "bnengine network 2"}
    )
    refused("expected a network's format, got 'pt'", {**good, "format": "pt"})
    broken = {**good, "network": '[{"layer": "Linear", "inputs": -1}]'}
    refused("its description of the network cannot be read", broken)
    wide = {**arrays, "1.weight": np.zeros((4, 5), np.float32)}
    refused(r"1.weight should have shape \(4, 6\), it has \(4, 5\)", good, wide)
    fewer = {name: leaf for name, leaf in arrays.items() if name != "2.gamma"}
    refused(r"2.gamma should have shape \(6,\), it has None", good, fewer)


def test_a_bit_that_has_changed_is_refused(rng):
    """safetensors itself has no checksum: a number in a weight would only be another number."""
    params, state, opt_state = trained()
    bn.save("net.safetensors", NET, params, state, opt_state=opt_state, metadata={"epoch": 3})
    raw = Path("net.safetensors").read_bytes()
    for bit in rng.choice(8 * len(raw), 100, replace=False):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        Path("changed").write_bytes(changed)
        with pytest.raises(bn.CheckpointError):
            bn.load("changed")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    net = bn.mlp([2, 3])
    params, state = net.init(0, backend="numpy")
    with pytest.raises(IsADirectoryError, match=r"^path: expected a file to write, .* is a directory"):
        bn.save(tmp_path, net, params, state)
    with pytest.raises(FileNotFoundError, match=r"^path: no directory .*new to write model into; make it first"):
        bn.save(tmp_path / "new" / "model", net, params, state)


def test_a_layer_that_does_not_fit_into_memory_is_named():
    with pytest.raises(MemoryError, match=r"^layers: layer 0, Linear\(inputs=4194304, .* too large: "):
        bn.mlp([2**22, 2**31 - 1]).init(0, backend="numpy")
