"""Whole training steps on a GPU: ours, PyTorch's and JAX's, from the same parameters and on the same batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from .. import networks, peers, steps
from ..timing import COMPILED, JAX, OURS, PYTORCH, Builder, Contender
from .shared import jax_array, tensor, with_current_stream

NETWORKS = (
    networks.Network((784, 256, 256, 256, 10), 128),
    networks.Network((784, 4096, 4096, 4096, 10), 8192),
)


def _engine(case: networks.Case) -> Iterator[Contender]:
    yield case.contender(OURS, steps.make_step(case))


def _torch(case: networks.Case) -> Iterator[Contender]:
    import torch

    torch.backends.cudnn.enabled = True  # whatever contenders of kernels have set
    for fused in (False, True):
        yield case.contender(PYTORCH, peers.torch_step(case, fused=fused), "fused optimiser" * fused, asarray=tensor)


def _torch_compile(case: networks.Case) -> Iterator[Contender]:
    """The network compiled, the optimiser fused."""
    import torch

    torch.compiler.reset()
    yield case.contender(COMPILED, peers.torch_step(case, fused=True, compiled=True), asarray=tensor)


def _jax(case: networks.Case) -> Iterator[Contender]:
    """With matrix products in float32, as the others' are: JAX's own choice on a GPU is less exact."""
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    labels = [jax_array(labels) for _, labels in case.batches]
    for variant, step, kept in peers.jax_steps(case):
        held = peers.feed_back(step, kept, wait=False)
        turn = itertools.cycle(zip(case.batches, labels, strict=True))

        def on_stream(held: Any = held, turn: Any = turn) -> None:
            (x, _), labels = next(turn)
            with_current_stream(lambda x: held(x, labels), x)()

        made = case.contender(JAX, held, variant, asarray=jax_array)
        yield dataclasses.replace(made, on_stream=on_stream)


BUILDERS: dict[str, Builder] = {
    OURS: _engine,
    PYTORCH: _torch,
    COMPILED: _torch_compile,
    JAX: _jax,
}
