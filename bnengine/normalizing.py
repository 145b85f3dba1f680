"""Layers that normalise: by statistics of the batch, by those of the training rows, or by none.

As those of `layers`, from where they are public.
"""

from __future__ import annotations

import functools
import operator
import warnings
from dataclasses import InitVar, dataclass
from typing import Any, get_args

import numpy as np
from array_api_compat import array_namespace

from . import functional as F
from ._typing import AllReduce, Array, FusedActivation, Statistics, Tree
from .arguments import instance, number, one_of
from .backends import Backend
from .context import Context
from .functional import checks
from .kernels.reference import statistics_dtype
from .layer import Layer, Shapes, check_size
from .recording import made

CONSTANT = 1e-7
"""Standard deviation over |mean| up to which a feature of float32 data is constant: that is its rounding alone."""

STANDARDIZE_EPS = 1.2e-38
"""The least that `normalize` takes: variances of Standardize are never so small."""


class _Features(Layer):
    """A layer that gives as many features as it takes."""

    features: int

    @property
    def takes(self) -> int:
        return self.features

    gives = takes


@dataclass(frozen=True)
class BatchNorm(_Features):
    """Batch normalisation of (N, features), with an optional fused ReLU.

    Training normalises with the batch's statistics and averages them into the running ones, inference
    normalises with the running ones. Parameters gamma (1 at first) and beta (0); state mean (0), var (1)
    and batches (0). `momentum` is the weight of the *new* batch (PyTorch's meaning; Keras' and Flax's is
    one minus it), None the plain average over all batches; `unbiased` False averages the biased variances, as Keras and
    Flax do (`like`). `statistics` "running" freezes the layer: training
    too normalises with the running statistics and leaves them as they are; "virtual:32" normalises rows 32 by 32 in
    training, as if they were batches of their own (Hoffer et al. 2017, arXiv:1705.08741, "ghost batches"): the last
    may have fewer, a single row left over joins the one before, and each is averaged in. Ranks that sum (`Context.all_reduce`) share the
    statistics of the batch that they hold together.
    """

    features: int
    activation: FusedActivation = None
    eps: float = 1e-5
    momentum: float | None = 0.1
    statistics: Statistics | str = "batch"
    all_reduce: InitVar[AllReduce | None] = None
    unbiased: bool = True

    def __post_init__(self, all_reduce: AllReduce | None) -> None:
        check_size("features", self.features)
        checks.fused_relu(self.activation)
        checks.epsilon(self.eps)
        if self.momentum is not None:
            number("momentum", self.momentum, 0, 1, words="None or a number in [0, 1]")
        if not self._virtual:
            one_of("statistics", self.statistics, (*get_args(Statistics), "virtual:32"))
        instance("unbiased", self.unbiased, bool, "True or False")
        if all_reduce is not None:
            words = "all_reduce: hand it to forward in a Context, or as sync_statistics to train_step"
            warnings.warn(words, DeprecationWarning, stacklevel=3)
        object.__setattr__(self, "_all_reduce", all_reduce)

    @property
    def cancels_bias(self) -> bool:
        """With batch statistics; running ones do not depend on the bias."""
        return self.statistics != "running"

    @property
    def _virtual(self) -> int:
        """Rows of a virtual batch; 0 where there are none."""
        kind, _, size = str(self.statistics).partition(":")
        return int(size) if kind == "virtual" and size.isdecimal() and int(size) > 1 else 0

    @property
    def shapes(self) -> Shapes:
        """gamma and beta; the running statistics."""
        each = (self.features,)
        return Shapes({"gamma": each, "beta": each}, {"mean": each, "var": each, "batches": ()})

    def __str__(self) -> str:
        return f"BatchNorm + {self.activation}" if self.activation else "BatchNorm"

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        """gamma 1 and beta 0; mean 0, variance 1 and no batches."""
        gamma = backend.asarray(np.ones(self.features))
        state = F.RunningStats.init(self.features, like=gamma)._asdict()
        return {"gamma": gamma, "beta": backend.asarray(np.zeros(self.features))}, state

    def forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:
        """By batch statistics in training, which are averaged into the state; else by running ones."""
        gamma, beta = params["gamma"], params["beta"]
        if not context.training or self.statistics == "running":
            y = F.normalize(x, state["mean"], state["var"], gamma, beta, eps=self.eps, activation=self.activation)
            return y, state, (x, state["mean"], state["var"]) if context.training else None
        running = F.RunningStats(**state)
        if self._virtual:
            return self._forward_virtual(running, x, gamma, beta, context)
        all_reduce = context.all_reduce or self.__dict__["_all_reduce"]
        how: dict[str, Any] = {"eps": self.eps, "activation": self.activation, "all_reduce": all_reduce}
        y, residuals = F.batch_norm(x, gamma, beta, weights=context.weights, **how)
        return y, running.update(residuals, momentum=self.momentum, unbiased=self.unbiased)._asdict(), residuals

    def _forward_virtual(
        self, running: F.RunningStats, x: Array, gamma: Array, beta: Array, context: Context
    ) -> tuple[Array, Tree, Any]:
        """Part by part: each rank's own, whatever ranks share."""
        parts, weights = [], context.weights
        for start, stop in _cuts(x.shape[0], self._virtual):
            w = None if weights is None else weights[start:stop]
            part = F.batch_norm(x[start:stop, ...], gamma, beta, eps=self.eps, activation=self.activation, weights=w)
            running = running.update(part[1], momentum=self.momentum, unbiased=self.unbiased)
            parts.append(part)
        y = made(array_namespace(x).concat, [y for y, _ in parts])
        return y, running._asdict(), [residuals for _, residuals in parts]

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:  # noqa: ARG002
        """Through the batch statistics, or with running ones held fixed."""
        if residuals is None:
            raise ValueError("residuals: expected those of forward(training=True); inference keeps none")
        if isinstance(residuals, F.Residuals):
            dx, dgamma, dbeta = F.batch_norm_backward(dy, residuals)
        elif isinstance(residuals, list):
            cuts = _cuts(dy.shape[0], self._virtual)
            parts = [F.batch_norm_backward(dy[a:b, ...], r) for (a, b), r in zip(cuts, residuals, strict=True)]
            dx = made(array_namespace(dy).concat, [part.x for part in parts])
            add = functools.partial(made, operator.add)
            dgamma, dbeta = (functools.reduce(add, [part[i] for part in parts]) for i in (1, 2))
        else:
            given = (*residuals, params["gamma"], params["beta"])
            dx, dgamma, dbeta = F.normalize_backward(dy, *given, eps=self.eps, activation=self.activation)
        return {"gamma": dgamma, "beta": dbeta}, dx


