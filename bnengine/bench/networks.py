"""Networks whose training steps are measured, with their batches and, in NumPy, the losses that steps should have."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from .._typing import DTypeName, Library, Native
from ..backends import as_numpy, backend
from ..fully_connected import mlp
from ..functional.activations import ActivationName
from ..optimizers import BY_NAME, Optimizer, OptimizerName, cosine
from .timing import Contender, nothing

CHECKED = 6
"""Steps on the first batch whose losses are compared with those of a float64 network."""

BATCHES = 8
"""Batches that a contender goes round, so that the gradients do not die away while it is timed."""

TOLERANCE = 1e-4
"""Part of the fall of the loss. A gradient left out takes more; rounding and another place of Adam's eps take less."""

MOMENTUM, EPS = 0.1, 1e-5
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

Step = Callable[[Any, Any], Any]
"""From a batch and its labels to the loss, having updated what it holds."""


@dataclass(frozen=True)
class Network:
    """A network and how it is trained."""

    sizes: tuple[int, ...]
    batch: int
    activation: ActivationName = "relu"
    optimizer: OptimizerName = "adam"
    norm: bool = True
    as_trained: bool = False
    """As `bnengine train` has it: inputs are standardised in the network, and the rate falls with a cosine."""

    @property
    def name(self) -> str:
        """Sizes, normalisation, activation, batch and optimiser in one line, as tables and records call it."""
        sizes = "-".join(map(str, self.sizes))
        words = f"{sizes} {'BN ' if self.norm else ''}{self.activation}, batch {self.batch}, {self.optimizer}"
        return f"{words}, standardised, cosine" if self.as_trained else words

    @property
    def rate(self) -> float:
        """The learning rate that is usual for its optimiser, at first."""
        return {"adam": 1e-3, "sgd": 0.1}[self.optimizer]

    def rate_after(self, steps: Any, cos: Callable[[Any], Any] = math.cos) -> Any:
        """The learning rate after so many steps, by the cosine of a library."""
        return self.rate * 0.5 * (1 + cos(math.pi / STEPS * steps)) if self.as_trained else self.rate

    def optimizer_of_ours(self) -> Optimizer:
        """With its rate."""
        rate = cosine(self.rate, steps=STEPS) if self.as_trained else self.rate
        return BY_NAME[self.optimizer](rate)


STEPS = 1_000_000
"""Over which a cosine falls: more than are timed."""

FIXED = (
    Network((784, 256, 256, 256, 10), 128),
    Network((784, 100, 100, 100, 10), 60, "sigmoid", "sgd"),
    Network((64, 256, 256, 10), 64, as_trained=True),
    Network((30, 64, 64, 2), 32),
    Network((784, 1024, 1024, 10), 256),
    Network((784, 256, 256, 256, 10), 128, norm=False),
)
"""A common network; that of the batch normalisation paper, section 4.1; that of `bnengine train` without options; those
of a small table and of wide layers; and one that scikit-learn can train too."""


class Case:
    """A network with its first parameters, its batches, and the losses that its first steps should have."""

    steady = True

    def __init__(self, network: Network, dtype: str, seed: int = 0, library: Library = "numpy") -> None:
        rng = np.random.default_rng(seed)
        kind: Any = np.dtype(dtype)
        inputs, classes, n = network.sizes[0], network.sizes[-1], network.batch
        self.network, self.dtype, self.seed, self.library = network, cast("DTypeName", dtype), seed, library
        self.net = mlp(
            list(network.sizes),
            norm="batch" if network.norm else None,
            activation=network.activation,
            standardize=network.as_trained,
        )
        self.backend = backend(library, dtype=self.dtype)
        drawn = [(rng.standard_normal((n, inputs), kind), rng.integers(0, classes, n)) for _ in range(BATCHES)]
        self.batches: list[tuple[Native, Native]] = [
            (self.backend.asarray(x), self.backend.asarray(y)) for x, y in drawn
        ]

    def layers(self) -> list[dict[str, Native]]:
        """The first parameters, anew: weight and gamma, beta or bias of each layer, the output layer last."""
        params, _ = self.net.init(0, backend=self.backend)
        found: list[dict[str, Native]] = []
        for key in sorted(params, key=int):
            if "weight" in params[key]:
                found.append({})
            found[-1] |= params[key]
        return found

    def redraw(self) -> Case:
        """The same on other data.

        Where a value lies within rounding of ReLU's corner, the losses of right steps part for good, as they now and
        then do in a deep network; those of a wrong step do on any data.
        """
        return Case(self.network, self.dtype, self.seed + 1, self.library)

    @functools.cached_property
    def truth(self) -> list[float]:
        """Losses of the first steps in float64."""
        step = NumpyStep(self, np.float64)
        x, labels = self.batches[0]
        return [float(step(x.astype(np.float64), labels)) for _ in range(CHECKED)]

    def contender(
        self,
        family: str,
        step: Step,
        variant: str = "",
        prepare: Callable[[], Any] = nothing,
        asarray: Callable[[Native], Any] = lambda array: array,
    ) -> Contender:
        """One that goes through the batches, which `asarray` makes the library's own."""
        batches = [(asarray(x), asarray(labels)) for x, labels in self.batches]
        turn = itertools.cycle(batches)

        def call() -> Any:
            return step(*next(turn))

        def error() -> float:
            losses = [float(as_numpy(step(*batches[0]))) for _ in range(CHECKED)]
            off = np.abs(np.asarray(losses) - self.truth)
            return float(np.max(off) / (self.truth[0] - self.truth[-1]))

        return Contender(family, call, error, TOLERANCE, variant, prepare)


