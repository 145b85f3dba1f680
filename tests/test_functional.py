"""The public functions against float64, autograd, closed forms and what they refuse."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import types
from pathlib import Path

import array_api_compat.numpy as compat
import libraries
import numpy as np
import oracles
import pytest
import ranks
from libraries import NAMES, UNNAMED, WITHOUT_FLOAT64, need
from libraries import library as make_library

import bnengine as bn
from bnengine.functional import ACTIVATIONS, checks

SHAPES = [((7, 3), 1), ((3, 7), 0), ((64, 5), -1), ((4, 3, 5, 2), 1), ((4, 5, 2, 3), -1), ((3, 4, 6), 0), ((2, 1), 1)]


def arguments(rng, shape, axis, offset=0.0, dtype=np.float32):
    c = shape[axis]
    x = rng.standard_normal(shape) + offset
    return tuple(
        v.astype(dtype) for v in (x, rng.standard_normal(c), rng.standard_normal(c), rng.standard_normal(shape))
    )


def close(actual, expected, tolerance, scale=None):
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def close_but_at_kinks(actual, expected, tolerance, scale, z):
    """As `close`, but for elements within 1e-6 of ReLU's kink, which may fall on either side."""
    sure = np.abs(z) > 1e-6 * np.abs(z).max()
    np.testing.assert_allclose(np.where(sure, actual, 0), np.where(sure, expected, 0), rtol=0, atol=tolerance * scale)


# ---- values


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_batch_norm_is_the_float64_one(library, rng, shape, axis, activation, offset):
    x, gamma, beta, dy = arguments(rng, shape, axis, offset)
    truth = oracles.batch_norm(x, gamma, beta, dy, axis=axis, relu=activation == "relu")
    to = library.asarray
    y, residuals = bn.batch_norm(to(x), to(gamma), to(beta), axis=axis, activation=activation)
    dx, dgamma, dbeta = bn.batch_norm_backward(to(dy), residuals)
    host = library.host
    close(host(y), truth.y, 1e-6, np.abs(truth.z).max())
    close_but_at_kinks(host(dx), truth.dx, 1e-6, truth.scale, truth.z)
    close(host(dgamma), truth.dgamma, 1e-6, np.abs(dy).max() * x.size)
    close(host(dbeta), truth.dbeta, 1e-6, np.abs(dy).max() * x.size)
    close(host(residuals.var), truth.var, 1e-6)
    np.testing.assert_allclose(host(residuals.mean), truth.mean, rtol=1e-6, atol=1e-6)
    assert residuals.count == x.size // len(gamma)
    for result, like in ((y, x), (dx, x), (dgamma, gamma), (dbeta, beta)):
        assert type(result) is type(to(x))
        assert host(result).dtype == like.dtype
        assert host(result).shape == like.shape


@pytest.mark.filterwarnings("ignore:onnxruntime is not installed")
@pytest.mark.parametrize("name", UNNAMED)
def test_libraries_that_no_backend_names(rng, name):
    library = make_library(name)
    x, gamma, beta, dy = arguments(rng, (12, 3), 1, 1e3)
    weight, labels = rng.standard_normal((3, 4)).astype(np.float32), rng.integers(0, 3, 12)
    truth = oracles.batch_norm(x, gamma, beta, dy, relu=True)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x), to(gamma), to(beta), activation="relu")
    gradients = bn.batch_norm_backward(to(dy), residuals)
    assert {type(value) for value in (y, *gradients)} == {type(to(x))}
    close(host(y), truth.y, 1e-6, np.abs(truth.z).max())
    close_but_at_kinks(host(gradients.x), truth.dx, 1e-6, truth.scale, truth.z)
    close(host(gradients.gamma), truth.dgamma, 1e-6, np.abs(dy).max() * x.size)
    running = bn.RunningStats.init(3, like=to(x)).update(residuals, momentum=None)
    close(host(running.var), truth.var * 12 / 11, 1e-6)
    for function, given in (
        (lambda *a: bn.normalize(*a, activation="relu"), (x, gamma, beta**2 + 1, gamma, beta)),
        (bn.linear_backward, (rng.standard_normal((12, 4)).astype(np.float32), x, weight)),
        (bn.softmax_cross_entropy, (dy, labels)),
        (lambda a: bn.gelu_backward(a, bn.gelu(a)), (dy,)),
    ):
        found, expected = function(*map(to, given)), function(*given)
        pairs = [(found, expected)] if isinstance(expected, np.ndarray) else zip(found, expected, strict=True)
        for a, b in pairs:
            close(host(a), b, 2e-6)


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("rows", [5, 1000])
def test_precision_holds_for_difficult_inputs(library, rng, case, rows):
    x = oracles.CASES[case](rng.standard_normal((rows, 4))).astype(np.float32)
    _check_precision(library, rng, x)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "strict-no_float64"])
@pytest.mark.parametrize("case", ["ratio 1e6", "outlier first", "sorted"])
def test_precision_holds_for_a_million_rows(rng, name, case):
    x = oracles.CASES[case](rng.standard_normal((1_000_000, 2))).astype(np.float32)
    _check_precision(make_library(name), rng, x)