def _cuts(rows: int, size: int) -> list[tuple[int, int]]:
    """Where virtual batches of `size` rows begin and end; a single row left over joins the one before."""
    starts = [i for i in range(0, rows, size) if i == 0 or rows - i > 1]
    return list(zip(starts, [*starts[1:], rows], strict=True))


@dataclass(frozen=True)
class DynamicTanh(_Features):
    """y = gamma * tanh(alpha * x) + beta, in the place of a normalisation: a squashing that takes no statistics.

    Zhu et al. 2025, arXiv:2503.10622, section 4. Parameters alpha, one number for the layer, of shape (1,), which
    starts at the field `alpha`; gamma (1 at first) and beta (0), one for each feature. Training and inference do the
    same, and rows do not depend on each other. A bias in front of it is not cancelled.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> layer = bn.DynamicTanh(2)
    >>> params, _ = layer.init(np.random.default_rng(0), bn.backend("numpy", dtype="float64"))
    >>> layer.forward(params, {}, np.asarray([[-1.0, 100.0]]), bn.Context(training=True))[0].round(3)
    array([[-0.462,  1.   ]])
    """

    features: int
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_size("features", self.features)
        number("alpha", self.alpha, 0)

    @property
    def shapes(self) -> Shapes:
        """alpha, gamma and beta."""
        return Shapes({"alpha": (1,), "gamma": (self.features,), "beta": (self.features,)})

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        """Alpha as the layer says, gamma 1 and beta 0."""
        first = {"alpha": np.full(1, self.alpha), "gamma": np.ones(self.features), "beta": np.zeros(self.features)}
        return {name: backend.asarray(value) for name, value in first.items()}, {}

    def forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:  # noqa: ARG002
        """gamma * tanh(alpha * x) + beta; `backward` needs x."""
        _, t, xp = _squash(params, x)
        return xp.astype(params["gamma"] * t + params["beta"], x.dtype), state, x

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:
        """With t = tanh(alpha * x) and du = dy * gamma * (1 - t^2): alpha's sum(du * x), gamma's sum(dy * t), dx = alpha * du."""
        x, t, xp = _squash(params, residuals)
        dy = xp.astype(dy, x.dtype)
        du = dy * params["gamma"] * (1 - t * t)
        grads = {"alpha": xp.reshape(xp.sum(du * x), (1,)), "gamma": xp.sum(dy * t, axis=0), "beta": xp.sum(dy, axis=0)}
        grads = {name: xp.astype(grad, params[name].dtype) for name, grad in grads.items()}
        return grads, xp.astype(params["alpha"] * du, residuals.dtype) if need_dx else None


