"""Strong and weak scaling over MPI ranks on this machine, and a model of it that predicts larger ones.

    python benchmarks/scaling_mpi.py --ranks 1,2,3,4 --out benchmarks/results/scaling-NAME.json

starts `mpiexec -n K` for each K. The model is in `predicted`; docs/distributed.md says what it assumes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import bnengine as bn
from bnengine import parallel, provenance

SIZES, STRONG, WEAK, STEPS = [784, 512, 512, 10], 512, 128, 80
MESSAGES = (64, 1024, 8192, 65536, 524288, 4194304)


# ---- the model


@dataclass(frozen=True)
class Network:
    """What of a network the model knows."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    """Rows of each rank."""

    @property
    def parameters(self) -> int:
        return bn.mlp(list(self.sizes)).parameters

    @property
    def norms(self) -> tuple[int, ...]:
        """Channels of each BatchNorm."""
        return self.sizes[1:-1]


@dataclass(frozen=True)
class Machine:
    """What of a machine the model knows: seconds, bytes and operations a second."""

    name: str
    flops: float
    memory: float
    """Bytes a second that normalisation and activations stream."""
    overhead: float
    """Of a layer and step, whatever its size."""
    latency: float
    """Of a small sum, for each doubling of the ranks."""
    bandwidth: float
    node: int = 1
    """Ranks that share a faster link."""
    node_latency: float = 0.0
    node_bandwidth: float = math.inf


def largest_share(batch: int, ranks: int) -> float:
    """Rows of a shuffled batch on the rank that has most of them, on average: every other rank waits for it."""
    rng = np.random.default_rng(0)
    return float(rng.multinomial(batch, [1 / ranks] * ranks, size=200).max(axis=1).mean())


def sum_seconds(size: float, ranks: int, on: Machine) -> float:
    """A sum of so many bytes: doublings of latency, and each byte sent and received once (2 (K - 1) / K)."""
    inside, outside = min(ranks, on.node), max(1, ranks / on.node)
    latency = math.log2(inside) * on.node_latency + math.ceil(math.log2(outside)) * on.latency
    bandwidth = on.bandwidth if outside > 1 else on.node_bandwidth
    return latency + 2 * (ranks - 1) / ranks * size / bandwidth


def sums_of_a_step(network: Network, itemsize: int = 4) -> list[float]:
    """Bytes of each sum: count, sum and square of each BatchNorm in float64, two gradient sums, all gradients once."""
    small = [size for c in network.norms for size in (8 * (2 * c + 2), itemsize * 2 * c)]
    return [*small, itemsize * (network.parameters + 2)]


def compute_seconds(network: Network, rows: float, on: Machine) -> float:
    """Matrix products forward, backward by weight and by input; eight passes over each normalised activation."""
    products = 6 * rows * sum(a * b for a, b in zip(network.sizes, network.sizes[1:], strict=False)) / on.flops
    passes = 8 * 4 * rows * sum(network.norms) / on.memory
    return products + passes + on.overhead * len(network.sizes)


def predicted(network: Network, ranks: int, on: Machine) -> dict[str, float]:
    """Seconds of a step where each rank has network.batch rows on average, and what part of one rank's speed is left."""
    rows = largest_share(network.batch * ranks, ranks)
    alone, compute = (compute_seconds(network, n, on) for n in (network.batch, rows))
    *small, gradients = (sum_seconds(size, ranks, on) for size in sums_of_a_step(network)) if ranks > 1 else (0.0, 0.0)
    step = compute + sum(small) + gradients
    return {
        "ranks": ranks,
        "milliseconds": step * 1e3,
        "waiting_for_the_largest_share": (compute - alone) / step,
        "small_sums": sum(small) / step,
        "gradients": gradients / step,
        "efficiency": alone / step,
    }


NETWORKS = (
    Network("small: 784, 3 x 512, 10", (784, 512, 512, 512, 10), 256),
    Network("wide: 4096, 6 x 4096, 1000", (4096, *[4096] * 6, 1000), 1024),
    Network("deep: 1024, 50 x 1024, 1000", (1024, *[1024] * 50, 1000), 1024),
)
GPU = Machine(
    "GPU",
    flops=30e12,
    memory=2e12,
    overhead=1e-4,
    latency=8e-6,
    bandwidth=45e9,
    node=8,
    node_latency=8e-6,
    node_bandwidth=350e9,
)
"""Assumed, not measured: of the size of an H100 in nodes of eight with a 400 Gb/s link each, float32 products."""


