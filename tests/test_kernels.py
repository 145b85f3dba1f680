"""Every fast implementation that the seam lists, against the specification and against float64."""

from __future__ import annotations

import dataclasses
import inspect
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import oracles
import pytest
from host_cuda.conftest import device, stand_in  # noqa: F401
from host_cuda.conftest import kernels as cuda_kernels  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bnengine as bn
from bnengine import kernels, optimizers, trees
from bnengine.kernels import reference
from bnengine.kernels.reference import Affine, Moments

EPS = 1e-5
NUMPY = [name for name in kernels.FAST["numpy"] if kernels.why_not(name) is None]


@pytest.fixture(params=NUMPY)
def fast(request):
    return kernels.load(request.param)


# ---- the seam


PUBLIC = [
    name
    for name, function in inspect.getmembers(reference, inspect.isfunction)
    if function.__module__ == reference.__name__ and not name.startswith("_") and name != "statistics_dtype"
]


class Seam(NamedTuple):
    """A fast module, and the ways of arrays to it and back."""

    module: ModuleType
    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]


@pytest.fixture(params=[name for names in kernels.FAST.values() for name in names])
def seam(request):
    """Each module that the seam lists; those for GPUs run on the host."""
    name = request.param
    if name in kernels.FAST["numpy"]:
        if why := kernels.why_not(name):
            pytest.skip(f"{why}: pip install '.[{kernels.EXTRAS[name]}]'")
        return Seam(kernels.load(name), np.asarray, np.asarray)
    here = request.getfixturevalue("device")
    return Seam(request.getfixturevalue(f"{name}_kernels"), here.put, here.get)


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_same_signatures_as_the_reference(seam):
    assert seam.module.supports(seam.put(np.ones((2, 2), np.float32)))
    for name in PUBLIC:
        assert parameters_of(getattr(seam.module, name)) == parameters_of(getattr(reference, name)), name
    if hasattr(seam.module, "warmup"):
        assert str(inspect.signature(seam.module.warmup)) == "(*dtypes: 'str') -> 'str'"


def arguments_of(name):
    """What each kernel is called with on NumPy arrays."""
    rng = np.random.default_rng(0)
    x, dy, z = (rng.standard_normal((19, 6)).astype(np.float32) for _ in range(3))
    gamma, beta = parameters(6)
    m = reference.moments(x, 1)
    end = Affine(gamma, beta, EPS, True), 1
    sums = reference.gradient_sums(dy, x, m, *end)
    w = rng.integers(0, 4, (19, 1)).astype(np.float32)
    total = float(w.sum())
    return {
        "moments": (x, 1),
        "normalize": (x, m, *end),
        "gradient_sums": (dy, x, m, *end),
        "input_gradient": (dy, x, m, sums, 19, *end),
        "given": (m.mean.astype(np.float64) * 1.1, m.var, x),  # of more precision than statistics have
        "given_gradient": (dy, x, m, *end),
        "forward": (x, *end),
        "backward": (dy, x, m, *end),
        "blend": (m.mean, m.var, gamma, beta, 0.1, 1.5),
        "matmul": (x, dy.T),
        "add_bias": (x, beta),
        "column_sums": (x,),
        "relu": (x,),
        "relu_backward": (dy, x),
        "sigmoid": (x,),
        "sigmoid_backward": (gamma, beta),
        "softmax_cross_entropy": (z, rng.integers(0, 6, 19)),
        "cross_entropy_rows": (z, rng.integers(0, 6, 19)),
        "weighted_moments": (x, w, total, 1),
        "weighted_gradient": (dy, x, m, sums, w, total, *end),
    }[name]


def arrays_through(function, tree):
    if isinstance(tree, tuple):
        mapped = (arrays_through(function, leaf) for leaf in tree)
        return type(tree)._make(mapped) if hasattr(tree, "_make") else tuple(mapped)
    return function(tree) if hasattr(tree, "dtype") else tree


def leaves_of(tree):
    return [leaf for branch in tree for leaf in leaves_of(branch)] if isinstance(tree, tuple) else [tree]


UPDATES = {name for name in PUBLIC if "params" in inspect.signature(getattr(reference, name)).parameters}


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in UPDATES])  # which have tests of their own
def test_same_numbers_as_the_reference(seam, name):
    want = leaves_of(getattr(reference, name)(*arguments_of(name)))  # which may write into them
    got = leaves_of(getattr(seam.module, name)(*arrays_through(seam.put, arguments_of(name))))
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(seam.get(ours), theirs, rtol=2e-6, atol=2e-6)


def test_a_module_of_few_kernels_is_given_the_others(monkeypatch):
    module = ModuleType("bnengine.kernels.few")
    module.relu = module.supports = lambda x: x
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(kernels.FAST, "numpy", ("few",))
    kernels._load.cache_clear()
    assert kernels.load("few") is module
    assert module.moments is reference.moments
    assert module.relu is module.supports
    assert not hasattr(module, "_sum")


