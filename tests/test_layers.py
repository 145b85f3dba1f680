from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from array_api_compat import array_namespace
from libraries import need

import bnengine as bn
from bnengine import trees
from bnengine.checkpoints import from_spec, to_spec

NETWORKS = {
    "pre relu": bn.mlp([5, 7, 6, 3]),
    "pre sigmoid": bn.mlp([5, 7, 3], activation="sigmoid"),
    "pre tanh": bn.mlp([5, 7, 3], activation="tanh"),
    "pre leaky": bn.mlp([5, 7, 3], activation="leaky_relu"),
    "post relu": bn.mlp([5, 7, 6, 3], norm_position="post"),
    "none": bn.mlp([5, 7, 3], norm=None),
    "pre dyt": bn.mlp([5, 7, 6, 3], norm="dyt"),
    "post dyt": bn.mlp([5, 7, 3], norm="dyt", norm_position="post", activation="tanh"),
    "standardised": bn.mlp([5, 7, 3], standardize=True),
    "logistic": bn.mlp([5, 3]),
    "norm first": bn.Sequential((bn.BatchNorm(5), bn.Linear(5, 3))),
    "identity": bn.Sequential((bn.Linear(5, 4), bn.Activation("identity"), bn.BatchNorm(4), bn.Linear(4, 3))),
}
FLOAT64 = bn.backend("numpy", dtype="float64")


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_directional_derivatives(name, rng):
    """One random direction through all parameters: d loss / dh along it, in float64."""
    net = NETWORKS[name]
    params, state = net.init(3, backend=FLOAT64)
    params = trees.map_leaves(lambda p: p + 0.3 * rng.standard_normal(p.shape), params)
    direction = trees.map_leaves(lambda p: rng.standard_normal(p.shape), params)
    x, targets = rng.standard_normal((11, 5)), rng.integers(0, 3, 11)

    def loss_at(h):
        moved = trees.rebuild(
            params, [p + h * d for p, d in zip(trees.leaves(params), trees.leaves(direction), strict=True)]
        )
        output, _, residuals = net.forward(moved, state, x, training=True)
        loss, doutput = bn.softmax_cross_entropy(output, targets)
        return loss, residuals, doutput

    _, residuals, doutput = loss_at(0.0)
    grads = net.backward(params, residuals, doutput)
    slope = sum(np.sum(g * d) for g, d in zip(trees.leaves(grads, params), trees.leaves(direction), strict=True))
    h = 1e-6
    assert slope == pytest.approx((loss_at(h)[0] - loss_at(-h)[0]) / (2 * h), rel=1e-6)
    assert trees.names(grads) == trees.names(params)


@pytest.mark.parametrize(
    ("library", "eps", "momentum", "unbiased"),
    [
        ("torch", 1e-5, 0.1, True),  # torch.nn.BatchNorm1d(eps=1e-05, momentum=0.1)
        ("keras", 1e-3, 1 - 0.99, False),  # BatchNormalization(momentum=0.99, epsilon=0.001)
        ("flax", 1e-5, 1 - 0.99, False),  # nnx.BatchNorm(momentum=0.99, epsilon=1e-05)
        ("onnx", 1e-5, 1 - 0.9, False),  # BatchNormalization: epsilon 1e-05, momentum 0.9
        ("chainer", 2e-5, 1 - 0.9, True),  # BatchNormalization(decay=0.9, eps=2e-05)
    ],
)
def test_defaults_of_other_libraries(library, eps, momentum, unbiased):
    expected = bn.BatchNorm(3, eps=eps, momentum=round(momentum, 9), unbiased=unbiased)
    assert bn.BatchNorm(3, **bn.like(library)) == expected
    with pytest.raises(
        ValueError, match="library: expected 'torch', 'keras', 'flax', 'onnx' or 'chainer', got 'caffe'"
    ):
        bn.like("caffe")


def torch_trained(batches):
    torch = need("torch")
    norm = torch.nn.BatchNorm1d(4).train()
    for batch in batches:
        norm(torch.from_numpy(batch))
    return (
        norm.running_mean.numpy(),
        norm.running_var.numpy(),
        norm.eval()(torch.from_numpy(batches[0])).detach().numpy(),
    )


