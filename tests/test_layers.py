from __future__ import annotations

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import trees
from bnengine.layers import from_spec, to_spec

NETWORKS = {
    "pre relu": bn.mlp([5, 7, 6, 3]),
    "pre sigmoid": bn.mlp([5, 7, 3], activation="sigmoid"),
    "pre tanh": bn.mlp([5, 7, 3], activation="tanh"),
    "pre leaky": bn.mlp([5, 7, 3], activation="leaky_relu"),
    "post relu": bn.mlp([5, 7, 6, 3], norm_position="post"),
    "none": bn.mlp([5, 7, 3], norm=None),
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
    y = net.layers[0].forward({}, state["0"], x, training=True)[0]
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(y.std(0), [1, 0, 1], atol=1e-6)
    assert net.layers[0].forward({}, state["0"], x + np.asarray([0, 1, 0]), training=False)[0][0, 1] == pytest.approx(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_survives_being_written_as_data(name):
    net = NETWORKS[name]
    assert from_spec(to_spec(net)) == net
    params, state = net.init(0, backend=FLOAT64)
    shapes = {key: np.shape(leaf) for key, leaf in {**trees.flatten(params), **trees.flatten(state)}.items()}
    assert shapes == net.shapes()
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
        "initialization: expected 'he', 'glorot' or 'normal', got 'zeros'",
    ),
    (lambda: bn.Linear(2, 3, scale=-1), "scale: expected a number of at least 0, got -1"),
    (lambda: bn.BatchNorm(0), "features: expected a positive int, got 0"),
    (lambda: bn.Standardize(0), "features: expected a positive int, got 0"),
    (lambda: bn.mlp([3, 2.0]), "sizes: expected a positive int, got 2.0"),
    (
        lambda: bn.mlp([3, 2], initialization="zeros"),
        "initialization: expected 'he', 'glorot' or 'normal', got 'zeros'",
    ),
    (lambda: bn.BatchNorm(3, activation="tanh"), "activation: expected None or 'relu', got 'tanh'"),
    (lambda: bn.BatchNorm(3, momentum=2), r"momentum: expected None or a number in \[0, 1\], got 2"),
    (lambda: bn.BatchNorm(3, eps=0), "eps: expected a positive, finite number"),
    (lambda: bn.Activation("swish"), "name: expected 'relu', .*, got 'swish'"),
    (lambda: bn.mlp([3]), r"sizes: expected at least inputs and outputs, as in \[64, 10\], got \[3\]"),
    (lambda: bn.mlp(3), "sizes: expected at least inputs and outputs, .*, got 3"),
    (lambda: bn.mlp([3, 2], norm="layer"), "norm: expected 'batch' or None, got 'layer'"),
    (lambda: bn.mlp([3, 2], norm_position="middle"), "norm_position: expected 'pre' or 'post', got 'middle'"),
    (lambda: from_spec([{"layer": "Conv"}]), "layers: expected Linear, .*, got"),
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
