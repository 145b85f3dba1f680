"""Networks from ONNX models."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from .._typing import BackendName, Tree
from ..arguments import shown
from ..backends import Backend, as_backend
from ..checkpoints import CheckpointError
from ..functional.activations import SELU_ALPHA, SELU_SCALE, ActivationName
from ..layers import STANDARDIZE_EPS, Activation, BatchNorm, Linear, Standardize
from ..networks import Residual, Sequential
from ..trees import map_leaves
from .folding import Entry, assembled
from .steps import Host
from .to_onnx import onnx_library

ACTIVATIONS: dict[str, tuple[ActivationName, dict[str, Any]]] = {
    "Relu": ("relu", {}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "Gelu": ("gelu", {"approximate": "tanh"}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": SELU_ALPHA, "gamma": SELU_SCALE}),
    "Softplus": ("softplus", {}),
    "Sigmoid": ("sigmoid", {}),
    "Tanh": ("tanh", {}),
    "Swish": ("silu", {"alpha": 1.0}),
}
"""The activation of each operator, and the attributes with which it is that."""

DEFAULTS: dict[str, dict[str, Any]] = {"LeakyRelu": {"alpha": 0.01}, "Gelu": {"approximate": "none"}}
"""Attributes that are not given; of other operators those of `ACTIVATIONS`."""

NOTHING = ("Identity", "Dropout", "Cast")
"""Operators that change nothing in inference, but for rounding."""

HEADS = ("Softmax", "LogSoftmax", "ArgMax")
"""Operators that make labels and probabilities of a network's outputs: the network ends before them."""


def from_onnx(file_or_model: Any, *, backend: Backend | BackendName | None = None) -> tuple[Sequential, Tree, Tree]:
    """A network from an ONNX model of linear maps, batch normalisation and activations, one after another.

    Parameters
    ----------
    file_or_model : path or onnx.ModelProto
        Gemm, or MatMul with or without Add, BatchNormalization of opset 7 and later, the activations of bnengine
        (silu also as x times its Sigmoid), sums with what came before (`Residual`), and what `bnengine export --onnx`
        writes. Softmax and ArgMax behind the outputs are left out: outputs are logits here.
    backend : Backend or str, optional
        Where the arrays go; NumPy float32 by default.

    Returns
    -------
    net, params, state
        A bias in front of a BatchNorm is subtracted from the running mean, which gives the same outputs. A model
        keeps no count of batches: it is 1.

    Raises
    ------
    ImportError
        Where onnx is not installed.
    ValueError
        Naming the node that has no counterpart here.
    CheckpointError
        A ValueError, for a file that is no ONNX model.

    Examples
    --------
    >>> import bnengine as bn
    >>> net, params, state = bn.from_onnx("model.onnx")  # doctest: +SKIP
    """
    reader = _Reader(_model(file_or_model))
    entries, end = reader.chain(reader.start, None)
    if end is not None:
        raise ValueError(f"{reader.words(end)}: expected a sum with what came before in one branch")
    net, params, state = assembled(Sequential, entries)
    place = as_backend(backend)

    def leaf(array: Any) -> Any:
        return array if isinstance(array, int) else place.asarray(np.asarray(array, np.float64))

    assert isinstance(net, Sequential)
    return net, map_leaves(leaf, params), map_leaves(leaf, state)


def _model(given: Any) -> Any:
    onnx = onnx_library()
    if isinstance(given, onnx.ModelProto):
        return given
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"file_or_model: expected a path or an onnx.ModelProto, got {shown(given)}")
    try:
        model = onnx.load(given)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise CheckpointError(f"{given}: no such file") from None
    except Exception as error:  # protobuf and the checker have classes of their own
        line = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{Path(given)}: expected an ONNX model: {line}") from error
    return model


def _biased(layer: Any, bias: bool) -> Linear:
    made: Linear = dataclasses.replace(layer, bias=bias)
    return made


