"""Steps that are recorded and replayed: the bits of `train_step`, whatever comes between two steps."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import kernels, optimizers, recording, trees
from bnengine.recording import UnrecordableError
from bnengine.training import fitting, replaying
from bnengine.training.replaying import Recorded

SIZES = [20, 24, 24, 5]
NET = bn.mlp(SIZES)
ADAM = optimizers.adam(1e-2)


def batches(count=12, rows=32, seed=1, classes=5):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((rows, SIZES[0]), np.float32), rng.integers(0, classes, rows)) for _ in range(count)]


def bits(trees_, loss=None):
    """Every array and count by name, as bytes."""
    found = {f"{i}.{name}": leaf for i, tree in enumerate(trees_) for name, leaf in trees.flatten(tree).items()}
    return {name: (type(leaf), np.asarray(leaf).tobytes()) for name, leaf in (found | {"loss": loss}).items()}


def begun(net, optimizer, dtype="float32"):
    params, state = net.init(0, backend=bn.backend("numpy", dtype=dtype))
    return params, state, optimizer.init(params)


def run(step, net, optimizer, rows, between=None, dtype="float32"):
    """What was seen after each step, all bits."""
    now, seen = begun(net, optimizer, dtype), []
    for i, batch in enumerate(rows):
        now = between(i, *now) if between else now
        *now, loss = step(*now, *batch)
        seen.append(bits(now, loss))
    return seen


def compare(net=NET, optimizer=ADAM, rows=None, between=None, dtype="float32", **settings):
    """The compiled step, having given the bits of the ordinary one at every step."""
    rows = batches() if rows is None else rows
    step = bn.compiled(net, optimizer, **settings)
    ordinary = run(step.ordinary(), net, optimizer, rows, between, dtype)
    found = run(step, net, optimizer, rows, between, dtype)
    for i, (own, other) in enumerate(zip(found, ordinary, strict=True)):
        wrong = [name for name, value in other.items() if own[name] != value]
        assert not wrong, f"step {i}: {wrong}"
    return step


# ---- the same bits


@pytest.mark.parametrize(
    "optimizer",
    [
        *[make(1e-2) for make in optimizers.BY_NAME.values()],
        optimizers.adam(optimizers.cosine(1e-2, steps=9)),
        optimizers.momentum(optimizers.warm_up(0.1, steps=7), dampening=0.1),
        optimizers.sgd(optimizers.step_decay(0.1, at=[4, 8])),
        optimizers.adamw(optimizers.cosine(1e-2, steps=9), weight_decay=0.1),
        optimizers.nesterov(0.05, weight_decay=0.01, decayed=None),
        optimizers.adam(1e-2, clip=0.5),
        optimizers.adam(1e-2, amsgrad=True),
        optimizers.rmsprop(1e-2, centered=True, momentum=0.5),
        optimizers.freeze(optimizers.adam(1e-2), ("0", "1")),
    ],
    ids=repr,
)
def test_every_optimizer(optimizer):
    step = compare(optimizer=optimizer)
    assert step.recorded
    assert step.why_not is None


@pytest.mark.parametrize("name", sorted(bn.functional.ACTIVATIONS))
def test_every_activation(name):
    assert compare(bn.mlp(SIZES, activation=name)).recorded


@pytest.mark.parametrize(
    "net",
    [
        bn.mlp(SIZES, norm=None),
        bn.mlp(SIZES, standardize=True),
        bn.mlp(SIZES, norm_position="post"),
        bn.mlp(SIZES, dropout=0.3),
        bn.mlp(SIZES, dropout=0.1, residual=True),
        NET.with_norms(momentum=None),
        NET.with_norms(statistics="running"),
        NET.with_norms(statistics="virtual:8"),
        bn.Sequential((bn.Linear(20, 5),)),
    ],
    ids=str,
)
@pytest.mark.parametrize("fast", ["cpu", "plain"])
def test_every_kind_of_network(net, fast, monkeypatch):
    monkeypatch.setattr(kernels, "_fast", lambda kind: kernels.load(fast))
    assert compare(net, seed=3).recorded


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_every_loss(loss, dtype):
    rows = [(x.astype(dtype), (x[:, :5] > 0).astype(dtype)) for x, _ in batches()]
    assert compare(rows=rows, loss=loss, dtype=dtype).recorded


def test_layers_so_large_that_threads_share_them():
    need("numba")
    net = bn.mlp([20, 1100, 5])
    assert compare(net, rows=batches(4, rows=500)).recorded


def test_steps_that_are_not_finite_are_left_out():
    rows = batches()
    rows[5][0][3, 4] = np.nan
    rows[8][0][...] = 1e30
    with np.errstate(all="ignore"):
        assert compare(bn.mlp(SIZES, norm=None), rows=rows, on_nonfinite="skip").recorded


# ---- batches


def test_a_shape_is_recorded_when_it_comes_again():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for number, recorded in enumerate([False, False, True, True]):
        *now, _ = step(*now, *batches()[number])
        assert step.recorded is recorded
    *now, _ = step(*now, *batches(rows=7)[0])
    shapes = step.__dict__["_step"]._home.shapes.values()
    assert [shape.replay is not None for shape in shapes] == [True, False]


def test_the_last_batch_of_an_epoch_is_smaller():
    rows = [batch for number in range(4) for batch in [*batches(3, seed=number), *batches(1, rows=9, seed=number)]]
    assert compare(rows=rows).recorded


def test_recordings_are_few(monkeypatch):
    monkeypatch.setattr(replaying, "REMEMBERED", 6)
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for rows in range(4, 40):
        for batch in batches(4, rows=rows):
            *now, _ = step(*now, *batch)
        shapes = step.__dict__["_step"]._home.shapes
        assert sum(shape.replay is not None for shape in shapes.values()) <= replaying.SHAPES
        assert len(shapes) <= 6
    assert "other shapes are recorded already" in step.why_not
    monkeypatch.setattr(replaying, "UNUSED", 10)
    for batch in batches(6, rows=3):
        *now, _ = step(*now, *batch)
    assert step.__dict__["_step"]._home.shapes[((3, 20), np.dtype("f4")), ((3,), np.dtype("i8"))].checked


def test_batches_that_lie_otherwise_in_memory():
    large = np.random.default_rng(3).standard_normal((64, 20), np.float32)
    odd = [
        (np.asfortranarray(large[:32]), np.arange(32) % 5),
        (large[::2], np.arange(32) % 5),
        (large[3:35], np.arange(64)[::2] % 5),
        (np.require(large[:32].copy()), np.arange(32, dtype=np.int32) % 5),
    ]
    frozen = large[32:].copy()
    frozen.flags.writeable = False
    odd.append((frozen, np.arange(32) % 5))
    rows = [batch for pair in zip(batches(15), odd * 3, strict=True) for batch in pair]
    assert compare(rows=rows).recorded


def test_inputs_that_are_their_own_targets():
    net = bn.mlp([20, 8, 20])
    rows = [(x, x if i % 3 else x[::-1].copy()) for i, (x, _) in enumerate(batches())]
    assert compare(net, rows=rows, loss="mse").recorded


def test_a_batch_is_not_kept():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for x, targets in batches(5):
        *now, _ = step(*now, x, targets)
        seen = weakref.ref(x)
    del x
    assert seen() is None


def test_targets_that_are_no_class_raise_nothing_and_others_do():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for x, targets in batches(4):
        *now, _ = step(*now, x, targets)
    *now, loss = step(*now, x, targets + 100)
    assert np.isnan(loss)
    for wrong in (targets[:-1], targets.astype(np.float32), x):
        for _ in range(2):  # the second time it would be recorded
            with pytest.raises(ValueError, match="targets"):
                step(*now, x, wrong)


@pytest.mark.parametrize("net", [NET, bn.mlp(SIZES, norm=None)], ids=["norm", "none"])
def test_weights_of_rows(net):
    """Now and then, and some that are zero: what they sum to is a number, which no recording may keep."""
    weights = np.random.default_rng(5).integers(0, 4, (40, 32)).astype(np.float32)
    rows = [(*batch, w) if i % 3 else batch for i, (batch, w) in enumerate(zip(batches(40), weights, strict=True))]
    compare(net, rows=rows)
    step = compare(net, rows=[(*batch, w) for batch, w in zip(batches(9), weights, strict=False)])
    assert not step.recorded
    assert "weights" in step.why_not


# ---- trees


def copied(i, *now):
    return tuple(map(trees.copied, now)) if i in (3, 10, 17) else now


def other_dicts(i, *now):
    return tuple(trees.map_leaves(lambda leaf: leaf, tree) for tree in now)


def replaced(i, params, state, opt_state):
    if i == 6:
        params = {**params, "0": {"weight": params["0"]["weight"] * np.float32(0.5)}}
    return params, state, opt_state


def replaced_in_the_dict(i, params, state, opt_state):
    if i == 6:
        params["0"]["weight"] = params["0"]["weight"] * np.float32(0.5)
        opt_state["step"] = 2
    return params, state, opt_state


def replaced_a_part(i, params, state, opt_state):
    if i == 6:
        params["1"] = {name: value * np.float32(0.5) for name, value in params["1"].items()}
    return params, state, opt_state


def written(i, params, state, opt_state):
    if i in (4, 7):
        params["0"]["weight"] *= np.float32(0.5)
        state["1"]["mean"] += np.float32(0.5)
    return params, state, opt_state


def set_back(i, params, state, opt_state):
    return params, state, ({**opt_state, "step": 3} if i == 8 else opt_state)


def resorted(i, *now):
    return tuple({key: tree[key] for key in sorted(tree, reverse=bool(i % 2))} for tree in now)


@pytest.mark.parametrize(
    "between",
    [copied, other_dicts, replaced, replaced_in_the_dict, replaced_a_part, written, set_back, resorted],
)
def test_what_the_user_does_between_steps(between):
    optimizer = optimizers.adam(optimizers.cosine(1e-2, steps=30))
    assert compare(optimizer=optimizer, rows=batches(40), between=between).recorded


def test_dicts_that_the_user_keeps_and_changes_are_not_those_that_come_back():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for batch in batches(5):
        *now, _ = step(*now, *batch)
    own = [trees.map_leaves(lambda leaf: leaf, tree) for tree in now]
    now[0]["0"]["weight"], now[2]["step"] = None, "none"
    *made, _ = step(*own, *batch)
    assert made[0]["0"]["weight"] is own[0]["0"]["weight"]
    assert made[2]["step"] == 6


def test_a_tree_that_does_not_fit_is_refused_as_ever():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for batch in batches(5):
        *now, _ = step(*now, *batch)
    now[0]["9"] = {"weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="9"):
        step(*now, *batch)
    del now[0]["9"]
    now[0]["1"].pop("gamma")
    with pytest.raises(ValueError, match="gamma"):
        step(*now, *batch)


def test_losses_stay_what_they_were():
    step, now, losses = bn.compiled(NET, ADAM), begun(NET, ADAM), []
    for batch in batches():
        *now, loss = step(*now, *batch)
        losses.append((loss, float(loss)))
    assert all(float(loss) == value for loss, value in losses)


@pytest.mark.parametrize("share", ["step", "layers"])
def test_parameters_that_share_memory(share):
    def tied(i, params, state, opt_state):
        if i == 0:
            params["1"]["beta"] = params["1"]["gamma"]
        return params, state, opt_state

    assert not compare(between=tied).recorded


def test_parameters_that_lie_otherwise_in_memory():
    def turned(i, params, state, opt_state):
        if i == 0:
            params["0"]["weight"] = np.asfortranarray(params["0"]["weight"])
        return params, state, opt_state

    step = compare(between=turned, optimizer=optimizers.lion(1e-3))
    assert step.recorded or "writable" in step.why_not


def test_two_networks_by_one_step():
    step, rows = bn.compiled(NET, ADAM), batches(40)
    alone = [run(step.ordinary(), NET, ADAM, rows[part::2]) for part in range(2)]
    both, seen = [begun(NET, ADAM), begun(NET, ADAM)], ([], [])
    for i, batch in enumerate(rows):
        *both[i % 2], loss = step(*both[i % 2], *batch)
        seen[i % 2].append(bits(both[i % 2], loss))
    assert seen[0] == alone[0]
    assert seen[1] == alone[1]
    assert step.recorded


def test_another_network_takes_the_place_of_the_first():
    step, rows = bn.compiled(NET, ADAM), batches(24)
    first = begun(NET, ADAM)
    for batch in rows[:6]:
        *first, _ = step(*first, *batch)
    kept = bits(first)
    assert run(step, NET, ADAM, rows) == run(step.ordinary(), NET, ADAM, rows)
    assert bits(first) == kept
    assert step.recorded


# ---- what is the user's own


class Counting:
    """A loss, and others, that change with how often they are called."""

    calls = 0

    def count(self):
        self.calls += 1
        return np.float32(1.0 if self.calls < 8 else 0.25)

    def __call__(self, outputs, targets):
        value, gradient = bn.softmax_cross_entropy(outputs, targets)
        return value, gradient * self.count()


def test_a_loss_of_ones_own_is_called_once_a_step():
    loss = Counting()
    step = bn.compiled(NET, ADAM, loss)
    found = run(step, NET, ADAM, batches(20))
    assert step.recorded
    assert loss.calls == 20
    assert found == run(bn.compiled(NET, ADAM, Counting()).ordinary(), NET, ADAM, batches(20))


def test_a_loss_that_gives_the_array_that_it_was_handed():
    def loss(outputs, targets):
        return np.mean(outputs), outputs if outputs[0, 0] > 0 else -outputs

    assert compare(loss=loss, rows=batches(30)).recorded


def test_a_loss_that_gives_its_own_memory_each_time():
    kept = {}

    def loss(outputs, targets):
        value, gradient = bn.softmax_cross_entropy(outputs, targets)
        out = kept.setdefault(outputs.shape, np.empty_like(outputs))
        out[...] = gradient
        return value, out

    assert compare(loss=loss).recorded


def test_a_loss_that_gives_no_array():
    def loss(outputs, targets):
        value, gradient = bn.softmax_cross_entropy(outputs, targets)
        return float(value), gradient

    step = compare(loss=loss)
    assert not step.recorded
    assert "float" in step.why_not


def test_a_loss_that_changes_its_dtype():
    def loss(outputs, targets):
        value, gradient = bn.softmax_cross_entropy(outputs, targets)
        return value.astype(np.float64 if targets[0] == 4 else np.float32), gradient

    rows = batches(12)
    for i, (_, targets) in enumerate(rows):
        targets[0] = 4 if i == 8 else 0
    step = compare(loss=loss, rows=rows)
    assert "dtypes" in step.why_not


class Late:
    """A schedule, a rule's scalars and equation that change after recording and the first replay."""

    def rate(self, step):
        return 0.01 if step < 7 else 0.5

    def scalars(self, step, *, rate):
        return {"rate": rate, "sign": 1.0 if step < 9 else -1.0}

    def equation(self, p, g, *, rate, sign):
        self.calls += 1
        return (p - rate * sign * (1 if self.calls < 60 else 2) * g,)

    calls = 0


