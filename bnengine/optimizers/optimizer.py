"""What an optimiser is: a rule, which is data, with its settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from .. import trees
from .._typing import Array, Tree
from ..arguments import instance, number, shown
from ..functional.checks import floating
from ..kernels import select
from ..recording import again, live, made
from .clipping import SMALLEST, clip_by_norm
from .schedules import Schedule, check_rate


@runtime_checkable
class OptimizerLike(Protocol):
    """What training needs of an optimiser: any object with `init` and `update`, of this package or one's own.

    The state is a dict of arrays, nested or not, with the number of updates done under "step". `update` may
    write into params and state, never into grads.

    Examples
    --------
    Steps of the gradient's sign alone:

    >>> import numpy as np, bnengine as bn
    >>> from bnengine import trees
    >>> class Sign:
    ...     def init(self, params):
    ...         return {"step": 0}
    ...
    ...     def update(self, params, grads, state):
    ...         pairs = zip(trees.leaves(params), trees.leaves(grads, params), strict=True)
    ...         new = trees.rebuild(params, [p - 0.1 * np.sign(g) for p, g in pairs])
    ...         return new, {"step": state["step"] + 1}
    >>> optimizer, params = Sign(), {"0": {"weight": np.asarray([1.0, 2.0])}}
    >>> isinstance(optimizer, bn.optimizers.OptimizerLike)
    True
    >>> optimizer.update(params, {"0": {"weight": np.asarray([3.0, -4.0])}}, optimizer.init(params))
    ({'0': {'weight': array([0.9, 2.1])}}, {'step': 1})
    """

    def init(self, params: Tree) -> Tree:
        """The state before the first update."""

    def update(self, params: Tree, grads: Tree, state: Tree) -> tuple[Tree, Tree]:
        """The new parameters and the new state."""


def _as_given(_step: Any, **rate_and_options: Any) -> dict[str, Any]:
    return rate_and_options


@dataclass(frozen=True)
class Rule:
    """An update rule as data: what it remembers of each parameter, and the equation that moves one.

    Parameters
    ----------
    name : str
    slots : tuple of str
        Names of what it remembers of each parameter: arrays of the parameter's shape, zeros at first.
    equation : callable
        `equation(p, g, *slots, **scalars)` gives the tuple `(new p, *new slots)`, in the array API, and writes
        into none of them.
    scalars : callable
        `scalars(step, rate=..., **options)`, with the number of updates done before this one, gives the dict of the
        equation's keyword arguments. By default those are `rate` and the options.
    decoupled : bool
        How weight decay acts before the equation: p * (1 - rate * decay) if True, else g + decay * p (L2).
    fast : bool
        Whether kernels may take the place of the equation by the rule's name. Leave it out in a rule of your own.

    Examples
    --------
    Signs of an average, with a step that falls with the root of their number:

    >>> import numpy as np, bnengine as bn
    >>> def equation(p, g, average, *, rate, beta):
    ...     average = beta * average + (1 - beta) * g
    ...     return p - rate * np.sign(average), average
    >>> def scalars(step, *, rate, beta):
    ...     return {"rate": rate / (step + 1) ** 0.5, "beta": beta}
    >>> rule = bn.optimizers.Rule("sign", ("average",), equation, scalars)
    >>> optimizer = bn.Optimizer(rule, learning_rate=0.1, options=(("beta", 0.5),))
    >>> params = {"0": {"weight": np.asarray([1.0, 2.0])}}
    >>> optimizer.update(params, {"0": {"weight": np.asarray([3.0, -4.0])}}, optimizer.init(params))
    ({'0': {'weight': array([0.9, 2.1])}}, {'step': 1, 'average': {'0': {'weight': array([ 1.5, -2. ])}}})
    """

    name: str
    slots: tuple[str, ...]
    equation: Callable[..., tuple[Array, ...]] = field(repr=False)
    scalars: Callable[..., dict[str, Any]] = field(default=_as_given, repr=False)
    decoupled: bool = False
    fast: bool = False


@dataclass(frozen=True)
class Optimizer:
    """An update rule with its settings. Made by `sgd`, `adam` and the others, or from a `Rule` of one's own.

    `init(params)` gives the state, `update(params, grads, state)` the new parameters and state. params and
    state are *donated*: update may write into them, so use what it returns. grads are left alone.
    """

    rule: Rule
    learning_rate: float | Schedule
    options: tuple[tuple[str, Any], ...] = ()
    """Names and values of what else the rule's scalars are made of."""
    weight_decay: float = 0.0
    decayed: tuple[str, ...] | None = ("weight",)
    """Names of the parameters that decay; None: all of them, as in PyTorch."""
    clip: float | None = None
    """Largest norm of all gradients together; None: no clipping."""

    def __post_init__(self) -> None:
        instance("rule", self.rule, Rule, "a Rule")
        check_rate("learning_rate", self.learning_rate)
        if self.decayed is not None:
            instance("decayed", self.decayed, tuple, "None or a tuple of names such as ('weight',)")
        number("weight_decay", self.weight_decay, 0)
        if self.clip is not None:
            number("clip", self.clip, SMALLEST, words="None or a positive number")

    def __repr__(self) -> str:
        """As it is made, without weight decay and clipping where there are none."""
        settings = {**dict(self.options), "weight_decay": self.weight_decay or None, "clip": self.clip}
        words = [f"{name}={value!r}" for name, value in settings.items() if value is not None]
        words += [f"decayed={self.decayed!r}"] if self.weight_decay and self.decayed != ("weight",) else []
        return f"{self.rule.name}({', '.join([_rate_words(self.learning_rate), *words])})"

    @property
    def slots(self) -> tuple[str, ...]:
        """What the rule remembers of each parameter."""
        return self.rule.slots

    def init(self, params: Tree) -> Tree:
        """The state before the first update: the number of updates, and zeros for each slot."""
        for leaf in trees.leaves(params, name="params"):
            floating("params", leaf)
        return {"step": 0, **{slot: trees.map_leaves(_zeros_like, params) for slot in self.slots}}

    def update(self, params: Tree, grads: Tree, state: Tree) -> tuple[Tree, Tree]:
        """One step down the gradient. Donates params and state."""
        leaves = trees.leaves(params, name="params")
        instance("state", state, dict, "what init or update gave")
        if state.keys() != {"step", *self.slots}:
            raise ValueError(f"state: expected {', '.join(('step', *self.slots))}, got {', '.join(map(str, state))}")
        step, done = state["step"], {"step": state["step"] + 1}
        if not leaves:
            return params, {**state, **done}
        gradients = trees.leaves(grads, params, name="grads")
        slots = [trees.leaves(state[slot], params, name="state") for slot in self.slots]
        _check_leaves(leaves, gradients, slots)
        if self.clip is not None:
            gradients = made(clip_by_norm, gradients, self.clip)
        decays, scalars = self._decays(params, len(leaves)), live(self._scalars, step)
        fast = getattr(select(leaves[0]), "update", None) if self.rule.fast else None
        if fast is not None and fast(self.rule.name, leaves, gradients, slots, decays, scalars):
            return params, {**state, **done}  # written in place
        rate = live(self.rate, step)
        pairs = zip(decays, leaves, gradients, *slots, strict=True)
        moved = [again(self._moved, rate, scalars, *each) for each in pairs]
        new, *kept = (trees.rebuild(params, list(values)) for values in zip(*moved, strict=True))
        return new, {**done, **dict(zip(self.slots, kept, strict=True))}

    def rate(self, step: Any) -> Any:
        """The learning rate after `step` updates."""
        rate = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        return rate.item() if isinstance(rate, np.generic) else rate  # NumPy's would widen float32, and fit NumPy alone

    def _scalars(self, step: Any) -> dict[str, Any]:
        """What the rule's equation takes beside arrays."""
        return self.rule.scalars(step, rate=self.rate(step), **dict(self.options))

    def _decays(self, params: Tree, count: int) -> list[float]:
        if self.weight_decay == 0:
            return [0.0] * count
        return [
            self.weight_decay if self.decayed is None or name.rpartition(".")[2] in self.decayed else 0.0
            for name in trees.names(params)
        ]

    def _moved(self, rate: Any, scalars: dict[str, Any], decay: float, p: Array, g: Array, *slots: Array) -> Any:
        """One leaf and its slots after the step."""
        if decay != 0 and self.rule.decoupled:
            p = p * (1 - _as_scalar(rate, p) * decay)
        elif decay != 0:
            g = g + decay * p
        return self.rule.equation(p, g, *slots, **{name: _as_scalar(value, p) for name, value in scalars.items()})


def _rate_words(rate: Any) -> str:
    """A learning rate, or a schedule as it is made."""
    if not isinstance(rate, functools.partial):
        return repr(rate)
    return f"{rate.func.__name__.removeprefix('_')}({', '.join(map(_rate_words, rate.args))})"


def _zeros_like(p: Array) -> Array:
    return array_namespace(p).zeros_like(p)


def _as_scalar(value: Any, like: Array) -> Any:
    """Traced scalars in the parameter's dtype, so that they do not promote it; Python numbers as they are."""
    if isinstance(value, float | int) or not is_array_api_obj(value):
        return value
    return array_namespace(value).astype(value, like.dtype)


def _check_leaves(params: list[Array], grads: list[Array], slots: list[list[Array]]) -> None:
    """Refuse what is not floating, and other shapes: kernels read and write as far as the parameters reach."""
    for name, leaves in (("params", params), ("grads", grads), *(("state", slot) for slot in slots)):
        for p, leaf in zip(params, leaves, strict=True):
            floating(name, leaf)
            if leaf.shape != p.shape:
                raise ValueError(f"{name}: expected shape {tuple(p.shape)} like the parameter, got {shown(leaf)}")
