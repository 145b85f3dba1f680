from __future__ import annotations

import functools
import gc
import math

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import backends, data, trees
from bnengine.training import running_statistics

BACKENDS = ["numpy", "torch", "jax", "array-api-strict", "dask"]
SMALL = {"array-api-strict": "array_api_strict", "dask": "dask.array"}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def backend_of(name, dtype="float32"):
    need(SMALL.get(name, name))
    return bn.backend(name, dtype=dtype)


def losses_of(backend, optimizer, digits, steps=20, loss="cross_entropy"):
    """Losses of the first steps on digits; compiled on JAX."""
    net = bn.mlp([64, 32, 16, 10], standardize=False)
    params, state = net.init(5, backend=backend)
    opt_state = optimizer.init(params)
    step = backend.compiled(functools.partial(bn.train_step, net, optimizer))
    found = []
    for i in range(steps):
        rows = slice(50 * i, 50 * (i + 1))
        x, labels = backend.asarray(digits.x_train[rows] / 16), backend.asarray(digits.y_train[rows])
        params, state, opt_state, value = step(params, state, opt_state, x, labels)
        found.append(float(value))
    return np.asarray(found)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_training_on_a_device_without_int64(on_nonfinite, digits):
    need("array_api_strict")
    backend, others = (bn.backend("array-api-strict", device=device) for device in ("no_x64", "no_float64"))
    optimizer = bn.optimizers.adam(0.01)
    net, rows = bn.mlp([64, 16, 10], dropout=0.1, standardize=True), (digits.x_train[:60], digits.y_train[:60])
    options = {"epochs": 2, "batch_size": 20, "validation": rows, "precise_bn": True, "on_nonfinite": on_nonfinite}
    fitted, expected = (bn.fit(net, optimizer, rows, backend=b, **options) for b in (backend, others))
    for name, value in expected.history[-1].items():
        assert name == "seconds" or fitted.history[-1][name] == pytest.approx(value, rel=1e-6)
    assert float(losses_of(backend, optimizer, digits, steps=1)[0]) > 0


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_the_same_losses_on_every_library(name, digits):
    optimizer = bn.optimizers.sgd(0.1)
    expected = losses_of(bn.backend("numpy"), optimizer, digits)
    assert expected[-1] < 0.6 * expected[0]
    np.testing.assert_allclose(losses_of(backend_of(name), optimizer, digits), expected, rtol=1e-5)


@pytest.mark.parametrize("rule", bn.optimizers.BY_NAME)
@pytest.mark.parametrize("name", ["torch", "array-api-strict"])
def test_the_same_losses_in_float64_with_every_optimizer(name, rule, digits):
    optimizer = bn.optimizers.BY_NAME[rule](0.01, weight_decay=1e-3)
    expected = losses_of(bn.backend("numpy", dtype="float64"), optimizer, digits)
    np.testing.assert_allclose(losses_of(backend_of(name, "float64"), optimizer, digits), expected, rtol=1e-10)


def test_jax_in_float64_gives_the_same_losses(digits):
    jax = need("jax")
    with jax.enable_x64(True):
        for rule in bn.optimizers.BY_NAME:
            optimizer = bn.optimizers.BY_NAME[rule](bn.optimizers.cosine(0.01, steps=30))
            expected = losses_of(bn.backend("numpy", dtype="float64"), optimizer, digits)
            found = losses_of(bn.backend("jax", dtype="float64"), optimizer, digits)
            np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_training_on_fake_devices_stays_there(digits, monkeypatch):
    """A device without float64 refuses creation calls that forget it, and hidden copies to the host."""
    strict = need("array_api_strict")
    for device in ("device1", "no_float64"):
        backend = bn.backend("array-api-strict", device=device)
        net, optimizer = bn.mlp([64, 16, 10], standardize=True), bn.optimizers.adam(0.01, clip=1.0)
        rows = digits.x_train[:200], digits.y_train[:200]
        fitted = bn.fit(net, optimizer, rows, validation=rows, epochs=1, batch_size=50, backend=backend)
        for leaf in trees.leaves(fitted.params):
            assert leaf.device == strict.Device(device)
        assert fitted.history[0]["validation_loss"] < 2.5


