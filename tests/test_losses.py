"""The losses of values and smoothed labels: against PyTorch and scikit-learn, by differences, on every library."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from libraries import WITHOUT_FLOAT64, need

import bnengine as bn

LOSSES = {
    "absolute": bn.absolute_error,
    "huber": functools.partial(bn.huber, delta=0.7),
    "quantile": functools.partial(bn.quantile, level=0.8),
    "poisson": bn.poisson,
    "smoothed classes": functools.partial(bn.softmax_cross_entropy, label_smoothing=0.3),
    "smoothed labels": functools.partial(bn.binary_cross_entropy, label_smoothing=0.3),
}
OUTPUTS = np.random.default_rng(3).normal(size=(6, 4)) * 2


def targets(name):
    rng = np.random.default_rng(4)
    if name == "smoothed classes":
        return rng.integers(0, 4, 6)
    return rng.poisson(1.0, (6, 4)) if name == "poisson" else rng.integers(0, 2, (6, 4)) * 1.0


def torch_loss(name, outputs, given):
    """The same by PyTorch, which has it in float64 with autograd."""
    functional = need("torch").nn.functional
    if name == "absolute":
        return functional.l1_loss(outputs, given)
    if name == "huber":
        return functional.huber_loss(outputs, given, delta=0.7)
    if name == "quantile":
        error = given - outputs
        return need("torch").maximum(0.8 * error, -0.2 * error).mean()
    if name == "poisson":
        given = given.double()
        return functional.poisson_nll_loss(outputs, given) + (need("torch").special.xlogy(given, given) - given).mean()
    if name == "smoothed classes":
        return functional.cross_entropy(outputs, given, label_smoothing=0.3)
    return functional.binary_cross_entropy_with_logits(outputs, 0.7 * given + 0.15)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_pytorch_s(name):
    torch = need("torch")
    outputs, given = torch.tensor(OUTPUTS, requires_grad=True), torch.tensor(targets(name))
    expected = torch_loss(name, outputs, given)
    expected.backward()
    value, gradient = LOSSES[name](OUTPUTS, targets(name))
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, outputs.grad, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope_of_the_value(name):
    _, gradient = LOSSES[name](OUTPUTS, targets(name))
    for index in np.ndindex(OUTPUTS.shape):
        step = np.zeros_like(OUTPUTS)
        step[index] = 1e-6
        above, below = (LOSSES[name](OUTPUTS + sign * step, targets(name))[0] for sign in (1, -1))
        assert gradient[index] == pytest.approx((above - below) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_on_every_library(library, name):
    wide = np.float32 if library.name in WITHOUT_FLOAT64 else np.float64
    weights, given = np.asarray([1, 0, 2, 1, 0.5, 3]), targets(name)
    given = given.astype(np.int32) if name == "smoothed classes" else given.astype(wide)
    found = LOSSES[name](*map(library.asarray, (OUTPUTS.astype(wide), given, weights.astype(wide))))
    for mine, other in zip(found, LOSSES[name](OUTPUTS, targets(name), weights), strict=True):
        np.testing.assert_allclose(library.host(mine), other, rtol=2e-6 if wide == np.float32 else 1e-12, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_k_is_k_rows(name):
    counts = np.asarray([1, 0, 2, 1, 4, 3])
    value, gradient = LOSSES[name](OUTPUTS, targets(name), counts * 1.0)
    repeated, of_each = LOSSES[name](OUTPUTS.repeat(counts, axis=0), targets(name).repeat(counts, axis=0))
    assert value == pytest.approx(repeated, rel=1e-12)
    ends = np.cumsum(counts)
    sums = [of_each[end - count : end].sum(axis=0) for end, count in zip(ends, counts, strict=True)]
    np.testing.assert_allclose(gradient, sums, rtol=1e-12, atol=1e-16)


def test_the_quantile_loss_is_scikit_learn_s():
    metrics = need("sklearn.metrics")
    t, p = np.random.default_rng(0).normal(size=(2, 30))
    for level in (0.1, 0.5, 0.9):
        assert bn.quantile(p[:, None], t, level=level)[0] == pytest.approx(metrics.mean_pinball_loss(t, p, alpha=level))


def test_at_their_corners():
    zero = np.zeros((1, 1))
    for loss in (bn.absolute_error, bn.quantile, bn.huber):
        assert [float(part.squeeze()) for part in map(np.asarray, loss(zero, zero))] == [0, 0]
    value, gradient = bn.huber(np.asarray([[1e200], [-1e200]]), np.zeros((2, 1)))
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, [[0.5], [-0.5]])
    assert bn.poisson(zero, zero)[0] == 1  # of a count of 0, t log t is 0
    with np.errstate(invalid="ignore"):
        assert np.isnan(bn.poisson(zero, zero - 1)[0])
    value, gradient = bn.softmax_cross_entropy(np.asarray([[1e4, -1e4]]), np.asarray([0]), label_smoothing=0.1)
    assert value == pytest.approx(1e3)
    np.testing.assert_allclose(gradient, [[0.05, -0.05]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: bn.huber(x, x, delta=0), "delta: expected a positive number, got 0"),
        (lambda x: bn.quantile(x, x, level=1.0), "level: expected a number between 0 and 1, got 1.0"),
        (
            lambda x: bn.binary_cross_entropy(x, x, label_smoothing=-1),
            r"label_smoothing: expected a number in \[0, 1\]",
        ),
        (lambda x: bn.poisson(x, x[:1]), r"targets: expected shape \(6, 4\) like predictions, got \(1, 4\)"),
        (lambda x: bn.absolute_error(x[:0], x[:0]), "predictions: expected at least one sample"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(OUTPUTS)


def test_training_by_name():
    x = np.random.default_rng(0).normal(size=(200, 3))
    y = np.exp(x[:, :1])
    for loss, scale in (("absolute_error", 1.0), ("huber", 0.5), ("quantile", 0.5), ("poisson", 0.1)):
        fitted = bn.fit(
            bn.mlp([3, 16, 1]), bn.optimizers.adam(0.01), (x, y), loss=loss, epochs=30, batch_size=20, validation=(x, y)
        )
        assert fitted.history[-1]["validation_loss"] < scale * 0.4, loss
