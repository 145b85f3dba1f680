"""The CUDA kernels on a GPU: what the host proof checks, and what only hardware shows."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from host_cuda import checks
from host_cuda.checks import DTYPES, LAYOUTS, SHAPES, UPDATES, Case, Device, Update

from bnengine import optimizers
from bnengine.kernels.reference import Affine

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """bnengine.kernels.cuda; skips where CuPy finds no GPU."""
    cupy = pytest.importorskip("cupy", reason="no CuPy")
    if not cupy.is_available():
        pytest.skip("no GPU that CuPy can use")
    from bnengine.kernels import load

    return load("cuda")


@pytest.fixture
def sources() -> Any:
    return pytest.importorskip("bnengine.kernels.cuda.sources", reason="no CuPy", exc_type=ImportError)


@pytest.fixture(scope="module")
def device(kernels: ModuleType) -> Device:
    return Device(kernels.device.cupy.asarray, kernels.device.cupy.asnumpy)


FULL = [*itertools.product(SHAPES, LAYOUTS), *itertools.product(checks.FULL, ("C", "rolled"))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("at", "layout"), FULL, ids=str)
def test_normalization(
    kernels: ModuleType, device: Device, at: tuple[tuple[int, ...], int], dtype: str, layout: str
) -> None:
    shape, axis = at
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
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: update.name)
def test_optimizers(kernels: ModuleType, device: Device, update: Update, dtype: str) -> None:
    checks.check_update(kernels, device, update, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("name", optimizers.BY_NAME)
def test_updates_are_numpys(kernels: ModuleType, device: Device, name: str) -> None:
    """Three steps, of kernels or of equations, with decay and clipping."""
    optimizer, random = optimizers.BY_NAME[name](0.01, weight_decay=0.1, clip=1.0), np.random.default_rng(0)
    params, *grads = ({"weight": random.standard_normal((5, 7)).astype(np.float32)} for _ in range(4))
    theirs = {"weight": device.put(params["weight"])}
    state, their_state = optimizer.init(params), optimizer.init(theirs)
    for g in grads:
        params, state = optimizer.update(params, g, state)
        theirs, their_state = optimizer.update(theirs, {"weight": device.put(g["weight"])}, their_state)
    np.testing.assert_allclose(device.get(theirs["weight"]), params["weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_same_bits_a_hundred_times(kernels: ModuleType, device: Device) -> None:
    x = device.put(np.random.default_rng(0).standard_normal(checks.LARGE).astype(np.float32))
    results = set()
    for _ in range(checks.REPEATS):
        y, m = kernels.forward(x, Affine(None, None, 1e-5, True), 1)
        dx, sums = kernels.backward(x, x, m, Affine(None, None, 1e-5, True), 1)
        results.add(b"".join(device.get(v).tobytes() for v in (y, *m, dx, *sums)))
    assert len(results) == 1


LIMITS = (
    Case((2, 70_000), 1),  # more blocks than a second grid axis would take
    Case((3, 70_000, 2), 1, "float16"),
    Case((1_000_000, 1), 1, "float16"),
    Case((8192, 1024), 1, parameters=False),  # a cluster of 8, and as much shared memory as a block may have
    Case((32, 256, 56, 56), 1, "bfloat16"),
    Case((32, 512, 28, 28), 1),
)
"""Shapes at the limits of a launch: many blocks, few, the largest clusters."""


@pytest.mark.gpu
@pytest.mark.parametrize("case", LIMITS, ids=str)
def test_launch_limits(kernels: ModuleType, device: Device, case: Case) -> None:
    checks.check_normalization(kernels, device, case)


class Chain:
    """Kernels of a training step without matrix products, one after the other, on arrays that stay where they are."""

    def __init__(self, kernels: ModuleType, device: Device, shape: tuple[int, ...]) -> None:
        random = np.random.default_rng(0)
        self.kernels = kernels
        x, dy = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
        self.x, self.dy = device.put(x), device.put(dy)
        channel = [random.uniform(0.5, 2, shape[1]).astype(np.float32) for _ in range(4)]
        self.gamma, self.beta, self.mean, self.var = map(device.put, channel)
        self.logits, self.labels = (
            device.put(x.reshape(shape[0], -1)[:, :2].copy()),
            device.put(np.arange(shape[0]) % 2),
        )

    def run(self) -> list[Any]:
        end = (Affine(self.gamma, self.beta, 1e-5, True), 1)
        y, m = self.kernels.forward(self.x, *end)
        dx, sums = self.kernels.backward(self.dy, self.x, m, *end)
        running = self.kernels.blend(self.mean, self.var, m.mean, m.var, 0.1, 1.5)
        loss, dlogits = self.kernels.softmax_cross_entropy(self.logits, self.labels)
        self.kernels.update("sgd", [self.beta], [sums[0]], [], [0.0], {"rate": 0.0})
        return [y, *m, dx, *sums, *running, loss, dlogits, self.kernels.sigmoid(y)]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", checks.CHAINED, ids=str)
def test_a_chain_in_a_graph(kernels: ModuleType, device: Device, shape: tuple[int, ...]) -> None:
    """Captured on a stream of its own, it runs when the graph does, on what its arrays hold then, again and again."""
    with kernels.device.cupy.cuda.Stream(non_blocking=True) as stream:
        chain = Chain(kernels, device, shape)
        chain.run()  # compiled, and the pool filled, before the capture
        stream.begin_capture()
        results = chain.run()
        graph = stream.end_capture()
        for k in range(3):
            chain.x *= 1.5
            for result in results:
                result.fill(-1)
            graph.launch(stream)
            stream.synchronize()
            got = [device.get(result).tobytes() for result in results]  # before others lie where its shares lay
            assert got == [device.get(result).tobytes() for result in chain.run()], f"launch {k}"


@pytest.mark.gpu
@pytest.mark.parametrize("shape", checks.CHAINED, ids=str)
def test_streams_side_by_side(kernels: ModuleType, device: Device, shape: tuple[int, ...]) -> None:
    """Work on several streams at once shares nothing: the same bits as one after the other."""
    chains = [Chain(kernels, device, shape) for _ in range(4)]
    want = [[device.get(v).tobytes() for v in chain.run()] for chain in chains]
    streams = [kernels.device.cupy.cuda.Stream(non_blocking=True) for _ in chains]
    kernels.device.cupy.cuda.Stream.null.synchronize()
    results: list[Any] = []
    for _ in range(checks.REPEATS // 10):
        results = []
        for chain, stream in zip(chains, streams, strict=True):
            with stream:
                results.append(chain.run())
    for stream, values, right in zip(streams, results, want, strict=True):
        stream.synchronize()
        assert [device.get(v).tobytes() for v in values] == right


@pytest.mark.gpu
@pytest.mark.parametrize("shape", checks.CHAINED, ids=str)
def test_memory_returns_to_the_pool(kernels: ModuleType, device: Device, shape: tuple[int, ...]) -> None:
    pool, chain = kernels.device.cupy.get_default_memory_pool(), Chain(kernels, device, shape)
    chain.run()
    gc.collect()  # of what other tests have left
    before = pool.used_bytes(), pool.total_bytes()
    for _ in range(checks.REPEATS):
        chain.run()
    assert (pool.used_bytes(), pool.total_bytes()) == before


@pytest.mark.gpu
def test_more_than_2_31_values(kernels: ModuleType) -> None:
    cupy = kernels.device.cupy
    if cupy.cuda.Device().mem_info[0] < 10 * math.prod(checks.BEYOND):
        pytest.skip("less than 20 GiB of free GPU memory")
    x = cupy.zeros(checks.BEYOND, dtype=cupy.float16)
    x[-1, :] = 1
    y, m = kernels.forward(x, Affine(None, None, 1e-5, False), 1)
    mean = 1 / x.shape[0]
    assert np.allclose(cupy.asnumpy(m.mean), mean, rtol=1e-6)
    want = (1 - mean) / np.sqrt(mean * (1 - mean) + 1e-5)
    assert np.allclose(cupy.asnumpy(y[-1, :]).astype(float), want, rtol=1e-3)


@pytest.mark.gpu
def test_every_device(kernels: ModuleType) -> None:
    cupy = kernels.device.cupy
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU only")
    with cupy.cuda.Device(1):
        x = cupy.ones((64, 3), dtype=cupy.float32)
    y, m = kernels.forward(x, Affine(None, None, 1e-5, False), 1)
    dx, sums = kernels.backward(x, x, m, Affine(None, None, 1e-5, False), 1)
    assert y.device == m.mean.device == dx.device == sums[0].device == x.device
    assert cupy.cuda.Device().id == 0


def test_kernels_since_the_last_record(sources: ModuleType) -> None:
    """Says which kernels no record from a GPU covers; a record holds `kernels`, their hashes by name."""
    records = [(path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("gpu*.json"))]
    if not records:
        pytest.skip("no record of a GPU under benchmarks/results: no kernel has been verified on one")
    path, record = max(records, key=lambda pair: pair[1]["date"])
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
