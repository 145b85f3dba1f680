"""Seconds of training until a test accuracy is reached: ours, PyTorch's and JAX's, on the same batches.

    python benchmarks/time_to_accuracy.py --backend cupy --out record.json

Only steps are timed, an epoch at a time until the device is done. The first ones, in which code is compiled, are told by
themselves. The data are Fashion-MNIST (BNENGINE_FASHION_MNIST names its folder), or any that `bnengine train --data` takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnengine import backends, data, files, optimizers, provenance
from bnengine.backends import as_numpy
from bnengine.bench import networks, peers
from bnengine.bench.timing import COMPILED, JAX, NOT_HERE, OURS, PYTORCH, failure, shorten, spread
from bnengine.training.step import train_step

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX else takes most of a GPU's memory
BATCH, EPOCHS = 128, 20
UNTIMED = 5
"""Steps at the start of a run."""


class Trainer(NamedTuple):
    """A network in training."""

    step: Callable[[Any, Any], Any]
    logits: Callable[[Any], Any]
    """In inference, on rows in the library's own arrays."""
    asarray: Callable[[Any], Any]


def ours(case: networks.Case) -> Trainer:
    optimizer = optimizers.adam(case.network.rate)
    params, state = case.net.init(0, backend=case.backend)
    opt_state = optimizer.init(params)

    def step(x: Any, labels: Any) -> Any:
        nonlocal params, state, opt_state
        params, state, opt_state, loss = train_step(case.net, optimizer, params, state, opt_state, x, labels)
        return loss

    return Trainer(step, lambda x: case.net.forward(params, state, x, training=False)[0], lambda a: a)


def torch_eager(case: networks.Case, *, compiled: bool = False) -> Trainer:
    import torch

    net = peers.torch_network(case)
    step = peers.torch_step(case, fused=True, compiled=compiled, net=net)

    @torch.no_grad()
    def logits(x: Any) -> Any:
        net.eval()
        result = net(x)
        net.train()
        return result

    return Trainer(step, logits, torch.from_dlpack)


def torch_compiled(case: networks.Case) -> Trainer:
    import torch

    torch.compiler.reset()
    return torch_eager(case, compiled=True)


def jax_jit(case: networks.Case) -> Trainer:
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    _, step, kept = next(peers.jax_steps(case))
    held = list(kept)

    def call(x: Any, labels: Any) -> Any:
        *held[:], loss = step(*held, x, labels)
        return loss

    def logits(x: Any) -> Any:
        layers, running, _ = held
        for p, r in zip(layers[:-1], running, strict=True):
            scale = p["gamma"] * jax.lax.rsqrt(r["var"] + networks.EPS)
            x = jax.nn.relu((x @ p["weight"] - r["mean"]) * scale + p["beta"])
        return x @ layers[-1]["weight"] + layers[-1]["bias"]

    return Trainer(call, logits, jax.dlpack.from_dlpack)


FAMILIES: dict[str, Callable[[networks.Case], Trainer]] = {
    OURS: ours,
    PYTORCH: torch_eager,
    COMPILED: torch_compiled,
    JAX: jax_jit,
}


def train(case: networks.Case, trainer: Trainer, rows: data.Dataset, target: float, seed: int) -> dict[str, Any]:
    """A run: seconds and epochs until the target, None where it was not reached, and how the accuracy went."""
    x, y, x_test = map(case.backend.asarray, (rows.x_train, rows.y_train, rows.x_test))
    rng, held, seconds, first, history = np.random.default_rng(seed), trainer.asarray(x_test), 0.0, 0.0, []
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(rows.y_train))[: len(rows.y_train) // BATCH * BATCH]  # all of one shape
        places = case.backend.asarray(order)
        parts = [(x[places[i : i + BATCH]], y[places[i : i + BATCH]]) for i in range(0, len(order), BATCH)]
        batches = [(trainer.asarray(a), trainer.asarray(b)) for a, b in parts]
        if epoch == 1:
            first = _seconds(trainer, batches[:UNTIMED])
            batches = batches[UNTIMED:]
        seconds += _seconds(trainer, batches)
        accuracy = float(np.mean(as_numpy(trainer.logits(held)).argmax(axis=1) == rows.y_test))
        history.append([shorten(seconds), accuracy])
        if accuracy >= target:
            break
    reached = history[-1][1] >= target
    found = {"seconds": shorten(seconds) if reached else None, "epochs": epoch if reached else None}
    return {**found, "first_steps": shorten(first), "history": history}


def _seconds(trainer: Trainer, batches: list[Any]) -> float:
    """Until the loss of the last step is on the host."""
    began, loss = time.perf_counter(), 0.0
    for batch in batches:
        loss = trainer.step(*batch)
    as_numpy(loss)
    return time.perf_counter() - began


def measured(options: argparse.Namespace, rows: data.Dataset) -> Iterator[dict[str, Any]]:
    """A row for each run that was done; the families take turns, a seed after the other."""
    hidden = map(int, options.hidden.split(","))
    network = networks.Network((rows.features, *hidden, rows.outputs), BATCH)
    began = time.monotonic()
    for seed, (family, make) in itertools.product(range(options.seeds), FAMILIES.items()):
        if time.monotonic() - began > 60 * options.minutes:
            reason = f"no time was left of --minutes {options.minutes:g}"
            yield {"contender": family, "seed": seed, "reason": reason, "kind": NOT_HERE}
            continue
        case = networks.Case(network, "float32", seed, options.backend)
        try:
            outcome = train(case, make(case), rows, options.target, seed)
        except ImportError as reason:
            yield {"contender": family, "seed": seed, "reason": str(reason), "kind": NOT_HERE}
        except Exception as reason:  # noqa: BLE001  one library's fault must not cost the others' figures
            yield {"seed": seed, **failure(family, reason)}
        else:
            yield {"family": family, "seed": seed, **outcome}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="fashion-mnist", help="what `bnengine train --data` takes")
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--hidden", default="256,256,256", help="sizes of the hidden layers (default: 256,256,256)")
    parser.add_argument("--target", type=float, default=0.88, help="test accuracy (default: 0.88)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender (default: 3)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no run after so many minutes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        backends.backend(options.backend)
        rows = data.load(options.data)
    except (ValueError, ImportError) as reason:
        print(f"time_to_accuracy: {reason}", file=sys.stderr)
        return 2
    done: list[dict[str, Any]] = []
    for row in measured(options, rows):
        print({name: value for name, value in row.items() if name != "history"}, flush=True)
        done.append(row)
        files.write(options.out, json.dumps(record(options, rows, done), indent=1) + "\n")  # what was measured stays
    return 1 if any(row.get("kind") == "failed" for row in done) else 0


def record(options: argparse.Namespace, rows: data.Dataset, done: list[dict[str, Any]]) -> dict[str, Any]:
    """What there is to say of the runs so far."""
    runs = [row for row in done if "family" in row]
    reached = {family: [r["seconds"] for r in runs if r["family"] == family and r["seconds"]] for family in FAMILIES}
    return {
        "data": rows.name,
        "target": options.target,
        "hidden": options.hidden,
        "batch": BATCH,
        **provenance.describe(),
        "seconds": {family: {**spread(times), "runs": len(times)} for family, times in reached.items() if times},
        "rows": runs,
        "left_out": [row for row in done if "family" not in row],
    }


if __name__ == "__main__":
    sys.exit(main())
