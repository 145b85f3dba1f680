"""Ranks that train together: threads of this process stand in for them. tests/test_mpi.py starts real ones."""

from __future__ import annotations

import functools

import libraries
import numpy as np
import oracles
import pytest
import ranks

import bnengine as bn
from bnengine import trees
from bnengine.data import shards
from bnengine.data.reading import Reading
from bnengine.parallel import Alone, RankError, Shares, join

FLOAT64 = bn.backend("numpy", dtype="float64")


def rows(rng, count, features=5, classes=3):
    return rng.standard_normal((count, features)) * 3 + 1, rng.integers(0, classes, count)


def parts(arrays, counts):
    """The rows of each rank."""
    cuts = np.cumsum(counts)[:-1]
    return list(zip(*(np.split(array, cuts) for array in arrays), strict=True))


def distance(one, other):
    """The largest difference of two trees, each leaf against its largest value, and means against deviations."""
    a, b = trees.flatten(one), trees.flatten(other)
    assert a.keys() == b.keys()

    def scale(name):
        var = a.get(name.replace(".mean", ".var")) if name.endswith(".mean") else None
        return np.max(np.abs(a[name]), initial=1e-300) if var is None else np.sqrt(np.max(var))

    return max(float(np.max(np.abs(a[name] - b[name])) / scale(name)) for name in a)


NET = bn.mlp([5, 8, 6, 3], standardize=True)
OPTIMIZER = bn.optimizers.adam(0.01, clip=1.0)


def fitted(train, communicator=None, net=NET, **options):
    options = {"epochs": 3, "batch_size": 7, "backend": FLOAT64, "seed": 3} | options
    return bn.fit(net, OPTIMIZER, train, communicator=communicator, **options)


@pytest.mark.parametrize("counts", [(20, 20), (39, 1), (0, 40), (1, 1, 38), (13, 9, 0, 17, 1), (5,) * 8])
@pytest.mark.parametrize("precise_bn", [False, True])
def test_ranks_train_as_one_process_does(rng, counts, precise_bn):
    train, held = rows(rng, 40), rows(rng, 12)
    options = {"validation": held, "precise_bn": precise_bn, "early_stopping": 2}
    alone = fitted(train, **options)
    shares, held_shares = parts(train, counts), parts(held, [12, *[0] * (len(counts) - 1)])

    def run(communicator):
        rank = communicator.rank
        return fitted(shares[rank], communicator, **(options | {"validation": held_shares[rank]}))

    first, *others = ranks.together(len(counts), run)
    assert distance(alone.params, first.params) < 1e-12
    assert distance(alone.state, first.state) < 1e-12
    for other in others:  # to the last bit
        assert distance(first.params, other.params) == distance(first.state, other.state) == 0
    for expected, row in zip(alone.history, first.history, strict=True):
        assert {name: value for name, value in row.items() if name != "seconds"} == pytest.approx(
            {name: value for name, value in expected.items() if name != "seconds"}, rel=1e-11
        )