@pytest.mark.parametrize(("package", "library"), [("jaxlib._jax", "jax"), ("numpy", "numpy"), ("mylib.core", "mylib")])
def test_the_library_of_an_array(package, library):
    assert kernels.library(type("Array", (), {"__module__": package})) == library


def test_importing_bnengine_imports_no_compiler():
    code = "import sys, bnengine; assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_numba_numpy_arrays_take_the_plain_kernels():
    code = """
import sys
sys.modules["numba"] = None
import numpy as np, bnengine as bn
from bnengine import kernels
assert kernels.select(np.ones((2, 2))).__name__ == "bnengine.kernels.plain"
try:
    bn.batch_norm(np.ones((2, 2)), impl="cpu")
except ImportError as error:
    assert "extra cpu" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
def test_says_once_that_it_compiles_and_not_when_it_loads(tmp_path):
    assert [_said(tmp_path) for _ in range(2)] == ["bnengine: compiling CPU kernels (once; cached)\n", ""]


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
def test_compiles_again_when_another_file_of_the_kernels_has_changed(tmp_path):
    shutil.copytree(Path(kernels.__file__).parents[1], tmp_path / "bnengine")
    _said(tmp_path)
    with (tmp_path / "bnengine/kernels/cpu/vectors.py").open("a") as file:
        file.write("# changed\n")
    assert _said(tmp_path)


def _said(folder):
    """What a process that uses a kernel says, with the cache and, if it is there, the package of this folder."""
    code = "import numpy as np; from bnengine.kernels import cpu; cpu.moments(np.ones((3, 2), np.float32), 1)"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, env=environment, capture_output=True, text=True
    )
    return done.stderr


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
def test_a_cache_that_cannot_be_written_costs_no_run(monkeypatch):
    from numba.core import caching

    from bnengine.kernels.cpu.compiling import compiled

    def double(x):
        return 2 * x

    for kind in vars(caching).values():
        if hasattr(kind, "_locator_classes"):
            monkeypatch.setattr(kind, "_locator_classes", [])
    assert compiled(double)(3) == 6


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
@pytest.mark.parametrize("found", [{}, {"_cache": None}, {"_cache": SimpleNamespace(_cache_file=SimpleNamespace())}])
def test_a_numba_whose_cache_has_other_names_keeps_nothing(monkeypatch, found):
    from bnengine.kernels.cpu import compiling

    asked = []

    def njit(*, cache=False, **_):
        asked.append(cache)
        return (lambda _: SimpleNamespace(**found)) if cache else (lambda function: function)

    monkeypatch.setattr(compiling, "njit", njit)
    assert compiling.compiled(abs) is abs
    assert asked == [True, False]


def test_without_numbas_compiler_numpy_arrays_take_the_plain_kernels():
    code = """
