"""What moves the parameters: optimisers by scikit-learn's settings, and L-BFGS by SciPy."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .. import optimizers, trees
from .._typing import Array, Tree
from ..arguments import shown
from ..context import Context
from ..networks import Sequential
from ..optimizers import Optimizer
from ..training.fitted import Fitted

if TYPE_CHECKING:
    from .base import MultilayerPerceptron

SOLVERS = ("lbfgs", *optimizers.BY_NAME)


def optimizer(estimator: MultilayerPerceptron, steps: int) -> Optimizer:
    """The optimiser that an estimator's settings describe, without weight decay; `steps` is what a schedule lasts."""
    name, rate = estimator.solver, _rate(estimator, steps)
    betas = {"beta1": estimator.beta_1, "beta2": estimator.beta_2}
    if name == "sgd" and estimator.momentum > 0:
        name = "nesterov" if estimator.nesterovs_momentum else "momentum"
    options: dict[str, dict[str, Any]] = {
        "sgd": {},
        "momentum": {"momentum": estimator.momentum},
        "nesterov": {"momentum": estimator.momentum},
        "rmsprop": {"decay": estimator.beta_2, "eps": estimator.epsilon},
        "lion": betas,
    }
    return optimizers.BY_NAME[name](rate, **options.get(name, {**betas, "eps": estimator.epsilon}), weight_decay=0.0)


def _rate(estimator: MultilayerPerceptron, steps: int) -> float | optimizers.Schedule:
    schedule, rate = estimator.schedule, float(estimator.learning_rate_init)
    if schedule is None:
        return rate
    if schedule == "cosine":
        return optimizers.cosine(rate, steps=steps)
    if callable(schedule):
        return schedule
    raise ValueError(
        f"schedule: expected None, 'cosine', or a function from the number of updates done to a rate such as "
        f"optimizers.step_decay(...), got {shown(schedule)}"
    )


def with_decay(which: Optimizer, alpha: float, weight: float) -> Optimizer:
    """The optimiser with scikit-learn's penalty, alpha / 2 * sum of w^2 / weight; a decoupled decay is alpha itself."""
    return dataclasses.replace(which, weight_decay=alpha if which.rule.decoupled else alpha / weight)


def minimized(
    net: Sequential,
    start: Fitted,
    objective: Callable[[Array], tuple[Array, Array]],
    x: Array,
    weights: Array | None,
    *,
    penalty: float,
    max_iter: int,
    max_fun: int,
    tol: float,
) -> tuple[Tree, int, float]:
    """Parameters, iterations and loss where L-BFGS ended: Byrd, Lu, Nocedal and Zhu 1995, as SciPy has it."""
    from scipy.optimize import minimize

    leaves = trees.leaves(start.params)
    names = [name.rpartition(".")[2] for name in trees.names(start.params)]
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    decays = np.concatenate(
        [np.full(leaf.size, penalty * (name == "weight")) for name, leaf in zip(names, leaves, strict=True)]
    )

    def unpacked(flat: np.ndarray[Any, Any]) -> Tree:
        parts = zip(np.split(flat, ends), leaves, strict=True)
        return trees.rebuild(start.params, [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts])

    def value_and_gradient(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        params = unpacked(flat)
        outputs, _, residuals = net.forward(params, start.state, x, Context(True, weights=weights))
        value, doutputs = objective(outputs)
        gradients = trees.leaves(net.backward(params, residuals, doutputs), params)
        gradient = np.concatenate([np.ravel(leaf) for leaf in gradients]).astype(np.float64)
        return float(value) + 0.5 * float(decays @ (flat * flat)), gradient + decays * flat

    first = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)
    options = {"maxfun": max_fun, "maxiter": max_iter, "gtol": tol}
    found = minimize(value_and_gradient, first, method="L-BFGS-B", jac=True, options=options)
    if not found.success:
        words = f"L-BFGS ended after {found.nit} iterations, not converged: {found.message}; raise max_iter or max_fun"
        warnings.warn(words, ConvergenceWarning, stacklevel=4)
    return unpacked(found.x), min(int(found.nit), max_iter), float(found.fun)
