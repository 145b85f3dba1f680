from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from libraries import library as make_library
from libraries import need
from test_docs import ROOT, blocks

import bnengine as bn
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
    "nadam": (lambda **k: optimizers.nadam(0.01, **k), lambda t, p, **k: t.NAdam(p, lr=0.01, **k)),
    "dampened momentum": (
        lambda **k: optimizers.momentum(0.1, dampening=0.3, **k),
        lambda t, p, **k: t.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, **k),
    ),
    "centered rmsprop": (
        lambda **k: optimizers.rmsprop(0.01, centered=True, **k),
        lambda t, p, **k: t.RMSprop(p, lr=0.01, centered=True, **k),
    ),
    "rmsprop with momentum": (
        lambda **k: optimizers.rmsprop(0.01, momentum=0.7, **k),
        lambda t, p, **k: t.RMSprop(p, lr=0.01, momentum=0.7, **k),
    ),
    "centered rmsprop with momentum": (
        lambda **k: optimizers.rmsprop(0.01, centered=True, momentum=0.7, **k),
        lambda t, p, **k: t.RMSprop(p, lr=0.01, centered=True, momentum=0.7, **k),
    ),
    "adam with amsgrad": (
        lambda **k: optimizers.adam(0.01, beta2=0.5, amsgrad=True, **k),
        lambda t, p, **k: t.Adam(p, lr=0.01, betas=(0.9, 0.5), amsgrad=True, **k),
    ),
    "adamw with amsgrad": (
        lambda **k: optimizers.adamw(0.01, beta2=0.5, amsgrad=True, **k),
        lambda t, p, **k: t.AdamW(p, lr=0.01, betas=(0.9, 0.5), amsgrad=True, **k),
    ),
}
"""Ours and PyTorch's."""

EVERY = {name: ours for name, (ours, _) in PAIRS.items()} | {"lion": lambda **k: optimizers.lion(0.01, **k)}


def tree_of(rng):
    return {
        "0": {"weight": rng.standard_normal((4, 3))},
        "1": {"gamma": rng.standard_normal(3), "beta": rng.standard_normal(3)},
        "2": {"weight": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)},
    }


@pytest.mark.parametrize("weight_decay", [None, 0.0, 0.1])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", PAIRS)
def test_steps_are_pytorchs(rng, name, weight_decay, clip, monkeypatch):
    torch = need("torch")
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    ours, theirs = PAIRS[name]
    optimizer, params = ours(decayed=None, clip=clip, **decay), tree_of(rng)
    leaves = [torch.asarray(p.copy()).requires_grad_() for p in trees.leaves(params)]
    peer, state = theirs(torch.optim, leaves, **decay), optimizer.init(params)
    monkeypatch.setattr(need("torch.optim.nadam"), "_get_scalar_dtype", lambda *_: torch.float64)  # its product of mu
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
    classes = {"momentum": torch.SGD, "nesterov": torch.SGD, "sgd": torch.SGD, "rmsprop": torch.RMSprop}
    classes |= {"adam": torch.Adam, "adamw": torch.AdamW, "nadam": torch.NAdam}
    for name, kind in classes.items():
        ours, theirs = optimizers.BY_NAME[name], kind(p).defaults
        options = dict(ours().options)
        assert ours().learning_rate == theirs["lr"]
        assert ours().weight_decay == theirs["weight_decay"]
        assert options.get("eps", theirs.get("eps")) == theirs.get("eps")
        assert options.get("decay", theirs.get("alpha")) == theirs.get("alpha")
        assert options.get("momentum_decay") == theirs.get("momentum_decay")
        if "beta1" in options:
            assert (options["beta1"], options["beta2"]) == tuple(theirs["betas"])


def test_lion_is_that_of_its_paper(rng):
    """Program 1 of Chen et al. 2023 (arXiv:2302.06675), written out for one array; and its defaults."""
    assert optimizers.lion() == optimizers.lion(1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0)
    optimizer, w, m = optimizers.lion(0.01, beta1=0.8, beta2=0.7, weight_decay=0.1), rng.standard_normal((4, 3)), 0
    params = {"0": {"weight": w.copy()}}
    state = optimizer.init(params)
    for _ in range(25):
        g = rng.standard_normal(w.shape)
        update = np.sign(m * 0.8 + g * (1 - 0.8))
        m = m * 0.7 + g * (1 - 0.7)
        w = w - 0.01 * (update + w * 0.1)
        params, state = optimizer.update(params, {"0": {"weight": g}}, state)
        np.testing.assert_allclose(params["0"]["weight"], w, rtol=1e-13)
    np.testing.assert_allclose(state["first"]["0"]["weight"], m, rtol=1e-13)


