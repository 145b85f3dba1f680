"""Normalisation folded into linear maps: the same outputs, or a refusal that names the layer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from networks import outputs, trained

import bnengine as bn
from bnengine import trees
from bnengine.functional import ACTIVATIONS

BOUND = {"float32": 1e-6, "float64": 1e-12}


def assert_folds(net, params, state, x, bound):
    """The folded network, after a look at what it gives."""
    folded, weights, rest = bn.fold(net, params, state)
    wanted, got = outputs(net, params, state, x), outputs(folded, weights, rest, x)
    assert got.dtype == wanted.dtype
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()
    return folded


def kinds(net):
    return [type(layer).__name__ for _, layer in net.named()]


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("position", "residual"), list(itertools.product(["pre", "post"], [False, True])))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_network_of_mlp(activation, position, residual, dtype, rng):
    net = bn.mlp(
        [5, 16, 16, 16, 3],
        activation=activation,
        norm_position=position,
        residual=residual,
        dropout=0.3,
        standardize=True,
    )
    params, state = trained(net, rng, dtype)
    folded = assert_folds(net, params, state, rng.standard_normal((64, 5)).astype(dtype), BOUND[dtype])
    stays = 3 if residual and position == "post" and activation != "identity" else 0
    assert kinds(folded).count("BatchNorm") == stays  # those in the stream of the skips
    assert not {"Standardize", "Dropout"} & set(kinds(folded))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "layers",
    [
        (bn.Linear(4, 3, bias=False), bn.BatchNorm(3)),
        (bn.BatchNorm(4), bn.Linear(4, 3)),
        (bn.BatchNorm(4), bn.BatchNorm(4, eps=0.1), bn.Linear(4, 3)),
        (bn.Linear(4, 3, bias=False), bn.BatchNorm(3), bn.BatchNorm(3, activation="relu"), bn.Linear(3, 3)),
        (bn.Sequential((bn.Standardize(4), bn.Sequential((bn.Linear(4, 6),)))), bn.BatchNorm(6, statistics="running")),
        (bn.Linear(4, 4), bn.Residual((bn.BatchNorm(4), bn.Activation("identity"), bn.Linear(4, 4, bias=False)))),
        (bn.Residual((bn.Dropout(0.5),)), bn.BatchNorm(4), bn.Linear(4, 3)),
    ],
    ids=str,
)
def test_layers_in_other_orders(layers, bias, rng):
    if not bias:
        layers = tuple(bn.Linear(4, 3, bias=False) if layer == bn.Linear(4, 3) else layer for layer in layers)
    net = bn.Sequential(layers)
    params, state = trained(net, rng)
    folded = assert_folds(net, params, state, rng.standard_normal((20, 4)), 1e-12)
    assert not {"BatchNorm", "Standardize"} & set(kinds(folded))


def test_a_network_that_changes_nothing():
    net = bn.Sequential((bn.Dropout(0.5), bn.Activation("identity")))
    assert bn.fold(net, {}, {}) == (bn.Sequential((bn.Activation("identity"),)), {}, {})


def test_a_norm_in_the_stream_of_a_residual_stays_behind_a_bias(rng):
    block = bn.Residual((bn.Linear(4, 4, bias=False), bn.BatchNorm(4)))
    net = bn.Sequential((block, bn.BatchNorm(4), block))
    params, state = trained(net, rng)
    assert kinds(assert_folds(net, params, state, rng.standard_normal((20, 4)), 1e-12)) == [
        "Linear",
        "BatchNorm",
        "Linear",
    ]


@pytest.mark.parametrize("ratio", [1.0, 2.5, 3.5, 800.0, 1e6])
@pytest.mark.parametrize("dtype", BOUND)
def test_inputs_far_from_zero(dtype, ratio, rng):
    """Where the dtype cannot hold the means beside the deviations, Standardize stays and nothing is lost."""
    net = bn.mlp([20, 32, 3], standardize=True)
    params, state = trained(net, rng, dtype)
    x = (ratio * rng.choice([-1.0, 1.0], 20) + rng.standard_normal((1000, 20))).astype(dtype)
    state = net.measure(state, x, backend=bn.backend("numpy", dtype=dtype))
    folded = assert_folds(net, params, state, x, BOUND[dtype])
    assert ("Standardize" in kinds(folded)) == (ratio > (3 if dtype == "float32" else 1000))


def test_a_saturated_feature_stays(rng):
    """A sigmoid that is 1 for all rows: mean 1, variance 0 and eps make it 316 standard deviations from zero."""
    net = bn.Sequential((bn.Activation("sigmoid"), bn.BatchNorm(2), bn.Linear(2, 3)))
    params, state = trained(net, rng, "float32")
    params["1"]["gamma"][:] = 1
    state["1"] = {"mean": np.asarray([1, 0.5], np.float32), "var": np.asarray([0, 0.1], np.float32), "batches": 9}
    x = np.stack([np.full(50, 30.0), rng.standard_normal(50)], axis=1).astype(np.float32)
    assert kinds(assert_folds(net, params, state, x, 1e-6)) == ["Activation", "BatchNorm", "Linear"]


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
def test_behind_a_linear_nothing_more_is_lost(ratio, rng):
    """z is rounded at the size of its mean before and after: both are as far from float64's."""
    net = bn.Sequential((bn.Linear(20, 64, bias=False), bn.BatchNorm(64)))
    params, state = trained(net, rng, "float32")
    x = (ratio + rng.standard_normal((500, 20))).astype(np.float32)
    z = x.astype(np.float64) @ params["0"]["weight"].astype(np.float64)
    state["1"] |= {"mean": z.mean(axis=0).astype(np.float32), "var": z.var(axis=0).astype(np.float32)}
    exact = [trees.map_leaves(lambda a: np.asarray(a, np.float64), tree) for tree in (params, state)]
    truth = outputs(net, *exact, x.astype(np.float64))
    before = np.abs(outputs(net, params, state, x) - truth).max()
    after = np.abs(outputs(*bn.fold(net, params, state), x) - truth).max()
    assert after <= 2 * before