def _squash(params: Tree, x: Array) -> tuple[Array, Array, Any]:
    """x in the dtype of statistics, tanh(alpha * x), and their namespace."""
    xp = array_namespace(x)
    x = xp.astype(x, statistics_dtype(x), copy=False)
    return x, xp.tanh(params["alpha"] * x), xp


@dataclass(frozen=True)
class Standardize(_Features):
    """Inputs to mean 0 and variance 1, with statistics measured once over the training data.

    State mean (0) and var (1) until `measure` is called, as `fit` does. A feature that is constant there
    is only centred. In front of one Linear it makes logistic and linear regression insensitive to the
    units of their features; in a network it is the zeroth application of the same idea.
    """

    features: int

    measured = True

    def __post_init__(self) -> None:
        check_size("features", self.features)

    @property
    def shapes(self) -> Shapes:
        """mean and var of each feature, which are kept."""
        return Shapes(state={"mean": (self.features,), "var": (self.features,)})

    def init(self, rng: np.random.Generator, backend: Backend) -> tuple[Tree, Tree]:  # noqa: ARG002
        """Mean 0 and variance 1, until `measure` is called."""
        return {}, {
            "mean": backend.asarray(np.zeros(self.features)),
            "var": backend.asarray(np.ones(self.features)),
        }

    def measure(
        self,
        x: np.ndarray[Any, Any],
        backend: Backend,
        all_reduce: AllReduce | None = None,
        weights: np.ndarray[Any, Any] | None = None,
    ) -> Tree:
        """The state for these training rows, a host array of shape (N, features); with all_reduce, for all ranks'."""
        total = all_reduce or (lambda a: a)
        plain = x.sum(axis=0, dtype=np.float64) if weights is None else weights @ x
        *rough, rows = total(np.append(plain, len(x) if weights is None else weights.sum()))
        rough = np.asarray(rough) / rows
        sums = np.zeros((2, self.features))
        for start in range(0, len(x), 4096):  # in blocks: no float64 copy of the data
            centered = x[start : start + 4096] - rough
            counted = centered if weights is None else centered * weights[start : start + 4096, None]
            sums += [np.sum(counted, axis=0) / rows, np.sum(counted * centered, axis=0) / rows]
        rest, square = total(sums)
        mean, var = rough + rest, square - rest * rest
        constant = var <= (CONSTANT * mean) ** 2
        return {"mean": backend.asarray(mean), "var": backend.asarray(np.where(constant, 1.0, var))}

    def forward(self, params: Tree, state: Tree, x: Array, context: Context) -> tuple[Array, Tree, Any]:  # noqa: ARG002
        """(x - mean) / sqrt(var), in training and inference alike."""
        return F.normalize(x, state["mean"], state["var"], eps=STANDARDIZE_EPS), state, (x, state)

    def backward(self, params: Tree, residuals: Any, dy: Array, *, need_dx: bool) -> tuple[Tree, Array | None]:  # noqa: ARG002
        """dx with the statistics held fixed."""
        x, state = residuals
        return {}, F.normalize_backward(dy, x, state["mean"], state["var"], eps=STANDARDIZE_EPS).x if need_dx else None