def test_a_schedule_of_ones_own_that_changes_late():
    assert compare(optimizer=optimizers.adam(Late().rate)).recorded


def test_a_rule_of_ones_own_that_changes_late():
    seen = []
    for ordinary in (False, True):
        late = Late()
        optimizer = bn.Optimizer(optimizers.Rule("late", (), late.equation, late.scalars), late.rate)
        step = bn.compiled(NET, optimizer)
        seen.append(run(step.ordinary() if ordinary else step, NET, optimizer, batches()))
        assert ordinary or step.recorded
    assert seen[0] == seen[1]


@dataclass(frozen=True)
class Scaled(bn.Layer):
    """A layer that computes with NumPy, and changes with how often it is called."""

    calls: ClassVar = [0]

    def forward(self, params, state, x, context):
        self.calls[0] += 1
        return bn.relu(x) * np.float32(1 if self.calls[0] < 7 else 2), state, None

    def backward(self, params, residuals, dy, *, need_dx):
        return {}, dy


class Sign:
    """An optimiser that changes with how often it is called."""

    def __init__(self):
        self.inner = [optimizers.sgd(0.1), optimizers.sgd(0.2)]

    def init(self, params):
        return {"step": 0}

    def update(self, params, grads, state):
        return self.inner[state["step"] > 6].update(params, grads, state)