class NumpyStep:
    """A step as people write it in NumPy. In float64 it is what the others are checked against."""

    def __init__(self, case: Case, dtype: Any) -> None:
        self.network = case.network
        self.layers = [{name: a.astype(dtype) for name, a in layer.items()} for layer in case.layers()]
        self.running = [{"mean": np.zeros_like(p["gamma"]), "var": np.ones_like(p["gamma"])} for p in self._with_norm]
        self.first, self.second = (
            [{name: np.zeros_like(a) for name, a in layer.items()} for layer in self.layers] for _ in range(2)
        )
        self.steps = 0
        inputs = np.zeros(self.network.sizes[0], dtype)
        self.standardize = (inputs, inputs + 1) if self.network.as_trained else None

    @property
    def _with_norm(self) -> list[dict[str, Native]]:
        return self.layers[:-1] if self.network.norm else []

    def __call__(self, x: Native, labels: Native) -> Any:
        """The loss of a batch, after which the parameters have moved."""
        a, saved = x, []
        if self.standardize is not None:
            mean, var = self.standardize
            a = (x - mean) / np.sqrt(var)
        for i, layer in enumerate(self.layers[:-1]):
            z, norm = a @ layer["weight"], None
            if self.network.norm:
                z, norm = self._normalize(i, z)
            else:
                z = z + layer["bias"]
            h = np.maximum(z, 0) if self.network.activation == "relu" else 1 / (1 + np.exp(-z))
            saved.append((a, norm, h))
            a = h
        logits = a @ self.layers[-1]["weight"] + self.layers[-1]["bias"]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(x), like=x)
        loss = -np.log(p[rows, labels]).mean()
        p[rows, labels] -= 1
        self._update(self._backward(p / len(x), a, saved))
        return loss

    def _normalize(self, i: int, z: Native) -> tuple[Native, Any]:
        p, running, n = self.layers[i], self.running[i], len(z)
        mean, var = z.mean(axis=0), z.var(axis=0)
        running["mean"] = (1 - MOMENTUM) * running["mean"] + MOMENTUM * mean
        running["var"] = (1 - MOMENTUM) * running["var"] + MOMENTUM * var * (n / (n - 1))
        inv_std = 1 / np.sqrt(var + z.dtype.type(EPS))
        xhat = (z - mean) * inv_std
        return p["gamma"] * xhat + p["beta"], (xhat, inv_std)

    def _backward(self, d: Native, last: Native, saved: list[Any]) -> list[dict[str, Native]]:
        grads = [{"weight": last.T @ d, "bias": d.sum(axis=0)}]
        for i in reversed(range(len(saved))):
            a, norm, h = saved[i]
            d = d @ self.layers[i + 1]["weight"].T
            d = d * (h > 0) if self.network.activation == "relu" else d * h * (1 - h)
            grad = {"bias": d.sum(axis=0)}
            if norm is not None:
                xhat, inv_std = norm
                n, grad = len(d), {"gamma": (d * xhat).sum(axis=0), "beta": d.sum(axis=0)}
                d = self.layers[i]["gamma"] * inv_std / n * (n * d - grad["beta"] - xhat * grad["gamma"])
            grads.insert(0, {"weight": a.T @ d, **grad})
        return grads

    def _update(self, grads: list[dict[str, Native]]) -> None:
        rate = self.network.rate_after(self.steps)
        self.steps += 1
        b1, b2 = ADAM["beta1"], ADAM["beta2"]
        for p, g, m, v in zip(self.layers, grads, self.first, self.second, strict=True):
            for name in p:
                if self.network.optimizer == "sgd":
                    p[name] -= rate * g[name]
                    continue
                m[name] = b1 * m[name] + (1 - b1) * g[name]
                v[name] = b2 * v[name] + (1 - b2) * g[name] ** 2
                size = np.sqrt(v[name] / (1 - b2**self.steps)) + ADAM["eps"]
                p[name] -= rate * (m[name] / (1 - b1**self.steps)) / size
