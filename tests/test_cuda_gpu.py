"""The CUDA kernels on a GPU: what the host proof checks, and what only hardware shows."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from host_cuda import checks
from host_cuda.checks import DTYPES, LAYOUTS, SHAPES, UPDATES, Case, Device, Update

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """bnengine.kernels.cuda; skips where CuPy finds no GPU."""
    cupy = pytest.importorskip("cupy", reason="no CuPy")
    if not cupy.is_available():
        pytest.skip("no GPU that CuPy can use")
    from bnengine.kernels import cuda

    return cuda


@pytest.fixture
def sources() -> Any:
    return pytest.importorskip("bnengine.kernels.cuda.sources", reason="no CuPy", exc_type=ImportError)


@pytest.fixture(scope="module")
def device(kernels: ModuleType) -> Device:
    return Device(kernels.device.cupy.asarray, kernels.device.cupy.asnumpy)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((65536, 64), 1), ((32, 64, 56, 56), 1)], ids=str)
def test_normalization(
    kernels: ModuleType, device: Device, shape: tuple[int, ...], axis: int, dtype: str, layout: str
) -> None:
    for relu in (False, True):
        checks.check_normalization(kernels, device, Case(shape, axis, dtype, layout, relu=relu, parameters=relu))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [Case((1_000_000, 2), 1, offset=1e6), Case((1_000_000, 2), 1, outliers=True)], ids=str)
def test_promises_at_a_million_rows(kernels: ModuleType, device: Device, case: Case) -> None:
    checks.check_normalization(kernels, device, case)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "check",
    [checks.check_special_values, checks.check_empty, checks.check_blend, checks.check_labels_outside],
    ids=lambda check: check.__name__,
)
def test_special_cases(kernels: ModuleType, device: Device, check: Any) -> None:
    check(kernels, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_network(kernels: ModuleType, device: Device, dtype: str) -> None:
    checks.check_sigmoid(kernels, device, dtype)
    for shape, layout in itertools.product(((1, 1), (128, 10), (5, 1000), (70_000, 3)), LAYOUTS):
        checks.check_softmax(kernels, device, shape, dtype, layout)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("update", UPDATES, ids=lambda u: f"{u.name}-{'-'.join(map(str, u.scalars.values()))}")
def test_optimizers(kernels: ModuleType, device: Device, update: Update, dtype: str) -> None:
    checks.check_update(kernels, device, update, dtype)


@pytest.mark.gpu
def test_same_bits_a_hundred_times(kernels: ModuleType, device: Device) -> None:
    x = device.put(np.random.default_rng(0).standard_normal((37, 64, 29, 31)).astype(np.float32))
    results = set()
    for _ in range(100):
        y, m = kernels.forward(x, None, None, 1, 1e-5, True)
        dx, sums = kernels.backward(x, x, m, None, None, 1, 1e-5, True)
        results.add(b"".join(device.get(v).tobytes() for v in (y, *m, dx, *sums)))
    assert len(results) == 1


@pytest.mark.gpu
def test_current_stream(kernels: ModuleType, device: Device) -> None:
    """Work goes to the caller's stream: captured into a graph, it runs when the graph does."""
    cupy = kernels.device.cupy
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x = device.put(np.zeros((4096, 64), np.float32))
        kernels.sigmoid(x)  # compiled before the capture
        stream.begin_capture()
        y = kernels.sigmoid(x)
        graph = stream.end_capture()
        y.fill(-1)
        graph.launch(stream)
        stream.synchronize()
        assert (device.get(y) == 0.5).all()


@pytest.mark.gpu
def test_more_than_2_31_values(kernels: ModuleType) -> None:
    cupy = kernels.device.cupy
    if cupy.cuda.Device().mem_info[0] < 20 * 2**30:
        pytest.skip("less than 20 GiB of free GPU memory")
    x = cupy.zeros((2**21 + 1, 1024), dtype=cupy.float16)
    x[-1, :] = 1
    y, m = kernels.forward(x, None, None, 1, 1e-5, False)
    mean = 1 / x.shape[0]
    assert np.allclose(cupy.asnumpy(m.mean), mean, rtol=1e-6)
    assert np.allclose(cupy.asnumpy(y[-1, :]).astype(float), 1 / np.sqrt(mean * (1 - mean) + 1e-5), rtol=1e-3)


@pytest.mark.gpu
def test_every_device(kernels: ModuleType) -> None:
    cupy = kernels.device.cupy
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU only")
    with cupy.cuda.Device(1):
        x = cupy.ones((64, 3), dtype=cupy.float32)
    y, m = kernels.forward(x, None, None, 1, 1e-5, False)
    assert y.device == m.mean.device == x.device


def test_kernels_since_the_last_record(sources: ModuleType) -> None:
    """Says which kernels no record from a GPU covers; a record holds `kernels`, their hashes by name."""
    records = [(path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("gpu*.json"))]
    if not records:
        pytest.skip("no record of a GPU under benchmarks/results: no kernel has been verified on one")
    path, record = records[-1]
    changed = [name for name, hash_ in sources.fingerprints().items() if record["kernels"].get(name) != hash_]
    if changed:
        pytest.skip(f"changed since {path.name}: {', '.join(changed)}")


def test_fingerprints_follow_the_source(sources: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.fingerprints()
    assert len(set(before.values())) == len(sources.KERNELS) + len(sources.RAW)
    blend = sources.KERNELS["blend"]
    monkeypatch.setitem(sources.KERNELS, "blend", blend._replace(outputs=f"{blend.outputs} "))
    assert [name for name, hash_ in sources.fingerprints().items() if hash_ != before[name]] == ["blend"]
    monkeypatch.setattr(sources, "preamble", lambda spec: f"// {spec.source}")
    assert all(hash_ != before[name] for name, hash_ in sources.fingerprints().items())


def test_the_tables_on_paper_are_of_these_kernels(sources: ModuleType) -> None:
    """docs/cuda_on_paper.md was made from the kernels and the rule as they are."""
    pytest.importorskip("cupy", reason="no CuPy")
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("cuda_on_paper", root / "benchmarks" / "cuda_on_paper.py")
    paper = importlib.util.module_from_spec(spec)
    sys.modules["cuda_on_paper"] = paper
    spec.loader.exec_module(paper)
    advice = "python benchmarks/cuda_on_paper.py > docs/cuda_on_paper.md"
    assert paper.fingerprint() in (root / "docs" / "cuda_on_paper.md").read_text(), advice
