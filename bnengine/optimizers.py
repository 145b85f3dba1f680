"""Optimisers as pairs of functions (init, update) on nested dicts, learning-rate schedules, gradient clipping.

The updates equal PyTorch's step for step, with its defaults.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from . import trees
from ._typing import Array, Tree
from .arguments import instance, number, shown
from .kernels import select

SMALLEST = math.ulp(0.0)
"""The smallest positive number."""

Schedule: TypeAlias = Callable[[Any], Any]
"""From the number of updates done so far (0 at first; an array under `jax.jit`) to a learning rate."""


@dataclass(frozen=True)
class Optimizer:
    """An update rule with its settings. Made by `sgd`, `momentum`, `nesterov`, `rmsprop`, `adam`, `adamw`.

    `init(params)` gives the state, `update(params, grads, state)` the new parameters and state. params and
    state are *donated*: update may write into them, so use what it returns. grads are left alone.
    """

    rule: str
    """Name of the kernel."""
    slots: tuple[str, ...]
    """What the rule remembers of each parameter."""
    learning_rate: float | Schedule
    options: tuple[tuple[str, Any], ...]
    weight_decay: float = 0.0
    decayed: tuple[str, ...] | None = ("weight",)
    """Names of the parameters that decay; None: all of them, as in PyTorch."""
    clip: float | None = None
    """Largest norm of all gradients together; None: no clipping."""

    def __post_init__(self) -> None:
        _rate("learning_rate", self.learning_rate)
        if self.decayed is not None:
            instance("decayed", self.decayed, tuple, "None or a tuple of names such as ('weight',)")
        number("weight_decay", self.weight_decay, 0)
        if self.clip is not None:
            number("clip", self.clip, SMALLEST, words="None or a positive number")
        for name, value in self.options:
            if name == "eps":
                number(name, value, 0)
            elif name in ("momentum", "decay", "beta1", "beta2"):
                number(name, value, 0, math.nextafter(1, 0), words="a number in [0, 1)")

    def init(self, params: Tree) -> Tree:
        """The state before the first update: the number of updates, and zeros for each slot."""
        for leaf in trees.leaves(params, name="params"):
            if not is_array_api_obj(leaf):
                raise TypeError(f"params: expected a nested dict of arrays, got {shown(leaf)} in it")
        return {"step": 0, **{slot: trees.map_leaves(_zeros_like, params) for slot in self.slots}}

    def update(self, params: Tree, grads: Tree, state: Tree) -> tuple[Tree, Tree]:
        """One step down the gradient. Donates params and state."""
        leaves = trees.leaves(params, name="params")
        instance("state", state, dict, "what init or update gave")
        if state.keys() != {"step", *self.slots}:
            raise ValueError(f"state: expected {', '.join(('step', *self.slots))}, got {', '.join(map(str, state))}")
        if not leaves:
            return params, {**state, "step": state["step"] + 1}
        gradients = trees.leaves(grads, params, name="grads")
        if self.clip is not None:
            gradients = clip_by_norm(gradients, self.clip)
        slots = [trees.leaves(state[slot], params, name="state") for slot in self.slots]
        _same_shapes(leaves, gradients, slots)
        rule = getattr(select(leaves[0]), self.rule)
        new, *slots = rule(
            leaves, gradients, *slots, self._decays(params, len(leaves)), **self._scalars(state["step"], leaves[0])
        )
        if new is leaves:  # written in place, like the slots
            return params, {**state, "step": state["step"] + 1}
        kept = {slot: trees.rebuild(params, values) for slot, values in zip(self.slots, slots, strict=True)}
        return trees.rebuild(params, new), {"step": state["step"] + 1, **kept}

    def rate(self, step: Any) -> Any:
        """The learning rate after `step` updates."""
        return self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate

    def _decays(self, params: Tree, count: int) -> list[float]:
        if self.weight_decay == 0:
            return [0.0] * count
        return [
            self.weight_decay if self.decayed is None or name.rpartition(".")[2] in self.decayed else 0.0
            for name in trees.names(params)
        ]

    def _scalars(self, step: Any, like: Array) -> dict[str, Any]:
        scalars = {"rate": self.rate(step), **dict(self.options)}
        if self.rule == "adam":
            for i in "12":
                scalars[f"correction{i}"] = _correction(scalars[f"beta{i}"], step + 1)
        return {name: _as_scalar(value, like) for name, value in scalars.items()}


def sgd(
    learning_rate: float | Schedule = 1e-3,
    *,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Gradient descent: p -= learning_rate * g.

    Parameters
    ----------
    learning_rate : float or schedule
    weight_decay : float
        As L2: g + weight_decay * p takes the place of g.
    decayed : tuple of str or None
        Names of the parameters that decay. Only weights by default: decay of gamma and beta would fight
        the normalisation. None decays all, as PyTorch does.
    clip : float, optional
        Largest norm of all gradients together.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> optimizer = bn.optimizers.sgd(0.1)
    >>> params = {"0": {"weight": np.asarray([[1.0]])}}
    >>> params, state = optimizer.update(params, {"0": {"weight": np.asarray([[2.0]])}}, optimizer.init(params))
    >>> params, state
    ({'0': {'weight': array([[0.8]])}}, {'step': 1})
    """
    return Optimizer("sgd", (), learning_rate, (), weight_decay, decayed, clip)


