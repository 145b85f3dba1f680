"""Optimisers as pairs of functions (init, update) on nested dicts, learning-rate schedules, gradient clipping.

The updates equal PyTorch's step for step, with its defaults. Each optimiser stands here whole: its equation for
one parameter, what its scalars are made of, and the function that makes it; then a line in `BY_NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from array_api_compat import array_namespace

from .._typing import Array
from ..arguments import instance, number
from . import parts
from .clipping import clip_by_norm as clip_by_norm
from .freezing import freeze as freeze
from .optimizer import Optimizer as Optimizer
from .optimizer import OptimizerLike as OptimizerLike
from .optimizer import Rule as Rule
from .schedules import Schedule as Schedule
from .schedules import cosine as cosine
from .schedules import step_decay as step_decay
from .schedules import warm_up as warm_up

# ---- gradient descent


def sgd(
    learning_rate: float | Schedule = 1e-3,
    *,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Gradient descent: p -= learning_rate * g (Robbins and Monro 1951).

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
    return Optimizer(Rule("sgd", (), _sgd, fast=True), learning_rate, (), weight_decay, decayed, clip)


def _sgd(p: Array, g: Array, *, rate: float) -> tuple[Array]:
    return (p - rate * g,)


# ---- momentum


def momentum(
    learning_rate: float | Schedule = 1e-3,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Gradient descent with momentum: v = momentum * v + g, p -= learning_rate * v (Polyak 1964).

    `dampening` takes (1 - dampening) * g in the place of g from the second update on, as PyTorch does. Other
    arguments as in `sgd`.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.optimizers.momentum(0.1, momentum=0.8).options
    (('momentum', 0.8),)
    """
    parts.weights(momentum=momentum)
    options: tuple[tuple[str, Any], ...] = (("momentum", momentum),)
    rule = Rule("momentum", ("velocity",), _momentum, fast=True)
    if dampening != 0:
        number("dampening", dampening, 0, 1)
        options += (("dampening", dampening),)
        rule = Rule("dampened momentum", ("velocity",), _momentum, _first_undampened)
    return Optimizer(rule, learning_rate, options, weight_decay, decayed, clip)


def _momentum(
    p: Array, g: Array, velocity: Array, *, rate: float, momentum: float, added: float = 1.0
) -> tuple[Array, Array]:
    velocity = momentum * velocity + added * g
    return p - rate * velocity, velocity


def _first_undampened(step: Any, *, dampening: float, **others: Any) -> dict[str, Any]:
    first = (step == 0) * 1
    return {**others, "added": first + (1 - first) * (1 - dampening)}