def keras_trained(batches):
    keras = pytest.importorskip("keras")
    norm = keras.layers.BatchNormalization()
    for batch in batches:
        norm(batch, training=True)
    found = norm.moving_mean, norm.moving_variance, norm(batches[0], training=False)
    return tuple(map(keras.ops.convert_to_numpy, found))


def flax_trained(batches):
    nnx = pytest.importorskip("flax.nnx")
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0), use_running_average=False)
    for batch in batches:
        norm(batch)
    y = norm(batches[0], use_running_average=True)
    return np.asarray(norm.mean[...]), np.asarray(norm.var[...]), np.asarray(y)


@pytest.mark.filterwarnings("ignore")  # of those libraries
@pytest.mark.parametrize(
    ("library", "their"), [("torch", torch_trained), ("keras", keras_trained), ("flax", flax_trained)]
)
def test_running_statistics_are_those_of_other_libraries(library, their, rng):
    batches = (3 + 2 * rng.standard_normal((30, 6, 4))).astype(np.float32)
    mean, var, y = their(batches)
    net = bn.Sequential((bn.BatchNorm(4, **bn.like(library)),))
    params, state = net.init(0, backend="numpy")
    for batch in batches:
        _, state, _ = net.forward(params, state, batch, training=True)
    np.testing.assert_allclose(state["0"]["mean"], mean, rtol=2e-6)
    np.testing.assert_allclose(state["0"]["var"], var, rtol=5e-6)  # Flax computes E[x^2] - E[x]^2
    np.testing.assert_allclose(net.forward(params, state, batches[0], training=False)[0], y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("estimator", ["population", "batches"])
def test_recalibration_takes_biased_averages_for_what_they_are(estimator, rng):
    x = rng.standard_normal((12, 3))
    found = []
    for unbiased in (True, False):
        net = bn.Sequential((bn.BatchNorm(3, unbiased=unbiased),))
        given = *net.init(0, backend=FLOAT64), x
        found.append(bn.recalibrate(net, *given, estimator=estimator, batch_size=4, backend=FLOAT64)["0"]["var"])
    np.testing.assert_array_equal(*found)


def test_inference_uses_running_statistics_and_keeps_them(rng):
    net = bn.mlp([4, 6, 2])
    params, state = net.init(0, backend=FLOAT64)
    x = rng.standard_normal((32, 4))
    _, trained, _ = net.forward(params, state, x, training=True)
    assert (state["1"]["batches"], trained["1"]["batches"]) == (0, 1)
    one, after, _ = net.forward(params, trained, x[:1], training=False)  # a single row is no difficulty
    assert after == trained
    np.testing.assert_allclose(one, net.forward(params, trained, x, training=False)[0][:1], rtol=1e-12)


def test_the_bias_in_front_of_normalisation_changes_nothing(rng):
    """Why Linear has none there: an explicit one has gradient zero, and its value cancels."""
    net = bn.Sequential((bn.Linear(4, 3), bn.Activation("identity"), bn.BatchNorm(3)))
    params, state = net.init(0, backend=FLOAT64)
    x, dy = rng.standard_normal((20, 4)), rng.standard_normal((20, 3))
    before, _, residuals = net.forward(params, state, x, training=True)
    grads = net.backward(params, residuals, dy)
    np.testing.assert_allclose(grads["0"]["bias"], 0, atol=1e-14)
    params["0"]["bias"] = params["0"]["bias"] + 100
    np.testing.assert_allclose(net.forward(params, state, x, training=True)[0], before, atol=1e-10)


def test_networks_equal_pytorchs(rng):
    torch = need("torch")
    net = bn.mlp([5, 8, 8, 3])
    params, state = net.init(1, backend=FLOAT64)
    theirs = torch.nn.Sequential(
        *(torch.nn.Linear(5, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU()),
        *(torch.nn.Linear(8, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.ReLU()),
        torch.nn.Linear(8, 3),
    ).double()
    with torch.no_grad():
        for ours, index in (("0", 0), ("2", 3), ("4", 6)):
            theirs[index].weight.copy_(torch.asarray(params[ours]["weight"].T.copy()))
        theirs[6].bias.zero_()
    x, labels = rng.standard_normal((16, 5)), rng.integers(0, 3, 16)
    output, state, residuals = net.forward(params, state, x, training=True)
    loss, doutput = bn.softmax_cross_entropy(output, labels)
    expected = torch.nn.functional.cross_entropy(theirs(torch.asarray(x)), torch.asarray(labels))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    grads = net.backward(params, residuals, doutput)
    np.testing.assert_allclose(grads["0"]["weight"], theirs[0].weight.grad.numpy().T, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(grads["3"]["gamma"], theirs[4].weight.grad.numpy(), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(state["3"]["var"], theirs[4].running_var.numpy(), rtol=1e-12)
    theirs.eval()
    inferred, _, _ = net.forward(params, state, x, training=False)
    np.testing.assert_allclose(inferred, theirs(torch.asarray(x)).detach().numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("initialization", "expected"), [("he", (2 / 400) ** 0.5), ("glorot", (2 / 700) ** 0.5), ("normal", 1.0)]
)
def test_initial_weights_have_the_spread_of_their_name(initialization, expected):
    layer = bn.Linear(400, 300, initialization=initialization, scale=3.0)
    weight = layer.init(np.random.default_rng(0), FLOAT64)[0]["weight"]
    assert weight.std() == pytest.approx(3 * expected, rel=0.02)
    assert abs(weight.mean()) < 0.02 * 3 * expected


def test_the_same_seed_gives_the_same_parameters(library):
    name = library.name.partition("-")[0].replace("strict", "array-api-strict")
    net = bn.mlp([6, 5, 4, 2])
    ours = net.init(7, backend=bn.backend(name))[0]
    reference = net.init(7, backend=bn.backend("numpy"))[0]
    other = net.init(8, backend=bn.backend("numpy"))[0]
    for leaf, expected, different in zip(*map(trees.leaves, (ours, reference, other)), strict=True):
        np.testing.assert_array_equal(library.host(leaf), expected)
        assert expected.std() == 0 or not np.array_equal(expected, different)


def test_standardize_measures_the_training_rows(rng):
    x = rng.standard_normal((500, 3)) * [1e-6, 1, 1e4] + [5, -3, 1e5]
    x[:, 1] = 0.1  # a constant feature is centred, not blown up
    net = bn.mlp([3, 2], standardize=True)
    _, state = net.init(0, backend=FLOAT64)
    state = net.measure(state, x, backend=FLOAT64)
    y = net.layers[0].forward({}, state["0"], x, bn.Context(training=True))[0]
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(y.std(0), [1, 0, 1], atol=1e-6)
    assert net.layers[0].forward({}, state["0"], x + np.asarray([0, 1, 0]), bn.Context(False))[0][
        0, 1
    ] == pytest.approx(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_survives_being_written_as_data(name):
    net = NETWORKS[name]
    assert from_spec(to_spec(net)) == net
    params, state = net.init(0, backend=FLOAT64)
    shapes = {key: np.shape(leaf) for key, leaf in {**trees.flatten(params), **trees.flatten(state)}.items()}
    assert shapes == {**net.shapes.params, **net.shapes.state}
    assert net.parameters == sum(p.size for p in trees.leaves(params))
    assert f"{net.parameters:,}" in net.summary().splitlines()[-1]


REFUSED = [
    (
        lambda: bn.Sequential((bn.Linear(4, 3), bn.BatchNorm(3))),
        r"layer 0, Linear\(4, 3\), has a bias and feeds a BatchNorm, whose mean subtraction cancels it; use",
    ),
    (lambda: bn.Sequential((bn.Linear(4, 3), bn.Linear(4, 3))), "layer 1, Linear, takes 4 features but is given 3"),
    (
        lambda: bn.Sequential((bn.Linear(4, 3), bn.Activation("relu"), bn.Linear(4, 3))),
        "layer 2, Linear, takes 4 features but is given 3",
    ),
    (lambda: bn.mlp([3, 2]).init(-1, backend="numpy"), "seed: expected an int of at least 0, got -1"),
    (lambda: bn.Sequential(()), "layers: expected at least one"),
    (lambda: bn.Linear(0, 3), "inputs: expected a positive int, got 0"),
    (lambda: bn.Linear(2, 3.0), "outputs: expected a positive int, got 3.0"),
    (
        lambda: bn.Linear(2, 3, initialization="zeros"),
        "initialization: expected 'he', 'glorot', 'lecun' or 'normal', got 'zeros'",
    ),
    (lambda: bn.Linear(2, 3, scale=-1), "scale: expected a number of at least 0, got -1"),
    (lambda: bn.BatchNorm(0), "features: expected a positive int, got 0"),
    (lambda: bn.Standardize(0), "features: expected a positive int, got 0"),
    (lambda: bn.mlp([3, 2.0]), "sizes: expected a positive int, got 2.0"),
    (
        lambda: bn.mlp([3, 2], initialization="zeros"),
        "initialization: expected 'he', 'glorot', 'lecun' or 'normal', got 'zeros'",
    ),
    (lambda: bn.BatchNorm(3, activation="tanh"), "activation: expected None or 'relu', got 'tanh'"),
    (lambda: bn.BatchNorm(3, momentum=2), r"momentum: expected None or a number in \[0, 1\], got 2"),
    (lambda: bn.BatchNorm(3, eps=0), "eps: expected a positive, finite number"),
    (lambda: bn.Activation("swish"), "name: expected 'relu', .*, got 'swish'"),
    (lambda: bn.mlp([3]), r"sizes: expected at least inputs and outputs, as in \[64, 10\], got \[3\]"),
    (lambda: bn.mlp(3), "sizes: expected at least inputs and outputs, .*, got 3"),
    (lambda: bn.mlp([3, 2], norm="layer"), "norm: expected 'batch', 'dyt' or None, got 'layer'"),
    (lambda: bn.mlp([3, 2], norm_position="middle"), "norm_position: expected 'pre' or 'post', got 'middle'"),
    (lambda: from_spec([{"layer": "Conv"}]), "layers: expected .*Linear, .*, got"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=range(len(REFUSED)))
def test_impossible_networks_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_defaults_are_the_documented_ones():
    layer = bn.BatchNorm(3)
    assert (layer.eps, layer.momentum, layer.activation) == (1e-5, 0.1, None)
    assert bn.mlp([2, 3, 1]).layers[1] == bn.BatchNorm(3, activation="relu")
    assert (bn.mlp([2, 3, 1]).inputs, bn.mlp([2, 3, 1]).outputs) == (2, 1)
    assert bn.Sequential((bn.Activation("tanh"),)).outputs == 0
    assert bn.Sequential((bn.Activation("tanh"), bn.Linear(2, 3))).inputs == 2
    assert bn.Sequential((bn.Dropout(0.5),)).inputs is None
    assert bn.Linear(1, 1) == bn.Linear(1, 1, bias=True, initialization="he", scale=1.0)


def test_trees_of_another_network_are_refused_by_name(rng):
    net, x = bn.mlp([3, 4, 2], standardize=True), rng.standard_normal((5, 3))
    params, state = net.init(0, backend=FLOAT64)
    y, _, residuals = net.forward(params, state, x, training=True)
    cases = [
        (lambda: net.forward(None, state, x, training=True), "params: expected a nested dict of arrays"),
        (lambda: net.forward({}, state, x, training=True), r"params: expected 1.weight of shape \(3, 4\)"),
        (lambda: net.forward(params, {}, x, training=True), r"state: expected 0.mean of shape \(3,\)"),
        (lambda: net.forward(params, state, x, training=y), "training: expected True or False, got an array"),
        (lambda: net.backward({}, residuals, y), r"params: expected 1.weight of shape \(3, 4\)"),
        (
            lambda: net.backward(params, residuals[:1], y),
            "residuals, dy: expected those of this network's forward pass",
        ),
        (
            lambda: net.backward(params, residuals, y[:, :1]),
            "residuals, dy: expected those of this network's forward pass",
        ),
        (lambda: net.measure({}, x, backend=FLOAT64), "state: expected 0.mean"),
        (lambda: net.measure(state, x[0], backend=FLOAT64), r"x: expected shape \(N, 3\), got \(3,\)"),
        (lambda: net.measure(state, x[:, :2], backend=FLOAT64), r"x: expected shape \(N, 3\), got \(5, 2\)"),
        (lambda: net.measure(state, x[:0], backend=FLOAT64), r"x: expected shape \(N, 3\), got \(0, 3\)"),
        (lambda: net.measure(state, x > 0, backend=FLOAT64), "x: expected dtype"),
    ]
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert bn.mlp([3, 2]).measure({"as": "it is"}, x, backend=FLOAT64) == {"as": "it is"}


def test_backward_after_inference_is_refused(rng):
    net = bn.mlp([3, 4, 2])
    params, state = net.init(0, backend=FLOAT64)
    y, _, residuals = net.forward(params, state, rng.standard_normal((5, 3)), training=False)
    with pytest.raises(ValueError, match=r"residuals: expected those of forward\(training=True\)"):
        net.backward(params, residuals, y)


# ---- Dynamic Tanh, dropout, skips, layers and losses of one's own


def dynamic_tanh_by_complex_steps(dy, x, **params):
    """Gradients of sum(dy * y) by x and the parameters: those of one element each, exact to rounding."""

    def value(x, alpha, gamma, beta):
        return np.sum(dy * (gamma * np.tanh(alpha * x) + beta))

    found = {}
    for name, given in {"x": x, **params}.items():
        found[name] = np.zeros(given.shape)
        for place in np.ndindex(given.shape):
            ahead = given.astype(complex)
            ahead[place] += 1e-30j
            found[name][place] = value(**{"x": x, **params, name: ahead}).imag / 1e-30
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dynamic_tanh_and_its_gradients(library, rng, dtype):
    if dtype == "float16" and library.name.startswith("strict"):
        pytest.skip("has no float16")
    params = {"alpha": np.asarray([0.7]), "gamma": rng.standard_normal(3), "beta": rng.standard_normal(3)}
    x, dy = (rng.standard_normal((6, 3)).astype(dtype) for _ in range(2))
    x[0] = 5, -5, 0  # far into the tails, and the middle
    layer, own = bn.DynamicTanh(3), {name: library.asarray(p.astype(np.float32)) for name, p in params.items()}
    wide = {name: p.astype(np.float32).astype(np.float64) for name, p in params.items()}
    y, state, residuals = layer.forward(own, {}, library.asarray(x), bn.Context(training=True))
    grads, dx = layer.backward(own, residuals, library.asarray(dy), need_dx=True)
    expected = dynamic_tanh_by_complex_steps(dy.astype(np.float64), x.astype(np.float64), **wide)
    expected["y"] = wide["gamma"] * np.tanh(wide["alpha"] * x.astype(np.float64)) + wide["beta"]
    for name, got in {**grads, "x": dx, "y": y}.items():
        found, rounding = library.host(got), 1e-3 if dtype == "float16" and name in "xy" else 1e-6
        assert found.dtype == (dtype if name in "xy" else np.float32)
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=rounding * np.abs(expected[name]).max())
    assert state == {}
    assert layer.backward(own, residuals, library.asarray(dy), need_dx=False)[1] is None


def test_dynamic_tanh_starts_as_its_paper_says():
    layer = bn.mlp([4, 6, 6, 2], norm="dyt").layers[1]
    params, _ = layer.init(np.random.default_rng(0), FLOAT64)
    assert {name: value.tolist() for name, value in params.items()} == {
        "alpha": [0.5],
        "gamma": [1] * 6,
        "beta": [0] * 6,
    }
    with pytest.raises(ValueError, match="alpha: expected a number of at least 0, got nan"):
        bn.DynamicTanh(3, alpha=float("nan"))
    with pytest.raises(ValueError, match="features: expected a positive int, got 0"):
        bn.DynamicTanh(0)


def test_dynamic_tanh_networks_keep_their_biases():
    def names(**settings):
        return list(map(str, bn.mlp([4, 6, 2], norm="dyt", **settings).layers))

    assert names() == ["Linear", "DynamicTanh", "relu", "Linear"]
    assert names(norm_position="post", activation="tanh") == ["Linear", "tanh", "DynamicTanh", "Linear"]


def test_dropout_draws_the_same_on_every_library(library, rng):
    x = rng.standard_normal((6, 5)).astype(np.float32)
    for step in (0, 7, 2**31 + 3):
        expected = bn.Draws(11, step)
        draws = bn.Draws(11, step)
        for _ in range(2):
            np.testing.assert_array_equal(library.host(draws.bits(library.asarray(x))), expected.bits(x))


def test_draws_are_uniform_and_independent():
    """Bits of neighbouring elements, calls, steps and seeds: each mean and correlation within 5 standard errors."""
    x = np.zeros((2000, 50))
    seen = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (2**40, 0)):
        draws = bn.Draws(seed, step)
        seen += [draws.bits(x).reshape(-1), draws.bits(x).reshape(-1)]
    u = np.asarray(seen) * 2.0**-24
    u = np.concatenate([u, np.roll(u[:1], 1, axis=1), np.roll(u[:1], 50, axis=1)])
    n = u.shape[1]
    assert np.abs(u.mean(axis=1) - 0.5).max() < 5 * (1 / 12 / n) ** 0.5
    correlations = np.corrcoef(u) - np.eye(len(u))
    assert np.abs(correlations).max() < 5 / n**0.5
    for bit in range(24):
        ones = (np.asarray(seen) >> bit & 1).mean(axis=1)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / n**0.5
    counts = np.histogram(u[0], 64, (0, 1))[0]
    assert ((counts - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * (2 * 63) ** 0.5


def test_every_element_is_drawn_anew_at_every_step():
    low = np.asarray([bn.Draws(3, step).bits(np.zeros((2, 32))) < 2**23 for step in range(400)])
    assert np.abs(low.mean(axis=0) - 0.5).max() < 5 * (0.25 / 400) ** 0.5


def test_draws_stay_the_same_from_version_to_version():
    """A training that goes on with a later version has the same dropout."""
    draws = bn.Draws(11, 7)
    assert [draws.bits(np.zeros((2, 3))).tolist() for _ in range(2)] == [
        [[2593880, 12799120, 14136813], [8553455, 1791609, 2393191]],
        [[6435044, 7501842, 11223557], [3806907, 2291908, 5904127]],
    ]


def test_dropout_keeps_the_mean_and_does_nothing_in_inference():
    x = np.ones((500, 200))
    layer = bn.Dropout(0.3)
    y, _, keep = layer.forward({}, {}, x, bn.Context(True, draws=bn.Draws(0, 0)))
    assert abs((y == 0).mean() - 0.3) < 5 * (0.21 / x.size) ** 0.5
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7])
    np.testing.assert_array_equal(layer.backward({}, keep, x, need_dx=True)[1], y)
    assert layer.forward({}, {}, x, bn.Context(False))[0] is x
    with pytest.raises(ValueError, match=r"context: expected draws of this step for dropout, got None; use Context"):
        bn.Sequential((layer,)).forward({}, {}, x, training=True)


def test_dropout_is_resumed_to_the_bit(rng):
    net, optimizer = bn.mlp([5, 16, 16, 3], dropout=0.4, residual=True, activation="gelu"), bn.optimizers.adam(0.01)
    rows = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    options = {"batch_size": 16, "seed": 5}
    whole = bn.fit(net, optimizer, rows, epochs=4, **options)
    half = bn.fit(net, optimizer, rows, epochs=2, **options)
    bn.save("half.safetensors", net, half.params, half.state, opt_state=half.opt_state)
    loaded = bn.load("half.safetensors")
    start = bn.Fitted(loaded.params, loaded.state, loaded.opt_state, half.history)
    resumed = bn.fit(loaded.net, optimizer, rows, epochs=4, start=start, **options)
    other = bn.fit(net, optimizer, rows, epochs=4, batch_size=16, seed=6)
    for a, b, c in zip(*(trees.leaves(f.params) for f in (whole, resumed, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_dropout_under_jit_draws_the_same(rng):
    jax = need("jax")
    net, optimizer = bn.mlp([5, 8, 3], dropout=0.5, norm=None), bn.optimizers.sgd(0.1)
    step = functools.partial(bn.train_step, net, optimizer, seed=3)
    backend = bn.backend("jax")
    x, labels = backend.asarray(rng.standard_normal((8, 5))), backend.asarray(rng.integers(0, 3, 8).astype(np.int32))
    for run in (step, jax.jit(step)):
        params, state = net.init(0, backend=backend)
        opt_state = optimizer.init(params)
        losses = []
        for _ in range(3):
            params, state, opt_state, loss = run(params, state, opt_state, x, labels)
            losses.append(float(loss))
        if run is step:
            expected = losses
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_gradient_by_the_input_is_a_derivative(rng):
    net = bn.Sequential((bn.mlp([5, 7, 4]), bn.Activation("silu"), bn.Residual((bn.Linear(4, 4),)), bn.Linear(4, 3)))
    params, state = net.init(0, backend=FLOAT64)
    x, dy, direction = rng.standard_normal((9, 5)), rng.standard_normal((9, 3)), rng.standard_normal((9, 5))
    _, _, residuals = net.forward(params, state, x, training=True)
    grads, dx = net.backward(params, residuals, dy, need_dx=True)
    ahead, behind = (
        np.sum(dy * net.forward(params, state, x + h * direction, training=True)[0]) for h in (1e-6, -1e-6)
    )
    assert np.sum(dx * direction) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)
    alone = net.backward(params, residuals, dy)
    for a, b in zip(trees.leaves(grads), trees.leaves(alone, grads), strict=True):
        np.testing.assert_array_equal(a, b)
    assert net.backward(params, residuals, dy, need_dx=False)[1] is None


@dataclass(frozen=True)
class Scale(bn.Layer):
    """y = x * s, which counts its batches."""

    features: int
    sizes: tuple[int, ...] = (1, 2)

    @property
    def takes(self):
        return self.features

    @property
    def gives(self):
        return self.features

    @property
    def shapes(self):
        return bn.Shapes(params={"s": (self.features,)}, state={"seen": ()})

    def __str__(self):
        return "Scale by s"

    def init(self, rng, backend):
        return {"s": backend.asarray(rng.random(self.features) + 0.5)}, {"seen": 0}

    def forward(self, params, state, x, context):
        return x * params["s"], {"seen": state["seen"] + context.training}, x

    def backward(self, params, x, dy, *, need_dx):
        return {"s": array_namespace(x).sum(dy * x, axis=0)}, dy * params["s"]


MINE = bn.Sequential((bn.Linear(5, 6, bias=False), bn.BatchNorm(6), bn.Residual((Scale(6),)), bn.Linear(6, 3)))


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array-api-strict", "dask"])
def test_a_layer_of_ones_own_trains_saves_and_loads(rng, name):
    need("dask.array" if name == "dask" else name.replace("-", "_"))
    backend = bn.backend(name)
    rows = rng.standard_normal((40, 5)), rng.integers(0, 3, 40)
    fitted = bn.fit(MINE, bn.optimizers.adam(0.05), rows, epochs=2, batch_size=20, backend=backend)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
    assert fitted.state["2"]["0"]["seen"] == 4
    assert "Scale by s" in MINE.summary()
    bn.save("mine.safetensors", MINE, fitted.params, fitted.state)
    loaded = bn.load("mine.safetensors", layers=(Scale,), backend=backend)
    assert loaded.net == MINE
    x = rows[0].astype(np.float32)
    expected = bn.predict(MINE, fitted.params, fitted.state, x, backend=backend)
    np.testing.assert_array_equal(bn.predict(loaded.net, loaded.params, loaded.state, x, backend=backend), expected)
    with pytest.raises(
        bn.CheckpointError, match=r"expected .*Linear, .*, got .*'Scale'.*load\(path, layers=\(Scale,\)\)"
    ):
        bn.load("mine.safetensors")


def test_a_value_that_is_not_finite_is_found_in_a_layer_of_ones_own(rng):
    rows = rng.standard_normal((20, 5)), rng.integers(0, 3, 20)

    @dataclass(frozen=True)
    class Broken(Scale):
        def forward(self, params, state, x, context):
            y, state, kept = super().forward(params, state, x, context)
            return y * np.nan, state, kept

    net = bn.Sequential((bn.Linear(5, 6), Broken(6), bn.Linear(6, 3)))
    with pytest.raises(bn.NonFiniteError, match=r"step 1: the output of layer 1 \(Broken\)"):
        bn.fit(net, bn.optimizers.sgd(0.1), rows, epochs=1)


def test_layers_that_could_not_come_back_are_not_saved():
    @dataclass(frozen=True)
    class Holds(Scale):
        what: object = None

    class Dropout(bn.Dropout):
        pass

    for layer, message in (
        (Holds(4, what=np.float64), "net: a layer's settings cannot be written as JSON and read again"),
        (Dropout(0.5), "net: expected another name for a layer of your own, Dropout is one of bnengine's"),
    ):
        net = bn.Sequential((bn.Linear(3, 4), layer))
        params, state = net.init(0, backend=FLOAT64)
        with pytest.raises((TypeError, ValueError), match=message):
            bn.save("net.safetensors", net, params, state)
    assert not Path("net.safetensors").exists()


@dataclass
class Thawed(bn.Layer):
    """Not hashable: not frozen."""

    rate: float = 1.0


def test_layers_of_ones_own_that_do_not_fit_are_refused():
    class Nothing(bn.Layer):
        pass

    class Wrong(bn.Layer):
        shapes = bn.Shapes(params={"s": (2,)})

    with pytest.raises(TypeError, match=r"layers: expected layers such as Linear, or of your own, .*, got 3"):
        bn.Sequential((bn.Linear(2, 2), 3))
    with pytest.raises(
        TypeError, match="layers: expected hashable ones, got Thawed; make its class a frozen dataclass"
    ):
        bn.Sequential((Thawed(),))
    with pytest.raises(
        ValueError, match=r"Wrong.init, parameters: expected s of shape \(2,\) for this network, got None"
    ):
        bn.Sequential((Wrong(),)).init(0, backend=FLOAT64)
    with pytest.raises(NotImplementedError, match=r"Nothing: expected a method forward\(params, state, x, context\)"):
        bn.Sequential((Nothing(),)).forward({}, {}, np.ones((2, 2)), training=True)
    with pytest.raises(ValueError, match="layers: expected as many outputs as inputs in a Residual, got 3 and 4"):
        bn.Residual((bn.Linear(3, 4),))
    with pytest.raises(ValueError, match=r"residual: expected a hidden layer of as many features as it takes, got"):
        bn.mlp([3, 4, 2], residual=True)
    with pytest.raises(ValueError, match=r"rate: expected a number in \[0, 1\), got 1"):
        bn.Dropout(1)
    with pytest.raises(ValueError, match=r"Residual\(4, 4\), has a bias and feeds a BatchNorm"):
        bn.Sequential((bn.Residual((bn.Linear(4, 4),)), bn.BatchNorm(4)))


def test_a_loss_of_ones_own(rng):
    x, targets = rng.standard_normal((60, 4)), rng.standard_normal((60, 2))

    def absolute(outputs, targets):
        error = outputs - targets
        return np.mean(np.abs(error)), np.sign(error) / error.size

    def squared(outputs, targets):
        return bn.mean_squared_error(outputs, targets)

    net, optimizer = bn.mlp([4, 8, 2]), bn.optimizers.adam(0.01)
    fitted = bn.fit(net, optimizer, (x, targets), epochs=3, loss=absolute, backend=FLOAT64)
    errors = np.abs(bn.predict(net, fitted.params, fitted.state, x, backend=FLOAT64) - targets)
    found = bn.evaluate(net, fitted.params, fitted.state, (x, targets), loss=absolute, backend=FLOAT64)
    assert found == {"loss": pytest.approx(errors.mean(), rel=1e-12)}
    named = bn.fit(net, optimizer, (x, targets), epochs=3, loss="mse", backend=FLOAT64)
    own = bn.fit(net, optimizer, (x, targets), epochs=3, loss=squared, backend=FLOAT64)
    for a, b in zip(*(trees.leaves(f.params) for f in (named, own)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_withdrawn_names_work_with_a_warning(rng):
    net, x = bn.mlp([4, 6, 2]), rng.standard_normal((8, 4))
    params, state = net.init(0, backend=FLOAT64)
    with pytest.warns(DeprecationWarning, match=r"net.shapes\(\) is net.shapes.params and net.shapes.state now"):
        assert net.shapes() == {**net.shapes.params, **net.shapes.state}
    with pytest.warns(DeprecationWarning, match="all_reduce: hand it to forward in a Context, or as sync_statistics"):
        doubled = net.with_norms(all_reduce=lambda a: 2 * a)
    assert doubled == net
    expected = net.forward(params, state, x, bn.Context(True, lambda a: 2 * a))[1]
    np.testing.assert_array_equal(doubled.forward(params, state, x, training=True)[1]["1"]["var"], expected["1"]["var"])


def test_a_network_prints_as_it_is_made():
    net = bn.mlp([4, 8, 8, 3], residual=True, dropout=0.1, standardize=True, activation="gelu", momentum=None)
    assert eval(repr(net), vars(bn)) == net
    assert repr(bn.Sequential((bn.Linear(2, 3),))) == "Sequential((Linear(2, 3),))"