import numpy as np, bnengine as bn
from bnengine import kernels
assert kernels.select(np.ones((2, 2))).__name__ == "bnengine.kernels.plain"
assert kernels.why_not("cpu")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"NUMBA_DISABLE_JIT": "1"})


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
def test_warmup_leaves_nothing_to_compile():
    code = """
import numpy as np
from numba.core import event
from bnengine.kernels import cpu
from bnengine.kernels.reference import Affine
cpu.warmup("float32")
class Listener(event.Listener):
    def on_start(self, event):
        raise AssertionError(event.data["dispatcher"])
    def on_end(self, event):
        pass
event.register("numba:compile", Listener())
for shape in ((60, 100), (3, 4, 5, 5), (9000, 100), (60, 2, 9000)):
    x = np.ones(shape, np.float32)
    x.setflags(write=False)
    y, m = cpu.forward(x, Affine(None, None, 1e-5, False), 1)
    cpu.backward(x, np.asfortranarray(x), m, Affine(None, None, 1e-5, False), 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- against the oracle


def parameters(c, dtype=np.float32, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 2, c).astype(dtype), rng.standard_normal(c).astype(dtype)


def check(fast, x, axis, relu=True, affine=True, tolerance=1e-6, seed=0):
    """Forward and backward of x against the oracle; gives both results."""
    dy = np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)
    gamma, beta = parameters(x.shape[axis]) if affine else (None, None)
    y, m = fast.forward(x, Affine(gamma, beta, EPS, relu), axis)
    dx, sums = fast.backward(dy, x, m, Affine(gamma, beta, EPS, relu), axis)
    assert y.dtype == dx.dtype == x.dtype
    assert y.shape == dx.shape == x.shape
    statistics = np.float64 if x.dtype == np.float64 else np.float32
    for v in (*m, *sums):
        assert v.dtype == statistics
        assert v.shape == (x.shape[axis],)
    ones, zeros = np.ones(x.shape[axis]), np.zeros(x.shape[axis])
    given = (ones, zeros) if gamma is None else (gamma, beta)
    truth = oracles.batch_norm(x, *given, dy, axis=axis, relu=relu, wide=np.longdouble)  # x may be 1e6 deviations off
    assert np.abs(y - truth.y).max() <= tolerance * np.abs(truth.y).max()
    mean = m.mean.astype(np.longdouble) + m.remainder
    assert np.abs(mean - truth.mean).max() <= tolerance * np.sqrt(truth.var.max() + EPS)
    np.testing.assert_allclose(m.var.astype(np.longdouble), truth.var, rtol=2 * tolerance, atol=tolerance * EPS)
    if not (relu and (np.abs(truth.z) <= 4e-6 * max(1, np.abs(truth.z).max())).any()):  # which side, rounding decides
        assert np.abs(dx - truth.dx).max() <= tolerance * truth.scale
        terms, terms_xhat = truth.terms
        assert (np.abs(sums[0] - truth.dbeta) <= 1e-30 + 2 * tolerance * terms).all()
        assert (np.abs(sums[1] - truth.dgamma) <= 1e-30 + 2 * tolerance * (terms_xhat + terms)).all()
    return y, dx


def readonly(x):
    x.setflags(write=False)
    return x


def unaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    result = raw[1:].view(x.dtype).reshape(x.shape)
    result[...] = x
    return result


LAYOUTS = {
    "C": lambda x: x,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "gaps between rows": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ..., ::-1])[::-1, ..., ::-1],
    "channels moved": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "unaligned": unaligned,
    "read-only": lambda x: readonly(x.copy()),
}


def check_weights(fast, x, axis, w, tolerance=1e-6):
    """Weighted statistics and gradient of x against those of samples that are repeated, in extended precision."""
    wide, dy = x.astype(np.longdouble), np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    total, (gamma, beta) = float(w.sum(dtype=np.float64)), parameters(x.shape[axis])
    shares, others = w.astype(np.longdouble) / w.sum(dtype=np.longdouble), tuple(i for i in range(x.ndim) if i != axis)
    mean = (wide * shares).sum(others, keepdims=True)
    mean = mean + ((wide - mean) * shares).sum(others, keepdims=True)
    var = ((wide - mean) ** 2 * shares).sum(others, keepdims=True)
    m = fast.weighted_moments(x, w, total, axis)
    found = (m.mean.astype(np.longdouble) + m.remainder).reshape(mean.shape)
    assert np.abs(found - mean).max() <= tolerance * np.sqrt(var.max() + EPS)
    np.testing.assert_allclose(m.var, var.ravel(), rtol=2 * tolerance, atol=tolerance * EPS)
    affine = Affine(gamma, beta, EPS, False)
    sums = fast.gradient_sums(dy, x, m, affine, axis)
    dx = fast.weighted_gradient(dy, x, m, sums, w, total, affine, axis)
    assert dx.dtype == x.dtype
    xhat, scale = (wide - mean) / np.sqrt(var + EPS), gamma.reshape(mean.shape) / np.sqrt(var + EPS)
    through = dy.sum(others, keepdims=True, dtype=np.longdouble) + xhat * (dy * xhat).sum(others, keepdims=True)
    truth = scale * (dy - shares * through)
    assert np.abs(dx - truth).max() <= 2 * tolerance * max(np.abs(scale * dy).max(), np.abs(truth).max())
    return m, dx


def weights_of(x, axis, seed=5):
    """Fractions, a third of them 0, of x's shape with 1 on the feature axis."""
    rng = np.random.default_rng(seed)
    shape = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    w = np.where(rng.random(shape) < 1 / 3, 0, rng.random(shape))
    w.flat[w.size // 2] = 0.5
    return w.astype(np.float64 if x.dtype == np.float64 else np.float32)


# ---- shapes, axes, dtypes, layouts

SHAPES = [
    ((2, 1), 1), ((1, 2), 0), ((3, 1), 1), ((2, 70), 1), ((7, 13), 1), ((60, 100), 1), ((100, 60), 0),
    ((64, 64), 1), ((127, 101), 1), ((65, 16), 1), ((1024, 3), 1), ((4099, 5), 1), ((2, 5, 1), 1), ((2, 3, 4), 1),
    ((40, 3, 2), 1), ((5, 3, 15), 1), ((5, 3, 16), 1), ((5, 3, 17), 1), ((4, 3, 7, 7), 1), ((2, 9, 33, 31), 1),
    ((3, 5, 6, 7), 3), ((3, 5, 6, 7), 2), ((3, 5, 6, 7), 0), ((2, 1, 5000), 1), ((2, 2, 2, 2, 2), 1), ((2, 300), 1), ((3, 4111), 1),
    ((67, 147), 1), ((9, 2, 3, 246), 3), ((200, 41), 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_shapes(fast, shape, axis, dtype):
    tolerance = {np.float32: 1e-6, np.float64: 1e-13, np.float16: 1e-3}[dtype]
    x = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    check(fast, x, axis, relu=False, tolerance=tolerance)
    check(fast, x, axis, relu=True, affine=False, tolerance=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((9000, 100), 1), ((40, 2, 9000), 1), ((40, 30, 900), 1)])
def test_weights(fast, shape, axis, dtype):
    tolerance = {np.float32: 1e-6, np.float64: 1e-13, np.float16: 1e-3}[dtype]
    x = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    w = weights_of(x, axis)
    check_weights(fast, x, axis, w, tolerance)
    if x.ndim == 4:
        for change in LAYOUTS.values():
            check_weights(fast, change(x), axis, w, tolerance)


@pytest.mark.parametrize(("shape", "axis"), [((700, 40), 1), ((40, 3, 2), 1), ((4, 5, 33, 31), 1)])
@pytest.mark.parametrize("offset", [1.0, -1e3, 1e6])
def test_weights_at_offsets_and_of_any_size(fast, shape, axis, offset):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    check_weights(fast, (x + offset).astype(np.float32), axis, weights_of(x, axis))
    for size in (1e-30, 1e30):
        check_weights(fast, x, axis, weights_of(x, axis) * np.float32(size))
    m, _ = check_weights(fast, np.full_like(x, 0.1), axis, weights_of(x, axis))
    np.testing.assert_array_equal(m.mean, np.float32(0.1))
    np.testing.assert_array_equal(m.var, 0)
    huge = (x / np.abs(x).max() * 1e18).astype(np.float32)
    m = fast.weighted_moments(huge, w := weights_of(x, axis) * np.float32(1e10), float(w.sum()), axis)
    assert np.isfinite(m.var).all()


@pytest.mark.parametrize(("shape", "axis"), [((900, 40), 1), ((9, 5, 3), 1), ((4, 5, 33, 31), 1)])
def test_what_has_no_weight_may_be_anything(fast, shape, axis):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    w = weights_of(x, axis)
    want = fast.weighted_moments(x, w, float(w.sum()), axis)
    for value in (np.nan, np.inf, -np.inf):
        found = fast.weighted_moments(np.where(w == 0, np.float32(value), x), w, float(w.sum()), axis)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 70), min_size=2, max_size=4).filter(lambda s: math.prod(s) <= 200_000),
    axis=st.integers(0, 3),
    relu=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    offset=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_any_shape_layout_and_offset(fast, shape, axis, relu, layout, offset, dtype, seed):
    axis %= len(shape)
    if math.prod(shape) // shape[axis] < 2:
        shape = [2 if i == axis - 1 or (axis == 0 and i == 1) else n for i, n in enumerate(shape)]
    x = LAYOUTS[layout]((np.random.default_rng(seed).standard_normal(shape) + offset).astype(dtype))
    # A float64 mean has no more precise sums to take a remainder from: two values may be close together by chance.
    other = tuple(i for i in range(x.ndim) if i != axis)
    far = np.max(np.abs(x.mean(other)) / np.sqrt(x.var(other) + EPS))
    tolerance = 1e-6 if dtype == np.float32 else 1e-13 + 1e-15 * far
    check(fast, x, axis, relu, tolerance=tolerance, seed=seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(90, 33), (4, 6, 5), (4, 6, 9, 9)])
