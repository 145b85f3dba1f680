"""A network as an ONNX model, with what comes before and behind it in `bnengine predict`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .. import __version__
from .._typing import Tree
from ..layers import Activation, BatchNorm, Linear, Standardize
from ..networks import Sequential
from .folding import fold, scale_outputs
from .steps import Host, Step, affine, known, steps, wide

OPSET, IR_VERSION = 20, 9
"""Since ONNX 1.15 of November 2023: the first opset with Gelu. ONNX Runtime reads it since 1.17."""

OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "gelu": ("Gelu", {"approximate": "tanh"}),
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
}
"""All activations but silu, x times its Sigmoid, and identity."""


FLOAT32 = ("leaky_relu", "elu", "selu", "softplus")
"""Activations that ONNX Runtime has in float32 alone: in a float64 model they are computed in that."""


def onnx_library() -> Any:
    """The library, or an error that names the extra."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX models need the library onnx; install the extra onnx") from error
    return onnx


def packed(
    net: Sequential,
    params: Tree,
    state: Tree,
    *,
    classes: list[str],
    target: tuple[float, float],
    columns: list[str],
    keep_norms: bool = False,
) -> bytes:
    """The model: float rows in; of classes the label and the probabilities out, else the prediction.

    Raises
    ------
    ImportError
        Where onnx is not installed.
    ValueError
        Naming a layer that the model cannot hold.
    """
    onnx = onnx_library()
    program = steps(net, params, state) if keep_norms else steps(*fold(net, params, state))
    program = program if classes else scale_outputs(program, target)
    drawn = _Graph(
        np.dtype(next(np.asarray(leaf).dtype for step in program for leaf in step.params.values())), keep_norms
    )
    for step in program:
        known(step, "an ONNX model")
        drawn.step(step)
    drawn.outputs(classes)
    model = drawn.model(net.inputs or 0, {"classes": classes, "columns": columns})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


class _Graph:
    """Nodes one after another; `now` is what the last gave."""

    def __init__(self, dtype: np.dtype[Any], keep_norms: bool) -> None:
        self.onnx, self.dtype, self.keep_norms = onnx_library(), dtype, keep_norms
        self.nodes: list[Any] = []
        self.constants: dict[str, Host] = {}
        self.kept: list[str] = []
        self.results: list[Any] = []
        self.now = "x"

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, step: Step, **arrays: Host) -> list[str]:
        """Names of constants, in the dtype of the network."""
        named = {f"{step.name}.{key}": array.astype(self.dtype) for key, array in arrays.items()}
        self.constants |= named
        return list(named)

    def step(self, step: Step) -> None:
        if step.layer == "keep":
            self.kept.append(self.now)
        elif step.layer == "add":
            self.now = self.node("Add", self.kept.pop(), self.now)
        elif isinstance(step.layer, Linear):
            self.now = self.node("Gemm", self.now, *self.constant(step, **{k: wide(a) for k, a in step.params.items()}))
        elif isinstance(step.layer, Activation):
            self.now = self.activation(step.layer.name)
        else:
            self.now = self.norm(step)

    def activation(self, name: str) -> str:
        if name == "silu":
            return self.node("Mul", self.now, self.node("Sigmoid", self.now))
        operator, attributes = OPERATORS[name]
        if name not in FLOAT32 or self.dtype == np.float32:
            return self.node(operator, self.now, **attributes)
        narrow = self.node("Cast", self.now, to=self.onnx.TensorProto.FLOAT)
        return self.node("Cast", self.node(operator, narrow, **attributes), to=self._kind())

    def norm(self, step: Step) -> str:
        """x - mean first, which loses no digits; BatchNormalization where the norms are to be kept."""
        a, layer = affine(step), step.layer
        if isinstance(layer, BatchNorm) and self.keep_norms:
            var = wide(step.state["var"])
            names = self.constant(step, gamma=a.gamma, beta=a.beta, mean=a.mean, var=var)
            momentum = 0.9 if layer.momentum is None else 1 - layer.momentum  # ONNX has no plain average
            return self.node("BatchNormalization", self.now, *names, epsilon=layer.eps, momentum=momentum)
        if isinstance(layer, Standardize):
            mean, std = self.constant(step, mean=a.mean, std=1 / a.inv_std)
            return self.node("Div", self.node("Sub", self.now, mean), std)
        mean, scale, beta = self.constant(step, mean=a.mean, scale=a.scale, beta=a.beta)
        return self.node("Add", self.node("Mul", self.node("Sub", self.now, mean), scale), beta)

    def outputs(self, classes: list[str]) -> None:
        make, kind = self.onnx.helper.make_tensor_value_info, self._kind()
        if not classes:
            self.nodes[-1].output[0] = "prediction"
            self.results = [make("prediction", kind, ["rows", 1])]
            return
        self.constants["classes"] = np.asarray(classes, object)
        self.node("Gather", "classes", self.node("ArgMax", self.now, axis=1, keepdims=0), output="label")
        self.node("Softmax", self.now, output="probabilities", axis=1)
        text = self.onnx.TensorProto.STRING
        self.results = [make("label", text, ["rows"]), make("probabilities", kind, ["rows", len(classes)])]

    def model(self, inputs: int, metadata: dict[str, list[str]]) -> Any:
        helper, from_array = self.onnx.helper, self.onnx.numpy_helper.from_array
        given = helper.make_tensor_value_info("x", self._kind(), ["rows", inputs])
        constants = [from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "bnengine", [given], self.results, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="bnengine", producer_version=__version__
        )
        helper.set_model_props(model, {name: json.dumps(words) for name, words in metadata.items()})
        return model

    def _kind(self) -> int:
        kind: int = self.onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        return kind
