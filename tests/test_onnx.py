"""ONNX models written and read: the outputs of ONNX's own evaluator and of ONNX Runtime, or a refusal by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from libraries import need
from networks import evaluated, outputs, trained

import bnengine as bn
from bnengine.exchange import to_onnx
from bnengine.functional import ACTIVATIONS

onnx = pytest.importorskip("onnx")
FLOAT64 = bn.backend("numpy", dtype="float64")


def softmax(y):
    p = np.exp(y.astype(float) - y.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("runtime", ["reference", "onnxruntime"])
@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_there_and_back(activation, dtype, keep_norms, runtime, rng):
    post = {"norm_position": "post", "residual": True} if activation != "relu" else {}
    net = bn.mlp([5, 8, 8, 8, 3], activation=activation, standardize=True, dropout=0.2, **post)
    params, state = trained(net, rng, dtype)
    state["0"]["mean"][0] = 1e5  # Standardize stays
    description = {"classes": ["a", "b", "ç"], "target": (0.0, 1.0), "columns": []}
    model = onnx.load_from_string(to_onnx.packed(net, params, state, keep_norms=keep_norms, **description))
    x = (rng.standard_normal((40, 5)) + np.asarray([1e5, 0, 0, 0, 0])).astype(dtype)
    logits = outputs(net, params, state, x)
    labels, probabilities = evaluated(model, x, runtime)
    assert list(labels) == ["abç"[i] for i in logits.argmax(axis=1)]
    assert probabilities.dtype == dtype
    single = dtype == "float32" or activation in (*to_onnx.FLOAT32, "gelu")  # the evaluator's constants of gelu are
    size = np.abs(logits).max()
    np.testing.assert_allclose(probabilities, softmax(logits), rtol=0, atol=(1e-6 if single else 1e-11) * size)
    back = bn.from_onnx(model, backend=bn.backend("numpy", dtype=dtype))
    assert np.abs(outputs(*back, x) - logits).max() <= (2e-6 if single else 1e-12) * size
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == (3 if keep_norms else 0)


def test_a_network_keeps_its_settings():
    net = bn.mlp([5, 8, 8, 1], residual=True, eps=1e-3, momentum=0.03, standardize=True)
    params, state = net.init(0, backend="numpy")
    description = {"classes": [], "target": (3.0, 2.0), "columns": ["a", "b", "c", "d", "e"]}
    model = onnx.load_from_string(to_onnx.packed(net, params, state, keep_norms=True, **description))
    assert bn.from_onnx(model)[0] == net
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == {
        "classes": [],
        "columns": list("abcde"),
    }
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


# ---- models of others


def constants(rng, **shapes):
    return {name: (0.5 + rng.random(shape)).astype(np.float32) for name, shape in shapes.items()}


def model_of(nodes, arrays, opset=20, output="y", **settings):
    """A model from x, (rows, 4), by nodes as (operator, inputs, output, attributes)."""
    h = onnx.helper
    made = [h.make_node(kind, given.split(), [out], **attributes) for kind, given, out, attributes in nodes]
    rows, kind = ["rows", 4], onnx.TensorProto.FLOAT
    results = [h.make_tensor_value_info(output, kind, ["rows", "columns"])]
    initial = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = h.make_graph(made, "g", [h.make_tensor_value_info("x", kind, rows)], results, initial)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8, **settings)


def assert_read(model, rng, *kinds):
    x = rng.standard_normal((20, 4)).astype(np.float32)
    wanted = evaluated(model, x)[0]
    net, params, state = bn.from_onnx(model)
    np.testing.assert_allclose(outputs(net, params, state, x), wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert [str(layer) for _, layer in net.named()] == list(kinds)
    return net


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 20])
def test_normalization_of_each_opset(opset, rng):
    arrays = constants(rng, W=(4, 3), b=(3,), g=(3,), s=(3,), m=(3,), v=(3,))
    nodes = [("Gemm", "x W b", "z", {}), ("BatchNormalization", "z g s m v", "n", {"epsilon": 1e-3, "momentum": 0.97})]
    model = model_of([*nodes, ("Relu", "n", "y", {})], arrays, opset)
    x = rng.standard_normal((20, 4)).astype(np.float32)
    net, params, state = bn.from_onnx(model)  # ONNX's own evaluator takes opset 9 for training where momentum is given
    z = (x @ arrays["W"] + arrays["b"] - arrays["m"]) / np.sqrt(arrays["v"] + 1e-3) * arrays["g"] + arrays["s"]
    np.testing.assert_allclose(outputs(net, params, state, x), np.maximum(z, 0), rtol=0, atol=2e-6 * np.abs(z).max())
    norm = bn.BatchNorm(3, activation="relu", eps=1e-3, momentum=0.03)
    assert net == bn.Sequential((bn.Linear(4, 3, bias=False), norm))


def test_linear_maps_in_every_spelling(rng):
    arrays = constants(rng, W=(4, 3), T=(5, 3), b=(5,), V=(5, 2), c=(1, 2))
    nodes = [
        ("Identity", "x", "i", {}),
        ("MatMul", "i W", "z", {}),
        ("Transpose", "T", "U", {}),
        ("Gemm", "z T b", "g", {"alpha": 0.5, "beta": 2.0, "transB": 1}),
        ("Constant", "", "D", {"value": onnx.numpy_helper.from_array(np.eye(5, dtype=np.float32))}),
        ("MatMul", "g D", "d", {}),
        ("MatMul", "d V", "v", {}),
        ("Add", "c v", "a", {}),
        ("Dropout", "a", "o", {}),
        ("Flatten", "o", "y", {}),
    ]
    assert_read(model_of(nodes, arrays), rng, "Linear without bias", "Linear", "Linear without bias", "Linear")
    nodes[3] = ("MatMul", "z U", "g", {})
    assert_read(model_of(nodes, arrays), rng, *["Linear without bias"] * 3, "Linear")


def test_branches_that_are_layers(rng):
    arrays = constants(rng, W=(4, 4))
    skip = [("Sigmoid", "x", "s", {}), ("Mul", "x s", "z", {}), ("MatMul", "z W", "m", {}), ("Add", "m x", "r", {})]
    inner = [("Tanh", "r", "t", {}), ("Selu", "t", "e", {}), ("Add", "e t", "u", {}), ("Add", "r u", "y", {})]
    assert_read(model_of([*skip, *inner], arrays), rng, "silu", "Linear without bias", "tanh", "selu")


def test_softmax_behind_the_outputs_is_left_out(rng):
    arrays = constants(rng, W=(4, 3))
    nodes = [("MatMul", "x W", "z", {}), ("Softmax", "z", "y", {})]
    net, params, _ = bn.from_onnx(model_of(nodes, arrays))
    assert net == bn.Sequential((bn.Linear(4, 3, bias=False),))
    np.testing.assert_array_equal(params["0"]["weight"], arrays["W"])


def test_a_model_that_pytorch_has_written(rng):
    torch = need("torch")
    nn = torch.nn
    layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ELU(), nn.Dropout(), nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 2)
    module = nn.Sequential(*layers).train()
    module(torch.randn(30, 4) + 2)
    x = torch.randn(20, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other exporter needs one more library
        torch.onnx.export(
            module.eval(), x, "model.onnx", dynamo=False, dynamic_axes={"rows": [0]}, input_names=["rows"]
        )
    found = bn.from_onnx("model.onnx")
    wanted = module(x).detach().numpy()
    np.testing.assert_allclose(outputs(*found, x.numpy()), wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


BATCH = ("BatchNormalization", "x g g g g", "y", {})


@pytest.mark.parametrize(
    ("nodes", "settings", "words"),
    [
        ([("Sin", "x", "y", {})], {}, r"node y \(Sin\): expected one of Gemm, MatMul, Add, BatchNormalization, Relu"),
        ([("Gelu", "x", "y", {})], {}, r"node y \(Gelu\): expected approximate tanh, as gelu has it, got none"),
        ([("Elu", "x", "y", {"alpha": 2.0})], {}, r"node y \(Elu\): expected alpha 1.0, as elu has it, got 2.0"),
        ([("LeakyRelu", "x", "y", {"alpha": 0.2})], {}, "expected alpha 0.01, as leaky_relu has it, got 0.2"),
        ([("MatMul", "W x", "y", {})], {}, r"node y \(MatMul\): expected the rows first and not transposed"),
        ([("Gemm", "x W", "y", {"transA": 1})], {}, r"node y \(Gemm\): expected the rows first and not transposed"),
        ([("MatMul", "x g", "y", {})], {}, r"node y \(MatMul\): expected g of two axes, got shape \(4,\)"),
        ([("Relu", "W", "c", {}), ("MatMul", "x c", "y", {})], {}, r"node y \(MatMul\): expected c to be a constant"),
        ([("MatMul", "x W", "z", {}), ("Add", "z W", "y", {})], {}, r"node y \(Add\): expected W of shape \(4,\)"),
        ([("Add", "x g", "y", {})], {}, r"node y \(Add\): expected one of"),
        ([("Sub", "x g", "z", {}), ("Relu", "z", "y", {})], {}, r"node z \(Sub\): expected a Div behind it"),
        ([BATCH], {"opset": 6}, "expected inference of opset 7 or later, got opset 6"),
        ([("Relu", "x", "a", {}), ("Tanh", "x", "b", {}), ("Mul", "a b", "y", {})], {}, "got a branch at x"),
        ([("Relu", "x", "a", {}), ("Tanh", "x", "b", {}), ("Add", "a b", "y", {})], {}, "got a branch at x"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_refused_by_name(nodes, settings, words, rng):
    model = model_of(nodes, constants(rng, W=(4, 4), g=(4,)), **settings)
    with pytest.raises(ValueError, match=words):
        bn.from_onnx(model)


def test_files_that_are_no_models(rng):
    Path("text.onnx").write_text("a model")
    Path("empty.onnx").touch()
    for name, words in {
        "nowhere": "nowhere: no such file",
        "text.onnx": "text.onnx: expected an ONNX model",
        "empty.onnx": "empty.onnx: expected an ONNX model",
    }.items():
        with pytest.raises(bn.CheckpointError, match=words):
            bn.from_onnx(name)
    with pytest.raises(TypeError, match=r"file_or_model: expected a path or an onnx.ModelProto, got 3"):
        bn.from_onnx(3)
    model = model_of([("Relu", "x", "y", {})], {})
    onnx.save(model, "model.onnx")
    assert bn.from_onnx("model.onnx")[0] == bn.Sequential((bn.Activation("relu"),))
