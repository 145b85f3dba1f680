"""Values that are not finite: whether there are any, where they began, and steps that leave them out.

A gradient that is not finite leaves its mark in the parameters or the optimiser's state, where later steps cannot
undo it. So it is enough to look at those and at the losses once an epoch: no step pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, is_array_api_obj

from .. import trees
from .._typing import Array, Tree
from ..context import Context
from ..functional import Loss, loss_function
from ..functional.losses import LossName
from ..networks import Sequential
from ..recording import made

Step = Callable[..., tuple[Tree, Tree, Tree, Array]]
"""(params, state, opt_state, x, targets, and of several ranks rows) -> (params, state, opt_state, loss)"""


def all_finite(tree: Tree) -> Array | bool:
    """Whether all arrays of a tree are finite: on their device, without waiting for it."""
    arrays = [leaf for leaf in trees.leaves(tree) if _is_values(leaf)]
    if not arrays:
        return True
    xp = array_namespace(*arrays)
    return xp.all(xp.stack([xp.all(xp.isfinite(leaf)) for leaf in arrays]))


def skipping(step: Step) -> Step:
    """A training step that changes nothing but the counts where its results would not be finite; its loss is NaN then.

    Nothing waits for the device: old and new values are chosen from there. Costs a copy and another pass
    over parameters and state.
    """

    def guarded(params: Tree, state: Tree, opt_state: Tree, *batch: Array) -> tuple[Tree, Tree, Tree, Array]:
        before = {"params": params, "state": state, "opt_state": opt_state}
        old = made(_copies, list(filter(_is_values, trees.leaves(before))))
        params, state, opt_state, loss = step(params, state, opt_state, *batch)
        new = trees.leaves({"params": params, "state": state, "opt_state": opt_state}, before)
        loss, chosen = made(_chosen, loss, list(filter(_is_values, new)), old)
        values = iter(chosen)
        kept = trees.rebuild(before, [next(values) if _is_values(leaf) else leaf for leaf in new])
        return trees.settled((kept["params"], kept["state"], kept["opt_state"], loss))

    return guarded


def _copies(arrays: list[Array]) -> list[Array]:
    return [array_namespace(a).asarray(a, copy=True) for a in arrays]


def _chosen(loss: Array, new: list[Array], old: list[Array]) -> tuple[Array, list[Array]]:
    """The new values and the loss where all are finite, else the old ones and NaN."""
    xp, good = array_namespace(loss), all_finite({"loss": loss, **{str(i): a for i, a in enumerate(new)}})
    chosen = [xp.where(good, after, before) for after, before in zip(new, old, strict=True)]
    return xp.where(good, loss, xp.full_like(loss, float("nan"))), chosen


def first_nonfinite(
    net: Sequential,
    loss: LossName | Loss,
    params: Tree,
    state: Tree,
    x: Array,
    targets: Array,
    context: Callable[[], Context],
) -> str | None:
    """What is not finite first in one step, and in which layer: an output, the loss or a gradient; None if nothing.

    `context()` gives the step's context anew: a pass uses its draws up.
    """
    y, known = x, context()
    for i, layer in enumerate(net.layers):
        y, _, _ = layer.forward(params.get(str(i), {}), state.get(str(i), {}), y, known)
        if not all_finite({"y": y}):
            return f"the output of {_words(net, i)}"
    value, dy = loss_function(loss)(y, targets, *(() if known.weights is None else (known.weights,)))
    if not all_finite({"loss": value, "dy": dy}):
        return f"the loss of finite outputs of {_words(net, len(net.layers) - 1)}"
    _, _, residuals = net.forward(params, state, x, context())
    grads = net.backward(params, residuals, dy)
    for key in reversed(grads):  # as they are computed
        for name, gradient in trees.flatten(grads[key]).items():
            if not all_finite({name: gradient}):
                return f"the gradient of {name} in {_words(net, int(key))}"
    return None


def first_leaf(net: Sequential, made: dict[str, Tree]) -> str | None:
    """The first array that is not finite among what a step made, and its layer; None if all are."""
    for kind, tree in made.items():
        for name, leaf in trees.flatten(tree).items():
            if not all_finite({name: leaf}):
                key = next(part for part in name.split(".") if part.isdecimal())
                return f"the new {name} ({kind}) of {_words(net, int(key))}"
    return None


def _is_values(leaf: Any) -> bool:
    """Not one of the counts, which are Python's ints or, under `jax.jit`, arrays without axes."""
    return is_array_api_obj(leaf) and (leaf.ndim > 0 or "int" not in str(leaf.dtype))


def _words(net: Sequential, position: int) -> str:
    return f"layer {position} ({type(net.layers[position]).__name__})"