def test_layouts_give_the_same_and_inputs_stay(fast, layout, shape):
    rng = np.random.default_rng(0)
    plain, dplain = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    x, dy = LAYOUTS[layout](plain), LAYOUTS[layout](dplain)
    gamma, beta = (readonly(v) for v in parameters(shape[1]))
    y, m = fast.forward(x, Affine(gamma, beta, EPS, True), 1)
    dx, _ = fast.backward(dy, x, m, Affine(gamma, beta, EPS, True), 1)
    want, wanted = fast.forward(plain, Affine(gamma, beta, EPS, True), 1)
    np.testing.assert_allclose(y, want, atol=3e-6)
    np.testing.assert_allclose(
        dx, fast.backward(dplain, plain, wanted, Affine(gamma, beta, EPS, True), 1)[0], atol=3e-6
    )
    np.testing.assert_array_equal(x, plain)
    np.testing.assert_array_equal(dy, dplain)
    np.testing.assert_array_equal(fast.backward(dplain, x, m, Affine(gamma, beta, EPS, True), 1)[0], dx)


# ---- numbers


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6, -1e6])
@pytest.mark.parametrize(("shape", "axis"), [((3000, 20), 1), ((20, 3000), 0), ((30, 7, 10, 10), 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_offsets(fast, offset, shape, axis, relu):
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    check(fast, x, axis, relu)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("arrangement", ["outlier first", "outlier last", "sorted", "steps"])
def test_arrangements(fast, axis, arrangement):
    x = np.random.default_rng(0).standard_normal((20_000, 6))
    if arrangement.startswith("outlier"):
        x[0 if "first" in arrangement else -1] = 1e6
    elif arrangement == "sorted":
        x = np.sort(x + 1e3, axis=0)
    else:
        x += np.where(np.arange(20_000) < 10_000, -1e4, 1e4)[:, None]
    x = np.ascontiguousarray(x if axis == 1 else x.T, np.float32)
    check(fast, x, axis, relu=False)


def test_a_million_rows(fast):
    x = (np.random.default_rng(0).standard_normal((1_000_000, 3)) * 3 + 1e5).astype(np.float32)
    check(fast, x, 1, relu=False)
    check(fast, np.ascontiguousarray(x.T), 0, relu=False)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((2, 700, 33, 35), 1), ((2, 3, 150_001), 1), ((3001, 365), 1)])
def test_results_past_the_caches_whose_rows_are_not_aligned(fast, shape, axis, relu):
    x = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    check(fast, x, axis, relu)
    check(fast, x.astype(np.float64), axis, relu, tolerance=1e-13)


@pytest.mark.parametrize("shape", [(50, 8), (3, 8, 40), (70_000, 8)])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6 + 0.1, 1e18, 1e-30])
def test_a_constant_channel_gives_beta(fast, shape, value):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[:, 3] = value
    gamma, beta = parameters(8)
    y, m = fast.forward(x, Affine(gamma, beta, EPS, False), 1)
    assert (y[:, 3] == beta[3]).all()
    assert m.var[3] == 0
    dx, _ = fast.backward(np.ones_like(x), x, m, Affine(gamma, beta, EPS, False), 1)
    assert np.isfinite(dx).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "axis"), [((40, 21), 1), ((3, 21, 19), 1), ((3, 21, 5), 1), ((600_000, 3), 1)])