@pytest.mark.parametrize("momentum_decay", [0.0, 4e-3, 10.0])
@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.9999])
def test_nadams_product_is_the_running_one(beta1, momentum_decay):
    """Against the recursion, over 3000 steps; some of them traced, in float32."""
    jax = need("jax")
    rule = optimizers.nadam(beta1=beta1, momentum_decay=momentum_decay).rule
    options = {"rate": 1.0, "beta1": beta1, "beta2": 0.9, "eps": 0.0, "momentum_decay": momentum_decay}
    traced = jax.jit(lambda step: rule.scalars(step, **options))
    product = 1.0
    for t in range(1, 3001):
        mu, ahead = (beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
        product *= mu
        want = {"by_gradient": (1 - mu) / (1 - product), "by_first": ahead / (1 - product * ahead)}
        got = rule.scalars(t - 1, **options)
        assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-12)
        if t in (1, 2, 3, 10, 100, 1000, 3000):
            found = traced(t - 1)
            assert {name: float(found[name]) for name in want} == pytest.approx(
                want, rel=1e-5
            )  # of 1 - 0.99 in float32


@pytest.mark.parametrize("name", EVERY)
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(name, rng, tmp_path):
    net, optimizer = bn.mlp([4, 3, 2]), EVERY[name]()
    params, state = net.init(0, backend="numpy")
    gradients = [trees.map_leaves(lambda p: rng.standard_normal(p.shape).astype(p.dtype), params) for _ in range(8)]
    whole, whole_state = trees.copied(params), optimizer.init(params)
    for i, grads in enumerate(gradients):
        if i == 4:
            bn.save(tmp_path / "part", net, whole, state, opt_state=whole_state)
        whole, whole_state = optimizer.update(whole, grads, whole_state)
    loaded = bn.load(tmp_path / "part")
    part, part_state = loaded.params, loaded.opt_state
    for grads in gradients[4:]:
        part, part_state = optimizer.update(part, grads, part_state)
    for a, b in zip(
        [*trees.leaves(whole), *trees.leaves(whole_state)],
        [*trees.leaves(part, whole), *trees.leaves(part_state, whole_state)],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", EVERY)
def test_updates_under_jit(name, rng):
    jax = need("jax")
    params = trees.map_leaves(lambda p: jax.numpy.asarray(p, dtype="float32"), tree_of(rng))
    optimizer = EVERY[name](weight_decay=0.1)
    eager, compiled = (params, optimizer.init(params)), (params, optimizer.init(params))
    update = jax.jit(optimizer.update)
    for _ in range(5):
        grads = trees.map_leaves(lambda p: jax.numpy.asarray(rng.standard_normal(p.shape), dtype="float32"), params)
        eager, compiled = optimizer.update(eager[0], grads, eager[1]), update(compiled[0], grads, compiled[1])
    for a, b in zip(trees.leaves(eager[0]), trees.leaves(compiled[0], eager[0]), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_traced_scalars_widen_nothing(name):
    jax = need("jax")
    optimizer, params = EVERY[name](weight_decay=0.1), {"0": {"weight": jax.numpy.ones((2, 2), "float16")}}
    new, state = jax.jit(optimizer.update)(params, params, optimizer.init(params))
    assert {leaf.dtype.name for leaf in trees.leaves(new) + trees.leaves({**state, "step": new})} == {"float16"}


@pytest.mark.parametrize("name", EVERY)
def test_optimizers_can_be_pickled_compared_and_hashed(name):
    optimizer = EVERY[name](weight_decay=0.1)
    copy = pickle.loads(pickle.dumps(optimizer))
    assert (copy, hash(copy)) == (optimizer, hash(optimizer))
    assert copy != EVERY[name](weight_decay=0.2)


def test_a_rule_of_ones_own_is_not_taken_for_a_fast_one():
    rule = optimizers.Rule("adam", ("first", "second"), lambda p, g, m, v, *, rate: (p - rate, m, v))
    optimizer, params = bn.Optimizer(rule, 0.5), {"0": {"weight": np.ones(2)}}
    params, state = optimizer.update(params, {"0": {"weight": np.ones(2)}}, optimizer.init(params))
    np.testing.assert_array_equal(params["0"]["weight"], 0.5)
    assert list(state) == ["step", "first", "second"]


def test_frozen_layers_are_left_out(rng):
    """As if they were not there, also for the norm to which gradients are clipped and under jax.jit's sorted keys."""
    params = {"10": {"weight": rng.standard_normal(3)}, "2": {"0": {"gamma": np.ones(2)}, "1": {"bias": np.zeros(2)}}}
    grads = trees.map_leaves(lambda leaf: rng.standard_normal(leaf.shape), params)
    optimizer = bn.optimizers.adam(bn.optimizers.cosine(0.1, steps=9), clip=0.1)
    frozen = bn.optimizers.freeze(optimizer, ("10", "2.1"))
    alone, alone_grads = ({"2": {"0": tree["2"]["0"]}} for tree in (trees.copied(params), grads))
    expected, state = optimizer.update(alone, alone_grads, optimizer.init(alone))
    new, own = frozen.update(trees.copied(params), dict(sorted(grads.items())), frozen.init(params))
    np.testing.assert_array_equal(new["2"]["0"]["gamma"], expected["2"]["0"]["gamma"])
    assert (list(new), own.keys(), frozen.rate(3)) == (["10", "2"], state.keys(), optimizer.rate(3))
    for name in ("10.weight", "2.1.bias"):
        np.testing.assert_array_equal(trees.flatten(new)[name], trees.flatten(params)[name])
    for layers, message in ((("1",), "got '1'"), (("10", "2"), "got all layers")):
        with pytest.raises(ValueError, match=message):
            bn.optimizers.freeze(optimizer, layers).init(params)


def test_what_is_like_an_optimizer():
    class Still:
        def init(self, params):
            return {"step": 0}

        def update(self, params, grads, state):
            return params, {"step": state["step"] + 1}

    assert isinstance(Still(), optimizers.OptimizerLike)
    assert isinstance(optimizers.adam(), optimizers.OptimizerLike)
    assert not isinstance(optimizers.adam, optimizers.OptimizerLike)
    assert not isinstance("adam", optimizers.OptimizerLike)


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_rates_of_numpy_widen_nothing(module):
    xp = need(module)
    for rate in (np.float64(0.1), lambda step: np.float64(0.1)):
        optimizer, params = optimizers.rmsprop(rate), {"0": {"weight": xp.ones((2, 2), dtype=xp.float32)}}
        new, _ = optimizer.update(params, params, optimizer.init(params))
        assert new["0"]["weight"].dtype == xp.float32


RECIPES = [block for block in blocks(ROOT / "docs" / "conventions.md") if "optimizers" in block]


@pytest.mark.parametrize("name", ["averaged", "keras_adam", "keras_rmsprop"])
def test_recipes_of_the_conventions_give_the_other_librarys_steps(name, rng):
    """The page's own code against the formulas of those libraries, for rate 0.1 and the eps of the page."""
    namespace: dict = {}
    for block in RECIPES:
        exec(block, namespace)
    optimizer, p, v, m = namespace[name], rng.standard_normal((3, 2)), 0, 0
    params = {"0": {"weight": p.copy()}}
    state = optimizer.init(params)
    for t in range(1, 11):
        g = rng.standard_normal((3, 2)) * 1e-3
        if name == "averaged":
            v = 0.9 * v + (1 - 0.9) * g
            p = p - 0.1 * v
        elif name == "keras_adam":
            m, v = m + (g - m) * (1 - 0.9), v + (g * g - v) * (1 - 0.999)
            p = p - 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-4)
        else:
            v = 0.9 * v + (1 - 0.9) * g * g
            p = p - 0.1 * g / np.sqrt(v + 1e-4)
        params, state = optimizer.update(params, {"0": {"weight": g}}, state)
        np.testing.assert_allclose(params["0"]["weight"], p, rtol=1e-12)


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
    for ours in EVERY.values():
        optimizer = ours(weight_decay=0.1, clip=1.0)
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


def test_more_steps_than_an_int32_counts():
    """10**10 of them, as in optax' own test of cosine."""
    jax = need("jax")
    schedules = {
        optimizers.cosine(1000.0, steps=10**10): 500 * (1 + math.cos(math.pi / 10)),
        optimizers.warm_up(1000.0, steps=10**10): 100.0,
        optimizers.step_decay(1000.0, at=[10**9, 10**10]): 100.0,
    }
    for schedule, expected in schedules.items():
        assert schedule(10**9) == pytest.approx(expected, rel=1e-8)
        assert float(jax.jit(pickle.loads(pickle.dumps(schedule)))(10**9)) == pytest.approx(expected, rel=1e-6)


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
    (lambda: optimizers.lion(beta2=1), r"beta2: expected a number in \[0, 1\), got 1"),
    (lambda: optimizers.nadam(momentum_decay=-1), "momentum_decay: expected a number of at least 0, got -1"),
    (lambda: optimizers.momentum(dampening=2), r"dampening: expected a number in \[0, 1\], got 2"),
    (lambda: optimizers.rmsprop(momentum=1), r"momentum: expected a number in \[0, 1\), got 1"),
    (lambda: optimizers.rmsprop(decay=2), r"decay: expected a number in \[0, 1\), got 2"),
    (lambda: optimizers.nesterov(momentum=2), r"momentum: expected a number in \[0, 1\), got 2"),
    (lambda: optimizers.rmsprop(centered=1), "centered: expected a bool, got 1"),
    (lambda: optimizers.adamw(amsgrad=None), "amsgrad: expected a bool, got None"),
    (lambda: optimizers.Optimizer("sgd", 0.1), "rule: expected a Rule, got 'sgd'"),
    (lambda: optimizers.cosine(1.0, steps=0), "steps: expected a number of at least 1, got 0"),
]