def momentum(
    learning_rate: float | Schedule = 1e-3,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Gradient descent with momentum: v = momentum * v + g, p -= learning_rate * v. Other arguments as in `sgd`."""
    options = (("momentum", momentum), ("nesterov", False))
    return Optimizer("momentum", ("velocity",), learning_rate, options, weight_decay, decayed, clip)


def nesterov(
    learning_rate: float | Schedule = 1e-3,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Nesterov's momentum: v = momentum * v + g, p -= learning_rate * (g + momentum * v). Others as in `sgd`."""
    options = (("momentum", momentum), ("nesterov", True))
    return Optimizer("momentum", ("velocity",), learning_rate, options, weight_decay, decayed, clip)


def rmsprop(
    learning_rate: float | Schedule = 1e-2,
    *,
    decay: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """RMSprop: s = decay * s + (1 - decay) * g^2, p -= learning_rate * g / (sqrt(s) + eps). Others as in `sgd`."""
    options = (("decay", decay), ("eps", eps))
    return Optimizer("rmsprop", ("square",), learning_rate, options, weight_decay, decayed, clip)


def adam(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1).

    m = beta1 * m + (1 - beta1) * g, v = beta2 * v + (1 - beta2) * g^2, both divided by 1 - beta^t,
    p -= learning_rate * m / (sqrt(v) + eps). Weight decay as L2; others as in `sgd`.
    """
    options = (("beta1", beta1), ("beta2", beta2), ("eps", eps), ("decoupled", False))
    return Optimizer("adam", ("first", "second"), learning_rate, options, weight_decay, decayed, clip)


def adamw(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv:1711.05101): first p -= rate * decay * p."""
    options = (("beta1", beta1), ("beta2", beta2), ("eps", eps), ("decoupled", True))
    return Optimizer("adam", ("first", "second"), learning_rate, options, weight_decay, decayed, clip)


BY_NAME: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
}
"""The optimisers by the names that the command line takes."""


# ---- schedules


def step_decay(rate: float, *, at: Sequence[int], factor: float = 0.1) -> Schedule:
    """The rate, times `factor` from each of the updates `at` on.

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.step_decay(1.0, at=[100, 200], factor=0.5)
    >>> schedule(99), schedule(100), schedule(250)
    (1.0, 0.5, 0.25)
    """
    _rate("rate", rate)
    if type(at) not in (list, tuple) or not all(type(update) is int for update in at):
        raise TypeError(f"at: expected numbers of updates such as [100, 200], got {shown(at)}")
    number("factor", factor, 0)
    return functools.partial(_step_decay, rate, tuple(at), factor)


def cosine(rate: float, *, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from rate to `final` over `steps` updates, then `final` (Loshchilov and Hutter 2016).

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.cosine(1.0, steps=100)
    >>> schedule(0), round(schedule(50), 6), schedule(200)
    (1.0, 0.5, 0.0)
    """
    _rate("rate", rate)
    number("steps", steps, 1)
    number("final", final, 0)
    return functools.partial(_cosine, rate, steps, final)


def warm_up(schedule: float | Schedule, *, steps: int) -> Schedule:
    """The first `steps` updates rise in a straight line to the schedule, which begins at update 0 all the same.

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.warm_up(1.0, steps=4)
    >>> [schedule(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _rate("schedule", schedule)
    number("steps", steps, 1)
    return functools.partial(_warm_up, schedule, steps)


# Functions of the module, not closures: a schedule can be pickled.


def _step_decay(rate: float, at: tuple[int, ...], factor: float, step: Any) -> Any:
    return rate * factor ** sum((step >= update) * 1 for update in at)


def _cosine(rate: float, steps: int, final: float, step: Any) -> Any:
    xp = _namespace(step)
    part = xp.where(xp.asarray(step) < steps, xp.asarray(step / steps), xp.asarray(1.0))
    return _plain(final + (rate - final) * 0.5 * (1 + xp.cos(np.pi * part)), step)


def _warm_up(schedule: float | Schedule, steps: int, step: Any) -> Any:
    xp = _namespace(step)
    part = xp.where(xp.asarray(step) < steps, xp.asarray((step + 1) / steps), xp.asarray(1.0))
    return _plain(part * (schedule(step) if callable(schedule) else schedule), step)


# ---- clipping


def clip_by_norm(grads: list[Array], largest: float) -> list[Array]:
    """Gradients scaled down together where the norm over all of them exceeds `largest`, as in PyTorch.

    Nothing waits for the device.
    """
    number("largest", largest, SMALLEST, words="a positive number")
    if (
        type(grads) not in (list, tuple)
        or not grads
        or not all(isinstance(trees.shape_of(g), tuple) and is_array_api_obj(g) for g in grads)
    ):
        raise TypeError(f"grads: expected a list of arrays, got {shown(grads)}")
    xp = array_namespace(grads[0])
    total = sum(xp.sum(g * g) for g in grads)
    factor = largest / (xp.sqrt(total) + 1e-6)
    factor = xp.where(factor < 1, factor, xp.ones_like(factor))
    return [g * factor for g in grads]


# ---- helpers


def _zeros_like(p: Array) -> Array:
    return array_namespace(p).zeros_like(p)


def _correction(beta: float, step: Any) -> Any:
    """1 - beta**step, without the cancellation that would cost a traced float32 five digits."""
    if not is_array_api_obj(step):
        return 1 - beta**step
    return -array_namespace(step).expm1(step * math.log(beta)) if beta else 1.0


def _as_scalar(value: Any, like: Array) -> Any:
    """Traced scalars in the parameters' dtype, so that they do not promote them; Python numbers as they are."""
    return array_namespace(value).astype(value, like.dtype) if is_array_api_obj(value) else value


def _namespace(step: Any) -> Any:
    return array_namespace(step) if is_array_api_obj(step) else np


def _plain(rate: Any, step: Any) -> Any:
    return rate if is_array_api_obj(step) else float(rate)


def _rate(name: str, value: Any) -> None:
    if isinstance(value, type) or not callable(value):
        number(name, value, 0, words="a finite number of at least 0")


def _same_shapes(params: list[Array], grads: list[Array], slots: list[list[Array]]) -> None:
    """Refuse gradients and slots of other shapes: kernels read and write as far as the parameters reach."""
    shapes = [p.shape for p in params]
    for name, leaves in (("grads", grads), *(("state", slot) for slot in slots)):
        found = [getattr(leaf, "shape", None) for leaf in leaves]
        if found != shapes:
            at = next(i for i, shape in enumerate(shapes) if shape != found[i])
            raise ValueError(f"{name}: expected shape {tuple(shapes[at])} like the parameter, got {shown(leaves[at])}")
