"""What a network asks of a layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._typing import Array, Tree
from .arguments import shown
from .backends import Backend
from .context import Context


class Shapes(NamedTuple):
    """Shapes of a layer's arrays by name: those that are learned, and those that are kept; a count has shape ()."""

    params: Mapping[str, tuple[int, ...]] = {}
    state: Mapping[str, tuple[int, ...]] = {}

    def __call__(self) -> dict[str, tuple[int, ...]]:
        """Both in one dict, as `Sequential.shapes()` gave them up to version 0.1."""
        warnings.warn("net.shapes() is net.shapes.params and net.shapes.state now", DeprecationWarning, stacklevel=2)
        return {**self.params, **self.state}


class Layer:
    """What a network asks of a layer. Derive from it to write a layer of your own.

    A layer is a frozen dataclass of plain settings (numbers, text, tuples, layers): networks are compared, hashed and
    written to files by them. It says of itself

    * `takes`, `gives`: features of its input and output; None where any number will do, and where it gives as many
      as it takes. They are the defaults.
    * `shapes`: `Shapes(params={name: shape}, state={name: shape})`; none by default. State with the names `mean`,
      `var` and `batches` is taken for running statistics, as `RunningStats` holds them.
    * `cancels_bias`: whether it subtracts each feature's mean, so that a network refuses a bias in front of it, and
      `ends_in_bias`: whether it would be refused there; False.
    * `str(layer)`: a word for `Sequential.summary`, the name of the class by default;

    and has `init`, `forward` and `backward`. Arrays of any library may come, also traced ones (`jax.jit`): compute
    with `array_api_compat.array_namespace(x)` and write into nothing.

    Examples
    --------
    A learned temperature, y = x / t:

    >>> import numpy as np, bnengine as bn
    >>> from array_api_compat import array_namespace
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Temperature(bn.Layer):
    ...     start: float = 1.0
    ...     shapes = bn.Shapes(params={"t": (1,)})
    ...
    ...     def init(self, rng, backend):
    ...         return {"t": backend.asarray(np.full(1, self.start))}, {}
    ...
    ...     def forward(self, params, state, x, context):
    ...         y = x / params["t"]
    ...         return y, state, y
    ...
    ...     def backward(self, params, y, dy, *, need_dx):
    ...         xp, t = array_namespace(dy), params["t"]
    ...         return {"t": xp.reshape(-xp.sum(dy * y), (1,)) / t}, dy / t if need_dx else None
    >>> net = bn.Sequential((bn.Linear(4, 3), Temperature(2.0)))
    >>> print(net.summary())
       layer        outputs  parameters
    0  Linear             3          15
    1  Temperature        3           1
       total                         16
    >>> rows = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 3
    >>> fitted = bn.fit(net, bn.optimizers.adam(0.1), rows, epochs=3, batch_size=20)
    >>> fitted.params["1"]["t"].shape
    (1,)
    """

    if TYPE_CHECKING:  # read-only for the checker: a subclass may have a constant, a field or a property

        @property
        def takes(self) -> int | None:
            """Features of its input; None where any number will do."""

        @property
        def gives(self) -> int | None:
            """Features of its output; None where it gives as many as it takes."""

        @property
        def shapes(self) -> Shapes:
            """What it learns and what it keeps."""

        @property
        def ends_in_bias(self) -> bool:
            """Whether a layer that cancels a bias would be refused behind it."""

        @property
        def cancels_bias(self) -> bool:
            """Whether it subtracts each feature's mean."""

    else:
        takes = gives = None
        shapes = Shapes()
        ends_in_bias = cancels_bias = False

    measured = False
    """Whether `measure(x, backend, all_reduce)` gives its state from the training rows, where it is the first layer."""

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        """(parameters, state) before training; draw from rng alone, so that a seed means the same everywhere."""
        return {}, {}

    def forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:
        """(y, new state, what `backward` needs)."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method forward(params, state, x, context)")

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:
        """(gradients in the tree of params, dx); dx may be None where it is not needed."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method backward(params, residuals, dy, need_dx)")

    def map(self, function: Callable[[Layer], Layer]) -> Layer:
        """function(layer), or what consists of layers with that of each of them, in their order."""
        return function(self)

    def named(self, name: str = "") -> Iterator[tuple[str, Layer]]:
        """The layer with its name, or those that it consists of: "3", or "3.0" in a part of a network."""
        yield name, self

    def summary_rows(self, key: str, width: int | None) -> Iterator[tuple[str, str, str, str]]:
        """Position, word, outputs and number of parameters, for `Sequential.summary`."""
        yield key, str(self), str(self.gives or width or "any"), f"{count(self.shapes.params):,}"

    def __str__(self) -> str:
        return type(self).__name__


def count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Numbers that arrays of these shapes hold together."""
    return sum(map(math.prod, shapes.values()))


def check_size(name: str, value: int) -> None:
    """Refuse what is no number of features."""
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"{name}: expected a positive int, got {shown(value)}")