def _check_precision(library, rng, x):
    gamma, beta = (rng.standard_normal(x.shape[1]).astype(np.float32) for _ in range(2))
    dy = rng.standard_normal(x.shape).astype(np.float32)
    truth = oracles.batch_norm(x, gamma, beta, dy)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x), to(gamma), to(beta))
    close(host(y), truth.y, 1e-6)
    close(host(bn.batch_norm_backward(to(dy), residuals).x), truth.dx, 1e-6, truth.scale)


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "transposed"])
def test_any_memory_layout(rng, layout):
    x, gamma, beta, dy = arguments(rng, (12, 6), 1)
    views = {
        "fortran": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
        "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
        "transposed": lambda a: np.ascontiguousarray(a.T).T,
    }
    view = views[layout]
    assert np.array_equal(view(x), x)
    y, residuals = bn.batch_norm(view(x), gamma, beta)
    truth = oracles.batch_norm(x, gamma, beta, dy)
    close(y, truth.y, 1e-6)
    close(bn.batch_norm_backward(view(dy), residuals).x, truth.dx, 1e-6, truth.scale)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_FLOAT64])
def test_float64_stays_float64(name, rng):
    library = make_library(name)
    x, gamma, beta, dy = arguments(rng, (50, 4), 1, 1e3, np.float64)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x), to(gamma), to(beta))
    truth = oracles.batch_norm(x, gamma, beta, dy)
    close(host(y), truth.y, 1e-14)
    close(host(bn.batch_norm_backward(to(dy), residuals).x), truth.dx, 1e-13, truth.scale)
    assert host(residuals.mean).dtype == np.float64


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask"])
def test_float16_is_rounded_once(rng, name):
    library = make_library(name)
    x = (rng.standard_normal((200, 4)) * 100 + 2000).astype(np.float16)  # squares overflow float16
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x))
    truth = oracles.batch_norm(x, np.ones(4), np.zeros(4), np.ones((200, 4)))
    assert host(y).dtype == np.float16
    assert np.array_equal(host(y), truth.y.astype(np.float32).astype(np.float16)) or np.allclose(
        host(y).astype(np.float64), truth.y, rtol=2**-11, atol=1e-6
    )
    assert host(residuals.mean).dtype == np.float32


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_bfloat16_has_float32_statistics(rng, name):
    module = need("torch" if name == "torch" else "jax.numpy")
    x = make_library(name).asarray(rng.standard_normal((64, 4)).astype(np.float32) + 3)
    x = x.to(module.bfloat16) if name == "torch" else x.astype(module.bfloat16)
    y, residuals = bn.batch_norm(x)
    assert y.dtype == module.bfloat16
    assert residuals.var.dtype == module.float32


# ---- what the method promises


def test_constant_channel_gives_beta_exactly(library):
    beta = np.asarray([0.3, -0.7], np.float32)
    to, host = library.asarray, library.host
    for rows in (2, 3, 10, 37, 129):
        for value in (0.0, 0.1, 1e6 / 3, -7.7e-3, 1e18):
            x = np.full((rows, 2), value, np.float32)
            y, residuals = bn.batch_norm(to(x), None, to(beta))
            assert np.array_equal(host(y), np.broadcast_to(beta, x.shape)), (rows, value)
            dx, _, _ = bn.batch_norm_backward(to(np.ones_like(x)), residuals)
            assert np.isfinite(host(dx)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_stays_in_its_channel(library, rng, bad):
    x, gamma, beta, dy = arguments(rng, (20, 3), 1)
    broken = x.copy()
    broken[4, 1] = bad
    to, host = library.asarray, library.host
    with np.errstate(invalid="ignore"):
        y, residuals = bn.batch_norm(to(broken), to(gamma), to(beta), activation="relu")
        dx, dgamma, _ = bn.batch_norm_backward(to(dy), residuals)
        y, dx, dgamma = host(y), host(dx), host(dgamma)
    truth = oracles.batch_norm(x, gamma, beta, dy, relu=True)
    for channel in (0, 2):
        close(y[:, channel], truth.y[:, channel], 1e-6)
        assert np.isfinite(dx[:, channel]).all()
    assert np.isnan(y[:, 1]).any()
    assert np.isnan(dgamma[1])


def test_where_the_fused_relu_is_at_its_kink_its_gradient_is_zero(library, rng):
    x, _, _, dy = arguments(rng, (6, 3), 1)
    to, host, zero = library.asarray, library.host, np.zeros(3, np.float32)
    gradients = bn.batch_norm_backward(to(dy), bn.batch_norm(to(x), to(zero), to(zero), activation="relu")[1])
    for gradient in gradients:
        assert not host(gradient).any()


def test_gamma_and_beta_can_undo_it(library, rng):
    x, *_ = arguments(rng, (100, 3), 1, 5.0)
    to, host = library.asarray, library.host
    _, residuals = bn.batch_norm(to(x))
    gamma, beta = np.sqrt(host(residuals.var) + np.float32(1e-5)), host(residuals.mean)
    y, _ = bn.batch_norm(to(x), to(gamma), to(beta))
    np.testing.assert_allclose(host(y), x, rtol=0, atol=1e-6 * np.abs(x).max())


def test_gamma_and_beta_give_any_spread_and_mean(library, rng):
    x, *_ = arguments(rng, (1000, 2), 1, 30.0)
    to, host = library.asarray, library.host
    y, _ = bn.batch_norm(to(x), to(np.asarray([2.0, 0.5], np.float32)), to(np.asarray([-1.0, 7.0], np.float32)))
    np.testing.assert_allclose(host(y).mean(0), [-1, 7], atol=1e-4)
    np.testing.assert_allclose(host(y).std(0), [2, 0.5], rtol=1e-4)


def test_a_constant_added_to_z_changes_nothing(library, rng):
    x, gamma, beta, _ = arguments(rng, (100, 3), 1)
    to, host = library.asarray, library.host
    shifted = x + np.float32(8)
    x = shifted - np.float32(8)  # the shift itself is exact
    before, _ = bn.batch_norm(to(x), to(gamma), to(beta))
    after, _ = bn.batch_norm(to(shifted), to(gamma), to(beta))
    close(host(after), host(before), 1e-6)


def test_the_lectures_layout_with_samples_as_columns(rng):
    z = rng.standard_normal((4, 50))
    gamma, beta = rng.standard_normal((4, 1)), rng.standard_normal((4, 1))
    y, residuals = bn.batch_norm(z, gamma, beta, axis=0)
    rows, _ = bn.batch_norm(z.T, gamma[:, 0], beta[:, 0])
    np.testing.assert_array_equal(y, rows.T)
    gradients = bn.batch_norm_backward(z, residuals)
    assert gradients.gamma.shape == gradients.beta.shape == (4, 1)
    given = bn.normalize(z, residuals.mean[:, None], residuals.var[:, None], gamma, beta, axis=0)
    np.testing.assert_allclose(given, y, atol=1e-12)


def test_parameters_that_are_none(library, rng):
    x, _, _, dy = arguments(rng, (9, 3), 1)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x))
    gradients = bn.batch_norm_backward(to(dy), residuals)
    truth = oracles.batch_norm(x, np.ones(3), np.zeros(3), dy)
    close(host(y), truth.y, 1e-6)
    close(host(gradients.x), truth.dx, 1e-6, truth.scale)
    assert gradients.gamma is None
    assert gradients.beta is None