def test_what_is_not_finite_stays_in_its_channel(fast, value, shape, axis):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bad = x.copy()
    bad[1, 2] = value
    others = [c for c in range(shape[1]) if c != 2]
    for relu in (False, True):
        y, m = fast.forward(x, Affine(None, None, EPS, relu), axis)
        z, k = fast.forward(bad, Affine(None, None, EPS, relu), axis)
        np.testing.assert_array_equal(z[:, others], y[:, others])
        assert np.isnan(z[:, 2]).any()
        dx, _ = fast.backward(x, bad, k, Affine(None, None, EPS, relu), axis)
        np.testing.assert_array_equal(
            dx[:, others], fast.backward(x, x, m, Affine(None, None, EPS, relu), axis)[0][:, others]
        )


@pytest.mark.parametrize("axis", [0, 1])
def test_relu_keeps_nan_and_its_gradient_at_zero_is_zero(fast, axis):
    m = Moments(*(np.asarray([v], np.float32) for v in (0, 0, 1)))
    x = np.tile(np.asarray([np.nan, 0.0, -1.0, 1.0], np.float32), 21)  # whole vectors and single values
    x = x.reshape((-1, 1) if axis == 1 else (1, -1))
    y = fast.normalize(x, m, Affine(None, None, EPS, True), axis).reshape(-1, 4)
    assert np.isnan(y[:, 0]).all()
    assert (y[:, 1:3] == 0).all()
    dy = np.ones_like(x)
    dx = fast.given_gradient(dy, x, m, Affine(None, None, EPS, True), axis)
    np.testing.assert_allclose(dx, reference.given_gradient(dy, x, m, Affine(None, None, EPS, True), axis), rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 3), (200, 3), (3, 8, 2), (4, 5, 300)])
def test_a_constant_whose_square_overflows_gives_beta(fast, shape):
    x, beta = np.full(shape, 1e160), np.arange(shape[1], dtype=np.float64)
    y, m = fast.forward(x, Affine(None, beta, EPS, False), 1)
    assert (m.var == 0).all()
    np.testing.assert_array_equal(y, np.broadcast_to(beta.reshape(1, -1, *[1] * (x.ndim - 2)), shape))


@pytest.mark.parametrize("shape", [(64, 5), (64, 5, 30), (4, 5, 300)])
def test_huge_values(fast, shape):
    x = np.random.default_rng(0).choice([-1e18, 1e18], shape).astype(np.float32)
    check(fast, x, 1, relu=False)


