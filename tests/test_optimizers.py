from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from libraries import need

from bnengine import optimizers, trees

PAIRS = {
    "sgd": (lambda **k: optimizers.sgd(0.1, **k), lambda t, p, **k: t.SGD(p, lr=0.1, **k)),
    "momentum": (
        lambda **k: optimizers.momentum(0.1, momentum=0.8, **k),
        lambda t, p, **k: t.SGD(p, lr=0.1, momentum=0.8, **k),
    ),
    "nesterov": (
        lambda **k: optimizers.nesterov(0.1, **k),
        lambda t, p, **k: t.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **k),
    ),
    "rmsprop": (lambda **k: optimizers.rmsprop(0.01, **k), lambda t, p, **k: t.RMSprop(p, lr=0.01, **k)),
    "adam": (lambda **k: optimizers.adam(0.01, **k), lambda t, p, **k: t.Adam(p, lr=0.01, **k)),
    "adamw": (lambda **k: optimizers.adamw(0.01, **k), lambda t, p, **k: t.AdamW(p, lr=0.01, **k)),
}


def tree_of(rng):
    return {
        "0": {"weight": rng.standard_normal((4, 3))},
        "1": {"gamma": rng.standard_normal(3), "beta": rng.standard_normal(3)},
        "2": {"weight": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)},
    }


@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.1])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_pytorchs(rng, name, weight_decay, clip):
    torch = need("torch")
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    ours, theirs = PAIRS[name]
    optimizer, params = ours(decayed=None, clip=clip, **decay), tree_of(rng)
    leaves = [torch.asarray(p.copy()).requires_grad_() for p in trees.leaves(params)]
    peer, state = theirs(torch.optim, leaves, **decay), optimizer.init(params)
    for _ in range(25):
        grads = tree_of(rng)
        for leaf, gradient in zip(leaves, trees.leaves(grads), strict=True):
            leaf.grad = torch.asarray(gradient.copy())
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves, clip)
        peer.step()
        params, state = optimizer.update(params, grads, state)
        for p, leaf in zip(trees.leaves(params), leaves, strict=True):
            np.testing.assert_allclose(p, leaf.detach().numpy(), rtol=1e-12, atol=1e-13)
    assert state["step"] == 25


def test_defaults_are_pytorchs():
    torch = need("torch").optim
    p = [need("torch").zeros(1, requires_grad=True)]
    for name, ours in optimizers.BY_NAME.items():
        theirs = {"momentum": torch.SGD, "nesterov": torch.SGD, "sgd": torch.SGD, "rmsprop": torch.RMSprop}.get(
            name, torch.AdamW if name == "adamw" else torch.Adam
        )(p).defaults
        options = dict(ours().options)
        assert ours().learning_rate == theirs["lr"]
        assert ours().weight_decay == theirs["weight_decay"]
        assert options.get("eps", theirs.get("eps")) == theirs.get("eps")
        assert options.get("decay", theirs.get("alpha")) == theirs.get("alpha")
        if "beta1" in options:
            assert (options["beta1"], options["beta2"]) == tuple(theirs["betas"])


def test_only_weights_decay_by_default(rng):
    params = tree_of(rng)
    zero = trees.map_leaves(np.zeros_like, params)
    before = trees.flatten(trees.copied(params))
    for factory in optimizers.BY_NAME.values():
        optimizer = factory(0.1, weight_decay=0.1)
        after = trees.flatten(optimizer.update(trees.copied(params), zero, optimizer.init(params))[0])
        for name, leaf in after.items():
            assert np.array_equal(leaf, before[name]) == (not name.endswith("weight")), name


def test_gradients_are_left_alone_and_trees_paired_by_key(rng):
    params, grads = tree_of(rng), tree_of(rng)
    shuffled = {key: dict(reversed(list(grads[key].items()))) for key in reversed(grads)}
    before = trees.copied(grads)
    for factory in optimizers.BY_NAME.values():
        optimizer = factory(0.1)
        one, _ = optimizer.update(trees.copied(params), grads, optimizer.init(params))
        two, _ = optimizer.update(trees.copied(params), shuffled, optimizer.init(params))
        for a, b in zip(trees.leaves(one), trees.leaves(two, one), strict=True):
            np.testing.assert_array_equal(a, b)
    for now, then in zip(trees.leaves(grads), trees.leaves(before), strict=True):
        np.testing.assert_array_equal(now, then)


def test_updates_on_every_library(library, rng):
    """Three steps of each rule on every library give NumPy's numbers, in the same library and dtype."""
    host_params, host_grads = (trees.map_leaves(lambda p: p.astype(np.float32), tree_of(rng)) for _ in range(2))
    for factory in optimizers.BY_NAME.values():
        optimizer = factory(0.01, weight_decay=0.1, clip=1.0)
        expected, expected_state = trees.copied(host_params), optimizer.init(host_params)
        params = trees.map_leaves(lambda p: library.asarray(p.copy()), host_params)
        grads, state = trees.map_leaves(library.asarray, host_grads), optimizer.init(params)
        for _ in range(3):
            params, state = optimizer.update(params, grads, state)
            expected, expected_state = optimizer.update(expected, host_grads, expected_state)
        for p, q in zip(trees.leaves(params), trees.leaves(expected), strict=True):
            assert library.host(p).dtype == np.float32
            np.testing.assert_allclose(library.host(p), q, rtol=1e-5, atol=1e-6)


