"""The training step of other libraries, in the way that each recommends."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import kernels
from .._typing import Native
from ..backends import backend
from ..provenance import cores
from ..training.step import train_step
from .networks import ADAM, EPS, MOMENTUM, STEPS, Case, Network, Step
from .settings import each_blas_count
from .timing import JAX, PYTORCH, Contender, thread_counts, threads

# ---- PyTorch


def torch_network(case: Case) -> Any:
    """The case's network with its first parameters, where these are."""
    import torch
    from torch import nn

    dtype = getattr(torch, case.dtype)
    activation = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[case.network.activation]
    modules: list[Any] = [_torch_standardize(case)] if case.network.as_trained else []
    layers = case.layers()
    for layer in layers:
        inputs, outputs = layer["weight"].shape
        linear = nn.Linear(inputs, outputs, bias="bias" in layer, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.from_dlpack(layer["weight"].T))
            if "bias" in layer:
                linear.bias.copy_(torch.from_dlpack(layer["bias"]))
        modules.append(linear)
        if layer is not layers[-1]:
            modules += [nn.BatchNorm1d(outputs, dtype=dtype)] if "gamma" in layer else []
            modules.append(activation())
    return nn.Sequential(*modules).to(torch.from_dlpack(layers[0]["weight"]).device)


def _torch_standardize(case: Case) -> Any:
    """(x - mean) / sqrt(var), for statistics that are kept."""
    import torch

    class Standardize(torch.nn.Module):  # type: ignore[misc]  # the checker has no type of it
        def __init__(self) -> None:
            super().__init__()
            dtype = getattr(torch, case.dtype)
            self.register_buffer("mean", torch.zeros(case.network.sizes[0], dtype=dtype))
            self.register_buffer("var", torch.ones(case.network.sizes[0], dtype=dtype))

        def forward(self, x: Any) -> Any:
            return (x - self.mean) / torch.sqrt(self.var)

    return Standardize()


def torch_step(case: Case, *, fused: bool, compiled: bool = False, net: Any = None) -> Any:
    """A step as PyTorch's users write it, of a network or of the case's."""
    import torch

    net = torch_network(case) if net is None else net
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.network.optimizer]
    optimizer = kind(net.parameters(), lr=case.network.rate, fused=fused)
    forward = torch.compile(net) if compiled else net
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) if case.network.as_trained else None

    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x), labels)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        return loss.detach()

    return step


def torch_eager(case: Case) -> Iterator[Contender]:
    """PyTorch op by op, with its optimiser as it is and fused."""
    import torch

    for count in thread_counts():
        prepare = functools.partial(torch.set_num_threads, count)
        for fused in (False, True):
            variant = f"{threads(count)}{', fused optimiser' if fused else ''}"
            yield case.contender(PYTORCH, torch_step(case, fused=fused), variant, prepare, torch.from_numpy)


def torch_compile(case: Case) -> Iterator[Contender]:
    """The network compiled, the optimiser fused."""
    import torch

    prepare = functools.partial(torch.set_num_threads, cores())
    prepare()
    step = torch_step(case, fused=True, compiled=True)
    try:
        step(*map(torch.from_numpy, case.batches[0]))  # needs a C++ compiler, and finds out late
    except Exception as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImportError(f"does not work here: {words}") from error
    torch.compiler.reset()  # the step above has moved the parameters
    step = torch_step(case, fused=True, compiled=True)
    yield case.contender("torch.compile", step, threads(cores()), prepare, torch.from_numpy)


# ---- JAX


def jax_jit(case: Case) -> Iterator[Contender]:
    """JAX with the whole step compiled: written as its users would, and as ours."""
    place = backend("jax", dtype=case.dtype)  # raises where it has no float64
    for variant, step, kept in jax_steps(case):
        yield case.contender(JAX, feed_back(step, kept), variant, asarray=place.asarray)


