"""Any argument, in the place of a good one, gives a result or one line that names an argument."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bnengine as bn
from bnengine import data, optimizers, trees

X, LABELS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32), np.arange(8) % 2
VECTOR, FLAT = np.ones(3, np.float32), np.ones((8, 1), np.float32)
NET, OPTIMIZER, BACKEND = bn.mlp([3, 4, 2], standardize=True), bn.optimizers.adam(), bn.backend("numpy")


@functools.cache
def trained() -> bn.Fitted:
    return bn.fit(NET, OPTIMIZER, (X, LABELS), epochs=1, batch_size=4)


def fitted() -> bn.Fitted:
    """A copy, since arguments may be donated."""
    kept = trained()
    return bn.Fitted(*(trees.copied(tree) for tree in (kept.params, kept.state, kept.opt_state)), list(kept.history))


def network() -> dict[str, Any]:
    return {"net": NET, "params": fitted().params, "state": fitted().state}


def residuals() -> bn.Residuals:
    return bn.batch_norm(X, VECTOR, VECTOR)[1]


def grads() -> Any:
    return trees.map_leaves(np.ones_like, fitted().params)


def forward_residuals() -> Any:
    return NET.forward(fitted().params, fitted().state, X, training=True)[2]


Call = tuple[Callable[..., Any], Callable[[], dict[str, Any]]]
NORMALIZATION = {"gamma": VECTOR, "beta": VECTOR, "axis": 1, "eps": 1e-5, "activation": None}
RULE = {"learning_rate": 0.1, "weight_decay": 0.0, "decayed": ("weight",), "clip": None}
CALLS: dict[str, Call] = {
    "batch_norm": (
        bn.batch_norm,
        lambda: {"x": X, **NORMALIZATION, "all_reduce": None, "impl": None, "weights": None, "statistics": None},
    ),
    "batch_norm_backward": (bn.batch_norm_backward, lambda: {"dy": X, "residuals": residuals()}),
    "normalize": (bn.normalize, lambda: {"x": X, "mean": VECTOR, "var": VECTOR, **NORMALIZATION}),
    "normalize_backward": (
        bn.normalize_backward,
        lambda: {"dy": X, "x": X, "mean": VECTOR, "var": VECTOR, **NORMALIZATION},
    ),
    "RunningStats.init": (bn.RunningStats.init, lambda: {"features": 3, "like": X}),
    "RunningStats.update": (
        bn.RunningStats.init(3, like=X).update,
        lambda: {"batch": residuals(), "momentum": 0.1},
    ),
    "linear": (bn.linear, lambda: {"x": X, "weight": X[:3], "bias": VECTOR}),
    "linear_backward": (
        bn.linear_backward,
        lambda: {"dz": X, "x": X, "weight": X[:3], "need_dx": True, "need_bias": True},
    ),
    "softmax_cross_entropy": (bn.softmax_cross_entropy, lambda: {"logits": X, "labels": LABELS, "weights": None}),
    "binary_cross_entropy": (bn.binary_cross_entropy, lambda: {"logits": FLAT, "targets": LABELS, "weights": None}),
    "mean_squared_error": (bn.mean_squared_error, lambda: {"predictions": X, "targets": X, "weights": None}),
    **{name: (getattr(bn, name), lambda: {"x": X}) for name in ("identity", "relu", "sigmoid", "tanh")},
    **{
        f"{name}_backward": (getattr(bn, f"{name}_backward"), lambda: {"dy": X, "y": X})
        for name in ("identity", "relu", "sigmoid", "tanh")
    },
    "leaky_relu": (bn.leaky_relu, lambda: {"x": X, "slope": 0.1}),
    "leaky_relu_backward": (bn.leaky_relu_backward, lambda: {"dy": X, "y": X, "slope": 0.1}),
    "backend": (bn.backend, lambda: {"name": "numpy", "dtype": "float32", "device": None}),
    "Backend.asarray": (BACKEND.asarray, lambda: {"host": X}),
    "Linear": (
        bn.Linear,
        lambda: {"inputs": 3, "outputs": 2, "bias": True, "initialization": "he", "scale": 1.0},
    ),
    "BatchNorm": (bn.BatchNorm, lambda: {"features": 3, "activation": None, "eps": 1e-5, "momentum": 0.1}),
    "Activation": (bn.Activation, lambda: {"name": "relu"}),
    "Standardize": (bn.Standardize, lambda: {"features": 3}),
    "Sequential": (bn.Sequential, lambda: {"layers": (bn.Linear(3, 2),)}),
    "mlp": (
        bn.mlp,
        lambda: {
            "sizes": [3, 4, 2],
            "norm": "batch",
            "activation": "relu",
            "norm_position": "pre",
            "standardize": False,
            "initialization": None,
            "scale": 1.0,
            "eps": 1e-5,
            "momentum": 0.1,
        },
    ),
    "Sequential.init": (NET.init, lambda: {"seed": 0, "backend": BACKEND}),
    "Sequential.measure": (NET.measure, lambda: {"state": fitted().state, "x": X, "backend": BACKEND}),
    "Sequential.forward": (
        NET.forward,
        lambda: {"params": fitted().params, "state": fitted().state, "x": X, "training": True},
    ),
    "Sequential.backward": (
        NET.backward,
        lambda: {"params": fitted().params, "residuals": forward_residuals(), "dy": X[:, :2]},
    ),
    **{
        name: (rule, lambda more=more: {**RULE, **more})
        for name, rule, more in (
            ("sgd", optimizers.sgd, {}),
            ("momentum", optimizers.momentum, {"momentum": 0.9, "dampening": 0.1}),
            ("nesterov", optimizers.nesterov, {"momentum": 0.9}),
            ("rmsprop", optimizers.rmsprop, {"decay": 0.9, "eps": 1e-8, "centered": False, "momentum": 0.9}),
            ("adam", optimizers.adam, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "amsgrad": False}),
            ("nadam", optimizers.nadam, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "momentum_decay": 4e-3}),
            ("lion", optimizers.lion, {"beta1": 0.9, "beta2": 0.99}),
            ("adamw", optimizers.adamw, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "amsgrad": False}),
        )
    },
    "step_decay": (optimizers.step_decay, lambda: {"rate": 0.1, "at": [3], "factor": 0.1}),
    "cosine": (optimizers.cosine, lambda: {"rate": 0.1, "steps": 9, "final": 0.0}),
    "warm_up": (optimizers.warm_up, lambda: {"schedule": 0.1, "steps": 9}),
    "clip_by_norm": (optimizers.clip_by_norm, lambda: {"grads": [X], "largest": 1.0}),
    "Optimizer.init": (OPTIMIZER.init, lambda: {"params": fitted().params}),
    "Optimizer.update": (
        OPTIMIZER.update,
        lambda: {"params": fitted().params, "grads": grads(), "state": fitted().opt_state},
    ),
    "train_step": (
        bn.train_step,
        lambda: {
            **network(),
            "optimizer": OPTIMIZER,
            "opt_state": fitted().opt_state,
            "x": X,
            "targets": LABELS,
            "loss": "cross_entropy",
        },
    ),
    "fit": (
        bn.fit,
        lambda: {
            "net": NET,
            "optimizer": OPTIMIZER,
            "train": (X, LABELS),
            "validation": (X, LABELS),
            "loss": "cross_entropy",
            "epochs": 1,
            "batch_size": 4,
            "seed": 0,
            "backend": None,
            "start": None,
            "early_stopping": None,
            "precise_bn": False,
            "callback": None,
            "progress": None,
        },
    ),
    "evaluate": (
        bn.evaluate,
        lambda: {**network(), "rows": (X, LABELS), "loss": "cross_entropy", "backend": None},
    ),
    "predict": (bn.predict, lambda: {**network(), "x": X, "backend": None}),
    "precise_statistics": (
        bn.precise_statistics,
        lambda: {**network(), "x": X, "batch_size": 4, "backend": None},
    ),
    "statistics_gap": (
        bn.statistics_gap,
        lambda: {"state": fitted().state, "precise": fitted().state, "eps": 1e-5},
    ),
    "save": (
        bn.save,
        lambda: {"path": "net.safetensors", **network(), "opt_state": fitted().opt_state, "metadata": {"a": 1}},
    ),
    "load": (bn.load, lambda: {"path": "good.safetensors", "backend": None}),
    "data.load": (data.load, lambda: {"source": "digits", "label": None, "task": "auto", "test": 0.2, "seed": 0}),
    "data.hold_out": (data.hold_out, lambda: {"x": X, "y": LABELS, "part": 0.5, "seed": 0, "stratify": True}),
    "data.batches": (data.batches, lambda: {"rows": 8, "size": 4, "rng": np.random.default_rng(0)}),
}


def masked(a: np.ndarray) -> Any:
    return np.ma.masked_array(a)


SHAPES = st.one_of(
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    st.sampled_from([(8, 3), (8,), (8, 1), (3,), (8, 2)]),
)
DTYPES = st.sampled_from(["f4", "f8", "f2", ">f4", "g", "i8", "u1", "?", "c8", "U3", "S2", "O", "M8[s]", "V4", "i4,f4"])
ARRAYS = st.builds(lambda shape, dtype, change: change(np.zeros(shape, dtype)), SHAPES, DTYPES, st.sampled_from(
    [np.asarray, np.asfortranarray, masked]))  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 12), st.sampled_from([2**31, 2**63, -(2**63)]), st.floats(), st.booleans(), st.complex_numbers()
)
PLAIN = st.one_of(
    st.none(),
    NUMBERS,
    st.text(st.characters(exclude_characters="/"), max_size=6),
    st.binary(max_size=4),
    st.sampled_from(["relu", "cpu", "x.csv"]),
)
VALUES = st.one_of(
    PLAIN,
    ARRAYS,
    st.lists(PLAIN, max_size=3),
    st.tuples(ARRAYS, ARRAYS),
    st.dictionaries(st.sampled_from(["0", "1", "weight", "mean", "step"]), PLAIN | ARRAYS, max_size=3),
    st.just(len),
    st.builds(object),
    st.just(np.float32),
    st.floats(width=32).map(np.float32),
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A call, and one or two of its arguments replaced."""
    name = draw(st.sampled_from(sorted(CALLS)))
    arguments = sorted(CALLS[name][1]())
    chosen = draw(st.lists(st.sampled_from(arguments), min_size=1, max_size=2, unique=True))
    return name, {argument: draw(VALUES) for argument in chosen}