class _Reader:
    """A graph by what uses each tensor."""

    def __init__(self, model: Any) -> None:
        self.onnx = onnx_library()
        graph = model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.constants: dict[str, Host] = {t.name: self._host(t) for t in graph.initializer}
        self.uses: dict[str, list[Any]] = {}
        for node in graph.node:
            if not self._constant(node):
                for name in node.input:
                    self.uses.setdefault(name, []).append(node)
        inputs = [given.name for given in graph.input if given.name not in self.constants]
        if len(inputs) != 1:
            raise ValueError(f"model: expected one input, got {len(inputs)}: {', '.join(inputs)}")
        self.start = inputs[0]

    def _host(self, tensor: Any) -> Host:
        array: Host = self.onnx.numpy_helper.to_array(tensor)
        return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array

    def _constant(self, node: Any) -> bool:
        """Whether the node makes a constant, which is kept."""
        settings = self.settings(node)
        if node.op_type == "Constant" and "value" in settings:
            self.constants[node.output[0]] = self._host(settings["value"])
            return True
        if node.op_type in ("Transpose", "Identity", "Cast") and node.input[0] in self.constants:
            array = self.constants[node.input[0]]
            transposed = node.op_type == "Transpose"
            self.constants[node.output[0]] = np.transpose(array, settings.get("perm")) if transposed else array
            return True
        return False

    def settings(self, node: Any) -> dict[str, Any]:
        """The attributes that are given; text as str."""
        found = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}

    def words(self, node: Any) -> str:
        return f"node {node.name or node.output[0]} ({node.op_type})"

    # ---- the layers

    def chain(self, now: str, begin: str | None) -> tuple[list[Entry], Any]:
        """Layers from a tensor to the network's output, or to the Add that takes `begin` too."""
        entries: list[Entry] = []
        while True:
            uses = [node for node in self.uses.get(now, []) if node.op_type not in HEADS]
            if not uses:
                return entries, None
            first = uses[0]
            if len(uses) == 1 and first.op_type == "Add" and begin in first.input and now != begin:
                return entries, first
            if len(uses) == 1:
                now = self.layer(entries, first, now)
            elif (product := self._silu(uses)) is not None:
                entries.append((Activation("silu"), {}, {}))
                now = product.output[0]
            else:
                now = self.skip(entries, uses, now)

    def _silu(self, uses: list[Any]) -> Any:
        """The product of a tensor with its Sigmoid, where these two use it."""
        by_type = {node.op_type: node for node in uses}
        if len(uses) == 2 and set(by_type) == {"Sigmoid", "Mul"}:
            gate = by_type["Sigmoid"].output[0]
            if gate in by_type["Mul"].input and len(self.uses.get(gate, [])) == 1:
                return by_type["Mul"]
        return None

    def skip(self, entries: list[Entry], uses: list[Any], now: str) -> str:
        """A Residual: one use is the sum at the end of the other's branch."""
        sums = [node for node in uses if node.op_type == "Add"]
        branches = [node for node in uses if node not in sums]
        if not sums or len(uses) > 3 or len(sums) > 1:
            raise ValueError(f"{self.words(uses[-1])}: expected a chain of layers, got a branch at {now}")
        saved, self.uses[now] = self.uses[now], branches
        inner, end = self.chain(now, now)
        self.uses[now] = saved
        if end is not sums[0]:
            raise ValueError(f"{self.words(sums[0])}: expected the sum of {now} with the end of a branch from it")
        entries.append(assembled(Residual, inner))
        return str(end.output[0])

    def layer(self, entries: list[Entry], node: Any, now: str) -> str:
        """Put the node's layer behind the others; the name of its output."""
        kind = node.op_type
        if kind in ("Gemm", "MatMul"):
            entries.append(self._linear(node, now))
        elif kind == "Add" and entries and isinstance(entries[-1][0], Linear) and not entries[-1][0].bias:
            linear, params, state = entries[-1]
            bias = self._vector(node, now, linear.gives)
            entries[-1] = _biased(linear, True), {**params, "bias": bias}, state
        elif kind == "BatchNormalization":
            self._norm(entries, node)
        elif kind == "Sub":
            return self._centred(entries, node, now)
        elif kind in ACTIVATIONS:
            self._activation(entries, node)
        elif kind not in NOTHING and not (kind == "Flatten" and self.settings(node).get("axis", 1) == 1):
            known = ", ".join(["Gemm", "MatMul", "Add", "BatchNormalization", *ACTIVATIONS, *NOTHING])
            raise ValueError(f"{self.words(node)}: expected one of {known}")
        return str(node.output[0])

    def _linear(self, node: Any, now: str) -> Entry:
        """Gemm: alpha * x @ B + beta * C, B transposed where it says so; MatMul: x @ B."""
        given = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | self.settings(node)
        if node.input[0] != now or given["transA"]:
            raise ValueError(f"{self.words(node)}: expected the rows first and not transposed, got {list(node.input)}")
        weight = self._array(node, node.input[1])
        if weight.ndim != 2:
            raise ValueError(f"{self.words(node)}: expected {node.input[1]} of two axes, got shape {weight.shape}")
        weight = given["alpha"] * (weight.T if given["transB"] else weight)
        inputs, outputs = weight.shape
        if len(node.input) < 3 or not node.input[2]:
            return Linear(inputs, outputs, bias=False), {"weight": weight}, {}
        bias = given["beta"] * self._vector(node, now, outputs)
        return Linear(inputs, outputs), {"weight": weight, "bias": bias}, {}

    def _norm(self, entries: list[Entry], node: Any) -> None:
        given = {"epsilon": 1e-5, "momentum": 0.9} | self.settings(node)
        if self.opset < 7 or given.get("training_mode"):
            raise ValueError(f"{self.words(node)}: expected inference of opset 7 or later, got opset {self.opset}")
        names = ("gamma", "beta", "mean", "var")
        size = self._array(node, node.input[1]).size
        arrays = {key: self._sized(node, name, size) for key, name in zip(names, node.input[1:5], strict=True)}
        if entries and isinstance(entries[-1][0], Linear) and entries[-1][0].bias:
            linear, params, state = entries[-1]
            arrays["mean"] = arrays["mean"] - params["bias"]
            entries[-1] = _biased(linear, False), {"weight": params["weight"]}, state
        # Attributes are float32: as short a number as gives the same one.
        eps, momentum = (float(str(np.float32(given[name]))) for name in ("epsilon", "momentum"))
        layer = BatchNorm(size, eps=eps, momentum=round(1 - momentum, 7))
        params = {"gamma": arrays["gamma"], "beta": arrays["beta"]}
        entries.append((layer, params, {"mean": arrays["mean"], "var": arrays["var"], "batches": 1}))

    def _centred(self, entries: list[Entry], node: Any, now: str) -> str:
        """(x - mean) / std, or (x - mean) * scale + shift: what `to_onnx` makes of norms that are to lose no digits."""
        mean = self._vector(node, now, None)
        second = self._only(node)
        if second is not None and second.op_type == "Div":
            std = self._vector(second, node.output[0], mean.size)
            entries.append((Standardize(mean.size), {}, {"mean": mean, "var": std * std}))
            return str(second.output[0])
        third = None if second is None or second.op_type != "Mul" else self._only(second)
        if second is None or third is None or third.op_type != "Add":
            raise ValueError(f"{self.words(node)}: expected a Div behind it, or a Mul and an Add, of constants")
        gamma, beta = (self._vector(n, m.output[0], mean.size) for n, m in ((second, node), (third, second)))
        layer = BatchNorm(mean.size, eps=STANDARDIZE_EPS, statistics="running")
        entries.append((layer, {"gamma": gamma, "beta": beta}, {"mean": mean, "var": np.ones(mean.size), "batches": 1}))
        return str(third.output[0])

    def _activation(self, entries: list[Entry], node: Any) -> None:
        name, wanted = ACTIVATIONS[node.op_type]
        given: dict[str, Any] = wanted | DEFAULTS.get(node.op_type, {}) | self.settings(node)
        for key, value in wanted.items():
            if given[key] != value and not (isinstance(value, float) and np.isclose(given[key], value, rtol=1e-6)):
                raise ValueError(f"{self.words(node)}: expected {key} {value}, as {name} has it, got {given[key]}")
        last = entries[-1] if entries else (None, {}, {})
        if name == "relu" and isinstance(last[0], BatchNorm) and not last[0].activation:
            entries[-1] = dataclasses.replace(last[0], activation="relu"), last[1], last[2]
        else:
            entries.append((Activation(name), {}, {}))

    # ---- its constants

    def _only(self, node: Any) -> Any:
        """What uses its output, where that is one node."""
        uses = self.uses.get(node.output[0], [])
        return uses[0] if len(uses) == 1 else None

    def _array(self, node: Any, name: str) -> Host:
        if name not in self.constants:
            raise ValueError(f"{self.words(node)}: expected {name} to be a constant, it is computed from the input")
        return self.constants[name]

    def _sized(self, node: Any, name: str, size: int | None) -> Host:
        array = self._array(node, name)
        flat = array.reshape(-1)
        if array.shape not in (flat.shape, (1, flat.size)) or flat.size != (size or flat.size):
            raise ValueError(f"{self.words(node)}: expected {name} of shape ({size or 'features'},), got {array.shape}")
        return flat

    def _vector(self, node: Any, now: str, size: int | None) -> Host:
        """The constant beside `now`: the last input, or of a sum the other one."""
        others = [name for name in node.input if name and name != now]
        if node.op_type in ("Sub", "Div") and node.input[0] != now:
            raise ValueError(f"{self.words(node)}: expected the rows first, got {list(node.input)}")
        return self._sized(node, others[-1], size)