# ---- one rank


def measured(mode: str, out: str) -> None:
    """What rank 0 writes: times of steps, of sums of several sizes, or of a step beside a sum."""
    communicator = parallel.join("mpi")
    found = {"steps": steps, "sums": sums, "overlap": overlap}[mode](communicator)
    if communicator.rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")


def steps(communicator: parallel.Communicator) -> list[dict[str, float | str]]:
    ranks = communicator.size
    rows = [timed_steps(communicator, "strong", STRONG), timed_steps(communicator, "weak", WEAK * ranks)]
    if ranks == 1:
        return rows + [timed_steps(communicator, "compute", batch) for batch in (32, 64, 128, 256, 512)]
    return [*rows, timed_steps(communicator, "compute", WEAK)]


def timed_steps(communicator: parallel.Communicator, mode: str, batch: int) -> dict[str, float | str]:
    """Seconds of a step: the least of medians of eight, since what else the machine does only adds.

    "compute" is every rank by itself on the whole batch, all at once.
    """
    ranks = parallel.Alone() if mode == "compute" else communicator
    rng, total = np.random.default_rng(0), 8192
    backend, net, optimizer = bn.backend("numpy"), bn.mlp(SIZES), bn.optimizers.adam(1e-3)
    shares = parallel.Shares.of(ranks, total // ranks.size)
    x = rng.standard_normal((total // ranks.size, SIZES[0])).astype(np.float32)
    y = rng.integers(0, SIZES[-1], len(x))
    params, state = net.init(0, backend=backend)
    opt_state, all_reduce = optimizer.init(params), ranks.sum if ranks.size > 1 else None
    step = functools.partial(bn.train_step, net, optimizer, all_reduce=all_reduce, sync_statistics=all_reduce)
    seconds = []
    for epoch in range(20):
        for chosen in bn.data.batches(shares.total, batch, np.random.default_rng(epoch)):
            own = shares.own(chosen)
            before, began = (ranks.reductions, ranks.bytes), time.perf_counter()
            params, state, opt_state, _ = step(params, state, opt_state, x[own], y[own])
            seconds.append(time.perf_counter() - began)
        if len(seconds) > STEPS + 5:
            break
    communicator.barrier()
    medians = [statistics.median(seconds[i : i + 8]) for i in range(5, len(seconds) - 7, 8)]
    return {
        "mode": mode,
        "ranks": communicator.size,
        "batch": batch,
        "seconds": min(medians),
        "median": statistics.median(seconds[5:]),
        "sums": ranks.reductions - before[0],
        "bytes": ranks.bytes - before[1],
    }


def sums(communicator: parallel.Communicator) -> list[dict[str, float]]:
    rows = []
    for size in MESSAGES:
        a, seconds = np.zeros(size // 8), []
        for _ in range(30):
            communicator.barrier()
            began = time.perf_counter()
            communicator.sum(a)
            seconds.append(time.perf_counter() - began)
        medians = [statistics.median(seconds[i : i + 6]) for i in range(0, 30, 6)]
        rows.append({"ranks": communicator.size, "bytes": size, "seconds": min(medians)})
    return rows


def overlap(communicator: parallel.Communicator) -> dict[str, float]:
    """A sum of all gradients after the products of a layer, and beside them, looked after between two products."""
    from mpi4py import MPI

    rng = np.random.default_rng(0)
    grads, total = np.zeros(bn.mlp(SIZES).parameters, np.float32), np.zeros(bn.mlp(SIZES).parameters, np.float32)
    a, b = (rng.standard_normal((n, 512)).astype(np.float32) for n in (128, 512))
    found: dict[str, list[float]] = {"after": [], "beside": []}
    for _ in range(30):
        for kind, seconds in found.items():
            communicator.barrier()
            began = time.perf_counter()
            request = MPI.COMM_WORLD.Iallreduce(grads, total) if kind == "beside" else None
            for _ in range(20):
                a @ b
                if request is not None:
                    request.Test()
            if request is None:
                request = MPI.COMM_WORLD.Iallreduce(grads, total)
            while not request.Test():
                time.sleep(0)
            seconds.append(time.perf_counter() - began)
    return {kind: min(statistics.median(s[i : i + 6]) for i in range(0, 30, 6)) for kind, s in found.items()}


# ---- the record


def launched(ranks: int, mode: str) -> list[dict[str, float]] | dict[str, float]:
    """What the ranks measured, with one thread each."""
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    with tempfile.TemporaryDirectory() as directory:
        out = str(Path(directory) / "found.json")
        command = [mpiexec, "-n", str(ranks), sys.executable, __file__, "--measure", mode, "--out", out]
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMBA")}
        subprocess.run(command, check=True, timeout=600, env=os.environ | one_thread, stdin=subprocess.DEVNULL)
        return json.loads(Path(out).read_text(encoding="utf-8"))


def fitted(x: list[float], y: list[float]) -> tuple[float, float]:
    """(constant, slope) of a line through the points, by relative least squares, neither of them negative."""
    weights = 1 / np.asarray(y)
    columns = np.stack([np.ones(len(x)), np.asarray(x)], axis=1)
    constant, slope = np.linalg.lstsq(columns * weights[:, None], np.ones(len(y)), rcond=None)[0]
    return max(float(constant), 0.0), float(slope)


def local(rows: list[dict], messages: list[dict], network: Network) -> list[dict[str, float]]:
    """The model's steps for the ranks of this machine beside those measured: compute and sums both measured here.

    Compute is a line in the rows of a rank, measured alone, times how much slower two ranks at once are; more
    ranks than cores take turns.
    """
    cores = provenance.cores()
    alone = [row for row in rows if row["mode"] == "compute" and row["ranks"] == 1]
    constant, slope = fitted([row["batch"] for row in alone], [row["seconds"] for row in alone])
    same = [row for row in rows if row["mode"] == "compute" and row["batch"] == WEAK]
    at_once = {row["ranks"]: row["seconds"] / (constant + slope * WEAK) for row in same}
    pair = [row for row in messages if row["ranks"] == 2]
    latency, each = fitted([row["bytes"] for row in pair], [row["seconds"] for row in pair])
    compared = []
    for row in rows:
        if row["mode"] == "compute":
            continue
        ranks, turns = row["ranks"], max(1.0, row["ranks"] / cores)
        slower = 1.0 if ranks == 1 else at_once[2] * turns
        doublings, part = math.ceil(math.log2(ranks)), (ranks - 1) / ranks * 2
        compute = (constant + slope * largest_share(int(row["batch"]), int(ranks))) * slower
        sums_of = sums_of_a_step(network) if ranks > 1 else []
        communication = sum(doublings * latency + part * size * each for size in sums_of) * turns
        model = compute + communication
        compared.append(row | {"predicted": model, "predicted_sums": communication, "ratio": model / row["seconds"]})
    return [
        {"latency": latency, "bytes_a_second": 1 / each, "constant": constant, "a_row": slope, "slower": at_once},
        *compared,
    ]


def record(ranks: list[int]) -> dict[str, object]:
    rows = [row for k in ranks for row in launched(k, "steps")]
    messages = [row for k in ranks if k > 1 for row in launched(k, "sums")]
    network = Network("measured", tuple(SIZES), WEAK)
    parameters, *compared = local(rows, messages, network)
    return {
        "command": "python benchmarks/scaling_mpi.py",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **provenance.describe(),
        "load": os.getloadavg(),
        "sizes": SIZES,
        "steps": compared,
        "sums": messages,
        "parameters": parameters,
        "overlap": launched(2, "overlap"),
        "gpu": asdict(GPU),
        "predicted": [
            {"network": network.name, "batch": network.batch} | predicted(network, k, GPU)
            for network in NETWORKS
            for k in (1, 8, 64, 256, 1024)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", default="1,2,3,4", help="numbers of ranks (default: 1,2,3,4)")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--measure", choices=("steps", "sums", "overlap"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measured(options.measure, options.out)
        return
    found = record([int(k) for k in options.ranks.split(",")])
    Path(options.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["steps"]:
        print(
            "{mode:7} {ranks} ranks, batch {batch}: {seconds:.5f} s, model {predicted:.5f} s, {sums} sums, {bytes} bytes".format(
                **row
            )
        )
    print(found["parameters"], found["overlap"])
    for row in found["predicted"]:
        print("{network} {ranks}: {milliseconds:.3f} ms, efficiency {efficiency:.2f}".format(**row))


if __name__ == "__main__":
    main()
