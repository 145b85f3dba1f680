"""Everything public goes to another process and comes back: by pickle, copy and deepcopy, through pools of workers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import multiprocessing
import pickle

import joblib
import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import data, optimizers, parallel
from bnengine.runs import interrupts

ROWS = np.linspace(-1, 1, 24).reshape(12, 2), np.arange(12) % 3
NET = bn.mlp([2, 4, 3], standardize=True)
COSINE = optimizers.cosine(0.1, steps=9)


@functools.cache
def examples():
    """An instance of every public class, and what the functions that make something make."""
    y, residuals = bn.batch_norm(ROWS[0])
    trained = bn.fit(NET, optimizers.sgd(0.1), ROWS, epochs=1, batch_size=6)
    return [
        bn.backend("numpy", dtype="float64"),
        bn.CheckpointError("a file: not a network"),
        bn.Loaded(NET, trained.params, trained.state, trained.opt_state, {"classes": ["a"]}, "float32"),
        bn.batch_norm_backward(y, residuals),
        bn.linear_backward(y, ROWS[0], np.eye(2)),
        residuals,
        bn.moments(y, weights=np.ones(len(y))),
        bn.batch_norm_double_backward(y, None, None, y, residuals),
        bn.RunningStats.init(2, like=y).update(residuals),
        bn.Linear(2, 3, scale=0.5),
        bn.BatchNorm(3, "relu", momentum=None),
        bn.DynamicTanh(3, alpha=0.8),
        bn.Activation("tanh"),
        bn.Standardize(2),
        bn.Dropout(0.1),
        bn.Residual((bn.Linear(2, 2), bn.Activation("gelu"))),
        bn.Context(True, draws=bn.Draws(0, 1)),
        bn.Draws(3, 4),
        bn.Settings(epochs=3),
        bn.Shapes({"weight": (2, 3)}),
        NET,
        optimizers.adam(COSINE, clip=1.0),
        trained,
        bn.compiled(NET, optimizers.sgd(0.1), seed=3),
        bn.NonFiniteError("loss: not finite", trained),
        COSINE,
        optimizers.step_decay(0.1, at=[3, 5]),
        optimizers.warm_up(COSINE, steps=4),
        data.load("digits"),
        data.DataError("rows.csv: no rows"),
        parallel.RankError("rank 1 left"),
        interrupts.Interrupted(15, "interrupted after step 3"),
    ]


def is_same(a, b):
    """Of one type, with equal content; arrays by value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, functools.partial):
        return is_same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, BaseException):
        return is_same((str(a), vars(a)), (str(b), vars(b)))
    if dataclasses.is_dataclass(a):
        return all(is_same(getattr(a, part.name), getattr(b, part.name)) for part in dataclasses.fields(a))
    return a == b


def test_there_is_an_example_of_every_public_class():
    classes = {name for name in bn.__all__ if isinstance(getattr(bn, name), type)} - {"Layer"}  # to derive from
    missing = classes - {type(example).__name__ for example in examples()}
    assert not missing, f"add an instance of {missing} to examples()"


@pytest.mark.parametrize("example", examples(), ids=lambda example: type(example).__name__)
def test_copies_are_the_same(example):
    for made in (pickle.loads(pickle.dumps(example)), copy.copy(example), copy.deepcopy(example)):
        assert is_same(made, example)


def test_public_functions_are_pickled_by_name():
    for module in (bn, optimizers, data):
        for name, value in vars(module).items():
            if callable(value) and not name.startswith("_") and value.__module__.startswith("bnengine"):
                assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize(
    ("name", "device"),
    [("torch", "cpu"), ("jax", "cpu:0"), ("dask", None), ("array_api_strict", "device1"), ("array_api_strict", None)],
)
def test_backends_of_every_library(name, device):
    need("dask.array" if name == "dask" else name)
    backend = bn.backend(name.replace("_", "-"), device=device)
    for made in (pickle.loads(pickle.dumps(backend)), copy.deepcopy(backend)):
        assert made == backend


DIVERGES = functools.partial(bn.fit, NET, optimizers.sgd(1e20), ROWS, epochs=3, batch_size=6)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_through_a_pool_of_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} does not exist here")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert is_same(pool.map_async(copy.copy, examples()).get(60), examples())
        with pytest.raises(bn.NonFiniteError, match="not finite") as raised:
            pool.apply_async(DIVERGES).get(60)
    assert isinstance(raised.value.last_good, bn.Fitted)


def test_through_joblib():
    run = joblib.Parallel(n_jobs=2, timeout=60)
    assert is_same(run(joblib.delayed(copy.copy)(example) for example in examples()), examples())
    with pytest.raises(bn.NonFiniteError, match="not finite"):
        run(joblib.delayed(DIVERGES)() for _ in range(2))
