"""Whole training steps of fully connected networks: ours, their matrix products alone, and NumPy as people write it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from .. import kernels
from .._typing import Native
from ..training.compiled import compiled
from ..training.step import train_step
from . import peers
from .networks import TOLERANCE, Case, Network, NumpyStep, Step
from .settings import blas_variants, each_blas_count
from .timing import JAX, NUMPY, OURS, PRODUCTS, PYTORCH, RECORDED, WITHOUT_NUMBA, Builder, Contender

PAUSE = 0.04
"""Seconds in which OpenBLAS' threads stop spinning: by default they do so for 2^26 cycles after a product."""


# ---- ours


def make_step(case: Case, *, recorded: bool = False) -> Step:
    """`train_step`, or the step that `compiled` gives, which goes on from what it returned."""
    optimizer = case.network.optimizer_of_ours()
    params, state = case.net.init(0, backend=case.backend)
    opt_state = optimizer.init(params)
    own = functools.partial(train_step, case.net, optimizer)
    made = compiled(case.net, optimizer, backend=case.backend) if recorded else own

    def step(x: Native, labels: Native) -> Native:
        nonlocal params, state, opt_state
        params, state, opt_state, loss = made(params, state, opt_state, x, labels)
        return loss

    return step


def _engine(family: str, fast: tuple[str, ...], case: Case, *, recorded: bool = False) -> Iterator[Contender]:
    return each_blas_count(case, family, functools.partial(make_step, case, recorded=recorded), fast)


# ---- the matrix products alone


def _products(case: Case) -> Iterator[Contender]:
    """The products of a step, in kept memory: what remains of it if everything else costs nothing."""
    sizes = case.network.sizes
    rng = np.random.default_rng(0)
    weights = [layer["weight"] for layer in case.layers()]
    values = [rng.standard_normal((case.network.batch, size)).astype(case.dtype) for size in sizes]
    dvalues = [np.empty_like(value) for value in values]
    dweights = [np.empty_like(weight) for weight in weights]
    dvalues[-1][...] = values[-1]

    def call() -> None:
        a = next(turn)
        for i, weight in enumerate(weights):
            np.matmul(a if i == 0 else values[i], weight, out=outputs[i])
        for i in reversed(range(len(weights))):
            np.matmul((a if i == 0 else values[i]).T, dvalues[i + 1], out=dweights[i])
            if i:
                np.matmul(dvalues[i + 1], weights[i].T, out=dvalues[i])

    def error() -> float:
        call()
        right = values[-2].astype(np.float64) @ weights[-1].astype(np.float64)
        return float(np.max(np.abs(outputs[-1] - right)) / np.max(np.abs(right)))

    outputs = [np.empty_like(value) for value in values[1:]]
    turn = itertools.cycle([x for x, _ in case.batches])
    for variant, limit in blas_variants():
        yield Contender(PRODUCTS, call, error, TOLERANCE, variant, limit)


# ---- NumPy


def _numpy(case: Case) -> Iterator[Contender]:
    return each_blas_count(case, NUMPY, lambda: NumpyStep(case, case.dtype), kernels.FAST["numpy"])


def builders(network: Network) -> dict[str, Builder]:
    """Family -> its contenders, for this network."""
    found: dict[str, Builder] = {
        OURS: functools.partial(_engine, OURS, ("cpu", "plain")),
        RECORDED: functools.partial(_engine, RECORDED, ("cpu", "plain"), recorded=True),
        WITHOUT_NUMBA: functools.partial(_engine, WITHOUT_NUMBA, ("plain",)),
        PRODUCTS: _products,
        NUMPY: _numpy,
        PYTORCH: peers.torch_eager,
        JAX: peers.jax_jit,
    }
    return found | ({"torch.compile": peers.torch_compile} if network.norm else {"scikit-learn": peers.scikit_learn})
