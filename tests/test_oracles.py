"""Other people's samples, automatic differentiation and difference quotients against the formulas."""

from __future__ import annotations

import warnings

import numpy as np
import oracles
import pytest
from libraries import library as make_library
from libraries import need

import bnengine as bn
from bnengine import optimizers, trees
from bnengine.functional import ACTIVATIONS

FLOAT64 = bn.backend("numpy", dtype="float64")
IMPLEMENTATIONS = [None, "plain", "reference"]
"""For NumPy arrays; None is "cpu" where numba is installed."""


# ---- PyTorch's samples of its own operators


def samples(name, dtype):
    torch = need("torch")
    need("expecttest")
    from torch.testing._internal import common_methods_invocations as invocations

    operator = next(info for info in invocations.op_db if info.name == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch, list(operator.sample_inputs("cpu", getattr(torch, dtype), requires_grad=False))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("impl", [*IMPLEMENTATIONS, "torch"])
def test_pytorchs_samples_of_batch_norm(impl, dtype):
    torch, found = samples("nn.functional.batch_norm", dtype)
    seen = 0
    for sample in found:
        x, given = sample.input, [None if a is None else a.clone() for a in sample.args]
        if x.ndim < 2:
            with pytest.raises(ValueError, match="x: expected rank 2 or more"):
                bn.batch_norm(x)
            continue
        leaves = [None if a is None else a.requires_grad_() for a in (x.clone(), *given[2:])]
        running = [None if a is None else a.clone() for a in given[:2]]
        expected = torch.nn.functional.batch_norm(leaves[0], *running, *leaves[1:], **sample.kwargs)
        dy = torch.rand_like(expected) - 0.5
        expected.backward(dy)
        y, gradients = ours(impl, x, dy, *given, sample.kwargs)
        tolerance = 1e-12 if dtype == "float64" else 3e-6
        torch.testing.assert_close(y, expected.detach(), rtol=tolerance, atol=tolerance)
        for own, leaf in zip(gradients, leaves, strict=True):
            if leaf is not None:
                torch.testing.assert_close(
                    own, leaf.grad, rtol=tolerance, atol=tolerance * max(1, leaf.grad.abs().max())
                )
        seen += 1
    assert seen >= 9


def ours(impl, x, dy, mean, var, gamma, beta, options):
    """(y, gradients) of the call that PyTorch's sample is, as its tensors."""
    torch = need("torch")
    convert = (lambda a: a) if impl == "torch" else (lambda a: None if a is None else a.detach().numpy())
    x, dy, mean, var, gamma, beta = (
        None if a is None else convert(a.detach()) for a in (x, dy, mean, var, gamma, beta)
    )
    eps = options.get("eps", 1e-5)
    if options.get("training", False):
        y, residuals = bn.batch_norm(x, gamma, beta, eps=eps, impl=None if impl == "torch" else impl)
        gradients = bn.batch_norm_backward(dy, residuals)
    else:
        y = bn.normalize(x, mean, var, gamma, beta, eps=eps)
        gradients = bn.normalize_backward(dy, x, mean, var, gamma, beta, eps=eps)
    return torch.asarray(y), [None if g is None else torch.asarray(g) for g in gradients]


def test_pytorchs_samples_of_statistics():
    torch, found = samples("native_batch_norm", "float64")
    for sample in found:
        mean, var, gamma, beta, training, momentum, eps = (a.clone() if torch.is_tensor(a) else a for a in sample.args)
        if not training:
            continue
        start = None if mean is None else bn.RunningStats(mean.clone(), var.clone(), 0)
        _, saved_mean, saved_inv_std = torch.native_batch_norm(
            sample.input, gamma, beta, mean, var, training, momentum, eps
        )
        _, residuals = bn.batch_norm(sample.input, gamma, beta, eps=eps)
        torch.testing.assert_close(residuals.mean + residuals.remainder, saved_mean)
        torch.testing.assert_close(1 / torch.sqrt(residuals.var + eps), saved_inv_std)
        if start is not None and 0 <= momentum <= 1:
            updated = start.update(residuals, momentum=momentum)
            torch.testing.assert_close(updated.mean, mean)
            torch.testing.assert_close(updated.var, var)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("nn.functional.mse_loss", bn.mean_squared_error),
        ("nn.functional.binary_cross_entropy_with_logits", bn.binary_cross_entropy),
        ("nn.functional.cross_entropy", bn.softmax_cross_entropy),
    ],
)
def test_pytorchs_samples_of_losses(name, function):
    torch, found = samples(name, "float64")
    theirs, seen = getattr(torch.nn.functional, name.rpartition(".")[2]), 0
    for sample in found:
        x, target = sample.input.clone().requires_grad_(), sample.args[0]
        labels = function is bn.softmax_cross_entropy
        fits = (
            x.ndim == 2 and target.ndim == 1 and not target.is_floating_point() if labels else x.shape == target.shape
        )
        if (
            not fits or x.ndim == 0 or 0 in x.shape or sample.kwargs
        ):  # other forms than ours: weights, sums, classes in the middle
            continue
        expected = theirs(x, target)
        expected.backward()
        loss, gradient = function(x.detach(), target)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, x.grad)
        seen += 1
    assert seen