# ---- the parts of the compositions


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("shape", "axis"), [((37, 11), 1), ((4, 3, 50), 1), ((4, 3, 5), 1), ((900_000, 2), 1)])
def test_parts_make_the_whole(fast, shape, axis, dtype, relu):
    rng = np.random.default_rng(5)
    x, dy = ((rng.standard_normal(shape) + 2).astype(dtype) for _ in range(2))
    gamma, beta = parameters(shape[axis])
    y, m = fast.forward(x, Affine(gamma, beta, EPS, relu), axis)
    dx, sums = fast.backward(dy, x, m, Affine(gamma, beta, EPS, relu), axis)
    for whole, part in zip(m, fast.moments(x, axis), strict=True):
        np.testing.assert_array_equal(part, whole)
    np.testing.assert_array_equal(fast.normalize(x, m, Affine(gamma, beta, EPS, relu), axis), y)
    count = x.size // shape[axis]
    parts = fast.gradient_sums(dy, x, m, Affine(gamma, beta, EPS, relu), axis)
    for whole, part in zip(sums, parts, strict=True):
        np.testing.assert_array_equal(part, whole)
    np.testing.assert_array_equal(fast.input_gradient(dy, x, m, parts, count, Affine(gamma, beta, EPS, relu), axis), dx)
    close = {"rtol": 1e-3 if dtype == np.float16 else 1e-5, "atol": 1e-5}
    given = fast.given_gradient(dy, x, m, Affine(gamma, beta, EPS, relu), axis)
    np.testing.assert_allclose(given, reference.given_gradient(dy, x, m, Affine(gamma, beta, EPS, relu), axis), **close)


def test_normalize_takes_the_remainder_of_a_given_mean(fast):
    mean = np.asarray([1e6 + 0.03, 0.5])
    x = (np.random.default_rng(0).standard_normal((500, 2)) + mean).astype(np.float32)
    rounded = mean.astype(np.float32)
    m = Moments(rounded, (mean - rounded).astype(np.float32), np.ones(2, np.float32))
    y = fast.normalize(x, m, Affine(None, None, EPS, False), 1)
    np.testing.assert_allclose(y, (x.astype(float) - mean) / np.sqrt(1 + EPS), atol=4e-6)


def test_parameters_of_another_dtype(fast):
    x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    gamma, beta = parameters(4, np.float64)
    y, _ = fast.forward(x, Affine(gamma[::-1], beta, EPS, False), 1)
    want, _ = fast.forward(x, Affine(gamma[::-1].astype(np.float32), beta.astype(np.float32), EPS, False), 1)
    np.testing.assert_array_equal(y, want)


def test_results_are_the_callers_own(fast):
    x = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    y, _ = fast.forward(x, Affine(None, None, EPS, False), 1)
    kept = y[10:20].copy()
    view = y[10:20]
    del y
    for _ in range(3):
        z, _ = fast.forward(x + 1, Affine(None, None, EPS, True), 1)
    np.testing.assert_array_equal(view, kept)
    assert not np.shares_memory(z, view)
    assert z.flags.writeable
    assert not np.shares_memory(z, x)


def test_memory_that_is_kept_for_results_is_bounded(monkeypatch):
    from bnengine.kernels import memory

    monkeypatch.setattr(memory, "LARGEST", 1 << 20)
    own = memory.Memory()
    results = [own.empty((size,), np.dtype(np.float32)) for size in (50_000, 50_000, 100_000, 200_000, 400_000)]
    assert not any(np.may_share_memory(a, b) for i, a in enumerate(results) for b in results[:i])
    assert 0 < own._held <= memory.LARGEST
    del results
    again = own.empty((250_000,), np.dtype(np.float32))  # idle blocks of other sizes make room
    assert again.nbytes <= own._held <= memory.LARGEST


def test_blend(fast):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(1, 2, 7).astype(np.float32) for _ in range(4)]
    before = [a.copy() for a in arrays]
    for ours, want in zip(fast.blend(*arrays, 0.1, 1.5), reference.blend(*arrays, 0.1, 1.5), strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-6)
    np.testing.assert_array_equal(arrays, before)


# ---- threads and processes


