"""Weights that come from PyTorch and go there: the same outputs as the modules themselves, or a refusal by name."""

from __future__ import annotations

import itertools
import json
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from libraries import need
from networks import outputs, trained

import bnengine as bn
from bnengine import trees
from bnengine.exchange.to_torch import torch_code
from bnengine.functional import ACTIVATIONS

LINEAR = {"0.weight": np.ones((3, 4)), "0.bias": np.zeros(3)}
NORM = {f"1.{name}": np.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.fixture
def torch():
    return need("torch")


def in_torch(torch, net, arrays):
    """The module that `bnengine export --torch` prints, with these arrays, in inference."""
    scope = {}
    exec(torch_code(net), scope)
    module = scope["net"].to(next(torch.from_numpy(a).dtype for a in arrays.values()))
    module.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()})
    return module.eval()


NETWORKS = {
    **{name: bn.mlp([5, 8, 8, 3], activation=name, standardize=True, dropout=0.1) for name in ACTIVATIONS},
    "post": bn.mlp([5, 8, 8, 3], norm_position="post", residual=True, eps=1e-3, momentum=None),
    "no norm": bn.mlp([5, 8, 3], norm=None),
    "nested": bn.Sequential((bn.Sequential((bn.Linear(5, 4, bias=False), bn.BatchNorm(4, "relu"))), bn.Linear(4, 2))),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_to_torch_and_back(name, dtype, torch, rng):
    net = NETWORKS[name]
    params, state = trained(net, rng, dtype)
    arrays = bn.to_torch(net, params, state)
    x = rng.standard_normal((40, 5)).astype(dtype)
    with torch.no_grad():
        theirs = in_torch(torch, net, arrays)(torch.from_numpy(x)).numpy()
    ours = outputs(net, params, state, x)
    bound = (2e-6 if dtype == "float32" else 1e-12) * np.abs(ours).max()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=bound)
    back = bn.from_torch(arrays, net, backend=bn.backend("numpy", dtype=dtype))
    assert back[0] is net
    for tree, again in zip((params, state), back[1:], strict=True):
        assert trees.names(tree) == trees.names(again)
        for a, b in zip(trees.leaves(tree), trees.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)


def trained_module(torch, *layers, names=None):
    """A torch.nn.Sequential as training may leave it: moved parameters, statistics of rows far from zero."""
    torch.manual_seed(0)
    names = names or map(str, range(len(layers)))
    module = torch.nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.5)
        for _ in range(3):
            module(torch.randn(30, 4) * 2 + 3)
    return module.eval()


def usual(torch, bias=True):
    nn = torch.nn
    return (nn.Linear(4, 8, bias=bias), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def assert_same_outputs(torch, module, found, rng):
    x = torch.from_numpy((rng.standard_normal((50, 4)) * 2 + 3).astype(np.float32))
    with torch.no_grad():
        wanted = module(x).numpy()
    np.testing.assert_allclose(outputs(*found, x.numpy()), wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("kind", "prefix", "bias"),
    [
        ("mapping", "", True),
        ("mapping", "module.", False),
        ("numpy", "_orig_mod.net.layers.", True),
        ("safetensors", "module.", True),
        ("safetensors", "", False),
        ("npz", "net.", True),
    ],
)
def test_the_usual_network_from_torch(kind, prefix, bias, torch, rng):
    module = trained_module(torch, *usual(torch, bias))
    given = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    if kind != "mapping":
        given = {name: tensor.numpy() for name, tensor in given.items()}
    if kind == "npz":
        np.savez("weights.npz", **given)
        given = Path("weights.npz")
    elif kind == "safetensors":
        need("safetensors.torch").save_file({name: torch.from_numpy(a) for name, a in given.items()}, "weights")
        given = "weights"
    net, params, state = bn.from_torch(given, activation="relu")
    assert net == bn.mlp([4, 8, 3])
    assert state["1"]["batches"] == 3
    assert_same_outputs(torch, module, (net, params, state), rng)
    assert_same_outputs(torch, module, bn.from_torch(given, bn.mlp([4, 8, 3], dropout=0.2)), rng)


def test_the_activation_is_told_where_it_is_a_guess(torch, rng):
    nn = torch.nn
    module = trained_module(torch, nn.Linear(4, 5), nn.SiLU(), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 2))
    with pytest.warns(UserWarning, match=r"activation: .*relu was put behind 0\. Hand net, or activation='relu'"):
        net, _, _ = bn.from_torch(module.state_dict())
    kinds = (bn.Linear(5, 5), bn.Linear(5, 2))
    assert net == bn.Sequential((bn.Linear(4, 5), bn.Activation("relu"), bn.BatchNorm(5), *kinds))
    assert_same_outputs(torch, module, bn.from_torch(module.state_dict(), activation="silu"), rng)
    with pytest.raises(ValueError, match=r"activation: .*net is given"):
        bn.from_torch(module.state_dict(), net, activation="relu")
    with pytest.raises(ValueError, match="activation: expected 'relu'"):
        bn.from_torch(module.state_dict(), activation="swish")