def test_no_channels_give_no_channels():
    y, residuals = bn.batch_norm(GOOD[:, :0])
    assert y.shape == bn.batch_norm_backward(y, residuals).x.shape == (4, 0)
    assert residuals.count == 4


def test_residuals_are_copied_and_pickled_and_shown_without_their_values():
    gamma = np.full((1, 3), 2, np.float32)
    _, residuals = bn.batch_norm(GOOD, gamma, activation="relu")
    want = bn.batch_norm_backward(GOOD, residuals)
    for other in (pickle.loads(pickle.dumps(residuals)), copy.copy(residuals), copy.deepcopy(residuals)):
        np.testing.assert_array_equal(bn.batch_norm_backward(GOOD, other).x, want.x)
        np.testing.assert_array_equal(other.var, residuals.moments.var)
    assert repr(residuals) == (
        "Residuals(x=float32(4, 3), gamma=float32(1, 3), beta=None, statistics=Moments of float32(3,), "
        "count=4, axis=1, eps=1e-05, relu=True, impl=None, all_reduce=None, weights=None, correction=None, version=None)"
    )
    without = bn.batch_norm_backward(GOOD, residuals._replace(relu=False))
    np.testing.assert_array_equal(without.x, bn.batch_norm_backward(GOOD, bn.batch_norm(GOOD, gamma)[1]).x)


# ---- given statistics


@pytest.mark.parametrize("activation", [None, "relu"])
def test_normalize_and_its_gradients(library, rng, activation):
    x, gamma, beta, dy = arguments(rng, (30, 4), 1)
    statistics = rng.standard_normal(4).astype(np.float32), rng.random(4).astype(np.float32)
    truth = oracles.batch_norm(x, gamma, beta, dy, relu=activation == "relu", statistics=statistics)
    to, host = library.asarray, library.host
    given = [to(v) for v in (x, *statistics, gamma, beta)]
    close(host(bn.normalize(*given, activation=activation)), truth.y, 1e-6, np.abs(truth.z).max())
    dx, dgamma, dbeta = bn.normalize_backward(to(dy), *given, activation=activation)
    close_but_at_kinks(host(dx), truth.dx, 1e-6, truth.scale, truth.z)
    close(host(dgamma), truth.dgamma, 1e-5)
    close(host(dbeta), truth.dbeta, 1e-5)


def test_normalize_keeps_the_precision_of_a_float64_mean(rng):
    x = (rng.standard_normal((1000, 3)) + 1e6).astype(np.float32)
    mean, var = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    truth = oracles.batch_norm(x, np.ones(3), np.zeros(3), x, statistics=(mean, var))
    close(bn.normalize(x, mean, var), truth.y, 1e-6)


# ---- running statistics


