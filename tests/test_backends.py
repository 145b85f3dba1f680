from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import backends, kernels

MODULES = {"array-api-strict": "array_api_strict", "dask": "dask.array"}


@pytest.mark.parametrize("name", [name for name in backends.NAMES if name != "cupy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_go_there_and_come_back(name, dtype):
    need(MODULES.get(name, name))
    if (name, dtype) == ("jax", "float64"):
        with pytest.raises(ValueError, match="dtype: jax has no float64 on device default; set JAX_ENABLE_X64=1"):
            bn.backend(name, dtype=dtype)
        return
    backend = bn.backend(name, dtype=dtype)
    host = np.asarray([[0.5, 2.0], [3.0, -1.0]])
    host.flags.writeable = False
    there = backend.asarray(host)
    assert there.dtype == backend.dtype
    assert type(there).__module__.partition(".")[0].removesuffix("lib") == name.partition("-")[0].replace(
        "array", "array_api_strict"
    )
    np.testing.assert_array_equal(backends.as_numpy(there), host)
    assert backends.as_numpy(backend.asarray(np.asarray([1, 2]))).dtype.kind == "i"


def test_auto_is_numpy_without_a_gpu():
    if backends.unusable("cupy") is None:
        assert bn.backend("auto").name == "cupy"
    else:
        assert bn.backend("auto").name == "numpy"


@pytest.mark.parametrize(
    ("name", "device"), [("torch", "cpu"), ("jax", "cpu"), ("jax", "cpu:0"), ("array-api-strict", "device1")]
)
def test_devices_by_their_own_names(name, device):
    need(MODULES.get(name, name))
    assert bn.backend(name, device=device).asarray([1.0]).shape == (1,)


def test_refusals():
    with pytest.raises(ValueError, match=r"backend name: expected 'auto', 'numpy', 'cupy', .*, got 'tensorflow'"):
        bn.backend("tensorflow")
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float64', got 'float16'"):
        bn.backend("numpy", dtype="float16")
    with pytest.raises(ValueError, match="device: numpy has only 'cpu', got 'cuda:0'"):
        bn.backend("numpy", device="cuda:0")
    need("array_api_strict")
    with pytest.raises(ValueError, match="device: array-api-strict has no 'cuda:0' here"):
        bn.backend("array-api-strict", device="cuda:0")
    with pytest.raises(ValueError, match="dtype: array-api-strict has no float64 on device no_float64"):
        bn.backend("array-api-strict", dtype="float64", device="no_float64")
    if backends.unusable("cupy"):
        with pytest.raises(ImportError, match=r"backend: cupy cannot be used here: .*(extra cuda12 or cuda13|no GPU)"):
            bn.backend("cupy")


def test_integers_where_a_device_has_no_int64():
    need("array_api_strict")
    backend = bn.backend("array-api-strict", device="no_x64")
    assert str(backend.asarray([1, -(2**31)]).dtype).endswith("int32")
    assert backend.asarray(np.zeros(0, np.int64)).shape == (0,)
    with pytest.raises(ValueError, match="host: expected integers that fit in int32"):
        backend.asarray([2**31])


def test_torch_devices_that_are_not_there():
    torch = need("torch")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: torch has no 'cuda:1' here"):
            bn.backend("torch", device="cuda:1")


def test_cupy_devices_that_are_not_there(monkeypatch):
    """A stand-in for CuPy's: making a Device looks at nothing, asking it something does."""

    class Device:
        def __init__(self, number):
            self.id = number

        @property
        def compute_capability(self):
            if self.id:
                raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
            return "90"

        def use(self):
            return self

    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(Device=Device))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert [backends._device("cupy", name).id for name in ("cuda", "cuda:0", "0")] == [0, 0, 0]
    with pytest.raises(ValueError, match="device: cupy has no 'cuda:9' here: cudaErrorInvalidDevice"):
        backends._device("cupy", "cuda:9")


def test_the_oldest_version_of_the_standard_that_is_promised():
    """docs/compatibility.md names it: array-api-strict then offers nothing that came later."""
    strict = need("array_api_strict")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 3)), np.arange(20) % 3
    with strict.ArrayAPIStrictFlags(api_version="2023.12"):
        x = strict.asarray(rows[0])
        for name in ("relu", "leaky_relu", "sigmoid", "tanh", "identity"):
            getattr(bn, f"{name}_backward")(x, getattr(bn, name)(x))
        y, residuals = bn.batch_norm(x, activation="relu")
        gradients = bn.batch_norm_backward(y, residuals)
        running = bn.RunningStats.init(3, like=x).update(residuals)
        assert bn.normalize_backward(gradients.x, x, running.mean, running.var).x.shape == x.shape
        assert bn.mean_squared_error(y, x)[1].shape == x.shape
        assert bn.binary_cross_entropy(y[:, 0], strict.zeros_like(x[:, 0]))[1].shape == (20,)
        for name in ("sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw"):
            fitted = bn.fit(
                bn.mlp([3, 4, 3], standardize=True),
                getattr(bn.optimizers, name)(
                    bn.optimizers.warm_up(bn.optimizers.cosine(0.01, steps=9), steps=2), clip=1.0
                ),
                rows,
                validation=rows,
                epochs=2,
                batch_size=8,
                backend="array-api-strict",
            )
            assert np.isfinite(fitted.history[-1]["validation_loss"])
    assert strict.get_array_api_strict_flags()["api_version"] != "2023.12"


def test_the_list_says_why_not():
    rows = {row.name: row for row in backends.listed()}
    assert rows["numpy"].usable
    assert rows["numpy"].version == np.__version__
    for row in rows.values():
        assert row.usable != bool(row.why_not)
        if row.usable and row.name not in kernels.FAST:
            assert row.fast_path == "no fast path (array API)"


def test_a_backend_prints_as_it_is_made():
    assert repr(bn.backend("numpy", dtype="float64")) == "backend('numpy', dtype='float64')"
    assert eval(repr(bn.backend("numpy")), {"backend": bn.backend}) == bn.backend("numpy")
