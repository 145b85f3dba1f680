"""Networks: layers one after another, and skips around them."""

from __future__ import annotations

import dataclasses
import html
import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, cast, overload

import numpy as np

from . import layers, trees
from ._typing import AllReduce, Array, BackendName, Tree
from .arguments import as_made, instance, integer
from .backends import Backend, as_backend
from .context import Context
from .functional import checks
from .layer import Layer, Shapes, count
from .layers import BatchNorm
from .recording import made

WRONG_ARGUMENTS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""Exceptions that arguments which do not fit end in, deep inside a layer; caught to look for the cause."""


@dataclass(frozen=True, repr=False)
class Sequential(Layer):
    """Layers one after another; itself a layer, so that networks can be parts of networks.

    Parameters and state are keyed by the layer's position: {"0": {"weight": ...}}.

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
            instance("layers", layer, Layer, "layers such as Linear, or of your own, derived from bnengine.Layer")
            try:
                hash(layer)
            except TypeError as error:
                raise TypeError(
                    f"layers: expected hashable ones, got {layer}; make its class a frozen dataclass"
                ) from error
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise ValueError("layers: expected at least one")
        width = None
        for position, layer in enumerate(self.layers):
            if None not in (width, layer.takes) and layer.takes != width:
                raise ValueError(
                    f"layers: layer {position}, {layer}, takes {layer.takes} features but is given {width}"
                )
            width = layer.gives or layer.takes or width
        for position, (layer, after) in enumerate(itertools.pairwise(self.layers)):
            if layer.ends_in_bias and after.cancels_bias:
                raise ValueError(
                    f"layers: layer {position}, {type(layer).__name__}({layer.takes}, {layer.gives}), has a bias and "
                    f"feeds a {type(after).__name__}, whose mean subtraction cancels it; "
                    "use Linear(..., bias=False), beta shifts instead"
                )

    # ---- what it says of itself

    def __repr__(self) -> str:
        """Its layers without the settings that are their defaults."""
        layers = ", ".join(map(as_made, self.layers)) + ("," if len(self.layers) == 1 else "")
        return f"{type(self).__name__}(({layers}))"

    @property
    def takes(self) -> int | None:
        """Features that the network takes; None where any number will do."""
        for layer in self.layers:
            if layer.takes or layer.gives:
                return layer.takes
        return None

    @property
    def gives(self) -> int | None:
        """Features that the network gives; None where they are as many as it takes."""
        return next((layer.gives for layer in reversed(self.layers) if layer.gives), None)

    @property
    def shapes(self) -> Shapes:
        """The shape of each parameter and each part of the state by name: {"1.gamma": (8,)}, {"1.batches": ()}."""
        named = [(f"{i}.", layer.shapes) for i, layer in enumerate(self.layers)]
        params = {prefix + name: shape for prefix, shapes in named for name, shape in shapes.params.items()}
        return Shapes(
            params, {prefix + name: shape for prefix, shapes in named for name, shape in shapes.state.items()}
        )

    @property
    def ends_in_bias(self) -> bool:
        """Whether its last layer does."""
        return self.layers[-1].ends_in_bias

    @property
    def inputs(self) -> int | None:
        """Features that the network takes; None where any number will do."""
        return self.takes

    @property
    def outputs(self) -> int:
        """Features that the network gives; 0 where it gives as many as it takes."""
        return self.gives or 0

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return count(self.shapes.params)

    def summary(self) -> str:
        """A table of the layers, their outputs and parameter counts."""
        rows = self._summary_table()
        a, b, c, d = (max(len(row[column]) for row in rows) for column in range(4))
        return "\n".join(f"{i:>{a}}  {word:<{b}}  {width:>{c}}  {n:>{d}}".rstrip() for i, word, width, n in rows)

    def _summary_table(self) -> list[tuple[str, str, str, str]]:
        head, total = ("", "layer", "outputs", "parameters"), ("", "total", "", f"{self.parameters:,}")
        return [head, *self.summary_rows("", None), total]

    def _repr_html_(self) -> str:
        """The summary as a table, for notebooks."""
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._summary_table())
        return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"

    def summary_rows(self, key: str, width: int | None) -> Iterator[tuple[str, str, str, str]]:
        """Those of its layers, in order; a part of a network has a row of its own first."""
        if key:
            yield key, str(self), str(self.gives or width or "any"), ""
        for i, layer in enumerate(self.layers):
            yield from layer.summary_rows(f"{key}.{i}" if key else str(i), width)
            width = layer.gives or layer.takes or width

    # ---- what it does

    def init(self, seed: int | np.random.Generator, backend: Backend | BackendName) -> tuple[Tree, Tree]:
        """Parameters and state. The same seed gives the same numbers on every backend, rounded to its dtype."""
        if isinstance(seed, np.random.Generator):
            rng = seed
        else:
            integer("seed", seed, 0)
            rng = np.random.default_rng(seed)
        params: Tree = {}
        state: Tree = {}
        for i, layer in enumerate(self.layers):
            try:
                learned, kept = layer.init(rng, as_backend(backend))
            except MemoryError as error:
                raise MemoryError(f"layers: layer {i}, {layer!r}, is too large: {error}") from error
            trees.check(f"{layer}.init, parameters", learned, layer.shapes.params)
            trees.check(f"{layer}.init, state", kept, layer.shapes.state)
            params |= {str(i): learned} if learned else {}
            state |= {str(i): kept} if kept else {}
        return params, state

    def measure(
        self,
        state: Tree,
        x: np.ndarray[Any, Any],
        *,
        backend: Backend,
        all_reduce: AllReduce | None = None,
        weights: np.ndarray[Any, Any] | None = None,
    ) -> Tree:
        """The state with the statistics of these training rows in the Standardize layer at the front, if there is one.

        A host array of `weights` says how often each row counts.
        """
        first: Any = self.layers[0]
        if not first.measured:
            return state
        trees.check("state", state, self.shapes.state)
        checks.floating("x", x)
        if x.ndim != 2 or x.shape[1] != first.takes or (all_reduce is None and not len(x)):
            raise ValueError(f"x: expected shape (N, {first.takes}), got {checks.shape(x)}")
        given = {} if weights is None else {"weights": weights}
        return {**state, "0": first.measure(x, as_backend(backend), all_reduce, **given)}

    def replace(self, kind: type[Layer], **changes: Any) -> Self:
        """The network with these fields of every layer of that kind changed.

        Examples
        --------
        >>> import bnengine as bn
        >>> bn.mlp([4, 8, 2]).replace(bn.BatchNorm, momentum=None).layers[1]
        BatchNorm(features=8, activation='relu', eps=1e-05, momentum=None, statistics='batch', unbiased=True)
        """

        def changed(layer: Layer) -> Layer:
            return dataclasses.replace(cast("Any", layer), **changes) if isinstance(layer, kind) else layer

        return self.map(changed)

    def map(self, function: Callable[[Layer], Layer]) -> Self:
        """The network with function(layer) in the place of each layer, in their order."""
        return dataclasses.replace(self, layers=tuple(layer.map(function) for layer in self.layers))

    def named(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        """Every layer with its name, in the order of a pass: "3", or "3.0" in a part of the network."""
        for i, layer in enumerate(self.layers):
            yield from layer.named(f"{name}.{i}" if name else str(i))

    def with_norms(self, **changes: Any) -> Self:
        """The network with these fields of every BatchNorm changed, such as `momentum=None`."""
        return self.replace(BatchNorm, **changes)

    def forward(
        self, params: Tree, state: Tree, x: Array, context: Context | None = None, *, training: bool | None = None
    ) -> tuple[Array, Tree, Any]:
        """(output, new state, residuals for `backward`). Inference leaves the state as it is.

        `training` alone says whether batch statistics are used; a `Context` in its place also how ranks sum, and
        what dropout draws from.
        """
        known = Context(training) if context is None else context  # type: ignore[arg-type]  # looked at below
        try:
            return self._forward(params, state, x, known)
        except WRONG_ARGUMENTS:  # looked into only now, so that a step pays nothing for it
            instance("context", known, Context, "a Context")
            instance("training", known.training, bool, "True or False")
            trees.check("params", params, self.shapes.params)
            trees.check("state", state, self.shapes.state)
            raise

    def _forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:
        new, residuals = {}, []
        for i, layer in enumerate(self.layers):
            key = str(i)
            x, kept, residual = layer.forward(params.get(key, {}), state.get(key, {}), x, context)
            residuals.append(residual)
            if kept:
                new[key] = kept
        return x, new, residuals

    @overload
    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: None = None) -> Tree: ...
    @overload
    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]: ...
    def backward(
        self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool | None = None
    ) -> Tree | tuple[Tree, Array | None]:
        """Gradients of the loss, in the tree of params, from the gradient by the output.

        With `need_dx` True or False, as for every layer, the pair (gradients, gradient by the input or None).
        """
        try:
            grads, dx = self._backward(params, residuals, dy, bool(need_dx))
        except WRONG_ARGUMENTS as error:
            trees.check("params", params, self.shapes.params)
            if not isinstance(residuals, list) or len(residuals) != len(self.layers) or not self._fits(dy):
                raise ValueError(
                    f"residuals, dy: expected those of this network's forward pass, {len(self.layers)} residuals and "
                    f"the gradient by {self.outputs or 'its'} outputs: {error}"
                ) from error
            raise
        return grads if need_dx is None else (grads, dx)

    def _fits(self, dy: Any) -> bool:
        """Whether dy may be the gradient by its outputs."""
        return checks.is_array(dy) and dy.ndim >= 1 and self.outputs in (0, dy.shape[-1])

    def _backward(self, params: Tree, residuals: Any, dy: Array, need_dx: bool) -> tuple[Tree, Array | None]:
        grads: Tree = {}
        gradient: Any = dy  # None only where it is not needed
        first = 0 if need_dx else min([int(key) for key in params] or [0])
        for i in range(len(self.layers) - 1, first - 1, -1):  # nothing before the first has parameters: no dx
            key = str(i)
            needed = need_dx or i > first
            learned, gradient = self.layers[i].backward(params.get(key, {}), residuals[i], gradient, need_dx=needed)
            if learned:
                grads[key] = learned
        return {key: grads[key] for key in params}, gradient if need_dx else None