def test_running_statistics_are_pytorchs(rng):
    torch = need("torch")
    for momentum in (0.1, 0.9, 0.0, 1.0, None):
        layer = torch.nn.BatchNorm1d(5, momentum=momentum, dtype=torch.float64)
        running = bn.RunningStats.init(5, like=np.zeros(1))
        for _ in range(6):
            x = rng.standard_normal((8, 5)) * 3 + 1
            layer(torch.asarray(x))
            running = running.update(bn.batch_norm(x)[1], momentum=momentum)
        np.testing.assert_allclose(running.mean, layer.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(running.var, layer.running_var.numpy(), rtol=1e-12)
        assert running.batches == layer.num_batches_tracked == 6


def test_running_statistics_start_and_stay_where_x_is(library, rng):
    x, *_ = arguments(rng, (8, 3), 1)
    to, host = library.asarray, library.host
    running = bn.RunningStats.init(3, like=to(x))
    assert np.array_equal(host(running.mean), np.zeros(3))
    assert np.array_equal(host(running.var), np.ones(3))
    updated = running.update(bn.batch_norm(to(x))[1], momentum=0.25)
    np.testing.assert_allclose(host(updated.mean), 0.25 * x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(host(updated.var), 0.75 + 0.25 * x.var(0, ddof=1), rtol=1e-5)
    assert np.array_equal(host(running.mean), np.zeros(3))  # the old ones are as they were


def test_average_over_all_batches(rng):
    batches = [rng.standard_normal((10, 2)) for _ in range(5)]
    running = bn.RunningStats.init(2, like=batches[0])
    for x in batches:
        running = running.update(bn.batch_norm(x)[1], momentum=None)
    np.testing.assert_allclose(running.mean, np.mean([x.mean(0) for x in batches], axis=0), rtol=1e-12)
    np.testing.assert_allclose(running.var, np.mean([x.var(0, ddof=1) for x in batches], axis=0), rtol=1e-12)


# ---- several ranks


@pytest.mark.parametrize("shares", [(5, 5), (1, 9), (10, 0), (3, 1, 0, 6)])
@pytest.mark.parametrize("offset", [0.0, 900.0, 1e6])
def test_statistics_over_ranks_are_those_of_the_whole_batch(rng, shares, offset):
    x, gamma, beta, dy = arguments(rng, (10, 4), 1, offset)
    truth = oracles.batch_norm(x, gamma, beta, dy)
    own = list(zip(*(np.split(a, np.cumsum(shares)[:-1]) for a in (x, dy)), strict=True))

    def both_passes(communicator):
        x, dy = own[communicator.rank]
        y, residuals = bn.batch_norm(x, gamma, beta, all_reduce=communicator.sum)
        return y, *bn.batch_norm_backward(dy, residuals)[:2], residuals.count

    y, dx, dgamma, count = zip(*ranks.together(len(shares), both_passes), strict=True)
    close(np.concatenate(y), truth.y, 1e-6)
    close(np.concatenate(dx), truth.dx, 1e-6, truth.scale)
    close(sum(dgamma), truth.dgamma, 1e-5)
    assert set(count) == {10}


def test_too_few_values_counts_all_ranks(rng):
    x = rng.standard_normal((1, 3))
    with pytest.raises(ValueError, match="at least 2 values for each channel in training, got 1 over all ranks"):
        bn.batch_norm(x, all_reduce=lambda a: a)
    bn.batch_norm(x, all_reduce=lambda a: 2 * a)


# ---- automatic differentiation and compilation


def test_jax_differentiates_and_compiles(rng):
    jax = need("jax")
    x, gamma, beta, dy = arguments(rng, (12, 5), 1)

    def loss(x, gamma, beta):
        return (bn.batch_norm(x, gamma, beta)[0] * dy).sum()

    automatic = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, gamma, beta)
    ours = bn.batch_norm_backward(jax.numpy.asarray(dy), bn.batch_norm(*map(jax.numpy.asarray, (x, gamma, beta)))[1])
    for theirs, own in zip(automatic, ours, strict=True):
        close(np.asarray(theirs), np.asarray(own), 1e-5)

    jitted = jax.jit(_forward_and_backward)
    truth = oracles.batch_norm(x + np.float32(1e6), gamma, beta, dy)
    y, dx = jitted(x + np.float32(1e6), gamma, beta, dy)
    close(np.asarray(y), truth.y, 1e-6)
    close(np.asarray(dx), truth.dx, 1e-6, truth.scale)


def _forward_and_backward(x, gamma, beta, dy):
    y, residuals = bn.batch_norm(x, gamma, beta)
    return y, bn.batch_norm_backward(dy, residuals).x


def test_torch_compiles_in_one_graph():
    """In a process of its own: Dynamo walks all modules, and fails where lazy ones that other tests use import more."""
    need("torch")
    file = Path(__file__).parent / "support" / "torch_compiles.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parents[2], check=False)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
    assert "skipped" not in done.stdout


def test_x_changed_in_place_is_seen_by_pytorch(rng):
    torch = need("torch")
    x, gamma, beta, dy = map(torch.asarray, arguments(rng, (12, 5), 1))
    x.add_(1.0)
    _, residuals = bn.batch_norm(x, gamma, beta)
    expected = bn.batch_norm_backward(dy, residuals).x
    copies = copy.deepcopy(residuals), pickle.loads(pickle.dumps(residuals))
    x[0] = 0.0
    with pytest.raises(
        ValueError, match="residuals: expected x as batch_norm was given it, but it was changed in place"
    ):
        bn.batch_norm_backward(dy, residuals)
    for kept in copies:
        assert torch.equal(bn.batch_norm_backward(dy, kept).x, expected)
    with torch.inference_mode():  # where nothing counts
        bn.batch_norm_backward(dy, bn.batch_norm(x + 1)[1])


def test_residuals_leave_a_jitted_function(rng):
    jax = need("jax")
    x, gamma, beta, dy = map(jax.numpy.asarray, arguments(rng, (12, 5), 1))
    _, residuals = jax.jit(lambda *given: bn.batch_norm(*given, activation="relu"))(x, gamma, beta)
    expected = bn.batch_norm_backward(dy, bn.batch_norm(x, gamma, beta, activation="relu")[1])
    for found, wanted in zip(bn.batch_norm_backward(dy, residuals), expected, strict=True):
        close(np.asarray(found), np.asarray(wanted), 1e-6)
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.jit(bn.batch_norm_backward)(dy, residuals)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_torch_differentiates_once_and_twice(rng, activation):
    torch = need("torch")
    tensors = [torch.asarray(v, dtype=torch.float64) for v in arguments(rng, (6, 3), 1)]
    x, gamma, beta, dy = (t.clone().requires_grad_() for t in tensors)

    def function(x, gamma, beta):
        return bn.batch_norm(x, gamma, beta, activation=activation)[0]

    y, residuals = bn.batch_norm(x, gamma, beta, activation=activation)
    automatic = torch.autograd.grad((y * dy).sum(), (x, gamma, beta))
    for theirs, own in zip(automatic, bn.batch_norm_backward(dy, residuals), strict=True):
        torch.testing.assert_close(theirs, own)
    if activation is None:
        assert torch.autograd.gradcheck(function, (x, gamma, beta))
        assert torch.autograd.gradgradcheck(function, (x, gamma, beta))


def test_dask_stays_lazy(rng):
    dask = need("dask.array")
    x = dask.from_array(rng.standard_normal((40, 3)), chunks=(10, 3))
    y, residuals = bn.batch_norm(x)
    dx = bn.batch_norm_backward(x, residuals).x
    for result in (y, dx, residuals.mean):
        assert isinstance(result, dask.Array)
    close(y.compute(), oracles.batch_norm(x.compute(), np.ones(3), np.zeros(3), x.compute()).y, 1e-12)


def test_gradients_have_the_dtypes_of_their_parameters(library, rng):
    if library.name in libraries.WITHOUT_FLOAT64:
        pytest.skip("has one floating dtype")
    to, (x, dy) = library.asarray, rng.standard_normal((2, 9, 3)).astype(np.float32)
    gamma, beta = to(np.ones(3)), to(np.zeros(3, np.float32))
    gradients = bn.batch_norm_backward(to(dy), bn.batch_norm(to(x), gamma, beta)[1])
    assert [g.dtype for g in gradients] == [to(x).dtype, gamma.dtype, beta.dtype]


def test_parts_of_residuals_can_be_replaced_by_name(rng):
    """Running statistics of the biased variance, as in Keras and Flax: the unbiased factor is taken out before."""
    x = rng.standard_normal((20, 3))
    _, residuals = bn.batch_norm(x)
    biased = residuals._replace(var=residuals.var * (residuals.count - 1) / residuals.count, axis=-1)
    assert type(biased) is bn.Residuals
    assert biased.axis == -1
    assert biased.mean is residuals.mean
    running = bn.RunningStats.init(3, like=x).update(biased, momentum=1.0)
    np.testing.assert_allclose(running.var, x.var(0), rtol=1e-12)


# ---- the other functions


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu", "sigmoid", "tanh"])
def test_activations_and_their_gradients(library, rng, name):
    x, _, _, dy = arguments(rng, (5, 4), 1)
    x[0, :3] = 0, 100, -100
    expected = {
        "identity": lambda x: x,
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "tanh": np.tanh,
    }[name]
    wide, h = x.astype(np.float64), 1e-6
    to, host = library.asarray, library.host
    y = getattr(bn, name)(to(x))
    np.testing.assert_allclose(host(y), expected(wide), rtol=2e-6, atol=1e-30)
    dx = host(getattr(bn, f"{name}_backward")(to(dy), y))
    difference = (expected(wide + h) - expected(wide - h)) / (2 * h)
    smooth = x != 0
    np.testing.assert_allclose(dx[smooth], (dy * difference)[smooth], rtol=1e-4, atol=1e-6)
    assert host(y).dtype == np.float32


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "selu", "softplus"])
def test_activations_that_keep_x_are_pytorchs(library, rng, name):
    torch = need("torch")
    theirs = {"gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}.get(
        name, getattr(torch.nn.functional, name)
    )
    x = np.concatenate([rng.standard_normal(40) * 3, [0, 30, -30, 1e4, -1e4]]).astype(np.float32).reshape(5, 9)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    wide = torch.asarray(x.astype(np.float64), requires_grad=True)
    y = theirs(wide)
    y.backward(torch.asarray(dy.astype(np.float64)))
    to, host = library.asarray, library.host
    ours, dx = host(getattr(bn, name)(to(x))), host(getattr(bn, f"{name}_backward")(to(dy), to(x)))
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(dx, wide.grad.numpy(), rtol=2e-6, atol=2e-6)
    assert ours.dtype == dx.dtype == np.float32
    largest = np.asarray([[3e38, -3e38, np.inf]], np.float32)  # squares and cubes of these are infinite
    with np.errstate(over="raise"):
        np.testing.assert_array_equal(getattr(bn, name)(largest)[0, ::2] > 2e38, True)
        assert np.isfinite(getattr(bn, f"{name}_backward")(largest[:, :2] * 0 + 1, largest[:, :2])).all()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_keep_nan(library, name):
    assert np.isnan(library.host(getattr(bn, name)(library.asarray(np.asarray([np.nan], np.float32))))).all()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor", "ignore:The PyTorch API of nested tensors")