CLIPPED = {
    "float16": ([np.full(4, 300, np.float16)], "float16", 1e-3),
    "small float16": ([np.full(4, 1e-4, np.float16), np.ones(2, np.float16)], "float16", 1e-3),
    "no clipping": ([np.full(4, 0.1), np.zeros(2)], "float32", 1e-6),
    "NaN": ([np.array([np.nan, 1.0]), np.array([1e30])], "float64", 0),
    "infinity": ([np.array([np.inf, 1.0]), np.array([2.0])], "float64", 0),
}


@pytest.mark.parametrize("case", CLIPPED)
@pytest.mark.parametrize("name", ["numpy", "strict", "torch", "jax", "dask"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in:RuntimeWarning")
def test_clipping_is_pytorchs(name, case):
    torch, library, (grads, dtype, rtol) = need("torch"), make_library(name), CLIPPED[case]
    dtype = "float32" if (name, dtype) in (("jax", "float64"), ("strict", "float16")) else dtype
    grads = [g.astype(dtype) for g in grads]
    leaves = [torch.zeros(g.shape, dtype=getattr(torch, dtype), requires_grad=True) for g in grads]
    for leaf, g in zip(leaves, grads, strict=True):
        leaf.grad = torch.asarray(g.copy())
    torch.nn.utils.clip_grad_norm_(leaves, 0.5)
    for ours, leaf in zip(optimizers.clip_by_norm([library.asarray(g) for g in grads], 0.5), leaves, strict=True):
        assert library.host(ours).dtype == dtype
        np.testing.assert_allclose(library.host(ours), leaf.grad.numpy(), rtol=rtol)


@pytest.mark.parametrize(
    "leaf",
    [np.ones(2, complex), np.ones(2, object), np.ma.masked_array(np.ones(2)), np.ones(2, int)],
    ids=["complex", "object", "masked", "int"],
)
@pytest.mark.parametrize("name", optimizers.BY_NAME)
def test_leaves_that_are_not_floating_are_refused(name, leaf):
    optimizer, params, wrong = optimizers.BY_NAME[name](), {"0": {"weight": np.ones(2)}}, {"0": {"weight": leaf}}
    with pytest.raises(TypeError, match="params: expected"):
        optimizer.init(wrong)
    state = optimizer.init(params)
    with pytest.raises(TypeError, match="params: expected"):
        optimizer.update(wrong, params, state)
    with pytest.raises(TypeError, match="grads: expected"):
        optimizer.update(params, wrong, state)
    with pytest.raises(TypeError, match="grads: expected"):
        optimizers.clip_by_norm([leaf], 1.0)
    for slot in optimizer.slots:
        with pytest.raises(TypeError, match="state: expected"):
            optimizer.update(params, params, {**state, slot: wrong})


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
    with pytest.raises((TypeError, ValueError), match=message):
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


def test_an_optimizer_prints_as_it_is_made():
    made = bn.optimizers.adamw(bn.optimizers.warm_up(bn.optimizers.cosine(0.1, steps=9), steps=2), clip=1.0)
    words = "adamw(warm_up(cosine(0.1, 9, 0.0), 2), beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0.01, clip=1.0)"
    assert repr(made) == words
    assert repr(bn.optimizers.sgd(0.5)) == "sgd(0.5)"
    assert repr(bn.optimizers.sgd(weight_decay=0.1, decayed=None)) == "sgd(0.001, weight_decay=0.1, decayed=None)"
