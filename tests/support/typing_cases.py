"""What the type checker says of a user's program. mypy checks this file; nothing runs it.

An ignored error is one that a user has to be shown: mypy refuses an ignore where it finds no error.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import bnengine as bn
from bnengine._typing import Array


def arrays_of_numpy_fit(x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
    """As they are, and come back as an Array."""
    gamma = np.ones(3)
    y, residuals = bn.batch_norm(x, gamma, None)
    assert_type(y, Array)
    assert_type(y.shape, tuple[int, ...])
    assert_type(residuals.mean, Array)
    assert_type(residuals.count, float)
    assert_type(bn.batch_norm_backward(y, residuals).x, Array)
    assert_type(bn.linear(x, np.ones((3, 2)), None), Array)
    assert_type(bn.softmax_cross_entropy(y, labels), tuple[Array, Array])
    assert_type(bn.backend("numpy").asarray(x), Array)


def arrays_compute(x: Array) -> Array:
    """With the operators of the array API standard."""
    assert_type(x[0, ...], Array)
    assert_type(-x + 1, Array)
    assert_type(2.0 * x @ x.T, Array)
    assert_type(1 / (x - x), Array)
    assert_type((x <= 0) & ~(x == 1), Array)
    assert_type((x >> 2) ^ (x << 1), Array)
    assert_type(float(x) + int(x) + bool(x), float)
    x += 1
    return x**2


def only_what_every_library_has(x: Array) -> None:
    """Not what NumPy alone has, nor a name that is none."""
    print(x.flags)  # type: ignore[attr-defined]
    print(x.astype)  # type: ignore[attr-defined]
    print(x.shap)  # type: ignore[attr-defined]
    x[0] = 1  # type: ignore[index]
    for _ in x:  # type: ignore[attr-defined]
        pass


def no_array_is_none(x: npt.NDArray[np.float32]) -> None:
    """A gradient that may not be there has to be looked at first."""
    y, residuals = bn.batch_norm(x)
    _, dgamma, _ = bn.batch_norm_backward(y, residuals)
    print(dgamma + 1)  # type: ignore[operator]
    print(dgamma.shape)  # type: ignore[union-attr]
    bn.relu(dgamma)  # type: ignore[arg-type]
    bn.relu(None)  # type: ignore[arg-type]
    bn.relu([1.0, 2.0])  # type: ignore[arg-type]
    if dgamma is not None:
        assert_type(dgamma + 1, Array)


def functions_of_ones_own_may_be_of_one_library(x: npt.NDArray[np.float32]) -> None:
    """A sum over ranks and a loss, for NumPy arrays alone."""

    def total(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return a

    def loss(outputs: npt.NDArray[Any], targets: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return np.mean(outputs - targets, keepdims=True), outputs

    bn.batch_norm(x, all_reduce=total)
    net = bn.mlp([3, 2])
    bn.fit(net, bn.optimizers.adam(0.1), (x, x), loss=loss)
    assert_type(bn.predict(net, {}, {}, x), np.ndarray[Any, Any])


def words_are_some_of_few(x: npt.NDArray[np.float32], word: str) -> None:
    """A typing error in an option is seen before the program runs."""
    net = bn.mlp([3, 4, 2], activation="gelu", norm_position="post", initialization="he")
    bn.mlp([3, 4, 2], norm="bach")  # type: ignore[arg-type]
    bn.mlp([3, 4, 2], activation="rleu")  # type: ignore[arg-type]
    bn.mlp([3, 4, 2], norm_position="before")  # type: ignore[arg-type]
    bn.mlp([3, 4, 2], initialization=word)  # type: ignore[arg-type]
    bn.Activation("rleu")  # type: ignore[arg-type]
    bn.BatchNorm(3, activation="gelu")  # type: ignore[arg-type]
    bn.batch_norm(x, activation="gelu")  # type: ignore[arg-type]
    bn.batch_norm(x, impl="gpu")  # type: ignore[arg-type]
    bn.backend("nunpy")  # type: ignore[arg-type]
    bn.backend("numpy", dtype="float16")  # type: ignore[arg-type]
    bn.Settings(on_nonfinite="raise")  # type: ignore[arg-type]
    bn.evaluate(net, {}, {}, (x, x), loss="l2")  # type: ignore[arg-type]
    bn.recalibrate(net, {}, {}, x, estimator="all", backend="jax")  # type: ignore[arg-type]
