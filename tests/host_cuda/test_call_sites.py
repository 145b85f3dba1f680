"""The public functions on (stand-in) CuPy arrays: dispatch, launches, and the reference's results."""

from __future__ import annotations

import inspect
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bnengine as bn
from bnengine.kernels import reference, select
from bnengine.kernels.reference import Affine

from .checks import Device, laid_out


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(11)
    tall = {name: random.standard_normal((19, 6, 5)).astype(np.float32) for name in ("x", "dy")}
    flat = {name: random.uniform(0.5, 2, 6).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    return {**tall, **flat}


def close(device: Device, got: Any, want: Any) -> None:
    np.testing.assert_allclose(device.get(got), want, rtol=2e-5, atol=2e-6)


def test_signatures_equal_the_reference(kernels: ModuleType) -> None:
    for name, function in inspect.getmembers(reference, inspect.isfunction):
        if function.__module__ == reference.__name__ and not name.startswith("_") and name != "statistics_dtype":
            ours, theirs = (list(inspect.signature(f).parameters) for f in (getattr(kernels, name), function))
            assert ours == theirs, name


def test_arrays_choose_the_kernels(kernels: ModuleType, device: Device, arrays: dict[str, np.ndarray]) -> None:
    x = device.put(arrays["x"])
    assert select(x) is kernels
    assert select(x, "cuda") is kernels
    assert select(arrays["x"]) is not kernels
    assert select(device.put(np.ones(3, np.int32))) is reference
    with pytest.raises(ValueError, match="runs on cupy arrays"):
        bn.batch_norm(arrays["x"], impl="cuda")


LAUNCHES = {
    "sm_60": [
        *("share_moments", "pool_moments", "normalize"),
        *("share_gradients", "pool_gradients", "input_gradient"),
    ],
    "sm_90": ["held_forward", "held_backward"],
    "sm_90 without shared memory": ["split_moments", "pass_forward", "split_sums", "pass_backward"],
}
"""A training pass and its backward pass on each kind of chip."""


@pytest.mark.parametrize("chip", LAUNCHES)
@pytest.mark.parametrize(("layout", "activation"), [("C", None), ("F", "relu"), ("rolled", None), ("strided", "relu")])
def test_batch_norm(
    kernels: ModuleType,
    stand_in: ModuleType,
    device: Device,
    on_chip: Callable[[str], None],
    arrays: dict[str, np.ndarray],
    layout: str,
    activation: str | None,
    chip: str,
) -> None:
    on_chip(chip)
    x, dy = laid_out(device, arrays["x"], layout), laid_out(device, arrays["dy"], layout)
    gamma, beta = arrays["gamma"], arrays["beta"]
    y, residuals = bn.batch_norm(x, device.put(gamma), device.put(beta), activation=activation, impl="cuda")
    gradients = bn.batch_norm_backward(dy, residuals)
    want, kept = bn.batch_norm(arrays["x"], gamma, beta, activation=activation, impl="reference")
    for got, value in zip((y, *gradients), (want, *bn.batch_norm_backward(arrays["dy"], kept)), strict=True):
        close(device, got, value)
    assert [name.removeprefix("bnengine_") for name in stand_in.launches] == LAUNCHES[chip]


def test_given_statistics(kernels: ModuleType, stand_in: ModuleType, device: Device, arrays: dict[str, Any]) -> None:
    names = ("mean", "var", "gamma", "beta")
    given, there = [arrays[n] for n in names], [device.put(arrays[n]) for n in names]
    x, dy = device.put(arrays["x"]), device.put(arrays["dy"])
    close(device, bn.normalize(x, *there, activation="relu"), bn.normalize(arrays["x"], *given, activation="relu"))
    assert stand_in.launches == ["bnengine_pass_forward"]
    got = bn.normalize_backward(dy, x, *there, activation="relu")
    for a, b in zip(got, bn.normalize_backward(arrays["dy"], arrays["x"], *given, activation="relu"), strict=True):
        close(device, a, b)


@pytest.mark.parametrize("chip", ["sm_60", "sm_90"])
def test_inference_is_one_launch_on_the_statistics_as_they_are(
    kernels: ModuleType, device: Device, on_chip: Callable[[str], None], arrays: dict[str, Any], chip: str
) -> None:
    """What is in the remainder's place is not read; a mean of more precision has one."""
    on_chip(chip)
    x, mean, var = (device.put(arrays[name]) for name in ("x", "mean", "var"))
    m = kernels.given(mean, var, x)
    assert m.mean is mean
    assert m.var is var
    spoilt = type(m)(mean, mean * np.float32(np.nan), var)
    affine = Affine(None, None, 1e-5, False)
    want = bn.normalize(arrays["x"], arrays["mean"], arrays["var"])
    close(device, kernels.normalize(x, spoilt, affine, 1), want)
    precise = arrays["mean"].astype(np.float64) + 1e6
    far = arrays["x"] + np.float32(1e6)
    want = bn.normalize(far.astype(np.float64), precise, arrays["var"].astype(np.float64))
    close(device, bn.normalize(device.put(far), device.put(precise), var), want)


def test_running_statistics(kernels: ModuleType, stand_in: ModuleType, device: Device, arrays: dict[str, Any]) -> None:
    results = []
    for x in (device.put(arrays["x"]), arrays["x"]):
        running = bn.RunningStats(x[0, :, 0], x[1, :, 0], 0)
        results.append(running.update(bn.batch_norm(x)[1], momentum=0.3))
    close(device, results[0].mean, results[1].mean)
    close(device, results[0].var, results[1].var)
    assert stand_in.launches[-1] == "bnengine_blend"


def test_parameters_of_other_types_and_strides(
    kernels: ModuleType, device: Device, arrays: dict[str, np.ndarray]
) -> None:
    """Raw kernels read float32 without gaps: what is otherwise is converted, dy of another dtype goes elsewhere."""
    gamma, beta = arrays["gamma"].astype(np.float64), np.repeat(arrays["beta"], 2)
    there = device.put(gamma), device.put(beta)[::2]
    y, kept = bn.batch_norm(device.put(arrays["x"]), *there)
    want, there = bn.batch_norm(arrays["x"], arrays["gamma"], arrays["beta"])
    close(device, y, want)
    got = bn.batch_norm_backward(device.put(arrays["dy"].astype(np.float64)), kept)
    close(device, got.x, bn.batch_norm_backward(arrays["dy"], there).x)


def test_statistics_over_ranks(kernels: ModuleType, device: Device, arrays: dict[str, Any]) -> None:
    """Sums over a reduction go through the separate kernels, with the count of all ranks."""
    moments, m = [], reference.moments(arrays["x"], 1)
    count = 2 * arrays["x"].size // 6
    sums = reference.gradient_sums(arrays["dy"], arrays["x"], m, Affine(None, None, 1e-5, False), 1)
    there = [device.put(v) for v in (arrays["dy"], arrays["x"])]
    moments = reference.Moments(*map(device.put, m))
    doubled = tuple(device.put(2 * s) for s in sums)
    got = kernels.input_gradient(*there, moments, doubled, count, Affine(None, None, 1e-5, False), 1)
    rest = (tuple(2 * s for s in sums), count, Affine(None, None, 1e-5, False), 1)
    close(device, got, reference.input_gradient(arrays["dy"], arrays["x"], m, *rest))


def test_losses_and_activations(kernels: ModuleType, stand_in: ModuleType, device: Device) -> None:
    logits = np.random.default_rng(3).standard_normal((9, 4)).astype(np.float32)
    labels = np.arange(9) % 4
    got = bn.softmax_cross_entropy(device.put(logits), device.put(labels))
    for a, b in zip(got, bn.softmax_cross_entropy(logits, labels), strict=True):
        close(device, a, b)
    y = bn.sigmoid(device.put(logits))
    close(device, y, bn.sigmoid(logits))
    close(device, bn.sigmoid_backward(device.put(logits), y), bn.sigmoid_backward(logits, bn.sigmoid(logits)))
    launched = ["cross_entropy", "sigmoid", "sigmoid_backward"]
    assert stand_in.launches == [f"bnengine_{name}" for name in launched]


@pytest.mark.parametrize("schedule", ["lowest", "highest", "rotating", "random"])
def test_same_bits_on_every_schedule(
    kernels: ModuleType, stand_in: ModuleType, device: Device, arrays: dict[str, Any], schedule: str
) -> None:
    def bits() -> list[bytes]:
        y, residuals = bn.batch_norm(device.put(arrays["x"]))
        return [device.get(v).tobytes() for v in (y, *bn.batch_norm_backward(device.put(arrays["dy"]), residuals)[:1])]

    first = bits()
    stand_in.schedule = schedule
    assert bits() == first


def test_split_fits_the_array(kernels: ModuleType) -> None:
    """Threads never outnumber what they visit, and visit few values each."""
    sizes = (1, 2, 7, 49, 300, 3136, 50_003)
    for outer, channels, inner in itertools.product(sizes, (1, 3, 64), sizes):
        rows, columns = kernels.layout.split(outer, channels, inner)
        assert 1 <= rows <= outer
        assert 1 <= columns <= inner
        assert math.ceil(outer / rows) * math.ceil(inner / columns) <= 4 * kernels.layout.MOST
    with pytest.raises(ValueError, match="channels"):
        kernels.layout.split(2, 2**31, 1)


def test_threads_of_huge_arrays(kernels: ModuleType) -> None:
    """Even x of 2^37 values has few enough threads for the device's 32-bit division of their index."""
    for outer, channels, inner in ((2**31, 64, 1), (1, 64, 2**31), (2**12, 2**12, 2**13)):
        rows, columns = kernels.layout.split(outer, channels, inner)
        assert rows * channels * columns < 2**31


def test_cache_that_cannot_be_written_is_named(
    kernels: ModuleType, stand_in: ModuleType, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/kernels")

    monkeypatch.setattr(stand_in, "_launch", refuse)
    with pytest.raises(RuntimeError, match=r"Permission denied: '/kernels'; set CUPY_CACHE_DIR"):
        bn.sigmoid(device.put(np.ones(3, np.float32)))


def test_a_library_that_cannot_be_loaded_is_no_matter_of_the_cache(
    kernels: ModuleType, stand_in: ModuleType, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(stand_in, "_launch", refuse)
    with pytest.raises(OSError, match=r"^libnvrtc.so.13: cannot open"):
        bn.sigmoid(device.put(np.ones(3, np.float32)))


IMPORT = "import bnengine.kernels as k; print(k.why_not('cuda'))"


def test_imports_without_a_gpu(stand_in: ModuleType) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_cache_folder_that_cannot_be_made_is_named(stand_in: ModuleType, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    environment = {"CUPY_CACHE_DIR": str(tmp_path / "file" / "cache"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, env=environment)
    assert "set CUPY_CACHE_DIR to a folder that can be written to" in done.stdout