def jax_steps(case: Case) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """A step as JAX users write it, with running statistics, and our own step; both compiled, what they hold donated."""
    import jax

    place = backend("jax", dtype=case.dtype)
    optimizer = case.network.optimizer_of_ours()
    params, state = case.net.init(0, backend=place)
    own = jax.jit(functools.partial(train_step, case.net, optimizer), donate_argnums=(0, 1, 2))
    layers = jax.tree.map(lambda a: jax.numpy.array(jax.dlpack.from_dlpack(a)), case.layers())
    zeros = jax.tree.map(place.xp.zeros_like, layers)
    running = [{"mean": 0 * p["gamma"], "var": 0 * p["gamma"] + 1} for p in layers[:-1] if "gamma" in p]
    moments = {"first": zeros, "second": jax.tree.map(place.xp.copy, zeros), "step": place.xp.asarray(0)}
    written = jax.jit(_jax_step(case.network), donate_argnums=(0, 1, 2))
    yield "as its users write it", written, (layers, running, moments)
    yield "of bn.train_step", own, (params, state, jax.tree.map(place.xp.asarray, optimizer.init(params)))


def feed_back(step: Any, kept: tuple[Any, ...], *, wait: bool = True) -> Any:
    """The step, with what it returns given to it again; waits until the loss and the parameters are there."""
    import jax

    held = list(kept)

    def call(x: Native, labels: Native) -> Native:
        *held[:], loss = step(*held, x, labels)
        if wait:
            jax.block_until_ready(held)
        return loss

    return call


def _jax_step(network: Network) -> Any:
    import jax
    import jax.numpy as jnp

    inputs = jnp.zeros(network.sizes[0])
    activation = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}[network.activation]

    def loss_of(layers: Any, running: Any, x: Native, labels: Native) -> Any:
        a, new = ((x - inputs) / jnp.sqrt(inputs + 1) if network.as_trained else x), []
        for i, p in enumerate(layers[:-1]):
            z = a @ p["weight"]
            if network.norm:
                mean, var, n = z.mean(0), z.var(0), len(z)
                batch = {"mean": mean, "var": var * (n / (n - 1))}
                new.append(jax.tree.map(lambda old, now: (1 - MOMENTUM) * old + MOMENTUM * now, running[i], batch))
                z = p["gamma"] * (z - mean) * jax.lax.rsqrt(var + EPS) + p["beta"]
            else:
                z = z + p["bias"]
            a = activation(z)
        logits = jax.nn.log_softmax(a @ layers[-1]["weight"] + layers[-1]["bias"])
        return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean(), new

    def step(layers: Any, running: Any, moments: Any, x: Native, labels: Native) -> Any:
        (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(layers, running, x, labels)
        if network.optimizer == "sgd":
            return jax.tree.map(lambda p, g: p - network.rate * g, layers, grads), running, moments, loss
        b1, b2, t = ADAM["beta1"], ADAM["beta2"], moments["step"] + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments["first"], grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, moments["second"], grads)

        rate = network.rate_after(moments["step"], jnp.cos)

        def moved(p: Native, m: Native, v: Native) -> Native:
            return p - rate * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + ADAM["eps"])

        layers = jax.tree.map(moved, layers, first, second)
        return layers, running, {"first": first, "second": second, "step": t}, loss

    return step


# ---- scikit-learn


def scikit_learn(case: Case) -> Iterator[Contender]:
    """MLPClassifier, a batch to each call of partial_fit; it has no batch normalisation."""
    return each_blas_count(case, "scikit-learn", functools.partial(_sklearn_step, case), kernels.FAST["numpy"])


def _sklearn_step(case: Case) -> Step:
    from sklearn.neural_network import MLPClassifier

    network = case.network
    model = MLPClassifier(
        network.sizes[1:-1],
        activation={"relu": "relu", "sigmoid": "logistic"}[network.activation],
        solver=network.optimizer,
        alpha=0,
        batch_size=network.batch,
        learning_rate_init=network.rate,
        shuffle=False,
        momentum=0,
        nesterovs_momentum=False,
    )
    model.partial_fit(*case.batches[0], classes=np.arange(network.sizes[-1]))
    for weight, bias, layer in zip(model.coefs_, model.intercepts_, case.layers(), strict=True):
        weight[...], bias[...] = layer["weight"], layer["bias"]  # begin where the others do
    del model._optimizer

    def step(x: Native, labels: Native) -> float:
        model.partial_fit(x, labels)
        return float(model.loss_)

    return step
