"""Epochs of mini-batches for an estimator: steps, the curves that it shows, and when to stop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer

from .. import data, trees
from .._typing import Array
from ..backends import as_numpy
from ..training.fitted import copy_of
from ..training.step import train_step
from .solvers import optimizer, with_decay

if TYPE_CHECKING:
    from .base import MultilayerPerceptron

SMALLEST_RATE = 1e-6
"""The rate from which learning_rate="adaptive" divides no more."""


class Rows(NamedTuple):
    """Rows to train on, or to judge by, on the backend."""

    x: Array
    targets: Array
    weights: Array | None = None
    """One for each row; None: 1."""
    X: Any = None
    """Inputs, labels and weights as scikit-learn's scores take them, on the host: of the rows to judge by."""
    y: Any = None
    sample_weight: np.ndarray[Any, Any] | None = None


class Descent:
    """What stays the same from epoch to epoch of one call of fit or partial_fit."""

    def __init__(self, estimator: MultilayerPerceptron, rows: Rows, held: Rows | None, *, incremental: bool) -> None:
        self.of, self.rows, self.held = estimator, rows, held
        self.count = rows.x.shape[0]
        self.weight = 1.0 if rows.weights is None else float(as_numpy(rows.weights).mean())
        """Of a row, in the mean."""
        self.size = estimator.rows_in_batch(self.count)
        if estimator.early_stopping:
            estimator.best_loss_ = None
            estimator.best_validation_score_ = _or(estimator.best_validation_score_, -math.inf)
        else:
            estimator.best_loss_ = _or(estimator.best_loss_, math.inf)
            estimator.best_validation_score_ = None
        if not incremental or not hasattr(estimator, "_optimizer"):
            steps = estimator.max_iter * len(self.order(0, 0))
            estimator._optimizer = optimizer(estimator, steps)
            for member in estimator.members_:
                member.opt_state = estimator._optimizer.init(member.params)

    def run(self, epochs: int, *, incremental: bool) -> None:
        """Train for so many epochs, or until there is nothing more to gain."""
        of = self.of
        of.n_iter_ = 0
        best = [copy_of(member) for member in of.members_] if of.early_stopping else None
        try:
            for _ in range(epochs):
                of.loss_ = self.epoch()
                of.n_iter_ += 1
                of.t_ += self.count
                of.loss_curve_.append(of.loss_)
                self.tell(f"Iteration {of.n_iter_}, loss = {of.loss_:.8f}")
                if self.judge() and of.early_stopping:
                    best = [copy_of(member) for member in of.members_]
                if self.ends():
                    break
            else:
                if not incremental and of.schedule is None:  # which ends with max_iter
                    words = f"{epochs} iterations (max_iter) were done and the training has not converged yet"
                    warnings.warn(words, ConvergenceWarning, stacklevel=4)
        except KeyboardInterrupt:
            warnings.warn("training was interrupted by the user", stacklevel=4)
        if best is not None:
            of.members_ = best

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # looked at once, when the training has ended
    def epoch(self) -> float:
        """One pass over the rows by every member; the mean loss of its batches with the penalty of their weights."""
        of, losses, shares = self.of, [], []
        for number, member in enumerate(of.members_):
            for chosen in self.order(number, of._epochs):
                count = self.count if chosen is None else len(chosen)
                member.params, member.state, member.opt_state, value = self.step(count)(
                    member.params, member.state, member.opt_state, **self.batch(chosen)
                )
                losses.append(value)
                shares.append(count)
        of._epochs += 1
        found = as_numpy(of._backend.xp.stack(losses)).astype(np.float64)
        return float(found @ np.asarray(shares)) / (self.count * len(of.members_)) + self.penalty()

    def order(self, member: int, epoch: int) -> list[np.ndarray[Any, Any] | None]:
        """Row numbers of the batches of an epoch; None for all rows, whose order does not matter."""
        if self.size >= self.count:
            return [None]
        if self.of.shuffle:
            return [*data.batches(self.count, self.size, np.random.default_rng([self.of._seed, member, epoch]))]
        starts = list(range(0, self.count, self.size))
        if self.size > 1 and self.count - starts[-1] == 1:  # as data.batches has it
            starts.pop()
        return [*np.split(np.arange(self.count), starts[1:])]

    def batch(self, chosen: np.ndarray[Any, Any] | None) -> dict[str, Array]:
        """Inputs, targets and weights of these rows, as the step takes them."""
        parts = dict(zip(("x", "targets", "weights"), self.rows, strict=False))
        given = {name: array for name, array in parts.items() if array is not None}
        if chosen is None:
            return given
        backend = self.of._backend
        index = backend.asarray(chosen)
        return {name: backend.xp.take(array, index, axis=0) for name, array in given.items()}

    def step(self, count: int) -> Callable[..., Any]:
        """The training step for batches of so many rows, on which the penalty depends."""
        of = self.of
        return _step(
            of.network_, with_decay(of._optimizer, of.alpha, count * self.weight), of._loss, of._seed, of._backend
        )

    def penalty(self) -> float:
        """What the penalty of the weights adds to the mean loss of an epoch's batches."""
        of, batches = self.of, len(self.order(0, 0))
        if of.alpha == 0 or of._optimizer.rule.decoupled:
            return 0.0
        leaves = [trees.flatten(member.params) for member in of.members_]
        sums = [of._backend.xp.sum(w * w) for each in leaves for name, w in each.items() if name.endswith("weight")]
        total = float(as_numpy(of._backend.xp.stack(sums)).sum()) / len(of.members_)
        return 0.5 * of.alpha * total * batches / (self.count * self.weight)

    # ---- when to stop

    def judge(self) -> bool:
        """Count an epoch without improvement; whether it is the best one so far."""
        of = self.of
        if self.held is not None:
            loss, score = self.validation()
            of.validation_loss_curve_.append(loss)
            of.validation_scores_.append(score)
            self.tell(f"Validation score: {score:f}")
        if of.early_stopping:
            now, best = of.validation_scores_[-1], of.best_validation_score_
        else:
            now, best = -of.loss_, -of.best_loss_
        of._no_improvement_count = of._no_improvement_count + 1 if now < best + of.tol else 0
        if now > best and of.early_stopping:
            of.best_validation_score_ = now
        elif now > best:
            of.best_loss_ = of.loss_
        return bool(now > best)

    def ends(self) -> bool:
        """Whether there was no improvement for too long and nothing is left to try; the rate for the next epoch."""
        of = self.of
        if of.solver == "sgd" and of.learning_rate == "invscaling":
            self.set_rate(float(of.learning_rate_init) / (of.t_ + 1) ** of.power_t)
        if of._no_improvement_count <= of.n_iter_no_change:
            return False
        what = "Validation score" if of.early_stopping else "Training loss"
        words = f"{what} did not improve more than tol={of.tol:f} for {of.n_iter_no_change} consecutive epochs."
        rate = of._optimizer.learning_rate
        if of.solver != "sgd" or of.learning_rate != "adaptive" or rate <= SMALLEST_RATE:
            self.tell(f"{words} Stopping.")
            return True
        self.set_rate(rate / 5)
        self.tell(f"{words} Setting learning rate to {rate / 5:f}")
        of._no_improvement_count = 0
        return False

    def set_rate(self, rate: float) -> None:
        """Another learning rate from the next step on."""
        self.of._optimizer = dataclasses.replace(self.of._optimizer, learning_rate=rate)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def validation(self) -> tuple[float, float]:
        """Loss and score of the network as it is now on the rows to judge by; NaN where it has diverged."""
        of, held = self.of, self.held
        assert held is not None
        losses, predicted = of._judged(held)
        loss = float(np.mean(losses))
        if not math.isfinite(loss) or of.scoring == "loss":
            return loss, -loss if of.scoring == "loss" else math.nan
        if of.scoring is None:
            return loss, float(of._score(held.y, of._final(as_numpy(predicted)), held.sample_weight))
        now = copy.copy(of)
        now.__dict__.pop("feature_names_in_", None)  # the rows to judge by are arrays
        score = get_scorer(of.scoring) if isinstance(of.scoring, str) else of.scoring
        given = {} if held.sample_weight is None else {"sample_weight": held.sample_weight}
        return loss, float(score(now, held.X, held.y, **given))

    def tell(self, line: str) -> None:
        """Print it, where asked to."""
        if self.of.verbose:
            print(line)  # noqa: T201  # scikit-learn's verbose


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


@functools.lru_cache(maxsize=64)
def _step(net: Any, which: Any, loss: Any, seed: int, backend: Any) -> Callable[..., Any]:
    """Kept, because JAX compiles each new function again."""
    return backend.compiled(functools.partial(train_step, net, which, loss=loss, seed=seed))