def test_arrays_of_every_library(library, rng):
    net = bn.mlp([5, 8, 3], standardize=True, norm_position="post")
    params, state = trained(net, rng, "float32", library.asarray)
    x = library.asarray(rng.standard_normal((9, 5)).astype(np.float32))
    folded, weights, rest = bn.fold(net, params, state)
    wanted, got = (library.host(outputs(*made, x)) for made in ((net, params, state), (folded, weights, rest)))
    np.testing.assert_allclose(got, wanted, atol=1e-6 * np.abs(wanted).max())
    assert type(weights["0"]["weight"]) is type(params["1"]["weight"])
    assert weights["0"]["weight"].dtype == params["1"]["weight"].dtype


def test_the_scale_of_regression_targets(rng):
    net = bn.mlp([5, 8, 1], standardize=True)
    params, state = trained(net, rng)
    x = rng.standard_normal((30, 5))
    folded = bn.fold(net, params, state, target=(1000.0, 3.0))
    np.testing.assert_allclose(outputs(*folded, x), outputs(net, params, state, x) * 3 + 1000, rtol=1e-12)
    with pytest.raises(ValueError, match=r"target: expected a network that ends in a Linear.*got layer 0, relu"):
        bn.fold(bn.Sequential((bn.Activation("relu"),)), {}, {}, target=(0.0, 1.0))
    for wrong in (3.0, (1.0,), (np.nan, 1.0), (0.0, -1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="target: expected"):
            bn.fold(net, params, state, target=wrong)


@dataclass(frozen=True)
class Mine(bn.Layer):
    """A layer of one's own."""

    def forward(self, params, state, x, context):
        return 2 * x, state, None


def test_a_layer_of_ones_own_stays_where_it_is_not_in_the_way(rng):
    net = bn.Sequential((bn.Linear(4, 3, bias=False), bn.BatchNorm(3), Mine(), bn.Linear(3, 2)))
    params, state = trained(net, rng)
    assert kinds(assert_folds(net, params, state, rng.standard_normal((9, 4)), 1e-12)) == ["Linear", "Mine", "Linear"]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((bn.Linear(4, 4), Mine(), bn.BatchNorm(4), Mine()), "layer 2, BatchNorm.*layer 1, Mine.*layer 3, Mine"),
        ((bn.BatchNorm(4), Mine(), bn.Linear(4, 4)), "layer 0, BatchNorm.*nothing in front and layer 1, Mine"),
        (
            (bn.Linear(4, 4), bn.Activation("relu"), bn.BatchNorm(4)),
            "layer 2, BatchNorm.*layer 1, relu.*nothing behind",
        ),
        ((bn.BatchNorm(4, activation="relu"), bn.Linear(4, 4)), "layer 0, BatchNorm.*nothing in front.*relu"),
        ((bn.Standardize(4),), "layer 0, Standardize, cannot be folded"),
        (
            (bn.Residual((bn.Activation("tanh"), bn.BatchNorm(4), Mine())),),
            "layer 0.1, BatchNorm.*0.0, tanh.*0.2, Mine",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_folded_is_refused_by_name(layers, words, rng):
    net = bn.Sequential(layers)
    with pytest.raises(ValueError, match=f"net: {words}"):
        bn.fold(net, *trained(net, rng))


def test_arguments_that_do_not_fit():
    net = bn.mlp([4, 3, 2])
    params, state = net.init(0, backend="numpy")
    with pytest.raises(TypeError, match="net: expected a Sequential"):
        bn.fold(bn.Linear(4, 3), params, state)
    with pytest.raises(ValueError, match=r"state: expected 1\.mean of shape \(3,\)"):
        bn.fold(net, params, {})