@dataclass(frozen=True)
class OwnNorm(bn.BatchNorm):
    """One of ours, changed."""

    def forward(self, params, state, x, context):
        y, state, residuals = super().forward(params, state, x, context)
        return y + 0, state, residuals


def test_a_layer_of_ones_own_is_not_recorded():
    for layer in (Scaled(), OwnNorm(24), bn.Residual((Scaled(),))):
        Scaled.calls[0] = 0
        net = bn.Sequential((bn.Linear(20, 24, bias=False), layer, bn.Linear(24, 5)))
        step = bn.compiled(net, ADAM)
        found = run(step, net, ADAM, batches())
        assert not step.recorded
        assert "is not of bnengine" in step.why_not
        Scaled.calls[0] = 0
        assert found == run(step.ordinary(), net, ADAM, batches())


def test_an_optimizer_of_ones_own_is_not_recorded():
    step = compare(optimizer=Sign())
    assert not step.recorded
    assert "Sign is not of bnengine" in step.why_not
    step = compare(optimizer=optimizers.freeze(Sign(), ("0",)))
    assert not step.recorded
    assert "Sign is not of bnengine" in step.why_not


def test_ranks_and_other_libraries_are_not_recorded():
    step = compare(all_reduce=lambda a: a, sync_statistics=lambda a: a)
    assert not step.recorded
    assert "ranks" in step.why_not
    with pytest.warns(DeprecationWarning, match="all_reduce"):
        net = NET.with_norms(all_reduce=lambda a: a)
    assert not bn.compiled(net, ADAM).recorded
    need("array_api_strict")
    step = bn.compiled(NET, ADAM, backend="array-api-strict")
    assert not step.recorded
    assert "array-api-strict" in step.why_not


