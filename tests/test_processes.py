"""Networks and kernels in many threads and processes at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import processes
import pytest
from libraries import need

import bnengine as bn
from bnengine import data

KERNEL = """
import numpy as np, bnengine as bn
logits = np.linspace(-9, 9, 40, dtype=np.float32).reshape(8, 5)
print(bn.softmax_cross_entropy(logits, np.arange(8) % 5)[1].tobytes().hex())
"""


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "array-api-strict"])
def test_inference_from_many_threads_gives_the_bits_of_one(name):
    """More rows than inference takes at a time, and so wide that the compiled kernels share the work as well."""
    need(name.replace("-", "_"))
    digits = data.load("digits")
    wide = name == "numpy"
    net, x = bn.mlp([64, 160 if wide else 16, 10]), np.tile(digits.x_train, (6 if wide else 1, 1))
    fitted = bn.fit(net, bn.optimizers.sgd(0.1), (digits.x_train[:256], digits.y_train[:256]), epochs=1, backend=name)

    def outputs():
        return bn.predict(net, fitted.params, fitted.state, x, backend=name).tobytes()

    alone, start = outputs(), threading.Barrier(6)

    def work(_):
        start.wait()
        return [outputs() for _ in range(2)]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(work, range(6))) == [[alone] * 2] * 6


def test_processes_share_an_empty_cache_of_kernels(tmp_path):
    need("numba")
    results = processes.at_once([KERNEL] * 4, str(tmp_path / "fresh"))
    logits = np.linspace(-9, 9, 40, dtype=np.float32).reshape(8, 5)
    expected = bn.softmax_cross_entropy(logits, np.arange(8) % 5)[1].tobytes().hex()
    assert results == [(0, f"{expected}\n")] * 4
    assert list((tmp_path / "fresh").rglob("*.nbc"))