def nesterov(
    learning_rate: float | Schedule = 1e-3,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Nesterov's momentum: v = momentum * v + g, p -= learning_rate * (g + momentum * v).

    In the form of Sutskever et al. 2013 (section 2), at the point to which the velocity leads. Other arguments
    as in `sgd`.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.optimizers.nesterov(0.1).slots
    ('velocity',)
    """
    parts.weights(momentum=momentum)
    rule = Rule("nesterov", ("velocity",), _nesterov, fast=True)
    return Optimizer(rule, learning_rate, (("momentum", momentum),), weight_decay, decayed, clip)


def _nesterov(p: Array, g: Array, velocity: Array, *, rate: float, momentum: float) -> tuple[Array, Array]:
    velocity = momentum * velocity + g
    return p - (momentum * rate) * velocity - rate * g, velocity


# ---- RMSprop


def rmsprop(
    learning_rate: float | Schedule = 1e-2,
    *,
    decay: float = 0.99,
    eps: float = 1e-8,
    centered: bool = False,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """RMSprop: s = decay * s + (1 - decay) * g^2, p -= learning_rate * g / (sqrt(s) + eps).

    Tieleman and Hinton 2012, lecture 6.5 of their course. `centered` averages g as well, m, and takes s - m^2 in
    the place of s (Graves 2013, arXiv:1308.0850, equations 38 to 41). `momentum` adds the step to a velocity:
    v = momentum * v + g / (sqrt(s) + eps), p -= learning_rate * v. Other arguments as in `sgd`.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.optimizers.rmsprop().slots, bn.optimizers.rmsprop(centered=True).slots
    (('square',), ('square', 'mean', 'velocity'))
    """
    parts.weights(decay=decay, momentum=momentum)
    number("eps", eps, 0)
    instance("centered", centered, bool, "a bool")
    options: tuple[tuple[str, Any], ...] = (("decay", decay), ("eps", eps))
    rule = Rule("rmsprop", ("square",), _rmsprop, fast=True)
    if centered or momentum:
        options += (("centered", centered), ("momentum", momentum))
        rule = Rule("rmsprop with more", ("square", "mean", "velocity"), _rmsprop_with_more)
    return Optimizer(rule, learning_rate, options, weight_decay, decayed, clip)


def _rmsprop(p: Array, g: Array, square: Array, *, rate: float, decay: float, eps: float) -> tuple[Array, Array]:
    square = parts.average(square, g * g, decay)
    return p - rate * g / (parts.sqrt(square) + eps), square


def _rmsprop_with_more(
    p: Array, g: Array, square: Array, mean: Array, velocity: Array, *, rate: float, decay: float, eps: float,
    centered: bool, momentum: float,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    square = parts.average(square, g * g, decay)
    mean = parts.average(mean, g, decay) if centered else mean
    velocity = momentum * velocity + g / (parts.sqrt(square - mean * mean) + eps)
    return p - rate * velocity, square, mean, velocity


# ---- Adam


def adam(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1).

    m = beta1 * m + (1 - beta1) * g, v = beta2 * v + (1 - beta2) * g^2, both divided by 1 - beta^t,
    p -= learning_rate * m / (sqrt(v) + eps). `amsgrad` takes the largest v so far in the place of v (Reddi, Kale
    and Kumar 2018, arXiv:1904.09237, algorithm 2). Weight decay as L2; others as in `sgd`.

    Examples
    --------
    >>> import bnengine as bn
    >>> dict(bn.optimizers.adam(beta1=0.8).options)
    {'beta1': 0.8, 'beta2': 0.999, 'eps': 1e-08}
    """
    rule = _adam_rule("adam", amsgrad, decoupled=False)
    return Optimizer(rule, learning_rate, _betas(beta1, beta2, eps), weight_decay, decayed, clip)


def adamw(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 0.01,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay: first p -= learning_rate * weight_decay * p, then as `adam`.

    Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2. Other arguments as in `adam`.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.optimizers.adamw().weight_decay, bn.optimizers.adamw().rule.decoupled
    (0.01, True)
    """
    rule = _adam_rule("adamw", amsgrad, decoupled=True)
    return Optimizer(rule, learning_rate, _betas(beta1, beta2, eps), weight_decay, decayed, clip)


def _adam_rule(name: str, amsgrad: bool, *, decoupled: bool) -> Rule:
    instance("amsgrad", amsgrad, bool, "a bool")
    if amsgrad:
        return Rule(f"{name} with amsgrad", ("first", "second", "largest"), _adam, _corrected, decoupled)
    return Rule(name, ("first", "second"), _adam, _corrected, decoupled, fast=True)


def _betas(beta1: float, beta2: float, eps: float) -> tuple[tuple[str, float], ...]:
    parts.weights(beta1=beta1, beta2=beta2)
    number("eps", eps, 0)
    return (("beta1", beta1), ("beta2", beta2), ("eps", eps))


def _corrected(step: Any, *, beta1: float, beta2: float, **others: Any) -> dict[str, Any]:
    """The options, with what the averages are divided by: 1 - beta**t."""
    corrections = {"correction1": parts.correction(beta1, step + 1), "correction2": parts.correction(beta2, step + 1)}
    return {**others, "beta1": beta1, "beta2": beta2, **corrections}


def _adam(
    p: Array, g: Array, first: Array, second: Array, *largest: Array, rate: float, beta1: float, beta2: float,
    eps: float, correction1: float, correction2: float,
) -> tuple[Array, ...]:  # fmt: skip
    first, second = parts.average(first, g, beta1), parts.average(second, g * g, beta2)
    largest = tuple(array_namespace(p).maximum(before, second) for before in largest)  # with amsgrad
    root = parts.sqrt(largest[0] if largest else second) / correction2**0.5 + eps
    return p - rate / correction1 * first / root, first, second, *largest


# ---- NAdam


def nadam(
    learning_rate: float | Schedule = 2e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    momentum_decay: float = 4e-3,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Adam with Nesterov's momentum (Dozat 2016, "Incorporating Nesterov momentum into Adam", as in PyTorch).

    With m and v of `adam`, mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2) and M_t = mu_1 * ... * mu_t,
    p -= learning_rate * ((1 - mu_t) / (1 - M_t) * g + mu_{t+1} / (1 - M_{t+1}) * m) / (sqrt(v / (1 - beta2^t)) + eps).
    M_t is computed from t alone, so nothing but m and v is kept. Weight decay as L2; others as in `sgd`.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.optimizers.nadam().learning_rate, bn.optimizers.nadam().slots
    (0.002, ('first', 'second'))
    """
    number("momentum_decay", momentum_decay, 0)
    options = (*_betas(beta1, beta2, eps), ("momentum_decay", momentum_decay))
    rule = Rule("nadam", ("first", "second"), _nadam, _nadam_scalars)
    return Optimizer(rule, learning_rate, options, weight_decay, decayed, clip)


def _nadam(
    p: Array, g: Array, first: Array, second: Array, *, by_gradient: float, by_first: float, beta1: float,
    beta2: float, eps: float, correction2: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    first, second = parts.average(first, g, beta1), parts.average(second, g * g, beta2)
    return p - (by_gradient * g + by_first * first) / (parts.sqrt(second) / correction2**0.5 + eps), first, second


def _nadam_scalars(
    step: Any, *, rate: Any, beta1: float, beta2: float, momentum_decay: float, **others: Any
) -> dict[str, Any]:
    t, log_q = step + 1, momentum_decay * math.log(0.96)
    # Not 0.96 to a power, and not 1 - mu: where a step is traced, float32 would round the base, and cancel.
    less, less_ahead = (0.5 * beta1 * parts.exp(i * log_q) for i in (t, t + 1))
    product, ahead = parts.product_of_mu(t, beta1, log_q), beta1 - less_ahead
    steps = {"by_gradient": rate * (1 - beta1 + less) / (1 - product), "by_first": rate * ahead / (1 - product * ahead)}
    return {**others, **steps, "beta1": beta1, "beta2": beta2, "correction2": parts.correction(beta2, t)}


# ---- Lion


def lion(
    learning_rate: float | Schedule = 1e-4,
    *,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    decayed: tuple[str, ...] | None = ("weight",),
    clip: float | None = None,
) -> Optimizer:
    """Signs of an average of gradients (Chen et al. 2023, arXiv:2302.06675, algorithm 2).

    p -= learning_rate * sign(beta1 * m + (1 - beta1) * g), then m = beta2 * m + (1 - beta2) * g. Weight decay is
    decoupled: before, p -= learning_rate * weight_decay * p. Every value moves by the rate, so the paper takes a
    rate 3 to 10 times smaller than Adam's and a decay as much larger. Others as in `sgd`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> optimizer, params = bn.optimizers.lion(0.1), {"0": {"weight": np.asarray([1.0, 1.0])}}
    >>> optimizer.update(params, {"0": {"weight": np.asarray([0.5, -8.0])}}, optimizer.init(params))[0]
    {'0': {'weight': array([0.9, 1.1])}}
    """
    parts.weights(beta1=beta1, beta2=beta2)
    rule = Rule("lion", ("first",), _lion, decoupled=True)
    return Optimizer(rule, learning_rate, (("beta1", beta1), ("beta2", beta2)), weight_decay, decayed, clip)


def _lion(p: Array, g: Array, first: Array, *, rate: float, beta1: float, beta2: float) -> tuple[Array, Array]:
    return p - rate * array_namespace(p).sign(parts.average(first, g, beta1)), parts.average(first, g, beta2)


OptimizerName: TypeAlias = Literal["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "nadam", "lion"]
"""The rows of `optimizers.BY_NAME`."""

BY_NAME: dict[str, Callable[..., Optimizer]] = {
    factory.__name__: factory for factory in (sgd, momentum, nesterov, rmsprop, adam, adamw, nadam, lion)
}
"""The optimisers by the names that the command line takes."""