@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_other_losses_and_their_metrics(rng, loss):
    x = rng.standard_normal((30, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + 4
    y = (y > 4) * 1.0 if loss == "binary_cross_entropy" else y
    net = bn.mlp([4, 6, 1])
    shares = parts((x, y), (17, 0, 13))

    def run(communicator, train):
        return bn.fit(
            net, OPTIMIZER, train, loss=loss, epochs=2, batch_size=8, backend=FLOAT64, communicator=communicator
        )

    alone = run(None, (x, y))
    first = ranks.together(3, lambda communicator: run(communicator, shares[communicator.rank]))[0]
    assert distance(alone.params, first.params) < 1e-12
    name = "train_r2" if loss == "mse" else "train_accuracy"
    assert first.history[-1][name] == pytest.approx(alone.history[-1][name], rel=1e-12)


@pytest.mark.filterwarnings("ignore:running statistics of layer")
def test_evaluation_over_ranks_counts_every_row_once(rng):
    x, y = rows(rng, 29)
    params, state = NET.init(0, backend=FLOAT64)
    shares = parts((x, y), (3, 0, 26))

    def run(communicator):
        return bn.evaluate(NET, params, state, shares[communicator.rank], backend=FLOAT64, communicator=communicator)

    expected = bn.evaluate(NET, params, state, (x, y), backend=FLOAT64)
    assert expected["accuracy"] not in (0, 1)
    for found in ranks.together(3, run):
        assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.filterwarnings("ignore:running statistics of layer")
def test_r2_over_ranks_is_that_of_all_rows(rng):
    x, targets = rows(rng, 29)[0], rng.standard_normal((29, NET.outputs)) * 3 + 1
    params, state = NET.init(0, backend=FLOAT64)
    shares = parts((x, targets), (3, 0, 26))

    def run(communicator):
        own = shares[communicator.rank]
        return bn.evaluate(NET, params, state, own, loss="mse", backend=FLOAT64, communicator=communicator)

    expected = bn.evaluate(NET, params, state, (x, targets), loss="mse", backend=FLOAT64)
    error = bn.predict(NET, params, state, x, backend=FLOAT64) - targets
    assert expected["r2"] == pytest.approx(1 - np.mean(error**2) / np.mean(targets.var(axis=0)), rel=1e-12)
    for found in ranks.together(3, run):
        assert found == pytest.approx(expected, rel=1e-12)


# ---- statistics of a group of ranks


def test_statistics_of_each_ranks_own_are_those_of_its_share(rng):
    (x, y), params = rows(rng, 20), NET.init(0, backend=FLOAT64)[0]
    shares = parts((x, y), (8, 12))
    optimizer = bn.optimizers.sgd(1.0)

    def run(communicator):
        own = trees.copied(params)
        state, opt_state = NET.init(0, backend=FLOAT64)[1], optimizer.init(own)
        stepped = bn.train_step(
            NET, optimizer, own, state, opt_state, *shares[communicator.rank], "cross_entropy", communicator.sum
        )
        return stepped[0], stepped[3]

    def gradient(share):
        output, _, residuals = NET.forward(params, NET.init(0, backend=FLOAT64)[1], share[0], training=True)
        loss, dlogits = bn.softmax_cross_entropy(output, share[1])
        return NET.backward(params, residuals, dlogits), loss

    own = [gradient(share) for share in shares]
    stepped, loss = ranks.together(2, run)[0]
    assert loss == pytest.approx((8 * own[0][1] + 12 * own[1][1]) / 20)
    for name, leaf in trees.flatten(params).items():
        mean = (8 * trees.flatten(own[0][0])[name] + 12 * trees.flatten(own[1][0])[name]) / 20
        np.testing.assert_allclose(trees.flatten(stepped)[name], leaf - mean, rtol=0, atol=1e-14)


def test_groups_of_ranks_share_statistics(rng):
    train = rows(rng, 40)
    shares = parts(train, (10, 10, 10, 10))

    def run(size):
        return ranks.together(
            4, lambda communicator: fitted(shares[communicator.rank], communicator, sync_ranks=size, batch_size=20)
        )

    everyone, two, own = run(4), run(2), run(1)
    assert distance(everyone[0].params, fitted(train, batch_size=20).params) < 1e-12
    for group in (two, own):
        assert distance(everyone[0].params, group[0].params) > 1e-3
        assert all(distance(group[0].params, other.params) == 0 for other in group)
        assert all(distance(group[0].state, other.state) == 0 for other in group)


def test_a_batch_in_which_a_group_has_one_row_is_left_out():
    def run(communicator):
        shares = Shares.of(communicator, 3, 1)
        return [rows.tolist() for rows in shares.whole([np.asarray([0, 3, 1, 4]), np.asarray([2, 4, 5])])]

    assert ranks.together(2, run) == [[[0, 3, 1, 4]]] * 2


@pytest.mark.parametrize(("size", "message"), [(3, "divisor of the number of ranks, 2"), (1, "fewer than 2 rows")])
def test_groups_that_cannot_be(rng, size, message):
    train = rows(rng, 2)
    with pytest.raises(ValueError, match=message):
        ranks.together(2, lambda c: fitted(parts(train, (1, 1))[c.rank], c, sync_ranks=size))


def test_the_check_for_enough_rows_counts_all_ranks(rng):
    train = rows(rng, 2)
    ranks.together(2, lambda c: fitted(parts(train, (1, 1))[c.rank], c))
    with pytest.raises(ValueError, match="train: expected at least 2 rows, got 1"):
        ranks.together(2, lambda c: fitted(parts(rows(rng, 1), (1, 0))[c.rank], c))


def test_ranks_drop_what_one_process_drops(rng):
    train, counts = rows(rng, 40), (13, 9, 0, 18)
    net = bn.mlp([5, 8, 8, 3], dropout=0.3, residual=True)
    alone, shares = fitted(train, net=net), parts(train, counts)
    for result in ranks.together(4, lambda c: fitted(shares[c.rank], c, net)):
        assert distance(alone.params, result.params) < 1e-10


# ---- the communicator


def test_what_a_step_communicates_is_counted(rng):
    """Two small reductions for each of two BatchNorm layers, one for all gradients."""
    x, y = rows(rng, 8)

    def run(communicator):
        params, state = NET.init(0, backend=FLOAT64)
        opt_state, total = OPTIMIZER.init(params), communicator.sum
        bn.train_step(NET, OPTIMIZER, params, state, opt_state, x, y, all_reduce=total, sync_statistics=total)
        return communicator.reductions, communicator.bytes

    gradients, channels = NET.parameters + 2, 8 + 6  # with loss and count
    assert ranks.together(2, run) == [(1 + 2 * 2, 8 * (gradients + 4 * channels + 2 * 2))] * 2


def test_an_error_on_one_rank_is_raised_on_all():
    def run(communicator):
        def fail():
            if communicator.rank == 1:
                raise FileNotFoundError(2, "No such file", "x.npy")
            return communicator.rank

        with pytest.raises(FileNotFoundError, match=r"x\.npy"):
            communicator.each(fail)
        assert communicator.once(lambda: communicator.rank) == 0
        with pytest.raises(ZeroDivisionError):
            communicator.once(lambda: 1 // communicator.rank)
        return communicator.each(lambda: communicator.rank)

    assert ranks.together(3, run) == [0, 1, 2]


def test_ranks_started_differently_are_refused():
    def run(communicator):
        communicator.agree({"seed": 1})
        with pytest.raises(RankError, match="distributed: version is '1' on rank 0 and '2' on rank 2"):
            communicator.agree({"version": "2" if communicator.rank == 2 else "1"})

    ranks.together(3, run)


def test_one_process_is_a_communicator_too():
    alone = join("none")
    assert isinstance(alone, Alone)
    assert alone.gather("a") == ["a"]
    assert alone.broadcast("a") == alone.once(lambda: "a") == "a"
    assert alone.together()
    with pytest.raises(ValueError, match="distributed: expected none, mpi, nccl, got 'tcp'"):
        join("tcp")
    with pytest.raises(ValueError, match="sync_ranks: expected a divisor of the number of ranks, 1, got 2"):
        alone.split(2)


# ---- sharded data


def write_npy(directory, rng, test=True):
    directory.mkdir()
    x, y = rows(rng, 50, features=4)
    np.save(directory / "x.npy", x.reshape(50, 2, 2).astype(np.float32))
    np.save(directory / "y.npy", y)
    if test:
        np.save(directory / "x_test.npy", x[:9].reshape(9, 2, 2).astype(np.float32))
        np.save(directory / "y_test.npy", y[:9])


def write_idx(directory, rng):
    directory.mkdir()
    for stem, count in (("train", 50), ("t10k", 9)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 3, 2))),
            ("labels-idx1", np.arange(count) % 4),
        ):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (directory / f"{stem}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def write_npz(path, rng):
    np.savez(path, x=rng.standard_normal((50, 3)), y=rng.standard_normal(50))


SOURCES = {
    "npy": write_npy,
    "npy without a test part": functools.partial(write_npy, test=False),
    "idx": write_idx,
    "rows.npz": write_npz,
}


@pytest.mark.parametrize("kind", ["digits", *SOURCES])
@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_the_parts_of_all_ranks_are_the_rows_of_one_process(tmp_path, rng, kind, validation):
    source = "digits"
    if kind in SOURCES:
        source = str(tmp_path / kind)
        SOURCES[kind](tmp_path / kind, rng)
    load = functools.partial(shards.load, source, asked=Reading(), validation=validation)
    whole = load(Alone())
    read = ranks.together(3, load)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        expected = getattr(whole.dataset, name)
        found = [getattr(part.dataset, name) for part in read]
        np.testing.assert_array_equal(np.concatenate(found), expected)
        assert found[0].dtype == expected.dtype
        assert max(map(len, found)) - min(map(len, found)) <= 1
    assert {(part.dataset.task, part.dataset.classes, part.target) for part in read} == {
        (whole.dataset.task, whole.dataset.classes, whole.target)
    }
    for i in range(2 if validation else 0):
        np.testing.assert_array_equal(np.concatenate([part.validation[i] for part in read]), whole.validation[i])


def test_a_bad_value_is_named_on_every_rank(tmp_path, rng):
    write_npy(tmp_path / "bad", rng)
    x = np.load(tmp_path / "bad" / "x.npy")
    x[40, 1, 0] = np.nan
    np.save(tmp_path / "bad" / "x.npy", x)

    def run(communicator):
        with pytest.raises(bn.data.DataError, match=r"bad, x: expected finite numbers, got nan in row 40, column"):
            shards.load(str(tmp_path / "bad"), communicator, Reading(), validation=0.1)

    ranks.together(2, run)


# ---- batch statistics


@pytest.mark.parametrize(("offset", "sums"), [(0.0, 1), (500.0, 1), (2000.0, 2), (1e6, 2)])
def test_statistics_take_one_sum_where_the_means_are_near_zero(rng, offset, sums):
    x = rng.standard_normal((40, 6)) + offset
    shares = np.split(x, [1, 1, 30])
    truth = oracles.batch_norm(x, np.ones(6), np.zeros(6), x)

    def run(communicator):
        y, residuals = bn.batch_norm(shares[communicator.rank], all_reduce=communicator.sum)
        return y, residuals.var, communicator.reductions

    results = ranks.together(4, run)
    np.testing.assert_allclose(np.concatenate([y for y, _, _ in results]), truth.y, rtol=0, atol=3e-8)
    for _, var, reductions in results:
        np.testing.assert_allclose(var, truth.var, rtol=1e-9)
        assert reductions == sums


class Device(np.ndarray):
    """As an array on a device: `waits` counts how often the host asks for values."""

    waits = 0

    def __getitem__(self, key):
        return np.asarray(super().__getitem__(key)).view(Device)

    def tolist(self):
        Device.waits += 1
        return super().tolist()

    def __int__(self):
        Device.waits += 1
        return super().__int__()


def test_the_count_over_ranks_is_read_once(rng):
    """Each value that is read waits for the device."""
    Device.waits = 0
    _, residuals = bn.batch_norm(rng.standard_normal((5000, 3)), all_reduce=lambda a: (2 * a).view(Device))
    assert residuals.count == 10_000
    assert Device.waits == 1


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4, 1e6])
def test_a_library_without_float64_takes_two(rng, offset):
    xp = libraries.need("jax.numpy")
    x = (rng.standard_normal((40, 6)) + offset).astype(np.float32)
    shares = [xp.asarray(part) for part in np.split(x, [1, 1, 30])]
    truth = oracles.batch_norm(x, np.ones(6), np.zeros(6), x)

    def run(communicator):
        y, _ = bn.batch_norm(shares[communicator.rank], all_reduce=communicator.sum)
        return np.asarray(y), communicator.reductions

    results = ranks.together(4, run)
    np.testing.assert_allclose(
        np.concatenate([y for y, _ in results]), truth.y, rtol=0, atol=1e-6 * np.abs(truth.y).max()
    )
    assert {reductions for _, reductions in results} == {2}