@dataclass(frozen=True, repr=False)
class Residual(Sequential):
    """A skip around layers: y = x + f(x), for the layers f one after another, which give as many features as they take.

    He et al. 2015, arXiv:1512.03385, equation 1.

    Examples
    --------
    >>> import bnengine as bn
    >>> block = bn.Residual((bn.Linear(8, 8, bias=False), bn.BatchNorm(8, activation="relu"), bn.Linear(8, 8)))
    >>> print(bn.Sequential((bn.Linear(4, 8), block, bn.Linear(8, 2))).summary())
         layer                outputs  parameters
      0  Linear                     8          40
      1  Residual                   8
    1.0  Linear without bias        8          64
    1.1  BatchNorm + relu           8          16
    1.2  Linear                     8          72
      2  Linear                     2          18
         total                                210
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gives is not None and self.gives != self.takes:
            raise ValueError(
                f"layers: expected as many outputs as inputs in a Residual, got {self.takes} and {self.gives}"
            )

    def _forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:
        y, new, residuals = super()._forward(params, state, x, context)
        return made(operator.add, x, y), new, residuals

    def _backward(self, params: Tree, residuals: Any, dy: Array, need_dx: bool) -> tuple[Tree, Array | None]:
        grads, dx = super()._backward(params, residuals, dy, need_dx)
        return grads, dx if dx is None else made(operator.add, dy, dx)


LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind
    for kind in (*vars(layers).values(), Sequential, Residual)
    if isinstance(kind, type) and issubclass(kind, Layer) and kind is not Layer and not kind.__name__.startswith("_")
}
"""The layers that a file may name without being told of them."""
