"""Functions and a whole step through torch.compile; test_functional.py runs this in a process of its own."""

from __future__ import annotations

import functools

import pytest
from libraries import need

import bnengine as bn
from bnengine.functional import ACTIVATIONS

CACHES = "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
"""array-api-compat's and ours: what they keep follows from a type, and does not change."""


def traced(function, backend="eager"):
    """The function through torch.compile, which fails where it would leave the graph."""
    torch = need("torch")
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


@pytest.mark.filterwarnings(CACHES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compiles_in_one_graph(rng, backend):
    torch = need("torch")
    x, dy = (torch.asarray(rng.standard_normal((12, 5)), dtype=torch.float32) for _ in range(2))
    gamma, beta = (torch.asarray(rng.standard_normal(5), dtype=torch.float32) for _ in range(2))

    def everything(x, gamma, beta, dy):
        running = bn.RunningStats(torch.zeros(5), torch.ones(5), 0)
        y, residuals = bn.batch_norm(x, gamma, beta, activation="relu")
        running = running.update(residuals)
        given = (running.mean, running.var, gamma, beta)
        inferred, backward = bn.normalize(x, *given), bn.normalize_backward(dy, x, *given)
        return y, *bn.batch_norm_backward(dy, residuals), running.mean, running.var, inferred, *backward

    for found, expected in zip(
        traced(everything, backend)(x, gamma, beta, dy), everything(x, gamma, beta, dy), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings(CACHES)
def test_torch_compiles_activations(rng):
    torch = need("torch")
    x, dy = (torch.asarray(rng.standard_normal((4, 3))) for _ in range(2))

    def everything(x, dy):
        pairs = [(rule.forward(x), rule) for rule in ACTIVATIONS.values()]
        return [(y, rule.backward(dy, x if rule.keeps == "x" else y)) for y, rule in pairs]

    torch.testing.assert_close(traced(everything)(x, dy), everything(x, dy))


@pytest.mark.filterwarnings(CACHES)
def test_torch_compiles_a_step(rng):
    """In one graph; the second is for any number of the step."""
    torch = need("torch")
    torch._dynamo.reset()
    net, optimizer, graphs = bn.mlp([4, 8, 3], dropout=0.2), bn.optimizers.adam(0.01), []
    step = functools.partial(bn.train_step, net, optimizer)
    compiled = torch.compile(step, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    x, labels = torch.asarray(rng.standard_normal((12, 4)), dtype=torch.float32), torch.arange(12) % 3
    ours, theirs = ([*net.init(0, backend="torch"), optimizer.init(net.init(0, backend="torch")[0])] for _ in range(2))
    for _ in range(5):
        *ours, expected = step(*ours, x, labels)
        *theirs, found = compiled(*theirs, x, labels)
        torch.testing.assert_close(found, expected)
    assert len(graphs) == 2