# ---- ONNX's cases


def onnx_cases():
    need("onnx")
    from onnx.backend.test.case import node

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # cases of other operators overflow while they are collected
        return [case for case in node.collect_testcases("BatchNormalization") if "batchnorm" in case.name]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_onnx_cases_of_batch_normalization(impl):
    cases = onnx_cases()
    for case in cases:
        settings = {attribute.name: attribute.f or attribute.i for attribute in case.model.graph.node[0].attribute}
        eps, momentum = settings.get("epsilon", 1e-5), settings.get("momentum", 0.9)
        for (x, gamma, beta, mean, var), expected in case.data_sets:
            if settings.get("training_mode"):
                y, residuals = bn.batch_norm(x, gamma, beta, eps=eps, impl=impl)
                running = bn.RunningStats(mean, var, 0).update(residuals, momentum=1 - momentum, unbiased=False)
                np.testing.assert_allclose(running.mean, expected[1], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(running.var, expected[2], rtol=1e-5)
            else:
                y = bn.normalize(x, mean, var, gamma, beta, eps=eps)
            np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-5)
    assert len(cases) == 4


def test_onnxs_reference_agrees_on_other_shapes(rng):
    onnx = need("onnx")
    from onnx.reference import ReferenceEvaluator

    info = onnx.helper.make_tensor_value_info
    values = [info(name, onnx.TensorProto.DOUBLE, None) for name in ("x", "gamma", "beta", "mean", "var", "y")]
    node = onnx.helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["y"], epsilon=1e-3)
    graph = onnx.helper.make_graph([node], "one", values[:5], values[5:])
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph))
    for shape in ((5, 3), (2, 3, 7), (2, 3, 4, 5), (1, 3, 2, 2, 2)):
        x, (gamma, beta, mean), var = rng.standard_normal(shape), rng.standard_normal((3, 3)), rng.random(3)
        feeds = {"x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var}
        np.testing.assert_allclose(bn.normalize(x, mean, var, gamma, beta, eps=1e-3), evaluator.run(None, feeds)[0])


# ---- automatic differentiation


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 12), 0), ((4, 3, 5, 2), 1)])
def test_jax_grad_is_ours(rng, shape, axis, activation):
    jax = need("jax")
    with jax.enable_x64(True):
        x, dy = (jax.numpy.asarray(rng.standard_normal(shape)) for _ in range(2))
        gamma, beta, mean = (jax.numpy.asarray(rng.standard_normal(shape[axis])) for _ in range(3))
        var, settings = gamma**2 + 0.1, {"axis": axis, "activation": activation}

        def trained(x, gamma, beta):
            return (bn.batch_norm(x, gamma, beta, **settings)[0] * dy).sum()

        def given(x, gamma, beta):
            return (bn.normalize(x, mean, var, gamma, beta, **settings) * dy).sum()

        own = bn.batch_norm_backward(dy, bn.batch_norm(x, gamma, beta, **settings)[1])
        _close(jax.jit(jax.grad(trained, argnums=(0, 1, 2)))(x, gamma, beta), own)
        own = bn.normalize_backward(dy, x, mean, var, gamma, beta, **settings)
        _close(jax.jit(jax.grad(given, argnums=(0, 1, 2)))(x, gamma, beta), own)