def test_schedules():
    cosine = optimizers.cosine(2.0, steps=10, final=0.5)
    for step in range(11):
        assert cosine(step) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi * step / 10)) / 2)
    assert cosine(1000) == pytest.approx(0.5)
    steps = optimizers.step_decay(1.0, at=(2, 4))
    assert [steps(i) for i in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = optimizers.warm_up(cosine, steps=5)
    assert warm(0) == pytest.approx(cosine(0) / 5)
    assert warm(7) == cosine(7)


def test_schedules_can_be_pickled():
    schedule = optimizers.warm_up(optimizers.cosine(1.0, steps=9), steps=3)
    copy = pickle.loads(pickle.dumps(optimizers.adam(schedule)))
    assert [copy.rate(step) for step in range(9)] == [schedule(step) for step in range(9)]


def test_schedules_are_followed(rng):
    params, grads = tree_of(rng), trees.map_leaves(np.ones_like, tree_of(rng))
    optimizer = optimizers.sgd(optimizers.step_decay(1.0, at=(2,), factor=0.25))
    state, before = optimizer.init(params), params["1"]["gamma"].copy()
    for _ in range(4):
        params, state = optimizer.update(params, grads, state)
    np.testing.assert_allclose(params["1"]["gamma"], before - 2.5)


def test_schedules_under_jit(rng):
    jax = need("jax")
    params = trees.map_leaves(lambda p: jax.numpy.asarray(p, dtype="float32"), tree_of(rng))
    schedules = [
        optimizers.cosine(0.1, steps=4),
        optimizers.step_decay(0.1, at=(2,)),
        optimizers.warm_up(0.1, steps=3),
    ]
    for schedule in schedules:
        optimizer = optimizers.adam(schedule)
        eager, compiled = (params, optimizer.init(params)), (params, optimizer.init(params))
        update = jax.jit(optimizer.update)
        for _ in range(5):
            eager, compiled = optimizer.update(eager[0], params, eager[1]), update(compiled[0], params, compiled[1])
        for a, b in zip(trees.leaves(eager[0]), trees.leaves(compiled[0], eager[0]), strict=True):
            assert b.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


REFUSED = [
    (lambda: optimizers.sgd(-1), "learning_rate: expected a finite number of at least 0, got -1"),
    (lambda: optimizers.sgd("fast"), "learning_rate: expected a finite number of at least 0, got 'fast'"),
    (lambda: optimizers.adam(float("inf")), "learning_rate: expected a finite number of at least 0, got inf"),
    (lambda: optimizers.cosine(-1.0, steps=3), "rate: expected a finite number of at least 0, got -1.0"),
    (lambda: optimizers.adam(beta1=1.0), r"beta1: expected a number in \[0, 1\), got 1.0"),
    (lambda: optimizers.momentum(momentum=-0.1), r"momentum: expected a number in \[0, 1\), got -0.1"),
    (lambda: optimizers.rmsprop(eps=-1), "eps: expected a number of at least 0, got -1"),
    (lambda: optimizers.sgd(weight_decay=-1), "weight_decay: expected a number of at least 0, got -1"),
    (lambda: optimizers.sgd(clip=0), "clip: expected None or a positive number, got 0"),
    (lambda: optimizers.cosine(1.0, steps=0), "steps: expected a number of at least 1, got 0"),
]


@pytest.mark.parametrize(
    ("grads", "largest", "message"),
    [
        ([np.ones(2)], 0, "largest: expected a positive number, got 0"),
        ([np.ones(2)], math.inf, "largest: expected a positive number, got inf"),
        ([], 1.0, "grads: expected a list of arrays, got"),
        ([3], 1.0, "grads: expected a list of arrays, got"),
    ],
)
def test_clipping_of_something_else_is_refused(grads, largest, message):
    with pytest.raises((TypeError, ValueError), match=message):
        optimizers.clip_by_norm(grads, largest)


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_tree_of_something_else_is_refused(rng):
    params = tree_of(rng)
    optimizer = optimizers.adam()
    with pytest.raises(ValueError, match="grads: expected a tree with the keys 0, 1, 2 of the parameters, got 0"):
        optimizer.update(params, {"0": params["0"]}, optimizer.init(params))


@pytest.mark.parametrize("name", optimizers.BY_NAME)
def test_leaves_of_another_shape_are_refused(name, rng):
    """Compiled loops run over the parameter: of a shorter gradient they would read, and of a slot write, beyond its end."""
    optimizer, params = optimizers.BY_NAME[name](), tree_of(rng)
    for shape in ((), (1,), (2,), (3, 1)):
        grads, state = tree_of(rng), optimizer.init(params)
        grads["1"]["beta"] = np.ones(shape)
        with pytest.raises(ValueError, match=r"grads: expected shape \(3,\) like the parameter, got an array of shape"):
            optimizer.update(params, grads, state)
        for slot in optimizer.slots:
            state = optimizer.init(params)
            state[slot]["1"]["beta"] = np.ones(shape)
            with pytest.raises(ValueError, match=r"state: expected shape \(3,\) like the parameter"):
                optimizer.update(params, tree_of(rng), state)
    with pytest.raises(ValueError, match="state: expected step"):
        optimizer.update(params, tree_of(rng), {"steps": 0})
