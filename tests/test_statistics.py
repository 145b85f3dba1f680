"""Statistics as values: weights, merging, statistics of a whole batch, renormalisation, second derivatives."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import libraries
import numpy as np
import oracles
import pytest
import ranks
from libraries import need

import bnengine as bn
from bnengine import trees

LAYOUTS = [((9, 3), 1), ((3, 9), 0), ((4, 3, 5, 2), 1), ((4, 5, 2, 3), -1), ((3, 4, 6), 0), ((40, 64), 1)]


def counts(rng: np.random.Generator, n: int) -> np.ndarray:
    """Whole numbers from 0 to 4, not all 0."""
    w = rng.integers(0, 5, n)
    w[n // 2] = 2
    return w


def repeated(a: np.ndarray, w: np.ndarray, axis: int) -> np.ndarray:
    """Each sample as often as its weight says."""
    return np.repeat(a, w, axis=int(axis == 0))


def close(actual: Any, expected: Any, tolerance: float, scale: float | None = None) -> None:
    scale = float(np.abs(expected).max()) if scale is None else scale
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


# ---- weights


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_weight_of_k_is_the_sample_k_times(library, rng, shape, axis, activation, offset):
    """Values, gradients and running statistics against the samples written out, in float64."""
    samples = shape[int(axis == 0)]
    w = counts(rng, samples)
    x = (rng.standard_normal(shape) + offset).astype(np.float32)
    dy, (gamma, beta) = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((2, shape[axis]))
    gamma, beta = gamma.astype(np.float32), beta.astype(np.float32)
    many = [repeated(a, w, axis) for a in (x, dy)]
    truth = oracles.batch_norm(many[0], gamma, beta, many[1], axis=axis, relu=activation == "relu")

    to, host = library.asarray, library.host
    y, r = bn.batch_norm(to(x), to(gamma), to(beta), axis=axis, activation=activation, weights=to(w))
    along = w.reshape([samples if i == int(axis == 0) else 1 for i in range(len(shape))])
    dx, dgamma, dbeta = bn.batch_norm_backward(to((dy * along).astype(np.float32)), r)
    sure = np.abs(truth.z) > 1e-6 * np.abs(truth.z).max() if activation else np.ones_like(truth.z, bool)
    y_many, dx_many = (repeated(host(a), w, axis) for a in (y, dx))
    close(y_many, truth.y, 1e-6, np.abs(truth.z).max())
    each = repeated(np.broadcast_to(along, shape), w, axis)  # dx of a sample is the sum of those of its copies
    scale = truth.scale * w.max()
    close(np.where(sure, dx_many, 0), np.where(sure, truth.dx * each, 0), 1e-6, scale)
    close(host(dgamma), truth.dgamma, 1e-6, truth.terms[1].max())
    close(host(dbeta), truth.dbeta, 1e-6, truth.terms[0].max())
    assert float(r.count) == many[0].size / shape[axis]

    running = bn.RunningStats.init(shape[axis], like=to(x)).update(r, momentum=1.0)
    unbiased = truth.var * many[0].size / (many[0].size - shape[axis])
    close(host(running.var), unbiased, 1e-5 if offset else 2e-6)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 2), 1), ((4, 5, 2, 3), -1), ((3, 4, 6), 0)])
def test_a_mask_of_places_leaves_padding_out(library, rng, shape, axis):
    """Booleans over every place; what is left out may be anything, NaN too."""
    mask = rng.random([1 if i == axis % len(shape) else n for i, n in enumerate(shape)]) < 0.7
    x = rng.standard_normal(shape).astype(np.float32)
    dirty = np.where(mask, x, np.nan).astype(np.float32)
    m = bn.moments(library.asarray(dirty), axis=axis, weights=library.asarray(mask))
    kept = np.moveaxis(x, axis, -1)[np.moveaxis(np.broadcast_to(mask, shape), axis, -1)[..., 0]].astype(np.float64)
    close(library.host(m.mean), kept.mean(0), 1e-6, 1.0)
    close(library.host(m.var), kept.var(0), 1e-6)
    assert float(m.weight) == len(kept)
    y, _ = bn.batch_norm(library.asarray(dirty), axis=axis, weights=library.asarray(mask))
    truth = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5)
    got = np.moveaxis(library.host(y), axis, -1)[np.moveaxis(np.broadcast_to(mask, shape), axis, -1)[..., 0]]
    close(got, truth, 1e-6)


def test_weighted_moments_are_numpys_average_and_scikit_learns(rng):
    preprocessing = need("sklearn.preprocessing")
    x, w = rng.standard_normal((50, 4)) * [1, 10, 0.1, 3] + [0, 1e3, 5, -2], rng.random(50)
    m = bn.moments(x, weights=w)
    np.testing.assert_allclose(m.mean, np.average(x, axis=0, weights=w), rtol=1e-12)
    np.testing.assert_allclose(m.var, np.average((x - m.mean) ** 2, axis=0, weights=w), rtol=1e-12)
    scaler = preprocessing.StandardScaler()
    parts = [slice(0, 7), slice(7, 30), slice(30, 50)]
    for part in parts:
        scaler.partial_fit(x[part], sample_weight=w[part])
    merged = bn.merge(bn.moments(x[part], weights=w[part]) for part in parts)
    np.testing.assert_allclose(merged.mean, scaler.mean_, rtol=1e-10)
    np.testing.assert_allclose(merged.var, scaler.var_, rtol=1e-10)
    assert merged.weight == pytest.approx(w.sum(), rel=1e-14)


@pytest.mark.parametrize("case", oracles.CASES)
def test_weights_keep_the_precision_of_hard_inputs(rng, case):
    if case in ("tiny", "denormal"):
        pytest.skip("eps decides there, with and without weights")
    x = oracles.CASES[case](rng.standard_normal((300, 5))).astype(np.float32)
    w = counts(rng, 300)
    w[[0, -1]] = 1  # where the outliers are
    many = np.repeat(x.astype(np.float64), w, axis=0)
    truth = oracles.batch_norm(many, np.ones(5), np.zeros(5), np.ones_like(many))
    for weights in (w, w / 7, w.astype(np.float32)):
        y, _ = bn.batch_norm(x, weights=weights)
        close(np.repeat(y, w, axis=0), truth.y, 1e-6)
    constant, _ = bn.batch_norm(np.full((30, 2), 0.1, np.float32), weights=rng.random(30))
    np.testing.assert_array_equal(constant, 0)


def test_rows_without_weight_get_the_gradient_of_a_row_that_statistics_do_not_see(rng):
    x, dy, gamma = rng.standard_normal((6, 3)), rng.standard_normal((6, 3)), rng.standard_normal(3)
    w = np.asarray([1.0, 1, 0, 2, 1, 0])
    _, r = bn.batch_norm(x, gamma, weights=w)
    dx = bn.batch_norm_backward(dy, r).x
    np.testing.assert_allclose(dx[w == 0], (gamma * dy / np.sqrt(r.var + 1e-5))[w == 0], rtol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_weighted_gradients_are_those_of_autograd(rng, weighted, activation):
    torch = need("torch")
    x, gamma, beta, dy = (torch.asarray(rng.standard_normal(s)) for s in ((8, 3), (3,), (3,), (8, 3)))
    w = torch.asarray(counts(rng, 8)) if weighted else None
    for v in (x, gamma, beta):
        v.requires_grad_()
    y, r = bn.batch_norm(x, gamma, beta, activation=activation, weights=w)
    wanted = torch.autograd.grad((y * dy).sum(), (x, gamma, beta))
    with torch.no_grad():
        for ours, theirs in zip(bn.batch_norm_backward(dy, r), wanted, strict=True):
            close(ours, theirs.numpy(), 1e-12)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.ones(4), r"weights: expected shape \(5,\) or \(5, 1\) for x of shape \(5, 2\), got \(4,\)"),
        (np.ones((5, 2)), r"weights: expected shape \(5,\) or \(5, 1\)"),
        (np.asarray([1, 1, -1, 1, 1]), "weights: expected finite numbers of at least 0, got one that is -1"),
        (
            np.asarray([1, 1, np.nan, 1, 1]),
            "weights: expected finite numbers of at least 0, got one that is not finite",
        ),
        (np.zeros(5), "weights: expected at least one above 0, got zeros"),
        ([1, 1, 1, 1, 1], "weights: expected an array, got list"),
        (np.ones(5, complex), "weights: expected booleans, integers or floating numbers, got complex128"),
    ],
)
@pytest.mark.parametrize("call", [bn.moments, bn.batch_norm])
def test_weights_that_do_not_fit_are_refused(call, weights, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call(np.ones((5, 2)), weights=weights)


def test_weights_that_sum_to_nothing_give_nan_where_nobody_looks(rng):
    torch = need("torch")
    m = bn.moments(torch.ones((4, 2)), weights=torch.zeros(4))
    assert torch.isnan(m.mean).all()
    assert float(m.weight) == 0


def test_weights_that_are_no_counts_make_a_variance_at_most_twice_as_large(rng):
    x = rng.standard_normal((6, 2))
    for total in (0.3, 1.0, 1.5, 2.0, 7.0):
        w = np.full(6, total / 6)
        running = bn.RunningStats.init(2, like=x).update(bn.moments(x, weights=w), momentum=1.0)
        np.testing.assert_allclose(running.var, x.var(0) * (2 if total < 2 else total / (total - 1)), rtol=1e-12)


# ---- merging


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_parts_merge_into_the_whole_in_any_order(library, rng, offset):
    x = (rng.standard_normal((60, 4)) + offset).astype(np.float32)
    cuts = [(0, 1), (1, 17), (17, 18), (18, 50), (50, 60)]
    parts = [bn.moments(library.asarray(x[a:b])) for a, b in cuts]
    truth = oracles.batch_norm(x, np.ones(4), np.zeros(4), np.ones_like(x))
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 0, 4, 3, 2]):
        found = [functools.reduce(bn.Moments.merge, [parts[i] for i in order]), bn.merge([parts[i] for i in order])]
        for m in found:
            y, _ = bn.batch_norm(library.asarray(x), statistics=m)
            close(library.host(y), truth.y, 1e-6)
            assert m.weight == 60.0
            assert m.mean.dtype == parts[0].mean.dtype


def test_hundreds_of_parts_keep_the_promise(rng):
    x = (rng.standard_normal((900, 3)) + 1e6).astype(np.float32)
    m = functools.reduce(bn.Moments.merge, [bn.moments(x[i : i + 3]) for i in range(0, 900, 3)])
    truth = oracles.batch_norm(x, np.ones(3), np.zeros(3), np.ones_like(x))
    close(bn.batch_norm(x, statistics=m)[0], truth.y, 1e-6)


def test_a_part_without_weight_changes_nothing(rng):
    torch = need("torch")
    for to, zeros in ((np.asarray, None), (torch.asarray, torch.zeros(3))):
        x = to(rng.standard_normal((5, 2)))
        m = bn.moments(x)
        none = m._replace(mean=m.mean * float("nan"), weight=0.0)
        if zeros is not None:
            none = bn.moments(torch.ones((3, 2), dtype=torch.float64), weights=zeros)
        for both in (m.merge(none), none.merge(m), bn.merge([none, m, none])):
            np.testing.assert_allclose(np.asarray(both.mean), np.asarray(m.mean), rtol=1e-14)
            np.testing.assert_array_equal(np.asarray(both.var), np.asarray(m.var))


def test_moments_are_values(rng):
    m = bn.moments(rng.standard_normal((5, 3)), weights=rng.random(5))
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
        assert type(other) is bn.Moments
        np.testing.assert_array_equal(other.var, m.var)
    jax = need("jax")
    x = jax.numpy.asarray(rng.standard_normal((6, 3)))
    of = jax.jit(bn.moments)
    merged = jax.jit(bn.Moments.merge)(of(x[:2]), of(x[2:]))
    assert type(merged) is bn.Moments
    close(merged.var, np.asarray(x, np.float64).var(0), 1e-6)
    y, _ = bn.batch_norm(x, statistics=merged)
    close(y, bn.batch_norm(x)[0], 1e-6)


def test_moments_that_do_not_fit_are_refused(rng):
    m = bn.moments(np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"other: expected moments of shape \(3,\) and float64, got \(2,\)"):
        m.merge(bn.moments(np.ones((4, 2))))
    with pytest.raises(ValueError, match=r"and float64, got \(3,\) and float32"):
        m.merge(bn.moments(np.ones((4, 3), np.float32)))
    with pytest.raises(TypeError, match="other: expected Moments"):
        m.merge((1, 2, 3, 4))
    with pytest.raises(ValueError, match="parts: expected at least one Moments"):
        bn.merge([])
    with pytest.raises(TypeError, match="parts: expected Moments"):
        bn.merge([m, None])
    with pytest.raises(ValueError, match=r"statistics: expected moments of shape \(3,\) and float32"):
        bn.batch_norm(np.ones((4, 3), np.float32), statistics=m)
    with pytest.raises(TypeError, match="statistics: expected None or Moments"):
        bn.batch_norm(np.ones((4, 3)), statistics=(1, 2))
    with pytest.raises(TypeError, match="batch: expected Residuals of batch_norm, or Moments"):
        bn.RunningStats.init(3, like=np.ones(3)).update((1, 2))


# ---- statistics of a whole batch


@pytest.mark.parametrize("weighted", [False, True])
def test_own_statistics_given_are_those_taken(library, rng, weighted):
    x, dy = (rng.standard_normal((7, 3)).astype(np.float32) for _ in range(2))
    x, dy = library.asarray(x), library.asarray(dy)
    w = library.asarray(counts(rng, 7)) if weighted else None
    y, r = bn.batch_norm(x, weights=w)
    y2, r2 = bn.batch_norm(x, weights=w, statistics=bn.moments(x, weights=w))
    close(library.host(y2), library.host(y), 1e-6)
    close(library.host(bn.batch_norm_backward(dy, r2).x), library.host(bn.batch_norm_backward(dy, r).x), 2e-6)
    close(library.host(r2.moments.var), library.host(r.moments.var), 1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_with_the_statistics_of_the_whole_have_its_gradients(rng, weighted):
    """Two passes forward and two back: statistics, then values; sums, then gradients."""
    x, dy, gamma, beta = (rng.standard_normal(s) for s in ((12, 3), (12, 3), (3,), (3,)))
    w = rng.random(12) if weighted else None
    _, r = bn.batch_norm(x, gamma, beta, activation="relu", weights=w)
    wanted = bn.batch_norm_backward(dy, r)
    parts = [slice(0, 5), slice(5, 6), slice(6, 12)]
    own = [None if w is None else w[part] for part in parts]
    whole = bn.merge(bn.moments(x[part], weights=v) for part, v in zip(parts, own, strict=True))
    kept = [
        bn.batch_norm(x[part], gamma, beta, activation="relu", weights=v, statistics=whole)[1]
        for part, v in zip(parts, own, strict=True)
    ]
    first = [bn.batch_norm_backward(dy[part], r) for part, r in zip(parts, kept, strict=True)]
    dgamma, dbeta = sum(g.gamma for g in first), sum(g.beta for g in first)
    np.testing.assert_allclose(dgamma, wanted.gamma, rtol=1e-12)
    np.testing.assert_allclose(dbeta, wanted.beta, rtol=1e-12)
    sums = np.concatenate([dbeta, dgamma])
    second = [
        bn.batch_norm_backward(dy[part], r._replace(all_reduce=lambda _: sums))
        for part, r in zip(parts, kept, strict=True)
    ]
    close(np.concatenate([g.x for g in second]), wanted.x, 1e-12)


@pytest.mark.parametrize("name", ["numpy", "torch", "strict-no_float64"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_ranks_share_weighted_statistics(rng, name, offset):
    """Shares of any size, one without rows and one without weight."""
    library = libraries.library(name)
    x, dy = (rng.standard_normal((20, 3)).astype(np.float32) for _ in range(2))
    x = (x + np.float32(offset)).astype(np.float32)
    w = counts(rng, 20)
    w[9:12] = 0
    cuts = [(0, 9), (9, 12), (12, 12), (12, 20)]
    many = np.repeat(x, w, axis=0)
    truth = oracles.batch_norm(many, np.ones(3), np.zeros(3), np.repeat(dy, w, axis=0))

    def own(communicator):
        a, b = cuts[communicator.rank]
        to = library.asarray
        y, r = bn.batch_norm(to(x[a:b]), weights=to(w[a:b]), all_reduce=communicator._sum)
        dx = bn.batch_norm_backward(to((dy * w[:, None]).astype(np.float32)[a:b]), r).x
        return library.host(y), library.host(dx), float(r.count)

    found = ranks.together(4, own)
    y, dx = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    close(np.repeat(y, w, axis=0), truth.y, 1e-6)
    close(np.repeat(dx, w, axis=0), truth.dx * np.repeat(w, w)[:, None], 1e-6, truth.scale * 4)
    assert {part[2] for part in found} == {float(w.sum())}


# ---- renormalisation


def test_renormalisation_is_the_published_formula(library, rng):
    """Ioffe 2017, algorithm 1, written out; gradients with r and d held fixed."""
    x, dy, gamma, beta = (rng.standard_normal(s).astype(np.float32) for s in ((30, 4), (30, 4), (4,), (4,)))
    x = (x * [0.1, 1, 3, 20] + [0, 5, -1, 30]).astype(np.float32)
    mean, var = np.asarray([0.0, 1, -1, 2], np.float32), np.asarray([1.0, 1, 1, 1], np.float32)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_renorm(to(x), bn.RunningStats(to(mean), to(var), 3), to(gamma), to(beta))
    wide = x.astype(np.float64)
    mu, sigma_b, sigma = wide.mean(0), np.sqrt(wide.var(0) + 1e-5), np.sqrt(var + 1e-5)
    r, d = np.clip(sigma_b / sigma, 1 / 3, 3), np.clip((mu - mean) / sigma, -5, 5)
    assert (r == 3).any()
    assert (d == 5).any()
    assert ((r > 1 / 3) & (r < 3)).any()
    close(host(y), ((wide - mu) / sigma_b * r + d) * gamma + beta, 1e-6)
    truth = oracles.batch_norm(x, gamma * r, beta + gamma * d, dy)
    grads = bn.batch_norm_backward(to(dy), residuals)
    close(host(grads.x), truth.dx, 1e-6, truth.scale)
    close(host(grads.gamma), (dy * ((wide - mu) / sigma_b * r + d)).sum(0), 1e-6, np.abs(dy).sum() * 5)
    close(host(grads.beta), dy.sum(0), 1e-6, np.abs(dy).sum())
    close(host(residuals.mean), mu, 1e-6)


def test_renormalisation_without_room_is_batch_normalisation_and_with_it_inference(rng):
    x, gamma = rng.standard_normal((9, 3)), rng.standard_normal(3)
    running = bn.RunningStats(np.asarray([1.0, 0, 2]), np.asarray([2.0, 1, 0.5]), 4)
    y, r = bn.batch_renorm(x, running, gamma, activation="relu", r_max=1, d_max=0)
    wanted, r2 = bn.batch_norm(x, gamma, activation="relu")
    np.testing.assert_allclose(y, wanted, atol=1e-14)
    for ours, theirs in zip(bn.batch_norm_backward(x, r)[:2], bn.batch_norm_backward(x, r2)[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)
    y, _ = bn.batch_renorm(x, running, gamma, r_max=1e9, d_max=1e9)
    np.testing.assert_allclose(y, bn.normalize(x, running.mean, running.var, gamma), atol=1e-12)
    with pytest.raises(ValueError, match="r_max: expected"):
        bn.batch_renorm(x, running, r_max=0.5)
    with pytest.raises(TypeError, match="running: expected RunningStats"):
        bn.batch_renorm(x, (1, 2))


# ---- the derivative of the backward pass


@pytest.mark.parametrize(("shape", "axis"), LAYOUTS[:4])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("weighted", [False, True])
def test_second_derivatives_are_those_of_autograd(rng, shape, axis, activation, weighted):
    torch = need("torch")
    c = shape[axis]
    x, dy, ddx = (torch.asarray(rng.standard_normal(shape)) for _ in range(3))
    gamma, beta, ddgamma, ddbeta = (torch.asarray(rng.standard_normal(c)) for _ in range(4))
    w = torch.asarray(rng.random(shape[int(axis == 0)])) if weighted else None
    for v in (x, dy, gamma, beta):
        v.requires_grad_()
    y, r = bn.batch_norm(x, gamma, beta, axis=axis, activation=activation, weights=w)
    first = torch.autograd.grad(y, (x, gamma, beta), dy, create_graph=True)
    wanted = torch.autograd.grad(first, (dy, x, gamma), (ddx, ddgamma, ddbeta))
    with torch.no_grad():
        found = bn.batch_norm_double_backward(ddx, ddgamma, ddbeta, dy, r)
    for name, ours, theirs in zip(("dy", "x", "gamma"), found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10, err_msg=name)


def test_second_derivatives_on_every_library_and_on_ranks(library, rng):
    x, dy, ddx = (rng.standard_normal((10, 3)).astype(np.float32) for _ in range(3))
    gamma = rng.standard_normal(3).astype(np.float32)
    wide = [v.astype(np.float64) for v in (ddx, dy, x, gamma)]
    want = bn.batch_norm_double_backward(*wide[:1], None, None, wide[1], bn.batch_norm(wide[2], wide[3])[1])
    to = library.asarray
    found = bn.batch_norm_double_backward(to(ddx), None, None, to(dy), bn.batch_norm(to(x), to(gamma))[1])
    for ours, theirs in zip(found, want, strict=True):
        close(library.host(ours), theirs, 1e-5)

    def own(communicator):
        rows = slice(0, 4) if communicator.rank == 0 else slice(4, 10)
        r = bn.batch_norm(to(x[rows]), to(gamma), all_reduce=communicator._sum)[1]
        second = bn.batch_norm_double_backward(to(ddx[rows]), None, None, to(dy[rows]), r)
        return [library.host(v) for v in second]

    if library.name == "dask":
        return  # its graphs are computed outside of the threads
    parts = ranks.together(2, own)
    for i in (0, 1):
        close(np.concatenate([part[i] for part in parts]), want[i], 1e-5)
    close(parts[0][2], want[2], 1e-5)


def test_no_second_derivative_of_renormalisation(rng):
    x = rng.standard_normal((5, 2))
    _, r = bn.batch_renorm(x, bn.RunningStats.init(2, like=x))
    with pytest.raises(ValueError, match="residuals: expected those of batch_norm, got those of batch_renorm"):
        bn.batch_norm_double_backward(x, None, None, x, r)


# ---- training


def rows_and_weights(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.standard_normal((24, 5))
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 1), counts(rng, 24)


def targets_for(loss: Any, labels: np.ndarray) -> np.ndarray:
    if loss == "cross_entropy":
        return labels
    both = np.stack([labels, labels == 1, labels == 2], axis=1)
    return (both > 0).astype(np.float64) if loss == "binary_cross_entropy" else both.astype(np.float64)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask", "array-api-strict"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_a_weighted_step_is_the_step_with_rows_repeated(rng, name, loss):
    need({"dask": "dask.array", "array-api-strict": "array_api_strict"}.get(name, name))
    backend = bn.backend(name, dtype="float32" if name == "jax" else "float64")
    x, labels, w = rows_and_weights(rng)
    targets, net = targets_for(loss, labels), bn.mlp([5, 7, 3])

    def step(x: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> list[np.ndarray]:
        params, state = net.init(0, backend=backend)
        optimizer = bn.optimizers.sgd(0.5)
        given = None if weights is None else backend.asarray(weights)
        batch = backend.asarray(x), backend.asarray(targets)
        run = backend.compiled(functools.partial(bn.train_step, net, optimizer, loss=loss))
        new = run(params, state, optimizer.init(params), *batch, weights=given)
        return [np.asarray(bn.backends.as_numpy(v)) for v in (*trees.leaves(new[0]), *trees.leaves(new[1])[:2], new[3])]

    for ours, theirs in zip(step(x, targets, w), step(x.repeat(w, 0), targets.repeat(w, 0), None), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5 if name == "jax" else 1e-11, atol=1e-12)


@pytest.mark.parametrize("optimizer", [bn.optimizers.adam(0.01), bn.optimizers.sgd(0.1)])
def test_fitting_full_batches_with_weights_is_fitting_repeated_rows(rng, optimizer):
    backend = bn.backend("numpy", dtype="float64")
    x, labels, w = rows_and_weights(rng)
    net = bn.mlp([5, 7, 3], standardize=True)
    how = {"epochs": 5, "batch_size": 1000, "backend": backend, "precise_bn": True}
    ours = bn.fit(net, optimizer, (x, labels), weights=w, **how)
    theirs = bn.fit(net, optimizer, (x.repeat(w, 0), labels.repeat(w, 0)), **how)
    for a, b in ((ours.params, theirs.params), (ours.state, theirs.state)):
        for name, value in trees.flatten(b).items():
            np.testing.assert_allclose(trees.flatten(a)[name], value, rtol=1e-7, atol=1e-9, err_msg=name)
    for name in ("train_loss", "train_accuracy"):
        assert ours.history[-1][name] == pytest.approx(theirs.history[-1][name], rel=1e-9)
    found = bn.evaluate(net, ours.params, ours.state, (x, labels), weights=w, backend=backend)
    wanted = bn.evaluate(net, ours.params, ours.state, (x.repeat(w, 0), labels.repeat(w, 0)), backend=backend)
    assert found == pytest.approx(wanted, rel=1e-12)


def test_ranks_train_on_weighted_rows_as_one_process_does(rng):
    backend = bn.backend("numpy", dtype="float64")
    x, labels, w = rows_and_weights(rng)
    net, how = bn.mlp([5, 7, 3], standardize=True), {"epochs": 3, "batch_size": 8, "backend": backend}
    alone = bn.fit(net, bn.optimizers.adam(0.01), (x, labels), weights=w, **how)

    def own(communicator):
        rows = slice(0, 10) if communicator.rank == 0 else slice(10, 24)
        return bn.fit(
            net, bn.optimizers.adam(0.01), (x[rows], labels[rows]), weights=w[rows], communicator=communicator, **how
        )

    for fitted in ranks.together(2, own):
        for name, value in trees.flatten(alone.params).items():
            np.testing.assert_allclose(trees.flatten(fitted.params)[name], value, atol=1e-9, err_msg=name)


def test_a_loss_of_ones_own_is_given_the_weights(rng):
    x, labels, w = rows_and_weights(rng)

    def loss(outputs, targets, weights):
        return bn.softmax_cross_entropy(outputs, targets, weights)

    net, how = bn.mlp([5, 7, 3]), {"epochs": 2, "batch_size": 8, "backend": "numpy"}
    ours = bn.fit(net, bn.optimizers.adam(0.01), (x, labels), weights=w, loss=loss, **how)
    theirs = bn.fit(net, bn.optimizers.adam(0.01), (x, labels), weights=w, **how)
    for a, b in zip(trees.leaves(ours.params), trees.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_weights_of_rows_are_refused(rng):
    x, labels, _ = rows_and_weights(rng)
    net = bn.mlp([5, 7, 3])
    for weights, words in (
        (np.ones(5), r"weights: expected numbers of shape \(24,\), one for each row, got float64 \(5,\)"),
        (-np.ones(24), "weights: expected finite numbers of at least 0"),
        (np.zeros(24), "weights: expected at least one above 0"),
        (["a"] * 24, "weights: expected numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            bn.fit(net, bn.optimizers.adam(0.01), (x, labels), weights=weights)
    params, state = net.init(0, backend="numpy")
    optimizer = bn.optimizers.adam(0.01)
    batch = x.astype(np.float32), labels
    with pytest.raises(ValueError, match=r"weights: expected shape \(24,\)"):
        bn.train_step(net, optimizer, params, state, optimizer.init(params), *batch, weights=np.ones(5))


# ---- layers and states


@pytest.mark.parametrize("rows", [2, 8, 9, 11, 12, 13, 33])
def test_virtual_batches_are_batches_of_their_own(rng, rows):
    x, dy = rng.standard_normal((rows, 3)), rng.standard_normal((rows, 3))
    layer = bn.BatchNorm(3, activation="relu", statistics="virtual:4")
    params, state = layer.init(rng, bn.backend("numpy", dtype="float64"))
    params = {"gamma": rng.standard_normal(3), "beta": rng.standard_normal(3)}
    y, new, residuals = layer.forward(params, state, x, bn.Context(True))
    grads, dx = layer.backward(params, residuals, dy, need_dx=True)
    starts = list(range(0, rows, 4))
    starts = starts[:-1] if rows % 4 == 1 and rows > 1 else starts
    running, parts = bn.RunningStats(**state), []
    for a, b in zip(starts, [*starts[1:], rows], strict=True):
        truth = oracles.batch_norm(x[a:b], params["gamma"], params["beta"], dy[a:b], relu=True)
        parts.append(truth)
        running = running.update(bn.moments(x[a:b]))
    np.testing.assert_allclose(y, np.concatenate([p.y for p in parts]), atol=1e-12)
    np.testing.assert_allclose(dx, np.concatenate([p.dx for p in parts]), atol=1e-12)
    np.testing.assert_allclose(grads["gamma"], sum(p.dgamma for p in parts), atol=1e-12)
    np.testing.assert_allclose(new["var"], running.var, rtol=1e-12)
    assert new["batches"] == len(parts)
    inferred, _, _ = layer.forward(params, new, x, bn.Context(False))
    np.testing.assert_allclose(
        inferred, bn.normalize(x, new["mean"], new["var"], **params, activation="relu"), atol=1e-12
    )


def test_virtual_batches_train_and_are_saved(rng):
    x, labels, w = rows_and_weights(rng)
    net = bn.mlp([5, 7, 3]).with_norms(statistics="virtual:4")
    fitted = bn.fit(net, bn.optimizers.adam(0.01), (x, labels), weights=w, epochs=2, batch_size=10)
    bn.save("net.safetensors", net, fitted.params, fitted.state)
    assert bn.load("net.safetensors").net == net
    jax = need("jax")
    step = jax.jit(functools.partial(bn.train_step, net, bn.optimizers.sgd(0.1)))
    params, state = net.init(0, backend="jax")
    step(params, state, {"step": 0}, jax.numpy.asarray(x, "float32"), jax.numpy.asarray(labels))
    for wrong in ("virtual", "virtual:1", "virtual:x", "virtual:-4", "ghost:4", 3, None):
        with pytest.raises(ValueError, match="statistics: expected 'batch', 'running' or 'virtual:32'"):
            bn.BatchNorm(3, statistics=wrong)
    with pytest.raises(ValueError, match="has a bias and feeds a BatchNorm"):
        bn.Sequential((bn.Linear(3, 3), bn.BatchNorm(3, statistics="virtual:4")))


def test_adapting_is_recalibrating_on_both_sets_of_rows(rng):
    backend = bn.backend("numpy", dtype="float64")
    net = bn.Sequential((bn.BatchNorm(4), bn.Linear(4, 6, bias=False), bn.BatchNorm(6, activation="relu")))
    params, state = net.init(0, backend=backend)
    x = rng.standard_normal((50, 4)) * [1, 2, 3, 4] + [5, 0, -3, 1]
    before = bn.recalibrate(net, params, state, x[:30], backend=backend)
    both = bn.recalibrate(net, params, state, x, backend=backend)
    after = bn.adapt(net, params, before, x[30:], prior=30, batch_size=7, backend=backend)
    for part in ("mean", "var"):  # of the first: what the second sees is normalised anew
        np.testing.assert_allclose(after["0"][part], both["0"][part], rtol=1e-12)
    anew = bn.adapt(net, params, before, x[30:], prior=0, backend=backend)
    kept = bn.adapt(net, params, before, x[30:], prior=1e15, backend=backend)
    for name, value in trees.flatten(bn.recalibrate(net, params, state, x[30:], backend=backend)).items():
        np.testing.assert_allclose(trees.flatten(anew)[name], value, rtol=1e-12)
    for name, value in trees.flatten(before).items():
        np.testing.assert_allclose(trees.flatten(kept)[name], value, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="prior: expected"):
        bn.adapt(net, params, before, x, prior=-1)


@pytest.mark.parametrize("estimator", ["population", "batches"])
def test_recalibrating_with_weights_is_recalibrating_repeated_rows(rng, estimator):
    backend = bn.backend("numpy", dtype="float64")
    x, _, w = rows_and_weights(rng)
    net = bn.mlp([5, 7, 6, 3])
    params, state = net.init(0, backend=backend)
    size = 10 if estimator == "population" else 1000
    ours = bn.recalibrate(net, params, state, x, weights=w, batch_size=size, backend=backend, estimator=estimator)
    theirs = bn.recalibrate(net, params, state, x.repeat(w, 0), batch_size=1000, backend=backend, estimator=estimator)
    for name, value in trees.flatten(theirs).items():
        np.testing.assert_allclose(trees.flatten(ours)[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_averaged_parameters(library, rng):
    net = bn.mlp([3, 4, 2])
    sets = [trees.map_leaves(library.asarray, net.init(seed, backend="numpy")[0]) for seed in (0, 1, 2)]
    found = bn.average_params(sets, weights=[1, 2, 5])
    for name, leaf in trees.flatten(found).items():
        columns = [library.host(trees.flatten(p)[name]) for p in sets]
        close(library.host(leaf), np.average(columns, axis=0, weights=[1, 2, 5]), 1e-6)
        assert leaf.dtype == trees.flatten(sets[0])[name].dtype
    for given, weights, words in (
        ([], None, "params: expected at least one"),
        (sets, [1, 2], "weights: expected 3, one for each tree, got 2"),
        (sets, [0, 0, 0], "weights: expected at least one above 0"),
        (sets, [1, -1, 1], "weights: expected"),
        ([sets[0], {}], None, r"params\[1\]: expected"),
        (5, None, "params: expected a list"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            bn.average_params(given, weights=weights)


# ---- other libraries


def test_padding_is_left_out_as_keras_leaves_it_out(rng, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    need("jax")
    keras = pytest.importorskip("keras")
    x, mask = rng.standard_normal((6, 5, 3)).astype(np.float32), rng.random((6, 5)) < 0.6
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3)
    wanted = np.asarray(layer(x, training=True, mask=mask))
    y, r = bn.batch_norm(x, axis=-1, eps=1e-3, weights=mask[:, :, None])
    close(y, wanted, 1e-5)
    biased = bn.RunningStats.init(3, like=x).update(r, momentum=0.1).mean
    close(biased, np.asarray(layer.moving_mean), 1e-5)


def test_averages_over_equal_batches_are_those_of_update_bn(rng):
    torch = need("torch")
    x = rng.standard_normal((64, 5))
    order = bn.data.batches(64, 16, np.random.default_rng(0))
    model = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.BatchNorm1d(7), torch.nn.ReLU()).double()
    torch.optim.swa_utils.update_bn([torch.asarray(x[rows]) for rows in order], model)
    net = bn.Sequential((bn.Linear(5, 7, bias=False), bn.BatchNorm(7, activation="relu")))
    backend = bn.backend("numpy", dtype="float64")
    params, state = net.init(0, backend=backend)
    params["0"]["weight"] = model[0].weight.detach().numpy().T.copy()
    found = bn.recalibrate(net, params, state, x, estimator="batches", batch_size=16, backend=backend)["1"]
    np.testing.assert_allclose(found["mean"], model[1].running_mean.numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["var"], model[1].running_var.numpy(), rtol=1e-12)
