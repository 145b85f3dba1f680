"""Updates of some layers alone, for fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import trees
from .._typing import Tree
from ..arguments import instance
from .optimizer import OptimizerLike


def freeze(optimizer: OptimizerLike, layers: tuple[str, ...]) -> OptimizerLike:
    """The optimiser, but for the parameters of some layers, which stay as they are.

    Parameters
    ----------
    optimizer : Optimizer
        Or an object of one's own with init and update.
    layers : tuple of str
        Names as `Sequential.summary` has them: "0", or "2.1" in a part of the network, "2" for all of the part.

    Returns
    -------
    OptimizerLike
        It remembers nothing of frozen parameters, and their gradients do not count for clipping. A frozen batch
        normalisation keeps its running statistics too with `statistics="running"`, a setting of the layer.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> optimizer = bn.optimizers.freeze(bn.optimizers.sgd(0.1), ("0",))
    >>> params = {"0": {"weight": np.asarray([1.0])}, "1": {"weight": np.asarray([1.0])}}
    >>> grads = {"0": {"weight": np.asarray([2.0])}, "1": {"weight": np.asarray([2.0])}}
    >>> optimizer.update(params, grads, optimizer.init(params))
    ({'0': {'weight': array([1.])}, '1': {'weight': array([0.8])}}, {'step': 1})
    """
    instance("optimizer", optimizer, OptimizerLike, "an Optimizer, or an object with init and update")
    instance("layers", layers, tuple, "a tuple of names such as ('0', '2.1')")
    return Frozen(optimizer, layers)


@dataclass(frozen=True)
class Frozen:
    """What `freeze` makes: an optimiser, and the layers that it leaves out."""

    optimizer: OptimizerLike
    layers: tuple[str, ...]

    @property
    def rate(self) -> Any:
        """The optimiser's, if it has one."""
        return self.optimizer.rate  # type: ignore[attr-defined]

    def init(self, params: Tree) -> Tree:
        """The optimiser's, for the parameters that move."""
        names = trees.names(params)
        for layer in self.layers:
            if not any(within(name, layer) for name in names):
                raise ValueError(f"layers: expected names of layers with parameters, got {layer!r}")
        moving = self._moving(params)
        if not moving:
            raise ValueError("layers: expected some parameters to be left for training, got all layers")
        return self.optimizer.init(moving)

    def update(self, params: Tree, grads: Tree, state: Tree) -> tuple[Tree, Tree]:
        """The optimiser's, beside the parameters that stay."""
        moved, state = self.optimizer.update(self._moving(params), self._moving(grads), state)
        return trees.rebuild(params, list((trees.flatten(params) | trees.flatten(moved)).values())), state

    def _moving(self, tree: Tree) -> Tree:
        flat = trees.flatten(tree).items()
        return trees.unflatten({n: leaf for n, leaf in flat if not any(within(n, layer) for layer in self.layers)})


def within(name: str, layer: str) -> bool:
    """Whether a name is the layer's or of something in it."""
    return f"{name}.".startswith(f"{layer}.")