@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
@pytest.mark.parametrize(
    ("shape", "axis"), [((9000, 100), 1), ((9000, 147), 1), ((40, 30, 900), 1), ((40, 2, 9000), 1), ((9, 90000), 0)]
)
def test_bits_do_not_depend_on_the_number_of_threads(shape, axis):
    from bnengine.kernels import cpu, workers

    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    gamma, beta = parameters(shape[axis])
    results = []
    before = workers.threads()
    try:
        for threads in (1, 2, 5):
            workers.set_threads(threads)
            y, m = cpu.forward(x, Affine(gamma, beta, EPS, True), axis)
            dx, sums = cpu.backward(dy, x, m, Affine(gamma, beta, EPS, True), axis)
            w = weights_of(x, axis)
            weighted = cpu.weighted_moments(x, w, float(w.sum()), axis)
            affine = Affine(gamma, beta, EPS, True)
            weighted_dx = cpu.weighted_gradient(dy, x, weighted, sums, w, float(w.sum()), affine, axis)
            results.append([y, dx, *m, *sums, *weighted, weighted_dx])
    finally:
        workers.set_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_threads_at_once(fast):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((700 + 100 * i, 1000)).astype(np.float32) for i in range(6)]
    want = [fast.forward(x, Affine(None, None, EPS, True), 1)[0].copy() for x in arrays]

    def right(i):
        return all(
            np.array_equal(fast.forward(arrays[i], Affine(None, None, EPS, True), 1)[0], want[i]) for _ in range(10)
        )

    with ThreadPoolExecutor(len(arrays)) as threads:
        assert all(threads.map(right, range(len(arrays))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_after_a_fork(fast):
    x = np.random.default_rng(0).standard_normal((900, 1000)).astype(np.float32)
    want = fast.forward(x, Affine(None, None, EPS, True), 1)[0]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: sender.send(np.array_equal(fast.forward(x, Affine(None, None, EPS, True), 1)[0], want))
    )
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() is True
    child.join(60)
    assert child.exitcode == 0


# ---- the network's other hot operations


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul_and_sigmoid(fast, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 70)).astype(dtype), rng.standard_normal((70, 90)).astype(dtype)
    np.testing.assert_allclose(fast.matmul(a, b), a @ b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fast.matmul(b.T, a.T), (a @ b).T, rtol=1e-5, atol=1e-5)
    assert fast.matmul(a, b).dtype == dtype
    mixed = fast.matmul(a, b.astype(np.float16))
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed, a @ b.astype(np.float16), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fast.matmul(a, b[:, 0]), a @ b[:, 0], rtol=1e-5, atol=1e-5)
    stack = np.stack([a, -a])
    np.testing.assert_allclose(fast.matmul(stack, b), stack @ b, rtol=1e-5, atol=1e-5)
    x = np.concatenate([[-1000, -100, -20, -0.0, 0.0, 20, 1000, np.inf, -np.inf, np.nan], 8 * a.reshape(-1)])
    x = x.astype(dtype)
    y = fast.sigmoid(x)
    np.testing.assert_allclose(
        y, reference.sigmoid(x.astype(np.longdouble)), rtol=3e-7 if dtype == np.float32 else 1e-15, atol=1e-37
    )
    dy = rng.standard_normal(x.shape).astype(dtype)
    np.testing.assert_allclose(fast.sigmoid_backward(dy, y), dy * y * (1 - y), rtol=1e-6)
    assert fast.sigmoid(a.T).shape == a.T.shape
    np.testing.assert_array_equal(fast.sigmoid(a.T), fast.sigmoid(a).T)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_relu(fast, dtype):
    x = np.concatenate([[-0.0, 0.0, np.inf, -np.inf, np.nan], np.random.default_rng(0).standard_normal(1000)])
    x = x.astype(dtype)
    dy = np.arange(x.size, dtype=dtype)
    dy[1] = np.inf  # a product with the mask would make NaN of it
    y = fast.relu(x)
    np.testing.assert_array_equal(y, np.where(x <= 0, 0, x))
    np.testing.assert_array_equal(fast.relu_backward(dy, y), np.where(x <= 0, 0, dy))
    square = x[:900].reshape(30, 30)
    np.testing.assert_array_equal(fast.relu_backward(square, square.T), np.where(square.T <= 0, 0, square))
    assert y.dtype == fast.relu_backward(dy, y).dtype == dtype


@pytest.mark.parametrize("function", ["relu", "sigmoid", "relu_backward", "sigmoid_backward"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1)])
def test_activations_keep_the_order_of_memory(fast, function, order):
    x = np.random.default_rng(0).standard_normal((3, 40, 50)).astype(np.float32).transpose(order)
    x.flags.writeable = False
    arguments = (x, x) if function.endswith("backward") else (x,)
    y = getattr(fast, function)(*arguments)
    assert y.strides == x.strides
    np.testing.assert_allclose(y, getattr(reference, function)(*arguments), rtol=1e-6)


