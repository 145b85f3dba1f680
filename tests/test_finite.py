"""Losses and gradients that are not finite: found by the end of the epoch, named by step and layer, or skipped."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import data, trees
from bnengine.training import finite

LINE = bn.Sequential((bn.Linear(1, 1, bias=False),))


def begun(net, optimizer, weight=1e-15, backend="numpy"):
    """A network whose first weights are all the same."""
    backend = bn.backend(backend)
    params, state = net.init(0, backend=backend)
    params = trees.map_leaves(lambda leaf: backend.asarray(np.full(leaf.shape, weight)), params)
    return bn.training.Fitted(params, state, optimizer.init(params))


def rows_with(value, count=64, place=40):
    """Ones, and one row of another value."""
    x = np.ones((count, 1), np.float32)
    x[place] = value
    return x, np.zeros(count)


def step_of(place, *, count=64, batch_size=8, seed=0, epoch=1):
    """The step of an epoch, from 1, whose batch holds that row."""
    order = data.batches(count, batch_size, np.random.default_rng([seed, epoch]))
    return next(i for i, batch in enumerate(order, 1) if place in batch)


@pytest.mark.parametrize("rule", bn.optimizers.BY_NAME)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_found_though_no_loss_tells(rule, clip):
    """The loss is 1e30, its gradient 1e45: too large for float32. In the last epoch no later loss would tell."""
    optimizer = bn.optimizers.BY_NAME[rule](1e-20, clip=clip)
    rows = rows_with(1e30, count=8, place=3)
    with pytest.raises(
        bn.NonFiniteError, match=r"epoch 1, first at step 1: the gradient of weight in layer 0 \(Linear"
    ):
        bn.fit(LINE, optimizer, rows, loss="mse", epochs=1, batch_size=8, start=begun(LINE, optimizer))


def test_the_first_step_of_many_is_named():
    optimizer = bn.optimizers.sgd(1e-20)
    with pytest.raises(bn.NonFiniteError, match=f"in epoch 1, first at step {step_of(40)}: the gradient of weight in"):
        bn.fit(LINE, optimizer, rows_with(1e30), loss="mse", epochs=3, batch_size=8, start=begun(LINE, optimizer))


def test_an_optimizer_that_overflows_silently_is_found():
    """A finite gradient of 1e24, whose square Adam keeps: all its later updates would be zero."""
    optimizer = bn.optimizers.adam(1e-20)
    arguments = {"loss": "mse", "epochs": 1, "batch_size": 8, "start": begun(LINE, optimizer, 1e-1)}
    message = r"the new second.0.weight \(state of the optimiser\) of layer 0 \(Linear\)"
    with pytest.raises(bn.NonFiniteError, match=message):
        bn.fit(LINE, optimizer, rows_with(1e13, count=8, place=3), **arguments)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_layer_where_it_began_is_named(at):
    net = bn.mlp([3, 4, 4, 2], norm=None, activation="identity")
    optimizer = bn.optimizers.sgd(1e-3)
    params, state = net.init(0, backend="numpy")
    at = [i for i, layer in enumerate(net.layers) if isinstance(layer, bn.Linear)][at]
    params[str(at)]["weight"] = np.full_like(params[str(at)]["weight"], 3e38)
    start = bn.training.Fitted(params, state, optimizer.init(params))
    rows = np.random.default_rng(0).standard_normal((8, 3)) * 100, np.arange(8) % 2
    with pytest.raises(bn.NonFiniteError, match=rf"first at step 1: the output of layer {at} \(Linear\)"):
        bn.fit(net, optimizer, rows, epochs=1, start=start)


def test_a_validation_loss_that_is_not_finite_stops():
    optimizer = bn.optimizers.sgd(1e-3)
    held = np.full((2, 1), 3e38, np.float32), np.asarray([-3e38, -3e38], np.float32)
    arguments = {"loss": "mse", "epochs": 2, "start": begun(LINE, optimizer, 1.0)}
    with pytest.raises(bn.NonFiniteError, match="validation_loss was not finite after epoch 1, step 1"):
        bn.fit(LINE, optimizer, rows_with(1.0), validation=held, **arguments)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array-api-strict", "dask"])
def test_skip_leaves_out_exactly_the_updates_that_would_not_be_finite(name):
    """Against a loop that leaves them out by hand."""
    need({"array-api-strict": "array_api_strict", "dask": "dask.array"}.get(name, name))
    net, optimizer = bn.mlp([1, 4, 2]), bn.optimizers.momentum(0.01)
    x = rows_with(1e30)[0] + np.random.default_rng(0).standard_normal((64, 1)).astype(np.float32)
    labels = (x[:, 0] > 1).astype(int)
    backend = bn.backend(name)
    rows = {"epochs": 1, "batch_size": 8, "backend": backend}
    fitted = bn.fit(net, optimizer, (x, labels), on_nonfinite="skip", **rows)
    assert fitted.history[0]["skipped"] == 1
    assert np.isfinite(fitted.history[0]["train_loss"])

    params, state = net.init(0, backend="numpy")
    opt_state = optimizer.init(params)
    for step, batch in enumerate(data.batches(64, 8, np.random.default_rng([0, 1])), 1):
        if step != step_of(40):
            part = x[batch], labels[batch]
            params, state, opt_state, _ = bn.train_step(net, optimizer, params, state, opt_state, *part)
    exact = {"rtol": 0, "atol": 0} if name == "numpy" else {"rtol": 2e-4, "atol": 1e-5}
    for a, b in zip(trees.leaves(fitted.params, params), trees.leaves(params), strict=True):
        np.testing.assert_allclose(bn.backends.as_numpy(a), b, **exact)
    for key in ("mean", "var"):
        np.testing.assert_allclose(bn.backends.as_numpy(fitted.state["1"][key]), state["1"][key], **exact)
    assert int(fitted.opt_state["step"]) == 8  # skipped steps count


def test_skipping_every_step_stops():
    optimizer = bn.optimizers.sgd(1e-20)
    rows = np.full((16, 1), 1e30, np.float32), np.zeros(16)
    arguments = {"loss": "mse", "epochs": 2, "batch_size": 8, "start": begun(LINE, optimizer)}
    with pytest.raises(bn.NonFiniteError, match=r"first at step 1: the gradient of weight in layer 0"):
        bn.fit(LINE, optimizer, rows, on_nonfinite="skip", **arguments)
    with pytest.raises(ValueError, match="on_nonfinite: expected 'stop' or 'skip', got 'go'"):
        bn.fit(LINE, optimizer, rows, on_nonfinite="go", **arguments)


def test_skip_changes_nothing_where_all_is_finite():
    dataset = data.load("digits")
    rows, net, optimizer = (dataset.x_train[:300], dataset.y_train[:300]), bn.mlp([64, 16, 10]), bn.optimizers.adam()
    fitted = [bn.fit(net, optimizer, rows, epochs=2, on_nonfinite=mode) for mode in ("stop", "skip")]
    for a, b in zip(*(trees.leaves(f.params) for f in fitted), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["skipped"] for row in fitted[1].history] == [0, 0]


def test_skipping_waits_for_nothing_under_jit():
    """Traced by JAX, it could not."""
    jax = need("jax")
    net, optimizer = bn.mlp([3, 4, 2]), bn.optimizers.adam()
    params, state = net.init(0, backend="jax")
    step = jax.jit(finite.skipping(functools.partial(bn.train_step, net, optimizer)))
    x, labels = jax.numpy.ones((4, 3)), jax.numpy.asarray([0, 1, 0, 1])
    good = step(params, state, optimizer.init(params), x, labels)
    assert np.isfinite(float(good[3]))
    bad = step(params, state, optimizer.init(params), x * jax.numpy.nan, labels)
    assert np.isnan(float(bad[3]))
    for a, b in zip(trees.leaves(bad[0]), trees.leaves(params, bad[0]), strict=True):
        np.testing.assert_array_equal(a, b)
