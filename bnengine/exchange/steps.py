"""A network as the steps of an inference pass, one after another: what files for other libraries are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from .._typing import Tree
from ..arguments import instance
from ..backends import as_numpy
from ..layer import Layer
from ..layers import STANDARDIZE_EPS, Activation, BatchNorm, Dropout, Linear, Standardize
from ..networks import Residual, Sequential
from ..trees import check

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Step:
    """A layer with its arrays; or "keep", where a Residual begins, and "add", where it ends."""

    name: str
    """Of the layer in the network: "3", or "3.0" in a part of it."""
    layer: Layer | Literal["keep", "add"]
    params: Tree = field(default_factory=dict)
    state: Tree = field(default_factory=dict)
    like: Any = None
    """An array in whose library, device and dtype the parameters are wanted, where they are float64 on the host."""

    @property
    def normalizes(self) -> bool:
        """Whether it is an affine map of each feature by itself."""
        return type(self.layer) in (BatchNorm, Standardize)

    def __str__(self) -> str:
        return f"layer {self.name}, {self.layer}"


class Affine(NamedTuple):
    """y = (x - mean) * inv_std * gamma + beta of each feature, in float64."""

    mean: Host
    inv_std: Host
    gamma: Host
    beta: Host

    @property
    def scale(self) -> Host:
        """inv_std * gamma."""
        return self.inv_std * self.gamma


def steps(net: Sequential, params: Tree, state: Tree) -> list[Step]:
    """The steps of inference: a fused ReLU is one of its own, and what changes nothing then is left out."""
    instance("net", net, Sequential, "a Sequential")
    check("params", params, net.shapes.params)
    check("state", state, net.shapes.state)
    return list(_steps(net, params, state, ""))


def _steps(net: Sequential, params: Tree, state: Tree, prefix: str) -> Iterator[Step]:
    for i, layer in enumerate(net.layers):
        key = str(i)
        step = Step(prefix + key, layer, params.get(key, {}), state.get(key, {}))
        if type(layer) is Sequential:
            yield from _steps(layer, step.params, step.state, f"{step.name}.")
        elif type(layer) is Residual:
            yield Step(step.name, "keep")
            yield from _steps(layer, step.params, step.state, f"{step.name}.")
            yield Step(step.name, "add")
        elif type(layer) is BatchNorm and layer.activation is not None:
            yield dataclasses.replace(step, layer=dataclasses.replace(layer, activation=None))
            yield Step(step.name, Activation(layer.activation))
        elif type(layer) is not Dropout and layer != Activation("identity"):
            yield step


def affine(step: Step) -> Affine:
    """What a step that normalises computes."""
    mean, var = wide(step.state["mean"]), wide(step.state["var"])
    if isinstance(step.layer, BatchNorm):
        inv_std = 1 / np.sqrt(var + step.layer.eps)
        return Affine(mean, inv_std, wide(step.params["gamma"]), wide(step.params["beta"]))
    return Affine(mean, 1 / np.sqrt(var + STANDARDIZE_EPS), np.ones_like(mean), np.zeros_like(mean))


def wide(leaf: Any) -> Host:
    """A leaf on the host, in float64."""
    return as_numpy(leaf).astype(np.float64)


def known(step: Step, what: str) -> None:
    """Refuse a layer of a user's own, which `what` cannot hold."""
    if isinstance(step.layer, Layer) and type(step.layer) not in (Linear, BatchNorm, Activation, Standardize):
        raise ValueError(f"net: {step}, is a layer of your own, which {what} cannot hold")