def called(name: str, replaced: dict[str, Any]) -> None:
    function, good = CALLS[name]
    arguments = good() | replaced
    places = inspect.signature(function).parameters
    positional = [arguments.pop(p) for p, place in places.items() if place.kind is place.POSITIONAL_ONLY]
    with np.errstate(all="ignore"):
        function(*positional, **arguments)


def refusal(name: str, replaced: dict[str, Any]) -> str | None:
    """Why the call was refused; other errors come through."""
    try:
        called(name, replaced)
    except (TypeError, ValueError, ImportError, OSError) as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def good_file() -> None:
    bn.save("good.safetensors", NET, fitted().params, fitted().state)


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(changed())
def test_any_argument_gives_a_result_or_a_line_that_names_one(case):
    name, replaced = case
    reason = refusal(name, replaced)
    names = "|".join([*CALLS[name][1](), *(["data"] if name == "data.load" else [])])  # the option of the command line
    files = {value for value in replaced.values() if isinstance(value, str)}
    if reason is not None and reason.startswith("len() takes"):
        return  # what a function of the user's raises is its own
    named = reason is None or re.search(rf"\b({names})\b", reason) or any(file in reason for file in files)
    assert named, f"names none of {names}: {reason}"
    assert "\n" not in (reason or "")


@pytest.mark.parametrize("name", CALLS)
def test_the_good_arguments_are_good(name):
    called(name, {})
