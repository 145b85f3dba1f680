"""One pass through a network, and one training step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, device

from .. import trees
from .._typing import AllReduce, Array, Tree
from ..arguments import instance, shown
from ..backends import Backend
from ..context import Context, Draws
from ..functional import Loss, loss_function, loss_sum
from ..functional.losses import LossName, of_ones_own
from ..networks import Sequential
from ..optimizers import Optimizer, OptimizerLike
from ..recording import made


def train_step(
    net: Sequential,
    optimizer: OptimizerLike,
    params: Tree,
    state: Tree,
    opt_state: Tree,
    x: Array,
    targets: Array,
    loss: LossName | Loss = "cross_entropy",
    all_reduce: AllReduce | None = None,
    *,
    sync_statistics: AllReduce | None = None,
    seed: int = 0,
    rows: Array | None = None,
    weights: Array | None = None,
) -> tuple[Tree, Tree, Tree, Array]:
    """One step: forward, loss, backward, update.

    Parameters
    ----------
    net : Sequential
    optimizer : Optimizer
        Or an object of one's own with init and update: `optimizers.OptimizerLike`.
    params, state, opt_state : dict
        *Donated*: they may be written into, so use what is returned.
    x : array
        The batch, shape (N, inputs).
    targets : array
        Class numbers (N,) for "cross_entropy", values of the output's shape for the others.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"} or callable
        Of one's own: loss(outputs, targets) gives the mean over the batch, 0-dimensional, and its gradient by
        the outputs; with weights, loss(outputs, targets, weights) gives the weighted mean.
    all_reduce : callable, optional
        Sums an array over ranks. x and targets then are this rank's share of the batch, which may be empty,
        and what is returned is the same on every rank. Gradients, loss and count travel in one flat array.
    sync_statistics : callable, optional
        Sums an array over the ranks that share batch statistics; without it they are each rank's own.
    seed : int
        Of what dropout draws in the step, together with the step's number in opt_state.
    rows : array, optional
        With several ranks: the place in the whole batch of each row of x, so that dropout draws what one process
        with all the rows draws.
    weights : array, optional
        Of the rows, shape (N,): a weight of k stands for the row k times, 0 for padding, in batch statistics and loss
        alike. See `moments`.

    Returns
    -------
    params, state, opt_state : dict
    loss : array
        0-dimensional, on the device: the mean over the batch, weighted where there are weights.

    Raises
    ------
    ValueError
        For an unknown loss, or shapes that do not fit.

    Notes
    -----
    Nothing waits for the host. With JAX, wrap it: ``jax.jit(functools.partial(bn.train_step, net, optimizer))``.
    Lazy arrays (dask) are computed at the end of the step, so that their graphs do not grow.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net, optimizer = bn.mlp([2, 8, 2]), bn.optimizers.adam(0.05)
    >>> params, state = net.init(0, backend=bn.backend("numpy"))
    >>> opt_state = optimizer.init(params)
    >>> x = np.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    >>> for _ in range(50):
    ...     params, state, opt_state, loss = bn.train_step(
    ...         net, optimizer, params, state, opt_state, x, np.asarray([0, 1, 1, 0])
    ...     )
    >>> bool(loss < 0.1)
    True
    """
    instance("net", net, Sequential, "a Sequential")
    check_optimizer(optimizer)
    instance("opt_state", opt_state, dict, "a dict such as optimizer.init gives")
    if "step" not in opt_state:
        raise ValueError(
            f"opt_state: expected a dict with a step, such as optimizer.init gives, got {shown(opt_state)}"
        )
    context = Context(True, sync_statistics, Draws(seed, opt_state["step"], rows), weights)
    output, state, residuals = net.forward(params, state, x, context)
    if all_reduce is None:
        value, doutput = _loss(loss, output, targets, weights)
        grads = net.backward(params, residuals, doutput)
    else:
        value, doutput, weight = loss_sum(loss, output, targets, weights)
        grads, value = _mean_over_ranks(net.backward(params, residuals, doutput), value, weight, all_reduce)
    params, opt_state = optimizer.update(params, grads, opt_state)
    return trees.settled((params, state, opt_state, value))


def check_optimizer(optimizer: OptimizerLike) -> None:
    """Refuse what is no optimiser."""
    if not isinstance(optimizer, Optimizer):  # first: a look at a Protocol takes 15 times as long
        words = "an Optimizer such as optimizers.adam(), or an object with init and update"
        instance("optimizer", optimizer, OptimizerLike, words)


def _mean_over_ranks(grads: Tree, value: Array, weight: Any, all_reduce: AllReduce) -> tuple[Tree, Array]:
    """Gradients and loss of a whole batch from their sums on each rank: one reduction of one flat array.

    Floating dtypes count rows exactly up to 2^24 of them in a batch.
    """
    leaves = trees.leaves(grads)
    xp, like = array_namespace(value), leaves[0] if leaves else value
    count = xp.reshape(xp.asarray(weight, dtype=like.dtype, device=device(like)), (1,))
    flat = [xp.reshape(leaf, (-1,)) for leaf in [*leaves, xp.astype(value, like.dtype)]]
    total = all_reduce(xp.concat([*flat, count]))
    mean, means, start = total[:-1] / total[-1], [], 0
    for leaf in leaves:
        means.append(xp.reshape(mean[start : start + leaf.size], leaf.shape))
        start += leaf.size
    return trees.rebuild(grads, means), mean[-1]


def _loss(loss: LossName | Loss, output: Array, targets: Array, weights: Array | None) -> tuple[Array, Array]:
    given = (output, targets) if weights is None else (output, targets, weights)
    if callable(loss):
        return of_ones_own(loss, *given)
    try:
        return made(loss_function(loss), *given)
    except (TypeError, ValueError) as error:
        if "weights:" in str(error):
            raise
        raise ValueError(f"targets: they do not fit the network's outputs: {error}") from error


@functools.lru_cache(maxsize=32)
def forward_pass(net: Sequential, backend: Backend, context: Context) -> Callable[..., tuple[Array, Tree]]:
    """(params, state, x, weights or None) -> (output, new state); kept, because JAX compiles each new function again."""

    def forward(params: Tree, state: Tree, x: Array, weights: Array | None = None) -> tuple[Array, Tree]:
        output, new, _ = net.forward(params, state, x, context._replace(weights=weights))
        return output, new

    return forward if context.all_reduce else backend.compiled(forward)