@pytest.mark.parametrize("name", BACKENDS)
def test_fit_learns_digits(name, digits):
    net, optimizer = bn.mlp([64, 64, 10], standardize=True), bn.optimizers.adam(0.01)
    rows = (digits.x_train[:600], digits.y_train[:600])
    fitted = bn.fit(net, optimizer, rows, epochs=3, batch_size=100, backend=backend_of(name))
    measured = bn.evaluate(net, fitted.params, fitted.state, (digits.x_test, digits.y_test), backend=backend_of(name))
    assert measured["accuracy"] > 0.9
    outputs = bn.predict(net, fitted.params, fitted.state, digits.x_test, backend=backend_of(name))
    assert isinstance(outputs, np.ndarray)
    assert np.mean(outputs.argmax(1) == digits.y_test) == pytest.approx(measured["accuracy"])
    assert fitted.opt_state["step"] == 18


@pytest.mark.parametrize("rows", [65, 64, 66, 3, 2])
def test_no_batch_of_one(rows):
    found = data.batches(rows, 64, np.random.default_rng(0))
    assert min(map(len, found)) >= 2
    assert sorted(np.concatenate(found)) == list(range(rows))
    assert [list(a) for a in found] == [list(a) for a in data.batches(rows, 64, np.random.default_rng(0))]


def test_a_last_batch_of_one_trains(digits):
    rows = digits.x_train[:65], digits.y_train[:65]
    fitted = bn.fit(bn.mlp([64, 8, 10]), bn.optimizers.sgd(0.1), rows, epochs=1, batch_size=32)
    assert fitted.opt_state["step"] == 2


