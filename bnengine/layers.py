"""Layers and networks: frozen dataclasses that hold sizes and settings, never arrays.

A layer offers

    init(rng, backend) -> (params, state)
    forward(params, state, x, *, training) -> (y, state, residuals)
    backward(params, residuals, dy, *, need_dx) -> (grads, dx)

Parameters and state are dicts, so that state goes in and comes out and nothing is hidden.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import functional as F
from . import trees
from ._typing import AllReduce, Array, Tree
from .arguments import instance, integer, number, one_of, shown
from .backends import Backend, as_backend
from .functional import checks

PARAMETERS = ("weight", "bias", "gamma", "beta")
"""What is learned, by name; everything else in a layer is state."""

INITIALIZATIONS = ("he", "glorot", "normal")
ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "identity")


@dataclass(frozen=True)
class Linear:
    """z = x @ weight + bias: parameters weight (inputs, outputs) and bias (outputs,).

    Weights are drawn from a normal distribution with standard deviation `scale` times sqrt(2 / inputs)
    for "he", sqrt(2 / (inputs + outputs)) for "glorot", 1 for "normal". Biases start at zero.
    """

    inputs: int
    outputs: int
    bias: bool = True
    initialization: str = "he"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _size("inputs", self.inputs)
        _size("outputs", self.outputs)
        one_of("initialization", self.initialization, INITIALIZATIONS)
        number("scale", self.scale, 0)

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:
        spread = {"he": 2 / self.inputs, "glorot": 2 / (self.inputs + self.outputs), "normal": 1.0}
        std = self.scale * math.sqrt(spread[self.initialization])
        params = {"weight": backend.asarray(rng.standard_normal((self.inputs, self.outputs)) * std)}
        if self.bias:
            params["bias"] = backend.asarray(np.zeros(self.outputs))
        return params, {}

    def forward(self, params: Tree, state: Tree, x: Array, *, training: bool) -> tuple[Array, Tree, Any]:  # noqa: ARG002
        return F.linear(x, params["weight"], params.get("bias")), state, x

    def backward(self, params: Tree, x: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:
        dx, dweight, dbias = F.linear_backward(dy, x, params["weight"], need_dx=need_dx, need_bias=self.bias)
        return {"weight": dweight, "bias": dbias} if self.bias else {"weight": dweight}, dx


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation of (N, features), with an optional fused ReLU.

    Training normalises with the batch's statistics and averages them into the running ones, inference
    normalises with the running ones. Parameters gamma (1 at first) and beta (0); state mean (0), var (1)
    and batches (0). `momentum` is the weight of the *new* batch (PyTorch's meaning; Keras' and Flax's is
    one minus it), None the plain average over all batches. `all_reduce` sums an array over ranks: statistics
    then are those of the batch that all ranks hold together.
    """

    features: int
    activation: str | None = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    all_reduce: AllReduce | None = None

    def __post_init__(self) -> None:
        _size("features", self.features)
        checks.fused_relu(self.activation)
        checks.epsilon(self.eps)
        if self.momentum is not None:
            number("momentum", self.momentum, 0, 1, words="None or a number in [0, 1]")

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        gamma = backend.asarray(np.ones(self.features))
        state = F.RunningStats.init(self.features, like=gamma)._asdict()
        return {"gamma": gamma, "beta": backend.asarray(np.zeros(self.features))}, state

    def forward(self, params: Tree, state: Tree, x: Array, *, training: bool) -> tuple[Array, Tree, Any]:
        gamma, beta = params["gamma"], params["beta"]
        if not training:
            y = F.normalize(x, state["mean"], state["var"], gamma, beta, eps=self.eps, activation=self.activation)
            return y, state, None
        y, residuals = F.batch_norm(
            x, gamma, beta, eps=self.eps, activation=self.activation, all_reduce=self.all_reduce
        )
        running = F.RunningStats(**state).update(residuals, momentum=self.momentum)
        return y, running._asdict(), residuals

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:  # noqa: ARG002
        if residuals is None:
            raise ValueError("residuals: expected those of forward(training=True); inference keeps none")
        dx, dgamma, dbeta = F.batch_norm_backward(dy, residuals)
        return {"gamma": dgamma, "beta": dbeta}, dx


