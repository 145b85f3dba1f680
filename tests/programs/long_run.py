"""Memory and time of a step over a long training: flat, or this says so and ends with status 1.

    python tests/programs/long_run.py                       # 100,000 steps on NumPy, PyTorch and JAX, fewer on the others
    python tests/programs/long_run.py numpy --steps 20000

An epoch is a tenth of the steps. Time is the fastest tenth of an epoch's steps, which other programs disturb least;
memory what the process holds at its end; objects those that Python's garbage collector knows; graph the tasks behind
the parameters (dask).
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bnengine as bn
from bnengine import trees

STEPS = {"numpy": 100_000, "torch": 100_000, "jax": 100_000, "array-api-strict": 10_000, "dask": 1_000}
BATCH = 16
GROWTH, SLOWER = 8.0, 1.25
"""MiB and factor, from the second epoch to the last, that pass for flat."""


def megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measured(name: str, steps: int) -> list[dict[str, float]]:
    """A row for each tenth of the steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH * steps // 10, 16)).astype(np.float32)
    rows: list[dict[str, float]] = []
    times: list[float] = []

    def timed(batches: Iterable[Any]) -> Iterator[Any]:
        before = time.perf_counter()
        for batch in batches:
            yield batch
            now = time.perf_counter()
            times.append(now - before)
            before = now

    def after_epoch(metrics: dict[str, Any], now: bn.Fitted) -> None:
        graph = sum(len(leaf.__dask_graph__()) for leaf in trees.leaves(now.params)) if name == "dask" else 0
        fastest = float(np.quantile(times, 0.05)) * 1e3  # the median of the fastest tenth
        times.clear()
        gc.collect()
        row = {"step": metrics["step"], "ms": fastest, "MiB": megabytes(), "objects": len(gc.get_objects())}
        rows.append(row | {"graph": graph})
        print(
            f"{name:>16} {row['step']:>7} {fastest:>8.3f} {row['MiB']:>8.1f} {row['objects']:>8} {graph:>6}", flush=True
        )

    net, data = bn.mlp([16, 32, 32, 4]), (x, (x[:, 0] > 0) * 2 + (x[:, 1] > 0))
    options = {"epochs": 10, "batch_size": BATCH, "backend": name}
    bn.fit(net, bn.optimizers.adam(1e-4), data, progress=timed, callback=after_epoch, **options)
    return rows


def grown(rows: list[dict[str, float]]) -> list[str]:
    """What is not flat from the second row to the last."""
    first, last = rows[1], rows[-1]
    found = [f"{last['MiB'] - first['MiB']:.1f} MiB more"] if last["MiB"] - first["MiB"] > GROWTH else []
    found += [f"{last['ms'] / first['ms']:.2f} times as long"] if last["ms"] > SLOWER * first["ms"] else []
    return found + (["a larger graph"] if last["graph"] > first["graph"] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="*", choices=[*STEPS, []], help="default: all that are installed")
    parser.add_argument("--steps", type=int, help="default: 100,000; 10,000 and 1,000 where a step takes long")
    options = parser.parse_args()
    print(f"{'':>16} {'step':>7} {'ms/step':>8} {'MiB':>8} {'objects':>8} {'graph':>6}")
    wrong = []
    for name in options.library or STEPS:
        reason = bn.backends.unusable(name)
        if reason is not None:
            print(f"{name:>16} left out: {reason}")
            continue
        wrong += [f"{name}: {words}" for words in grown(measured(name, options.steps or STEPS[name]))]
    print("\n".join(wrong) or "flat")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