def test_training_can_stop_and_go_on(digits):
    """Three epochs and then three more are six, to the last bit."""
    net, optimizer = bn.mlp([64, 16, 10], standardize=True), bn.optimizers.adam(0.01)
    rows = digits.x_train[:300], digits.y_train[:300]
    whole = bn.fit(net, optimizer, rows, epochs=6)
    half = bn.fit(net, optimizer, rows, epochs=3)
    kept = trees.copied(half.params)
    rest = bn.fit(net, optimizer, rows, epochs=6, start=half)
    for a, b in zip(trees.leaves(whole.params), trees.leaves(rest.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(trees.leaves(kept), trees.leaves(half.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["train_loss"] for row in rest.history] == [row["train_loss"] for row in whole.history]


@pytest.mark.parametrize("name", BACKENDS)
def test_training_can_be_broken_off_inside_an_epoch(name, digits):
    """After any step, and more than once; the losses of the first part count for the epoch's mean."""
    net, optimizer, backend = bn.mlp([64, 16, 10], standardize=True), bn.optimizers.adam(0.01), backend_of(name)
    rows = digits.x_train[:300], digits.y_train[:300]
    options = {"epochs": 2, "batch_size": 50, "validation": rows, "backend": backend}
    whole = bn.fit(net, optimizer, rows, **options)
    part = None
    for steps in (0, 4, 1, 3):
        answers = iter([False] * steps + [True])
        part = bn.fit(net, optimizer, rows, start=part, interrupted=lambda a=answers: next(a), **options)
    assert (len(part.history), len(part.losses)) == (1, 2)
    rest = bn.fit(net, optimizer, rows, start=part, **options)
    for tree in ("params", "state", "opt_state"):
        pairs = zip(*(trees.leaves(getattr(fitted, tree)) for fitted in (whole, rest)), strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(backends.as_numpy(a), backends.as_numpy(b))
    seconds = {"seconds": 0}
    assert [row | seconds for row in rest.history] == [row | seconds for row in whole.history]


def test_many_steps_in_an_epoch_are_all_counted(digits):
    rows = digits.x_train[:1200], digits.y_train[:1200]
    seen, net = [], bn.mlp([64, 10])
    answers = iter([False] * 520 + [True])
    options = {"epochs": 1, "batch_size": 2}
    part = bn.fit(net, bn.optimizers.sgd(0.01), rows, interrupted=lambda: next(answers), **options)
    assert len(part.losses) == 520  # two whole blocks and a rest
    whole = bn.fit(net, bn.optimizers.sgd(0.01), rows, **options)
    rest = bn.fit(net, bn.optimizers.sgd(0.01), rows, start=part, callback=lambda row, _: seen.append(row), **options)
    assert whole.history[0]["train_loss"] == rest.history[0]["train_loss"] == seen[0]["train_loss"]


def test_fitted_prints_in_a_line(digits):
    rows = digits.x_train[:100], digits.y_train[:100]
    fitted = bn.fit(bn.mlp([64, 8, 10]), bn.optimizers.sgd(0.1), rows, validation=rows, epochs=2)
    losses = "train_loss {train_loss:.4g}, validation_loss {validation_loss:.4g}".format(**fitted.history[-1])
    assert repr(fitted) == f"Fitted(2 epochs, 618 parameters, {losses})"
    assert fitted.kept_epoch == 2
    assert fitted._repr_html_().count("<tr>") == 3


@pytest.mark.parametrize("stopped", [1, 4, 6])
def test_early_stopping_remembers_its_best_epoch(stopped, digits):
    """The best epoch is the third or so; a run broken off after it, and one that had ended, give it back."""
    net, optimizer = bn.mlp([64, 32, 10], standardize=True), bn.optimizers.adam(0.05)
    rows, held = (digits.x_train[:100], digits.y_train[:100]), (digits.x_test, digits.y_test)
    options = {"validation": held, "epochs": 200, "early_stopping": 3}
    whole = bn.fit(net, optimizer, rows, **options)
    part = bn.fit(
        net, optimizer, rows, callback=lambda row, _: row["epoch"] == stopped, **{**options, "early_stopping": None}
    )
    rest = bn.fit(net, optimizer, rows, start=part, **options)
    assert len(whole.history) > stopped
    assert len(rest.history) == len(whole.history)
    for a, b in zip(trees.leaves(whole.params), trees.leaves(rest.params), strict=True):
        np.testing.assert_array_equal(a, b)
    again = bn.fit(net, optimizer, rows, start=rest, **options)
    assert len(again.history) == len(whole.history)


def test_early_stopping_returns_the_best_epoch(digits):
    net, optimizer = bn.mlp([64, 32, 10], standardize=True), bn.optimizers.adam(0.05)
    rows, held = (digits.x_train[:100], digits.y_train[:100]), (digits.x_test, digits.y_test)
    fitted = bn.fit(net, optimizer, rows, validation=held, epochs=200, early_stopping=3)
    losses = [row["validation_loss"] for row in fitted.history]
    assert len(losses) == np.argmin(losses) + 1 + 3 < 200
    assert fitted.kept_epoch == np.argmin(losses) + 1 == len(fitted.best.history)
    assert f"{len(losses)} epochs, network of epoch {fitted.kept_epoch}, " in repr(fitted)
    measured = bn.evaluate(net, fitted.params, fitted.state, held)
    assert measured["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_callback_sees_each_epoch_and_can_stop(digits):
    seen = []

    def callback(row, now):
        seen.append((row["epoch"], len(now.history)))
        return row["epoch"] == 2

    rows = digits.x_train[:100], digits.y_train[:100]
    bn.fit(bn.mlp([64, 8, 10]), bn.optimizers.sgd(0.1), rows, epochs=9, callback=callback)
    assert seen == [(1, 1), (2, 2)]


def test_a_loss_that_is_not_finite_stops_with_the_last_good_network(digits):
    net, rows = bn.mlp([64, 8, 10], norm=None), (digits.x_train[:100], digits.y_train[:100])
    blown = bn.optimizers.sgd(lambda step: 0.001 if step < 4 else 1e30)
    with pytest.raises(bn.NonFiniteError, match=r"not finite in epoch 2, first at step 6: the output of layer") as e:
        bn.fit(net, blown, rows, epochs=5, batch_size=25)
    good = e.value.last_good
    assert len(good.history) == 1
    assert np.isfinite(bn.evaluate(net, good.params, good.state, rows)["loss"])
    assert all(np.isfinite(p).all() for p in trees.leaves(good.params))


def test_nothing_waits_for_the_device_inside_an_epoch(digits, monkeypatch):
    """On JAX every reading of a value goes through __array__, __float__ or __bool__: none happens between steps."""
    jax = need("jax")
    array_type = type(jax.numpy.zeros(1))
    reads, steps = [], []
    for name in ("__array__", "__float__", "__int__", "__bool__", "__index__"):
        original = getattr(array_type, name)

        def counted(self, *args, _original=original, **kwargs):
            reads.append(len(steps))
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(array_type, name, counted)

    def progress(batches):
        for batch in batches:
            steps.append(batch)
            yield batch

    rows = digits.x_train[:400], digits.y_train[:400]
    bn.fit(
        bn.mlp([64, 8, 10], standardize=True),
        bn.optimizers.adam(0.01),
        rows,
        epochs=2,
        batch_size=40,
        backend=bn.backend("jax"),
        progress=progress,
    )
    assert len(steps) == 20
    assert set(reads) <= {0, 10, 20}
    assert reads.count(10) > 0


def test_precise_statistics_are_the_data_s(rng):
    """For a first layer they are what the batches' own statistics average to; a sorted data set is no trap."""
    x = np.sort(rng.standard_normal((1000, 4)) * 3 + 1, axis=0)
    net = bn.Sequential((bn.BatchNorm(4), bn.Linear(4, 2)))
    backend = bn.backend("numpy", dtype="float64")
    params, state = net.init(0, backend=backend)
    precise = bn.precise_statistics(net, params, state, x, batch_size=250, backend=backend)
    np.testing.assert_allclose(precise["0"]["mean"], x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(precise["0"]["var"], x.var(0, ddof=1), rtol=0.02)
    gap = bn.statistics_gap(state, precise)
    assert gap["mean_gap"] == pytest.approx(np.max(np.abs(x.mean(0)) / x.std(0)), rel=0.02)
    assert gap["var_ratio"] == pytest.approx(np.max(x.var(0)), rel=0.02)
    assert gap["batches"] == 0
    assert bn.statistics_gap({}, {}) == {}
    assert bn.statistics_gap(precise, precise) == {"mean_gap": 0, "var_ratio": 1, "batches": precise["0"]["batches"]}


def test_statistics_that_were_never_updated_are_reported(digits):
    net = bn.mlp([64, 8, 8, 10])
    params, state = net.init(0, backend="numpy")
    words = "running statistics of layer 1, 3 were never updated: inference uses mean 0 and variance 1"
    with pytest.warns(RuntimeWarning, match=words):
        bn.evaluate(net, params, state, (digits.x_test, digits.y_test))
    with pytest.warns(RuntimeWarning, match=words):
        bn.predict(net, params, state, digits.x_test)
    gap = bn.statistics_gap(state, bn.precise_statistics(net, params, state, digits.x_train))
    assert "never updated" in running_statistics.far_apart(gap)


def test_only_statistics_that_are_far_off_are_reported(digits):
    net, rows = bn.mlp([64, 32, 10], standardize=True), (digits.x_train[:300], digits.y_train[:300])
    fitted = bn.fit(net, bn.optimizers.adam(0.01), rows, epochs=5)

    def reported(x):
        return running_statistics.far_apart(
            bn.statistics_gap(fitted.state, bn.precise_statistics(net, fitted.params, fitted.state, x))
        )

    assert reported(rows[0]) is None
    assert reported(digits.x_test[:100]) is None
    assert "running statistics are far from the rows'" in reported(digits.x_test[:100] + 20)
    assert running_statistics.far_apart({}) is None


def test_precise_bn_at_the_end_of_fit(digits):
    net, optimizer = bn.mlp([64, 16, 10], standardize=True), bn.optimizers.adam(0.02)
    rows = digits.x_train[:256], digits.y_train[:256]
    gaps = {}
    for precise_bn in (False, True):
        fitted = bn.fit(net, optimizer, rows, epochs=2, batch_size=32, precise_bn=precise_bn)
        precise = bn.precise_statistics(net, fitted.params, fitted.state, rows[0], batch_size=32)
        gaps[precise_bn] = bn.statistics_gap(fitted.state, precise)["mean_gap"]
    assert gaps[True] == 0 < gaps[False]


def test_regression_and_logistic_regression(rng):
    x = rng.standard_normal((400, 3)) * [1, 100, 0.01]
    net = bn.mlp([3, 1], standardize=True)
    values = x @ [2.0, 0.01, 100.0] + 3
    fitted = bn.fit(net, bn.optimizers.adam(0.1), (x, values), loss="mse", epochs=60)
    assert bn.evaluate(net, fitted.params, fitted.state, (x, values), loss="mse")["r2"] > 0.99
    labels = (values > 3).astype(int)
    fitted = bn.fit(net, bn.optimizers.adam(0.1), (x, labels), loss="binary_cross_entropy", epochs=30)
    assert fitted.history[-1]["train_accuracy"] > 0.97


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("name", BACKENDS)
def test_steps_leave_nothing_behind(name, on_nonfinite, digits):
    """As many objects after five epochs as after two, no graph that grows, no history for a derivative."""
    seen = []

    def after_epoch(row, now):
        gc.collect()
        graphs = [len(leaf.__dask_graph__()) for leaf in trees.leaves(now.params)] if name == "dask" else []
        if name == "torch":
            assert all(leaf.grad_fn is None for leaf in trees.leaves(now.params))
        seen.append((sum(graphs), len(gc.get_objects())))

    net, rows = bn.mlp([64, 8, 10]), (digits.x_train[:80], digits.y_train[:80])
    options = {"epochs": 5, "batch_size": 20, "backend": backend_of(name), "on_nonfinite": on_nonfinite}
    bn.fit(net, bn.optimizers.adam(0.01), rows, callback=after_epoch, **options)
    assert seen[4][0] == seen[1][0]
    assert seen[4][1] - seen[1][1] < 60  # 12 steps in between, each of a dozen arrays


def test_a_constant_target_has_no_r2(rng):
    net, rows = bn.mlp([3, 1]), (rng.standard_normal((8, 3)), np.ones(8))
    fitted = bn.fit(net, bn.optimizers.sgd(0.01), rows, loss="mse", epochs=1, backend="numpy")
    assert fitted.history[0]["train_r2"] is None


@pytest.mark.parametrize("batch_size", [2, 7, 64, 129, 130])
def test_recalibrated_statistics_are_those_of_one_batch_of_everything(rng, batch_size):
    """Also of the second normalisation, whose input depends on the first's, and in a part of a network."""
    backend = bn.backend("numpy", dtype="float64")
    block = bn.Residual((bn.Linear(6, 6, bias=False), bn.BatchNorm(6), bn.Activation("tanh")))
    net = bn.Sequential((bn.Linear(4, 6, bias=False), bn.BatchNorm(6, activation="relu"), block, bn.Linear(6, 2)))
    params, state = net.init(1, backend=backend)
    x = rng.standard_normal((130, 4)) * [1, 1e-3, 50, 2] + [0, 1e3, 5, -2]
    whole = net.replace(bn.BatchNorm, momentum=1.0).forward(params, state, x, training=True)[1]
    found = bn.recalibrate(net, params, state, x, batch_size=batch_size, backend=backend)
    for own, expected in ((found["1"], whole["1"]), (found["2"]["1"], whole["2"]["1"])):
        np.testing.assert_allclose(own["mean"], expected["mean"], rtol=1e-12, atol=1e-12 * expected["var"].max() ** 0.5)
        np.testing.assert_allclose(own["var"], expected["var"], rtol=1e-12)
    assert trees.names(found) == trees.names(state)


def test_recalibrating_keeps_what_is_frozen_and_replaces_what_is_not_finite(rng):
    backend = bn.backend("numpy", dtype="float64")
    first, second = bn.BatchNorm(3, statistics="running"), bn.BatchNorm(3)
    net, x = bn.Sequential((first, second)), rng.standard_normal((40, 3)) * 2 + 1
    params, state = net.init(0, backend=backend)
    state["0"] |= {"mean": np.full(3, 5.0), "var": np.full(3, 4.0)}
    state["1"] |= {"mean": np.full(3, np.nan), "var": np.full(3, np.inf)}
    found = bn.recalibrate(net, params, state, x, batch_size=7, backend=backend)
    np.testing.assert_array_equal(found["0"]["mean"], 5.0)
    np.testing.assert_array_equal(found["0"]["var"], 4.0)
    inner = (x - 5) / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(found["1"]["mean"], inner.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["1"]["var"], inner.var(0, ddof=1), rtol=1e-12)


def test_recalibrating_by_batches_weighs_them_by_their_rows(rng):
    backend = bn.backend("numpy", dtype="float64")
    net, x = bn.Sequential((bn.BatchNorm(3),)), rng.standard_normal((130, 3)) ** 3
    params, state = net.init(0, backend=backend)
    found = bn.recalibrate(net, params, state, x, estimator="batches", batch_size=128, backend=backend)["0"]
    rows = [x[i] for i in bn.data.batches(130, 128, np.random.default_rng(0))]
    assert [len(part) for part in rows] == [128, 2]
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-12)
    expected = np.average([part.var(0, ddof=1) for part in rows], axis=0, weights=[128, 2])
    np.testing.assert_allclose(found["var"], expected, rtol=1e-12)


def test_a_frozen_normalisation_keeps_its_statistics_and_learns_its_parameters(rng):
    backend = bn.backend("numpy", dtype="float64")
    net, optimizer = bn.mlp([4, 6, 3]), bn.optimizers.sgd(0.1)
    fitted = bn.fit(net, optimizer, (rng.standard_normal((60, 4)), rng.integers(0, 3, 60)), epochs=2, backend=backend)
    frozen = net.replace(bn.BatchNorm, statistics="running")
    x = rng.standard_normal((9, 4))
    params, state = fitted.params, fitted.state
    y, after, residuals = frozen.forward(params, state, x, training=True)
    np.testing.assert_array_equal(y, net.forward(params, state, x, training=False)[0])
    assert after == state
    dy, direction = rng.standard_normal(y.shape), trees.map_leaves(lambda p: rng.standard_normal(p.shape), params)
    grads = frozen.backward(params, residuals, dy)

    def value(h):
        pairs = zip(trees.leaves(params), trees.leaves(direction), strict=True)
        moved = trees.rebuild(params, [p + h * d for p, d in pairs])
        return np.sum(dy * frozen.forward(moved, state, x, training=True)[0])

    slope = sum(np.sum(g * d) for g, d in zip(trees.leaves(grads, params), trees.leaves(direction), strict=True))
    assert slope == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-6)


def test_precise_statistics_need_two_rows():
    params, state = NET.init(0, backend=bn.backend("numpy"))
    with pytest.raises(ValueError, match="x: expected at least 2 rows to take statistics of, got 1"):
        bn.precise_statistics(NET, params, state, ROWS[0][:1])


ROWS = np.zeros((4, 3), np.float32), np.zeros(4, int)
NET = bn.mlp([3, 2])
REFUSED = [
    ({"train": (ROWS[0][0], ROWS[1])}, r"train: expected x of shape \(N, 3\), got \(3,\)"),
    ({"train": (ROWS[0][:, :2], ROWS[1])}, r"train: expected x of shape \(N, 3\), got \(4, 2\)"),
    ({"train": (ROWS[0][:1], ROWS[1][:1])}, "train: expected at least 2 rows, got 1"),
    ({"train": (ROWS[0], ROWS[1][:2])}, "train: expected as many targets as rows"),
    ({"train": (ROWS[0], ROWS[1] + 2)}, "train: expected class numbers 0 to 1, the network's outputs, got 2 to 2"),
    ({"train": (ROWS[0], ROWS[1] + 0.5)}, "train: expected integer class numbers"),
    ({"train": (ROWS[0] * math.nan, ROWS[1])}, "train: expected finite numbers, got nan in row 0, column 0"),
    ({"train": (ROWS[0].astype(str), ROWS[1])}, "train: expected numbers, got dtype"),
    ({"train": ROWS, "validation": (ROWS[0][:, :1], ROWS[1])}, r"validation: expected x of shape \(N, 3\)"),
    ({"train": ROWS[0]}, r"train: expected a pair \(x, targets\), got an array of shape \(4, 3\) and dtype float32"),
    ({"train": (*ROWS, ROWS[1])}, r"train: expected a pair \(x, targets\), got"),
    ({"train": (ROWS[0], ROWS[0]), "loss": "mse"}, r"train: expected targets of shape \(4, 2\), got \(4, 3\)"),
    ({"train": ROWS, "epochs": 0}, "epochs: expected an int of at least 1, got 0"),
    (
        {"train": ROWS, "loss": "hinge"},
        "loss: expected 'cross_entropy', 'binary_cross_entropy', 'mse', .* or 'poisson', got 'hinge'",
    ),
    ({"train": ROWS, "batch_size": 8.0}, "batch_size: expected an int of at least 1, got 8.0"),
    ({"train": ROWS, "validation": ROWS, "early_stopping": 0}, "early_stopping: expected an int of at least 1, got 0"),
    ({"train": ROWS, "validation": (ROWS[0][:0], ROWS[1][:0])}, "validation: expected at least 1 row, got none"),
    ({"train": ROWS, "early_stopping": 2}, "early_stopping: expected validation rows"),
    ({"train": ROWS, "batch_size": 0}, "batch_size: expected an int of at least 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        bn.fit(NET, bn.optimizers.sgd(), **{"epochs": 1, **arguments})


def test_batches_of_a_row_are_for_networks_without_batch_statistics(digits):
    rows = digits.x_train[:5], digits.y_train[:5]
    options = {"epochs": 1, "batch_size": 1}
    for net in (bn.mlp([64, 8, 10], norm=None), bn.mlp([64, 8, 10]).with_norms(statistics="running")):
        assert bn.fit(net, bn.optimizers.sgd(), rows, **options).history[0]["step"] == 5
    with pytest.raises(ValueError, match="batch_size: expected at least 2 rows to take batch statistics of, got 1"):
        bn.fit(bn.mlp([64, 8, 10]), bn.optimizers.sgd(), rows, **options)


def test_settings_take_the_place_of_the_short_keywords():
    short = {"epochs": 2, "batch_size": 4, "seed": 3, "precise_bn": True}
    one = bn.fit(NET, bn.optimizers.sgd(0.1), ROWS, **short)
    other = bn.fit(NET, bn.optimizers.sgd(0.1), ROWS, settings=bn.Settings(**short))
    mixed = bn.fit(NET, bn.optimizers.sgd(0.1), ROWS, settings=bn.Settings(**short | {"seed": 9}), seed=3)
    for tree in ("params", "state"):
        for a, b, c in zip(*(trees.leaves(getattr(f, tree)) for f in (one, other, mixed)), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    for name, value in (("epochs", 0), ("precise_bn", 1), ("on_nonfinite", "go"), ("early_stopping", 0)):
        with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
            bn.Settings(**{name: value})