def test_arrays_that_are_not_plain_are_refused_every_time(rng):
    """A plain array of the same type has passed before."""
    torch, dask = need("torch"), need("dask.array")
    x = rng.standard_normal((4, 3))
    for plain in (torch.asarray(x), dask.from_array(x)):
        bn.batch_norm(plain)
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(3, 3)], layout=torch.jagged)
    cases = [
        (
            torch.asarray(x).to_sparse(),
            TypeError,
            r"x: expected a dense tensor, got layout torch.sparse_coo; use to_dense",
        ),
        (torch.asarray(x).to_sparse_csr(), TypeError, "x: expected a dense tensor, got layout torch.sparse_csr"),
        (nested, TypeError, "x: expected a dense tensor, got layout torch.jagged"),
        (dask.ma.masked_array(dask.from_array(x), x > 9), TypeError, "x: expected plain chunks, got masked ones; fill"),
        (
            dask.from_array(x)[dask.from_array(x[:, 0]) > 0],
            ValueError,
            r"x: expected a known shape, got \(nan, 3\); call",
        ),
    ]
    for given, kind, message in cases:
        for function in (bn.batch_norm, bn.relu, bn.tanh):
            with pytest.raises(kind, match=message):
                function(given)


def test_losses_are_pytorchs(library, rng):
    torch = need("torch")
    functional = torch.nn.functional
    logits = (rng.standard_normal((6, 4)) * 5).astype(np.float32)
    labels, values = rng.integers(0, 4, 6), rng.random((6, 4)).astype(np.float32)
    cases = [
        (bn.softmax_cross_entropy, functional.cross_entropy, labels),
        (bn.binary_cross_entropy, functional.binary_cross_entropy_with_logits, values),
        (bn.mean_squared_error, functional.mse_loss, values),
    ]
    to, host = library.asarray, library.host
    for ours, theirs, targets in cases:
        leaf = torch.asarray(logits.copy()).requires_grad_()
        expected = theirs(leaf, torch.asarray(targets.copy()))
        expected.backward()
        loss, gradient = ours(to(logits), to(targets))
        np.testing.assert_allclose(host(loss), expected.detach().numpy(), rtol=1e-5)
        np.testing.assert_allclose(host(gradient), leaf.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_extreme_logits_stay_finite(library):
    logits = np.asarray([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    to, host = library.asarray, library.host
    loss, gradient = bn.softmax_cross_entropy(to(logits), to(np.asarray([0, 0])))
    assert host(loss) == pytest.approx(1e4)
    np.testing.assert_allclose(host(gradient), [[0, 0], [-0.5, 0.5]], atol=1e-6)
    loss, _ = bn.binary_cross_entropy(to(logits), to(np.asarray([[1, 0], [1, 0]])))
    assert host(loss) == pytest.approx(5e3)


def test_a_label_that_is_no_class_makes_the_loss_nan(library):
    to, host = library.asarray, library.host
    for label in (-1, 3):
        loss, _ = bn.softmax_cross_entropy(to(np.zeros((2, 3), np.float32)), to(np.asarray([0, label])))
        assert np.isnan(host(loss))


def test_linear_and_its_gradients(library, rng):
    x, weight, bias, dz = (rng.standard_normal(s).astype(np.float32) for s in ((5, 3), (3, 2), (2,), (5, 2)))
    to, host = library.asarray, library.host
    np.testing.assert_allclose(host(bn.linear(to(x), to(weight), to(bias))), x @ weight + bias, rtol=1e-5)
    dx, dweight, dbias = bn.linear_backward(to(dz), to(x), to(weight))
    np.testing.assert_allclose(host(dx), dz @ weight.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(host(dweight), x.T @ dz, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(host(dbias), dz.sum(0), rtol=1e-5, atol=1e-6)
    assert bn.linear_backward(to(dz), to(x), to(weight), need_dx=False, need_bias=False)[::2] == (None, None)


# ---- purity


def test_no_argument_is_modified(rng):
    inputs = arguments(rng, (40, 6), 1)
    before = [v.copy() for v in inputs]
    x, gamma, beta, dy = inputs
    for activation in (None, "relu"):
        y, residuals = bn.batch_norm(x, gamma, beta, activation=activation)
        gradients = bn.batch_norm_backward(dy, residuals)
        bn.normalize(x, residuals.mean, residuals.var, gamma, beta, activation=activation)
        bn.softmax_cross_entropy(x, np.zeros(40, np.int64))
        assert not any(np.shares_memory(out, v) for out in (y, gradients.x) for v in inputs)
    for now, then in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_results_do_not_change_later(rng):
    """What one call returned is not written over by the next."""
    x, *_ = arguments(rng, (512, 64), 1)
    y, _ = bn.batch_norm(x)
    kept = y.copy()
    for _ in range(5):
        bn.batch_norm(x + 1)
    np.testing.assert_array_equal(y, kept)


# ---- refusals


GOOD = np.ones((4, 3), np.float32)
LABELS = np.arange(4)
REFUSED = [
    (lambda: bn.batch_norm([[1.0, 2.0]]), TypeError, "x: expected an array of an array-API library, got list"),
    (lambda: bn.batch_norm(np.ones((4, 3), int)), TypeError, "x: expected dtype float16, .* got int64"),
    (lambda: bn.batch_norm(np.ones((4, 3), complex)), TypeError, "x: expected dtype .* got complex128"),
    (lambda: bn.batch_norm(np.ones((4, 3), ">f4")), TypeError, "native byte order, got >f4"),
    (lambda: bn.batch_norm(np.ones((4, 3), np.longdouble)), TypeError, "x: expected dtype"),
    (lambda: bn.batch_norm(np.ma.masked_array(GOOD)), TypeError, "x: expected a plain array, got .*MaskedArray"),
    (lambda: bn.batch_norm(GOOD[0]), ValueError, r"x: expected rank 2 or more .* got shape \(3,\)"),
    (lambda: bn.batch_norm(GOOD[:1]), ValueError, "at least 2 values for each channel in training, got 1"),
    (lambda: bn.batch_norm(GOOD[:0]), ValueError, "at least 2 values for each channel in training, got 0"),
    (lambda: bn.batch_norm(GOOD, axis=2), ValueError, r"axis: expected -2 to 1 for x of shape \(4, 3\), got 2"),
    (lambda: bn.batch_norm(GOOD, axis=1.0), TypeError, "axis: expected an int, got 1.0"),
    (lambda: bn.batch_norm(GOOD, eps=0), ValueError, "eps: expected a positive, finite number .* got 0"),
    (lambda: bn.batch_norm(GOOD, eps=-1e-5), ValueError, "eps: expected a positive"),
    (lambda: bn.batch_norm(GOOD, eps=float("nan")), ValueError, "eps: expected a positive"),
    (lambda: bn.batch_norm(GOOD, eps="1e-5"), TypeError, "eps: expected a number, got '1e-5'"),
    (lambda: bn.batch_norm(GOOD, activation="tanh"), ValueError, "activation: expected None or 'relu', got 'tanh'"),
    (
        lambda: bn.batch_norm(GOOD, impl="fast"),
        ValueError,
        "impl: expected None, 'reference', 'cpu', 'plain' or 'cuda', got",
    ),
    (lambda: bn.batch_norm(GOOD, impl="cuda"), ValueError, "impl: 'cuda' runs on cupy arrays, but x is of numpy"),
    (lambda: bn.batch_norm(GOOD, GOOD), ValueError, r"gamma: expected shape \(3,\) or \(1, 3\) .* got \(4, 3\)"),
    (lambda: bn.batch_norm(GOOD, np.ones(4, np.float32)), ValueError, r"gamma: expected shape .* got \(4,\)"),
    (lambda: bn.batch_norm(GOOD, None, [0.0] * 3), TypeError, "beta: expected an array of an array-API library"),
    (lambda: bn.batch_norm(GOOD, np.ones(3, int)), TypeError, "gamma: expected dtype"),
    (lambda: bn.batch_norm(GOOD, None, 2.0), TypeError, "beta: expected an array of an array-API library, got float"),
    (lambda: bn.normalize(GOOD, None, np.ones(3)), TypeError, "mean: expected an array, got None"),
    (lambda: bn.normalize(GOOD, np.ones(2), np.ones(3)), ValueError, "mean: expected shape"),
    (lambda: bn.normalize(GOOD, np.ones(3), np.ones(3), eps=0), ValueError, "eps: expected"),
    (lambda: bn.normalize_backward(GOOD[:2], GOOD, np.ones(3), np.ones(3)), ValueError, r"dy: expected shape \(4, 3\)"),
    (
        lambda: bn.batch_norm_backward(GOOD[:2], bn.batch_norm(GOOD)[1]),
        ValueError,
        r"dy: expected shape \(4, 3\) like x",
    ),
    (lambda: bn.batch_norm_backward([1.0], bn.batch_norm(GOOD)[1]), TypeError, "dy: expected an array"),
    (lambda: bn.RunningStats.init(3, like=[1.0]), TypeError, "like: expected an array"),
    (lambda: bn.linear(GOOD, np.ones((2, 2), np.float32)), ValueError, r"x: expected shape \(N, 2\) for this weight"),
    (lambda: bn.linear(GOOD, np.ones((3, 2))), TypeError, "x: expected dtype float64 like weight, got float32; cast x"),
    (lambda: bn.linear(GOOD, GOOD.T[:3], np.ones(4)), TypeError, "bias: expected dtype float32 like x, got float64"),
    (lambda: bn.linear(GOOD, np.ones(3, np.float32)), ValueError, r"weight: expected shape \(inputs, outputs\)"),
    (
        lambda: bn.linear(GOOD, np.ones((3, 2), np.float32), np.ones(3, np.float32)),
        ValueError,
        r"bias: expected shape \(2,\), got \(3,\)",
    ),
    (
        lambda: bn.linear_backward(GOOD, GOOD, np.ones((3, 2), np.float32)),
        ValueError,
        r"dz: expected shape \(4, 2\), got \(4, 3\)",
    ),
    (lambda: bn.softmax_cross_entropy(GOOD, np.ones(4)), TypeError, "labels: expected an integer dtype .* got float64"),
    (lambda: bn.softmax_cross_entropy(GOOD, [0, 1]), TypeError, "labels: expected an integer array, got list"),
    (lambda: bn.softmax_cross_entropy(GOOD, np.ones(3, int)), ValueError, r"labels: expected shape \(4,\), got \(3,\)"),
    (lambda: bn.softmax_cross_entropy(GOOD[0], np.ones(3, int)), ValueError, r"logits: expected shape \(N, classes\)"),
    (lambda: bn.softmax_cross_entropy(GOOD[:0], np.ones(0, int)), ValueError, "logits: expected at least one sample"),
    (lambda: bn.binary_cross_entropy(GOOD, np.ones(3)), ValueError, r"targets: expected shape \(4, 3\) like logits"),
    (lambda: bn.binary_cross_entropy(LABELS, LABELS), TypeError, "logits: expected dtype float16, .* got int64"),
    (lambda: bn.binary_cross_entropy(GOOD[:, :0], GOOD[:, :0]), ValueError, "logits: expected at least one sample and"),
    (lambda: bn.mean_squared_error(LABELS, GOOD), TypeError, "predictions: expected dtype float16, .* got int64"),
    (lambda: bn.mean_squared_error(GOOD, [1.0]), TypeError, "targets: expected an array, got list"),
    (lambda: bn.mean_squared_error(GOOD, GOOD * 1j), TypeError, "targets: expected a real dtype"),
    (lambda: bn.leaky_relu(GOOD, slope=1), ValueError, "slope: expected a number between 0 and 1, got 1"),
    (lambda: bn.leaky_relu(GOOD, slope=0), ValueError, "slope: expected a number between 0 and 1, got 0"),
    (
        lambda: bn.leaky_relu_backward(GOOD, GOOD, slope=1.5),
        ValueError,
        "slope: expected a number between 0 and 1, got",
    ),
    *(
        (lambda f=f: f(LABELS), TypeError, "x: expected dtype float16, .* got int64")
        for f in (bn.identity, bn.relu, bn.leaky_relu, bn.sigmoid, bn.tanh)
    ),
    (lambda: bn.tanh_backward(GOOD.astype(int), GOOD), TypeError, "dy: expected dtype float16, .* got int64"),
    (lambda: bn.batch_norm(GOOD, impl=3), TypeError, "impl: expected None or the name of an implementation, got 3"),
    (lambda: bn.batch_norm(GOOD, all_reduce=3), TypeError, "all_reduce: expected None or a function, got 3"),
    (lambda: bn.batch_norm(GOOD, all_reduce=len), TypeError, "all_reduce: expected an array of an array-API library"),
    (
        lambda: bn.batch_norm(GOOD, all_reduce=lambda a: None),
        TypeError,
        "all_reduce: expected an array .*, got NoneType",
    ),
    *(
        (lambda n=n: bn.linear_backward(GOOD, GOOD, GOOD.T @ GOOD, **{n: 1}), TypeError, f"{n}: expected True or False")
        for n in ("need_dx", "need_bias")
    ),
    (lambda: bn.tanh_backward(GOOD, None), TypeError, "y: expected an array of an array-API library, got NoneType"),
    (lambda: bn.relu([1.0]), TypeError, "x: expected an array"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_is_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_momentum_outside_its_range_is_refused(momentum):
    running = bn.RunningStats.init(3, like=GOOD)
    with pytest.raises(ValueError, match=r"momentum: expected None or a number in \[0, 1\], got"):
        running.update(bn.batch_norm(GOOD)[1], momentum=momentum)


def test_statistics_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"batch: expected statistics of shape \(2,\), got \(3,\)"):
        bn.RunningStats.init(2, like=GOOD).update(bn.batch_norm(GOOD)[1])


def test_mixed_libraries_are_refused():
    torch = need("torch")
    with pytest.raises(TypeError, match="gamma: expected an array of numpy like x, got torch; convert one of them"):
        bn.batch_norm(GOOD, torch.ones(3))
    with pytest.raises(TypeError, match="weight: expected an array of numpy like x, got torch"):
        bn.linear(GOOD, torch.ones(3, 2))
    with pytest.raises(TypeError, match="dy: expected an array of torch like x, got numpy"):
        bn.batch_norm_backward(GOOD, bn.batch_norm(torch.ones(4, 3))[1])


def test_mixed_devices_are_refused():
    strict = need("array_api_strict")
    x = strict.ones((4, 3), dtype=strict.float32)
    gamma = strict.ones((3,), dtype=strict.float32, device=strict.Device("device1"))
    with pytest.raises(ValueError, match=r"gamma: expected device .*CPU_DEVICE.* like x, got .*device1.*; move one"):
        bn.batch_norm(x, gamma)


class Lazy:
    """An array of a library of one's own, with the names of NumPy's but for some (2.0 lacks the standard's inspection); its shape may be unknown."""

    def __init__(self, a, shape=None, without=()):
        self.dtype, self.ndim, self.shape, self.without = a.dtype, a.ndim, shape or a.shape, without

    def __array_namespace__(self, api_version=None):
        xp = types.ModuleType("lazy")
        vars(xp).update({name: value for name, value in vars(compat).items() if name not in self.without})
        return xp


@pytest.mark.parametrize("shape", [(None, 3), (float("nan"), 3)])
def test_unknown_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected a known shape, got \((None|nan), 3\)"):
        bn.batch_norm(Lazy(GOOD, shape))


def test_libraries_that_lack_what_is_needed_are_refused(monkeypatch):
    for known in (checks._known, checks._integral):  # as if no array of these types had been seen
        monkeypatch.delitem(known, Lazy, raising=False)
    with pytest.raises(TypeError, match=r"x: expected .* library with float64 .*, got \w+ \(.*float64.*\); convert"):
        bn.batch_norm(Lazy(GOOD, without=("float64",)))
    labels = Lazy(np.zeros(4, np.int64), without=("arange",))
    with pytest.raises(TypeError, match="labels: expected an array of a library with arange"):
        bn.softmax_cross_entropy(Lazy(GOOD), labels)


def test_an_older_standard_is_refused(monkeypatch):
    strict = need("array_api_strict")
    monkeypatch.setattr(checks, "_known", {})
    with (
        strict.ArrayAPIStrictFlags(api_version="2022.12"),
        pytest.raises(TypeError, match=r"x: .* array API of 2023.12, got array_api_strict"),
    ):
        bn.batch_norm(strict.ones((4, 3)))


def test_unknown_dask_shapes_are_refused(rng):
    dask = need("dask.array")
    x = dask.from_array(rng.standard_normal((40, 3)))
    with pytest.raises(ValueError, match="x: expected a known shape"):
        bn.batch_norm(x[x[:, 0] > 0])