def test_jax_grad_of_a_whole_network_is_ours(rng):
    jax = need("jax")
    with jax.enable_x64(True):
        backend = bn.backend("jax", dtype="float64")
        net = bn.mlp([4, 6, 5, 3], activation="leaky_relu")
        params, state = net.init(0, backend=backend)
        x, labels = backend.asarray(rng.standard_normal((9, 4))), backend.asarray(rng.integers(0, 3, 9))

        def loss(params):
            return bn.softmax_cross_entropy(net.forward(params, state, x, training=True)[0], labels)[0]

        def backward(params):
            output, _, residuals = net.forward(params, state, x, training=True)
            return net.backward(params, residuals, bn.softmax_cross_entropy(output, labels)[1])

        theirs, own = jax.jit(jax.grad(loss))(params), jax.jit(backward)(params)
        _close(trees.leaves(theirs, params), trees.leaves(own, params))


def _close(theirs, own):
    for a, b in zip(theirs, own, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3), 1), ((4, 3, 5), 1)])
def test_torchs_double_backward_is_the_derivative_of_our_backward(rng, shape, axis):
    torch = need("torch")
    values = [rng.standard_normal(s) for s in (shape, shape[axis], shape[axis], shape, shape)]
    x, gamma, beta, dy, v = (torch.asarray(value) for value in values)
    leaves = [a.clone().requires_grad_() for a in (x, gamma, dy)]

    def theirs(x, gamma, dy):
        y = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True)
        return torch.autograd.grad(y, x, dy, create_graph=True)[0]

    def own(x, gamma, dy):
        return bn.batch_norm_backward(dy, bn.batch_norm(x, gamma, beta)[1]).x

    for a, b in zip(*(torch.autograd.grad((f(*leaves) * v).sum(), leaves) for f in (theirs, own)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# ---- difference quotients in float64

LAYERS = {
    "linear": bn.Linear(4, 3),
    "linear without bias": bn.Linear(4, 3, bias=False),
    "batch norm": bn.BatchNorm(4),
    "batch norm, relu": bn.BatchNorm(4, activation="relu"),
    **{name: bn.Activation(name) for name in ACTIVATIONS},
    "standardize": bn.Standardize(4),
    "dropout": bn.Dropout(0.4),
    "residual": bn.Residual((bn.Activation("gelu"), bn.Linear(4, 4))),
    "sequential": bn.Sequential((bn.Activation("tanh"), bn.BatchNorm(4))),
}


def along(function, point, direction, h=1e-6):
    """The derivative of a function of arrays along a direction, by central difference."""
    ahead, behind = ([p + sign * h * d for p, d in zip(point, direction, strict=True)] for sign in (1, -1))
    return (function(*ahead) - function(*behind)) / (2 * h)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_s_gradients_are_derivatives(name, rng):
    layer = LAYERS[name]
    params, state = layer.init(rng, FLOAT64)
    params = trees.map_leaves(lambda p: rng.standard_normal(p.shape), params)
    if name == "standardize":
        state = layer.measure(rng.standard_normal((20, 4)) * [1, 2, 3, 4], FLOAT64)
    x, dy = rng.standard_normal((8, 4)), rng.standard_normal((8, 3 if isinstance(layer, bn.Linear) else 4))
    point = [x, *trees.leaves(params)]
    direction = [rng.standard_normal(p.shape) for p in point]

    def value(x, *leaves):
        context = bn.Context(True, draws=bn.Draws(3, 5))
        return np.sum(dy * layer.forward(trees.rebuild(params, list(leaves)), state, x, context)[0])

    _, _, residuals = layer.forward(params, state, x, bn.Context(True, draws=bn.Draws(3, 5)))
    grads, dx = layer.backward(params, residuals, dy, need_dx=True)
    slope = sum(np.sum(g * d) for g, d in zip([dx, *trees.leaves(grads, params)], direction, strict=True))
    assert slope == pytest.approx(along(value, point, direction), rel=1e-7)
    assert layer.backward(params, residuals, dy, need_dx=False)[0].keys() == grads.keys()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_of_given_statistics_are_derivatives(activation, rng):
    x, dy = rng.standard_normal((2, 9, 3))
    mean, gamma, beta = rng.standard_normal((3, 3))
    var, direction = rng.random(3), [rng.standard_normal(s) for s in ((9, 3), 3, 3)]

    def value(x, gamma, beta):
        return np.sum(dy * bn.normalize(x, mean, var, gamma, beta, activation=activation))

    grads = bn.normalize_backward(dy, x, mean, var, gamma, beta, activation=activation)
    slope = sum(np.sum(g * d) for g, d in zip(grads, direction, strict=True))
    assert slope == pytest.approx(along(value, [x, gamma, beta], direction), rel=1e-7)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_a_loss_s_gradient_is_its_derivative(name, rng):
    from bnengine.functional import LOSSES

    logits, direction = rng.standard_normal((2, 6, 4))
    targets = rng.integers(0, 4, 6) if name == "cross_entropy" else rng.random((6, 4))
    slope = np.sum(LOSSES[name](logits, targets)[1] * direction)
    assert slope == pytest.approx(along(lambda z: LOSSES[name](z, targets)[0], [logits], [direction]), rel=1e-7)


RULES = {
    "sgd": lambda s, g, p, t: 0.1 * g,
    "momentum": lambda s, g, p, t: 0.1 * s.setdefault("v", 0.9 * s.pop("v", 0) + g),
    "nesterov": lambda s, g, p, t: 0.1 * (g + 0.9 * s.setdefault("v", 0.9 * s.pop("v", 0) + g)),
    "rmsprop": lambda s, g, p, t: 0.1 * g / (np.sqrt(s.setdefault("s", 0.99 * s.pop("s", 0) + 0.01 * g * g)) + 1e-8),
    "adam": lambda s, g, p, t: _adam(s, g, t),
    "adamw": lambda s, g, p, t: _adam(s, g, t),
    "nadam": lambda s, g, p, t: _nadam(s, g, t),
    "lion": lambda s, g, p, t: _lion(s, g),
}


def _lion(s, g):
    before = s.pop("m", 0)
    s["m"] = 0.99 * before + 0.01 * g
    return 0.1 * np.sign(0.9 * before + 0.1 * g)


def _nadam(s, g, t):
    """Dozat 2016, algorithm 2, with the momentum of each step mu_t."""
    mu, ahead = 0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)), 0.9 * (1 - 0.5 * 0.96 ** (0.004 * (t + 1)))
    product = s.setdefault("mu", s.pop("mu", 1) * mu)
    m = s.setdefault("m", 0.9 * s.pop("m", 0) + 0.1 * g) / (1 - product * ahead)
    v = s.setdefault("v", 0.999 * s.pop("v", 0) + 0.001 * g * g) / (1 - 0.999**t)
    return 0.1 * (ahead * m + (1 - mu) * g / (1 - product)) / (np.sqrt(v) + 1e-8)