@dataclass(frozen=True)
class Activation:
    """An activation function by name: relu, leaky_relu, sigmoid, tanh or identity. No parameters."""

    name: str

    def __post_init__(self) -> None:
        one_of("name", self.name, ACTIVATIONS)

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        return {}, {}

    def forward(self, params: Tree, state: Tree, x: Array, *, training: bool) -> tuple[Array, Tree, Any]:  # noqa: ARG002
        y = getattr(F, self.name)(x)
        return y, state, y

    def backward(self, params: Tree, y: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:  # noqa: ARG002
        return {}, getattr(F, f"{self.name}_backward")(dy, y) if need_dx else None


@dataclass(frozen=True)
class Standardize:
    """Inputs to mean 0 and variance 1, with statistics measured once over the training data.

    State mean (0) and var (1) until `measure` is called, as `fit` does. A feature that is constant there
    is only centred. In front of one Linear it makes logistic and linear regression insensitive to the
    units of their features; in a network it is the zeroth application of the same idea.
    """

    features: int

    def __post_init__(self) -> None:
        _size("features", self.features)

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        return {}, {
            "mean": backend.asarray(np.zeros(self.features)),
            "var": backend.asarray(np.ones(self.features)),
        }

    def measure(self, x: np.ndarray[Any, Any], backend: Backend, all_reduce: AllReduce | None = None) -> Tree:
        """The state for these training rows, a host array of shape (N, features); with all_reduce, for all ranks'."""
        total = all_reduce or (lambda a: a)
        *rough, rows = total(np.append(x.sum(axis=0, dtype=np.float64), len(x)))
        rough = np.asarray(rough) / rows
        sums = np.zeros((2, self.features))
        for start in range(0, len(x), 4096):  # in blocks: no float64 copy of the data
            centered = x[start : start + 4096] - rough
            sums += [np.sum(centered, axis=0) / rows, np.sum(centered * centered, axis=0) / rows]
        rest, square = total(sums)
        mean, var = rough + rest, square - rest * rest
        constant = var <= (1e-7 * mean) ** 2
        return {"mean": backend.asarray(mean), "var": backend.asarray(np.where(constant, 1.0, var))}

    def forward(self, params: Tree, state: Tree, x: Array, *, training: bool) -> tuple[Array, Tree, Any]:  # noqa: ARG002
        return F.normalize(x, state["mean"], state["var"], eps=1.2e-38), state, (x, state)

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:  # noqa: ARG002
        x, state = residuals
        return {}, F.normalize_backward(dy, x, state["mean"], state["var"], eps=1.2e-38).x if need_dx else None


Layer = Linear | BatchNorm | Activation | Standardize
LAYERS: dict[str, type[Layer]] = {kind.__name__: kind for kind in (Linear, BatchNorm, Activation, Standardize)}


@dataclass(frozen=True)
class Sequential:
    """Layers one after another. Parameters and state are keyed by the layer's position: {"0": {"weight": ...}}.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net = bn.Sequential((bn.Linear(4, 8, bias=False), bn.BatchNorm(8, activation="relu"), bn.Linear(8, 3)))
    >>> params, state = net.init(0, backend=bn.backend("numpy"))
    >>> logits, state, residuals = net.forward(params, state, np.ones((5, 4), np.float32), training=True)
    >>> logits.shape, list(params), state["1"]["batches"]
    ((5, 3), ['0', '1', '2'], 1)
    """

    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        instance("layers", self.layers, (list, tuple), "a tuple of layers")
        for layer in self.layers:
            instance("layers", layer, tuple(LAYERS.values()), ", ".join(LAYERS))
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("layers: expected at least one")
        width = None
        for position, layer in enumerate(self.layers):
            wanted = _width_in(layer)
            if width is not None and wanted is not None and wanted != width:
                raise ValueError(
                    f"layers: layer {position}, {_words(layer)}, takes {wanted} features but is given {width}"
                )
            width = layer.outputs if isinstance(layer, Linear) else wanted or width
        for position, (layer, after) in enumerate(itertools.pairwise(self.layers)):
            if isinstance(layer, Linear) and layer.bias and isinstance(after, BatchNorm):
                raise ValueError(
                    f"layers: layer {position}, Linear({layer.inputs}, {layer.outputs}), has a bias and feeds a "
                    "BatchNorm, whose mean subtraction cancels it; use Linear(..., bias=False), beta shifts instead"
                )

    def init(self, seed: int, *, backend: Backend | str) -> tuple[Tree, Tree]:
        """Parameters and state. The same seed gives the same numbers on every backend, rounded to its dtype."""
        integer("seed", seed, 0)
        rng, place = np.random.default_rng(seed), as_backend(backend)
        pairs = {str(i): layer.init(rng, place) for i, layer in enumerate(self.layers)}
        params = {key: layer_params for key, (layer_params, _) in pairs.items() if layer_params}
        return params, {key: layer_state for key, (_, layer_state) in pairs.items() if layer_state}

    def measure(
        self, state: Tree, x: np.ndarray[Any, Any], *, backend: Backend, all_reduce: AllReduce | None = None
    ) -> Tree:
        """The state with the statistics of these training rows in the Standardize layer at the front, if there is one."""
        first = self.layers[0]
        if not isinstance(first, Standardize):
            return state
        trees.check("state", state, self.shapes_of_state())
        checks.floating("x", x)
        if x.ndim != 2 or x.shape[1] != first.features or (all_reduce is None and not len(x)):
            raise ValueError(f"x: expected shape (N, {first.features}), got {checks.shape(x)}")
        return {**state, "0": first.measure(x, as_backend(backend), all_reduce)}

    def with_norms(self, **changes: Any) -> Sequential:
        """The network with these fields of every BatchNorm changed, such as `all_reduce=communicator.sum`."""
        return Sequential(
            tuple(
                dataclasses.replace(layer, **changes) if isinstance(layer, BatchNorm) else layer
                for layer in self.layers
            )
        )

    def forward(self, params: Tree, state: Tree, x: Array, *, training: bool) -> tuple[Array, Tree, list[Any]]:
        """(output, new state, residuals for `backward`). Inference leaves the state as it is."""
        try:
            return self._forward(params, state, x, training)
        except MISFIT:  # looked into only now, so that a step pays nothing for it
            instance("training", training, bool, "True or False")
            trees.check("params", params, self.shapes_of_params())
            trees.check("state", state, self.shapes_of_state())
            raise

    def _forward(self, params: Tree, state: Tree, x: Array, training: bool) -> tuple[Array, Tree, list[Any]]:
        new, residuals = {}, []
        for i, layer in enumerate(self.layers):
            key = str(i)
            x, layer_state, residual = layer.forward(params.get(key, {}), state.get(key, {}), x, training=training)
            residuals.append(residual)
            if layer_state:
                new[key] = layer_state
        return x, new, residuals

    def backward(self, params: Tree, residuals: list[Any], dy: Array) -> Tree:
        """Gradients of the loss, in the tree of params, from the gradient by the output."""
        try:
            return self._backward(params, residuals, dy)
        except MISFIT as error:
            trees.check("params", params, self.shapes_of_params())
            raise ValueError(f"residuals, dy: expected those of this network's forward pass: {error}") from error

    def _backward(self, params: Tree, residuals: list[Any], dy: Array) -> Tree:
        grads: Tree = {}
        gradient: Array | None = dy
        first = min((int(key) for key in params), default=0)  # nothing before it has parameters: no dx
        for i in range(len(self.layers) - 1, first - 1, -1):
            key = str(i)
            layer_grads, gradient = self.layers[i].backward(
                params.get(key, {}), residuals[i], gradient, need_dx=i > first
            )
            if layer_grads:
                grads[key] = layer_grads
        return {key: grads[key] for key in params}

    def summary(self) -> str:
        """A table of the layers, their outputs and parameter counts."""
        rows, total, width = [("", "layer", "outputs", "parameters")], 0, _width_in(self.layers[0])
        for i, layer in enumerate(self.layers):
            width = layer.outputs if isinstance(layer, Linear) else width
            count = _parameters(layer)
            total += count
            rows.append((str(i), _words(layer), str(width or "any"), f"{count:,}"))
        rows.append(("", "total", "", f"{total:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows
        )

    @property
    def inputs(self) -> int | None:
        """Features that the network takes; None where any number will do."""
        return next((width for width in map(_width_in, self.layers) if width is not None), None)

    @property
    def outputs(self) -> int:
        """Features that the network gives; 0 where it gives as many as it takes."""
        return next((_width_out(layer) for layer in reversed(self.layers) if _width_out(layer)), 0)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(_parameters(layer) for layer in self.layers)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter and each part of the state by name: {"1.gamma": (8,), "1.batches": ()}."""
        return {f"{i}.{name}": shape for i, layer in enumerate(self.layers) for name, shape in _shapes(layer).items()}

    def shapes_of_params(self) -> dict[str, tuple[int, ...]]:
        """Those of `shapes` that are learned."""
        return {name: shape for name, shape in self.shapes().items() if name.rpartition(".")[2] in PARAMETERS}

    def shapes_of_state(self) -> dict[str, tuple[int, ...]]:
        """The others."""
        return {name: shape for name, shape in self.shapes().items() if name.rpartition(".")[2] not in PARAMETERS}


def mlp(
    sizes: Sequence[int],
    *,
    norm: str | None = "batch",
    activation: str = "relu",
    norm_position: str = "pre",
    standardize: bool = False,
    initialization: str | None = None,
    scale: float = 1.0,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
) -> Sequential:
    """A fully connected network.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden layers, outputs: [784, 256, 10]. [n, 1] is logistic regression.
    norm : {"batch", None}
        Batch normalisation of the hidden layers; the output layer has none.
    activation : str
        Of the hidden layers: relu, leaky_relu, sigmoid, tanh or identity. ReLU after normalisation is fused.
    norm_position : {"pre", "post"}
        "pre" normalises z, before the activation, and drops the bias that it cancels; "post" normalises
        the activation's output.
    standardize : bool
        A Standardize layer in front.
    initialization : {None, "he", "glorot", "normal"}
        None: he for the ReLUs, glorot otherwise. Times `scale`.
    eps, momentum
        Of every BatchNorm.

    Returns
    -------
    Sequential

    Raises
    ------
    ValueError
        Naming the argument.

    Examples
    --------
    >>> import bnengine as bn
    >>> print(bn.mlp([64, 32, 10]).summary())
       layer                outputs  parameters
    0  Linear without bias       32       2,048
    1  BatchNorm + relu          32          64
    2  Linear                    10         330
       total                              2,442
    """
    one_of("norm", norm, ("batch", None))
    instance("standardize", standardize, bool, "True or False")
    one_of("norm_position", norm_position, ("pre", "post"))
    one_of("activation", activation, ACTIVATIONS)
    if not isinstance(sizes, list | tuple) or len(sizes) < 2:
        raise ValueError(f"sizes: expected at least inputs and outputs, as in [64, 10], got {shown(sizes)}")
    name = initialization or ("he" if activation in ("relu", "leaky_relu") else "glorot")
    layers: list[Layer] = [Standardize(sizes[0])] if standardize else []
    pre, post = (norm == "batch" and norm_position == position for position in ("pre", "post"))
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers.append(Linear(inputs, outputs, bias=not pre, initialization=name, scale=scale))
        fused = pre and activation == "relu"
        if pre:
            layers.append(BatchNorm(outputs, activation="relu" if fused else None, eps=eps, momentum=momentum))
        if not fused:
            layers.append(Activation(activation))
        if post:
            layers.append(BatchNorm(outputs, eps=eps, momentum=momentum))
    return Sequential((*layers, Linear(sizes[-2], sizes[-1], initialization=name, scale=scale)))


MISFIT = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What arguments that do not fit each other end in."""


def to_spec(net: Sequential) -> list[dict[str, Any]]:
    """The network as plain data, for a file; how ranks communicate is no part of it."""
    specs = [{"layer": type(layer).__name__, **vars(layer)} for layer in net.layers]
    return [{name: value for name, value in spec.items() if name != "all_reduce"} for spec in specs]


def from_spec(spec: list[dict[str, Any]]) -> Sequential:
    """The network of a `to_spec`."""
    layers = []
    for entry in spec:
        settings = dict(entry)
        kind = LAYERS.get(settings.pop("layer", ""))
        if kind is None:
            raise ValueError(f"layers: expected {', '.join(LAYERS)}, got {entry!r}")
        layers.append(kind(**settings))
    return Sequential(tuple(layers))


def _width_in(layer: Layer) -> int | None:
    """Features that the layer takes; None where any number will do."""
    return layer.inputs if isinstance(layer, Linear) else getattr(layer, "features", None)


def _width_out(layer: Layer) -> int:
    return layer.outputs if isinstance(layer, Linear) else _width_in(layer) or 0


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    if isinstance(layer, Linear):
        return {"weight": (layer.inputs, layer.outputs)} | ({"bias": (layer.outputs,)} if layer.bias else {})
    if isinstance(layer, BatchNorm):
        return {**dict.fromkeys(("gamma", "beta", "mean", "var"), (layer.features,)), "batches": ()}
    return dict.fromkeys(("mean", "var"), (layer.features,)) if isinstance(layer, Standardize) else {}


def _parameters(layer: Layer) -> int:
    return sum(math.prod(shape) for name, shape in _shapes(layer).items() if name in PARAMETERS)


def _words(layer: Layer) -> str:
    if isinstance(layer, Linear):
        return "Linear" if layer.bias else "Linear without bias"
    if isinstance(layer, Activation):
        return layer.name
    fused = isinstance(layer, BatchNorm) and layer.activation
    return f"BatchNorm + {fused}" if fused else type(layer).__name__


def _size(name: str, value: int) -> None:
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"{name}: expected a positive int, got {shown(value)}")