def test_named_modules(torch, rng):
    names = ["stem", "norm", "act", "hidden", "act2", "head"]
    nn = torch.nn
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2)
    module = trained_module(torch, *layers, names=names)
    found = bn.from_torch(module.state_dict(), activation="tanh")
    assert_same_outputs(torch, module, found, rng)
    need("safetensors.torch").save_file(module.state_dict(), "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights.safetensors: .*no order of its modules .*stem"):
        bn.from_torch("weights.safetensors", activation="tanh")
    order = ["stem", "norm", "hidden", "head"]
    again = bn.from_torch("weights.safetensors", activation="tanh", modules=order)
    assert_same_outputs(torch, module, again, rng)
    part = bn.from_torch("weights.safetensors", modules=order[:2], activation="identity")
    assert part[0] == bn.Sequential((bn.Linear(4, 5, bias=False), bn.BatchNorm(5)))
    with pytest.raises(ValueError, match=r"modules: expected names of weights.safetensors, .*got 'tail'"):
        bn.from_torch("weights.safetensors", modules=["tail"])


def test_many_modules_are_taken_by_number_and_not_by_letter(torch, rng):
    widths = [4, *range(6, 14), 3]
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    spaced = [part for layer in layers for part in (layer, torch.nn.ELU())][:-1]
    module = trained_module(torch, *spaced)
    need("safetensors.torch").save_file(module.state_dict(), "weights.safetensors")
    assert_same_outputs(torch, module, bn.from_torch("weights.safetensors", activation="elu"), rng)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_in_other_dtypes(dtype, torch, rng):
    module = trained_module(torch, *usual(torch)).to(getattr(torch, dtype))
    need("safetensors.torch").save_file(module.state_dict(), "weights.safetensors")
    module = module.to(torch.float32)
    for given in (module.state_dict(), "weights.safetensors"):
        found = bn.from_torch(given, activation="relu")
        assert found[1]["0"]["weight"].dtype == np.float32
        assert_same_outputs(torch, module, found, rng)
    ours = bn.from_torch(module.to(getattr(torch, dtype)).state_dict(), activation="relu")
    np.testing.assert_array_equal(ours[1]["0"]["weight"], found[1]["0"]["weight"])


def test_running_statistics_go_on_as_in_torch(torch, rng):
    """Unbiased in both: after further training with frozen weights they are the same."""
    nn = torch.nn
    module = trained_module(torch, nn.Linear(4, 8), nn.BatchNorm1d(8, eps=1e-3, momentum=0.3))
    layers = (bn.Linear(4, 8, bias=False), bn.BatchNorm(8, eps=1e-3, momentum=0.3))
    net, params, state = bn.from_torch(module.double().state_dict(), bn.Sequential(layers), backend=FLOAT64)
    module.train()
    for _ in range(5):
        x = rng.standard_normal((9, 4))
        module(torch.from_numpy(x))
        _, state, _ = net.forward(params, state, x, training=True)
    np.testing.assert_allclose(state["1"]["var"], module[1].running_var.numpy(), rtol=1e-12)
    mean = state["1"]["mean"] + module[0].bias.detach().numpy()
    np.testing.assert_allclose(mean, module[1].running_mean.numpy(), rtol=1e-12)
    assert state["1"]["batches"] == int(module[1].num_batches_tracked)


FLOAT64 = bn.backend("numpy", dtype="float64")


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "file_or_mapping: expected arrays of Linear and BatchNorm1d modules, got none"),
        (without(LINEAR, "0.weight"), r"0.weight: expected a Linear, .* got bias \(3,\)"),
        (LINEAR | {"0.bias": np.zeros(4)}, r"0.bias: expected shape \(3,\), got \(4,\)"),
        (LINEAR | {"0.weight_g": np.zeros(4)}, r"0.weight: expected a Linear, .*weight_g \(4,\)"),
        ({"0.weight": np.ones((3, 4, 5, 5))}, r"0.weight: expected a Linear, .*got weight \(3, 4, 5, 5\)"),
        (LINEAR | without(NORM, "1.running_var"), "1.running_var: expected an array of a BatchNorm1d, got only weight"),
        (LINEAR | without(NORM, "1.bias"), "1.bias: expected an array of a BatchNorm1d"),
        (LINEAR | without(NORM, "1.running_mean", "1.running_var"), "1.weight: expected .*without running statistics"),
        (LINEAR | NORM | {"1.scale": np.ones(3)}, "1.scale: expected only weight, bias, running_mean"),
        (LINEAR | NORM | {"1.bias": np.ones(4)}, r"1.bias: expected shape \(3,\), got \(4,\)"),
        (LINEAR | NORM | {"1.num_batches_tracked": np.ones(3)}, r"1.num_batches_tracked: expected shape \(\), got"),
        (LINEAR | {"2.weight": np.ones((2, 5))}, "2.weight: expected 3 features, .* got 5"),
        (LINEAR | {"1.running_mean": np.ones(5), "1.running_var": np.ones(5)}, "1.running_mean: expected 3 features"),
        ({"weight": np.ones(3)}, "weight: expected a Linear"),
    ],
)
def test_arrays_that_are_no_network(arrays, words):
    with pytest.raises(ValueError, match=words):
        bn.from_torch(arrays, activation="relu")