def _adam(s, g, t):
    m = s.setdefault("m", 0.9 * s.pop("m", 0) + 0.1 * g) / (1 - 0.9**t)
    v = s.setdefault("v", 0.999 * s.pop("v", 0) + 0.001 * g * g) / (1 - 0.999**t)
    return 0.1 * m / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("strict", [False, True], ids=["numpy", "array-api-strict"])
@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_s_steps_are_its_formula(name, strict, decay, rng):
    library = make_library("strict" if strict else "numpy")
    p, optimizer = rng.standard_normal((3, 2)), optimizers.BY_NAME[name](0.1, weight_decay=decay)
    params, memory = {"0": {"weight": library.asarray(p.copy())}}, {}
    state = optimizer.init(params)
    for t in range(1, 6):
        g = rng.standard_normal((3, 2))
        params, state = optimizer.update(params, {"0": {"weight": library.asarray(g)}}, state)
        decoupled = name in ("adamw", "lion")
        p = p * (1 - 0.1 * decay) if decoupled else p
        p = p - RULES[name](memory, g if decoupled else g + decay * p, p, t)
        np.testing.assert_allclose(library.host(params["0"]["weight"]), p, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_s_first_step_is_down_the_derivative(name, rng):
    """The loss falls by the derivative along the step, as a difference quotient tells it."""
    net, optimizer = bn.mlp([4, 5, 3]), optimizers.BY_NAME[name](1e-3, weight_decay=0.0)
    params, state = net.init(0, backend=FLOAT64)
    x, labels = rng.standard_normal((10, 4)), rng.integers(0, 3, 10)

    def loss(*leaves):
        output, _, residuals = net.forward(trees.rebuild(params, list(leaves)), state, x, training=True)
        value, doutput = bn.softmax_cross_entropy(output, labels)
        return value, net.backward(params, residuals, doutput)

    before = [leaf.copy() for leaf in trees.leaves(params)]
    grads = loss(*before)[1]
    after = trees.leaves(optimizer.update(trees.copied(params), grads, optimizer.init(params))[0], params)
    step = [b - a for a, b in zip(before, after, strict=True)]
    slope = sum(np.sum(g * d) for g, d in zip(trees.leaves(grads, params), step, strict=True))
    assert slope < 0
    assert slope == pytest.approx(along(lambda *p: loss(*p)[0], before, step, h=1e-2), rel=1e-3)


# ---- the numerical promises on every path


@pytest.mark.parametrize("case", oracles.CASES)
@pytest.mark.parametrize("path", [*IMPLEMENTATIONS, "strict-no_float64"])
@pytest.mark.parametrize(("shape", "axis"), [((400, 3), 1), ((3, 400), 0), ((20, 3, 5, 4), 1), ((20, 5, 4, 3), -1)])
def test_the_promises_hold_on_every_implementation_and_axis(path, case, shape, axis, rng):
    """1e-6 of the largest |y|, and of the largest |gamma dy| / std, for float32 at any ratio, order and size."""
    impl, library = (path, make_library("numpy")) if path in IMPLEMENTATIONS else (None, make_library(path))
    x = np.moveaxis(oracles.CASES[case](rng.standard_normal((400, 3))).T.reshape(3, *_without(shape, axis)), 0, axis)
    x, dy = x.astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    gamma, beta = rng.standard_normal((2, 3)).astype(np.float32)
    truth = oracles.batch_norm(x, gamma, beta, dy, axis=axis)
    to, host = library.asarray, library.host
    y, residuals = bn.batch_norm(to(x), to(gamma), to(beta), axis=axis, impl=impl)
    dx = host(bn.batch_norm_backward(to(dy), residuals).x)
    assert np.abs(host(y) - truth.y).max() <= 1e-6 * np.abs(truth.y).max()
    assert np.abs(dx - truth.dx).max() <= 1e-6 * truth.scale


def _without(shape, axis):
    return tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