def test_wrong_settings():
    for name, value in {"seed": -1, "on_nonfinite": "go", "all_reduce": 3, "loss": "hinge", "optimizer": 3}.items():
        with pytest.raises((TypeError, ValueError), match=name):
            bn.compiled(**{"net": NET, "optimizer": ADAM, name: value})


# ---- a step that does what it does not tell


def told(params, state, opt_state, x, factor):
    """A step of its own: w = w - rate * x.T @ (x @ w), told."""
    w = params["w"]
    y, g = np.empty((len(x), 3)), np.empty((20, 3))
    recording.call(np.matmul, (x, w, y), (y,))
    recording.call(np.matmul, (x.T, y, g), (g,))
    recording.call(np.multiply, (g, recording.table(g.dtype, lambda n: 0.1 / (n + 1), opt_state["step"]), g))
    recording.call(np.subtract, (w, g, w))
    loss = recording.made(lambda y: np.mean(y * y), y)
    return params, state, {"step": opt_state["step"] + 1}, loss


def untold_values(params, *others):
    return told({"w": params["w"] * np.float64(0.5)}, *others)


def untold_in_place(params, state, opt_state, x, factor):
    params["w"] *= 1 - 1e-3 * np.mean(x) ** 2
    return told(params, state, opt_state, x, factor)