@dataclass(frozen=True)
class Mine(bn.Layer):
    """A layer of one's own."""

    shapes = bn.Shapes(params={"scale": (3,)})


@pytest.mark.parametrize(
    ("layers", "arrays", "words"),
    [
        ((bn.Linear(4, 3),), LINEAR | NORM, r"net: its layers 0 \(Linear\) take 1 modules, got 2: 0, 1"),
        ((bn.Linear(3, 4),), LINEAR, r"0.weight: expected shape \(4, 3\) for layer 0, Linear, got \(3, 4\)"),
        ((bn.Linear(4, 3),), without(LINEAR, "0.bias"), r"0.bias: expected shape \(3,\) for layer 0, Linear, got none"),
        ((bn.Linear(4, 3, bias=False),), LINEAR, "0.bias: expected none for layer 0, Linear without bias"),
        ((bn.BatchNorm(3),), LINEAR, r"0.weight: expected the arrays of layer 0, BatchNorm, got those of a Linear"),
        ((bn.BatchNorm(4),), NORM, r"1.running_mean: expected shape \(4,\) for layer 0, BatchNorm, got \(3,\)"),
        ((bn.Standardize(3),), NORM, r"1.weight: expected none for layer 0, Standardize, got \(3,\)"),
        ((Mine(),), NORM, "1.weight: expected the arrays of layer 0, Mine"),
    ],
    ids=str,
)
def test_arrays_of_another_network(layers, arrays, words):
    with pytest.raises(ValueError, match=words):
        bn.from_torch(arrays, bn.Sequential(layers))


def safetensors_of(dtype, size):
    header = json.dumps({"0.weight": {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def test_files_that_are_not_what_they_seem(torch):
    net = bn.mlp([4, 3, 2])
    bn.save("network.safetensors", net, *net.init(0, backend="numpy"))
    torch.save({"weight": torch.ones(3)}, "weights.pt")
    torch.save({"weight": torch.ones(3)}, "weights.safetensors")
    Path("cut.safetensors").write_bytes(Path("network.safetensors").read_bytes()[:-7])
    Path("text.npz").write_text("weights")
    Path("bytes.safetensors").write_bytes(safetensors_of("U8", 4))
    Path("folder").mkdir()
    np.savez("pickled.npz", weight=np.asarray([{}], object))
    for name, words in {
        "nowhere": "nowhere: no such file",
        "folder": "folder: cannot be read: Is a directory",
        "network.safetensors": "network.safetensors: a network of bnengine; read it with bnengine.load",
        "weights.pt": "weights.pt: expected safetensors or npz, got a file of torch.save",
        "weights.safetensors": "weights.safetensors: expected safetensors or npz, got a file of torch.save",
        "cut.safetensors": "cut.safetensors: expected a safetensors or npz file, got neither",
        "text.npz": "text.npz: expected a safetensors or npz file, got neither",
        "bytes.safetensors": "bytes.safetensors: 0.weight: expected one of the dtypes F16, .*got U8",
        "pickled.npz": "pickled.npz: .*Python objects",
    }.items():
        with pytest.raises(bn.CheckpointError, match=words):
            bn.from_torch(name)
    for wrong, words in {
        3: "file_or_mapping: expected a path or a mapping",
        (): "file_or_mapping: expected a path or a mapping",
    }.items():
        with pytest.raises(TypeError, match=words):
            bn.from_torch(wrong)
    with pytest.raises(TypeError, match=r"epoch: expected an array of numbers, got 'seven'"):
        bn.from_torch({"epoch": "seven"})
    with pytest.raises(TypeError, match=r"model: expected an array of numbers, got \{'0.weight'"):
        bn.from_torch({"model": LINEAR, "epoch": 3})
    with pytest.raises(TypeError, match="expected names that are text, got 0"):
        bn.from_torch({0: np.ones(3)})


def test_layers_that_torch_has_not():
    net = bn.Sequential((Mine(),))
    with pytest.raises(
        ValueError, match=r"net: expected layers that PyTorch has too, got Mine\(\), a layer of your own"
    ):
        bn.to_torch(net, {"0": {"scale": np.ones(3)}}, {})