@pytest.mark.parametrize("labels_dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_softmax_cross_entropy(fast, dtype, labels_dtype):
    rng = np.random.default_rng(0)
    z = (5 * rng.standard_normal((33, 10))).astype(dtype)
    z[0, 3], z[1, 2] = 1000, -1000
    labels = rng.integers(0, 10, 33).astype(labels_dtype)
    for logits in (z, np.asfortranarray(z), readonly(z.copy())):
        loss, dz = fast.softmax_cross_entropy(logits, readonly(labels.copy()))
        want, dwant = reference.softmax_cross_entropy(z.astype(np.float64), labels)
        assert np.ndim(loss) == 0
        assert loss.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert dz.dtype == dtype
        np.testing.assert_allclose(loss, want, rtol=1e-6)
        np.testing.assert_allclose(
            dz, dwant, rtol=1e-3 if dtype == np.float16 else 1e-5, atol=1e-4 if dtype == np.float16 else 1e-8
        )


@pytest.mark.parametrize("label", [-1, 10, 200])
def test_softmax_cross_entropy_of_a_label_outside(fast, label):
    z = np.zeros((3, 10), np.float32)
    labels = np.asarray([1, label, 2])
    loss, dz = fast.softmax_cross_entropy(z, labels)
    want, dwant = reference.softmax_cross_entropy(z, labels)
    assert np.isnan(loss)
    assert np.isnan(want)
    np.testing.assert_allclose(dz, dwant, rtol=1e-6)


UPDATES = [name for name, factory in optimizers.BY_NAME.items() if factory().rule.fast]


@pytest.mark.parametrize("memory", ["own", "read-only", "strided", "large"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.skipif("cpu" not in NUMPY, reason="needs numba")
def test_an_update_in_place_is_the_equation(name, dtype, memory):
    """Donated leaves are written where they lie; others stay, and the equation makes new ones."""
    optimizer, rng = optimizers.BY_NAME[name](0.1, weight_decay=0.1, decayed=("0", "2")), np.random.default_rng(0)
    shapes = [(1500, 700)] if memory == "large" else [(13, 7), (7,), (1, 1)]

    def leaves():
        result = [rng.uniform(0.1, 1, shape).astype(dtype) for shape in shapes]
        if memory == "read-only":
            result = [readonly(leaf) for leaf in result]
        elif memory == "strided":
            result = [np.repeat(leaf, 2, axis=-1)[..., ::2] for leaf in result]
        return {str(i): leaf for i, leaf in enumerate(result)}

    params, grads, state = leaves(), leaves(), {"step": 2, **{slot: leaves() for slot in optimizer.slots}}
    alone = dataclasses.replace(optimizer, rule=dataclasses.replace(optimizer.rule, fast=False))
    before = trees.copied({"params": params, "grads": grads, "state": state})
    want = dict(zip(("params", "state"), alone.update(params, grads, state), strict=True))
    for left, copy in zip(
        trees.leaves({"params": params, "grads": grads, "state": state}), trees.leaves(before), strict=True
    ):
        np.testing.assert_array_equal(left, copy)
    new, new_state = optimizer.update(params, grads, state)
    for ours, theirs in zip(trees.leaves({"params": new, "state": new_state}), trees.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)
    for g, copy in zip(trees.leaves(grads), trees.leaves(before["grads"]), strict=True):
        np.testing.assert_array_equal(g, copy)
    assert all(p.dtype == dtype for p in trees.leaves(new))
    for now, was in ((new, params), *((new_state[slot], state[slot]) for slot in optimizer.slots)):
        in_place = [a is b for a, b in zip(trees.leaves(now), trees.leaves(was), strict=True)]
        assert in_place == [memory in ("own", "large")] * len(shapes)


@pytest.mark.parametrize("name", [n for names in kernels.FAST.values() for n in names])
def test_fast_rules_are_those_that_say_so(name):
    """A name that a module misses would run its equation without a word, one too many another's loop."""
    if kernels.why_not(name) is not None:
        pytest.skip(str(kernels.why_not(name)))
    module = kernels.load(name)
    if hasattr(module, "update"):
        assert list(module.updates.RULES) == UPDATES


# ---- through the public door


@pytest.mark.parametrize("impl", NUMPY)
def test_impl_forces(impl):
    x = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    y, residuals = bn.batch_norm(x, impl=impl, activation="relu")
    np.testing.assert_allclose(y, bn.batch_norm(x, impl="reference", activation="relu")[0], atol=1e-6)
    assert bn.batch_norm_backward(x, residuals).x.shape == x.shape


def test_the_old_name_of_the_plain_kernels_warns():
    x = np.ones((2, 2), np.float32)
    with pytest.warns(DeprecationWarning, match="impl: 'blocked' is called 'plain' now") as warned:
        y, _ = bn.batch_norm(x, impl="blocked")
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(y, bn.batch_norm(x, impl="plain")[0])


def test_selected_by_default():
    assert kernels.select(np.ones((2, 2), np.float32)) is kernels.load(NUMPY[0])
    assert kernels.select(np.ones((0, 2), np.float32)) is reference


def test_modules_are_modules():
    assert all(isinstance(kernels.load(name), ModuleType) for name in NUMPY)