def untold_number(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    recording.call(np.multiply, (params["w"], float(np.mean(x)), params["w"]))
    return made


def untold_numpy_number(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    recording.call(np.multiply, (params["w"], np.mean(x), params["w"]))
    return made


def untold_constant(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    recording.call(np.multiply, (params["w"], np.full(3, 0.9), params["w"]))
    return made


def compared_step(params, state, opt_state, x, factor):
    return told(params, state, opt_state, x * 2 if opt_state["step"] > 7 else x, factor)


def equal_step(params, state, opt_state, x, factor):
    return told(params, state, opt_state, x * 2 if opt_state["step"] == 7 else x, factor)


def true_step(params, state, opt_state, x, factor):
    return told(params, state, opt_state, x if opt_state["step"] else x * 2, factor)


def used_step(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    recording.call(np.multiply, (params["w"], 0.9 ** opt_state["step"], params["w"]))
    return made


def step_as_index(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    recording.call(np.multiply, (params["w"], [0.9, 0.8][int(opt_state["step"]) // 7], params["w"]))
    return made


def constant_count(params, state, opt_state, x, factor):
    *made, loss = told(params, state, opt_state, x, factor)
    return *made[:2], {"step": 5}, loss


def untold_state(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    return made[0], {"s": state["s"] + 1}, *made[2:]


def changed_places(params, state, opt_state, x, factor):
    made = told(params, state, opt_state, x, factor)
    return made[0], {"s": state["t"], "t": state["s"]}, *made[2:]


def untold_loss(params, state, opt_state, x, factor):
    *made, loss = told(params, state, opt_state, x, factor)
    return *made, loss + 1


UNTOLD = [
    untold_values, untold_in_place, untold_number, untold_numpy_number, untold_constant, compared_step, equal_step,
    true_step, used_step, step_as_index, constant_count, untold_state, changed_places, untold_loss,
]  # fmt: skip


@pytest.mark.parametrize("step", [told, *UNTOLD])
def test_what_is_not_told_is_found(step):
    def ran(step):
        rng, seen = np.random.default_rng(0), []
        now = {"w": rng.standard_normal((20, 3))}, {"s": np.zeros(2), "t": np.ones(2)}, {"step": 0}
        for _ in range(12):
            *now, loss = step(*now, rng.standard_normal((16, 20)) * 0.1, rng.standard_normal(16))
            seen.append(bits(now, loss))
        return seen

    recorded = Recorded(step)
    assert ran(recorded) == ran(step)
    assert recorded.replays is (step is told), recorded.why_not


# ---- what goes wrong in the middle


@pytest.mark.parametrize("at", range(1, 7))
@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_exceptions_leave_a_step_that_goes_on(at, kind):
    """Where it is ordinary, recorded, checked and replayed: raised by the loss, before anything is written."""
    left = [at]

    def loss(outputs, targets):
        left[0] -= 1
        if left[0] == 0:
            raise kind("stop")
        return bn.softmax_cross_entropy(outputs, targets)

    step, now, rows = bn.compiled(NET, ADAM, loss), begun(NET, ADAM), batches(10)
    for i, batch in enumerate(rows):
        before = bits(now)
        if i + 1 == at:
            with pytest.raises(kind, match="stop"):
                step(*now, *batch)
            assert bits(now) == before
        *now, value = step(*now, *batch)
    wanted = run(bn.compiled(NET, ADAM).ordinary(), NET, ADAM, rows)[-1]
    assert bits(now, value) == wanted


def test_an_exception_after_something_was_written():
    """While it is recorded the parameters are put back, and the step itself has its turn."""
    left, ordinary = [2], bn.compiled(NET, ADAM).ordinary()

    def step(*given):
        made = ordinary(*given)
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("behind the update")
        return made

    recorded = Recorded(step)
    assert run(recorded, NET, ADAM, batches()) == run(ordinary, NET, ADAM, batches())
    assert not recorded.replays
    assert "RuntimeError: behind the update" in recorded.why_not


def test_a_recording_that_gives_other_bits_is_not_used(monkeypatch):
    program = recording.Program.run

    def wrong(self, inputs):
        program(self, inputs)
        self.entries[-1][1][0].reshape(-1)[:1] += 1e-3

    monkeypatch.setattr(recording.Program, "run", wrong)
    step = compare()
    assert not step.recorded
    assert step.why_not == "a replay did not give the same bits"


def test_a_schedule_that_calls_the_step():
    inner = [None]

    def rate(step):
        if inner[0] is not None:
            now, inner[0] = inner[0], None
            own(*now, *batches(1)[0])
            inner[0] = begun(NET, ADAM)
        return 0.01

    optimizer = optimizers.adam(rate)
    own = bn.compiled(NET, optimizer)
    inner[0] = begun(NET, optimizer)
    found = run(own, NET, optimizer, batches())
    inner[0] = None
    assert found == run(own.ordinary(), NET, optimizer, batches())


def test_threads_share_a_step():
    step, rows = bn.compiled(NET, ADAM), batches(60)
    wanted, found = run(step.ordinary(), NET, ADAM, rows), {}
    start = threading.Barrier(4)

    def work(name):
        start.wait()
        found[name] = run(step, NET, ADAM, rows)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(seen == wanted for seen in found.values())


def test_what_another_thread_does_is_not_noted():
    """A thread that computes with kernels while this one records."""
    x = np.random.default_rng(0).standard_normal((32, 20), np.float32)
    stop, calls = threading.Event(), [0]

    def work():
        while not stop.is_set():
            bn.batch_norm(x)
            calls[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        sizes = set()
        for _ in range(20):
            step = bn.compiled(NET, ADAM)
            run(step, NET, ADAM, batches(3))
            (shape,) = step.__dict__["_step"]._home.shapes.values()
            sizes.add(len(shape.replay._program.entries))
    finally:
        stop.set()
        thread.join()
    assert len(sizes) == 1
    assert calls[0] > 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_a_forked_child_goes_on(locked):
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    step, now, rows = bn.compiled(NET, ADAM), begun(NET, ADAM), batches(10)
    for batch in rows[:5]:
        *now, _ = step(*now, *batch)
    if locked:
        step.__dict__["_step"]._lock.acquire()  # as another thread may hold it when the process forks
    child = os.fork()
    for batch in rows[5:]:
        *now, loss = step(*now, *batch)
    right = bits(now, loss) == run(step.ordinary(), NET, ADAM, rows)[-1]
    if child == 0:
        os._exit(0 if right else 1)
    assert right
    assert os.waitpid(child, 0)[1] == 0


# ---- memory


def test_nothing_is_left_of_a_step():
    step, now = bn.compiled(NET, ADAM), begun(NET, ADAM)
    for batch in batches(5):
        *now, _ = step(*now, *batch)
    kept = weakref.ref(step.__dict__["_step"]._home), weakref.ref(now[0]["0"]["weight"])
    del step, now
    gc.collect()
    assert [reference() for reference in kept] == [None, None]


def test_memory_does_not_grow():
    step, now, rows = bn.compiled(NET, ADAM), begun(NET, ADAM), batches(4)
    counts = []
    for _ in range(3):
        for _ in range(50):
            for batch in rows:
                *now, _ = step(*now, *batch)
        gc.collect()
        counts.append(len(gc.get_objects()))
    assert step.recorded
    assert counts[2] <= counts[1] + 5


# ---- the parts


def test_changing_values_refuse_what_cannot_be_followed():
    number = recording.Changing(3)
    for use in (bool, lambda n: n == 3, lambda n: n != 3, lambda n: n in [1, 2]):
        with pytest.raises(UnrecordableError):
            use(number)
    for use in (int, float, hash, lambda n: n > 2, lambda n: n * 2, lambda n: [1, 2, 3, 4][n], lambda n: 2**n, range):
        with pytest.raises(TypeError):
            use(number)


def test_a_compiled_step_is_shown_with_its_settings():
    assert repr(bn.compiled(bn.mlp([2, 3]), optimizers.sgd(0.1))).startswith("Compiled(net=")


# ---- fit


@pytest.mark.parametrize("settings", [{}, {"on_nonfinite": "skip"}, {"early_stopping": 2, "precise_bn": True}])
def test_fit_gives_what_it_gives_by_ordinary_steps(monkeypatch, settings):
    net = bn.mlp([20, 16, 5], standardize=True, dropout=0.1)
    x, y = np.random.default_rng(0).standard_normal((75, 20)), np.arange(75) % 5
    optimizer = optimizers.adam(optimizers.cosine(0.01, steps=30))
    steps, compiled = [], fitting.compiled

    def fitted(start=None):
        return bn.fit(net, optimizer, (x, y), validation=(x, y), batch_size=16, epochs=5, start=start, **settings)

    def kept(*given, **options):
        steps.append(compiled(*given, **options))
        return steps[-1]

    monkeypatch.setattr(fitting, "compiled", kept)
    found = fitted()
    assert steps[0].recorded
    monkeypatch.setattr(fitting, "compiled", lambda *given, **options: compiled(*given, **options).ordinary())
    wanted = fitted()
    assert bits((found.params, found.state, found.opt_state)) == bits((wanted.params, wanted.state, wanted.opt_state))
    for own, other in zip(found.history, wanted.history, strict=True):
        assert {**own, "seconds": 0} == {**other, "seconds": 0}


def test_fit_leaves_its_start_and_what_a_callback_copies_alone():
    x, y = np.random.default_rng(0).standard_normal((60, 20)), np.arange(60) % 5
    start = bn.Fitted(*begun(NET, ADAM))
    before, epochs = bits((start.params, start.state, start.opt_state)), []

    def callback(row, now):
        best = now.best
        epochs.append((best, bits((best.params, best.state, best.opt_state))))

    bn.fit(NET, ADAM, (x, y), validation=(x, y), batch_size=10, epochs=4, start=start, callback=callback)
    assert bits((start.params, start.state, start.opt_state)) == before
    for best, seen in epochs:
        assert bits((best.params, best.state, best.opt_state)) == seen
