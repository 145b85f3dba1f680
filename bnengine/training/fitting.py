"""Training: a step, and the loop around it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .. import data, trees
from .._typing import AllReduce, Array, Tree
from ..arguments import function, instance, integer, one_of
from ..backends import Backend, as_backend, as_numpy
from ..layers import Sequential
from ..optimizers import Optimizer
from ..parallel import Alone, Communicator, Shares
from . import finite
from .evaluation import loss_function, loss_sum, measured
from .rows import Rows, checked_rows, on_device
from .running_statistics import precise_statistics

EVALUATED = 10_000
"""Training rows, at most, over which an epoch's training accuracy is measured."""

BLOCK = 256
"""Losses that are put into one array at a time, so that an epoch of many steps keeps few arrays."""


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is not finite. `.last_good` is what the epoch began with."""

    def __init__(self, message: str, last_good: Fitted) -> None:
        super().__init__(message)
        self.last_good = last_good

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, Fitted]]:
        return type(self), (str(self), self.last_good)  # an exception is pickled by its `args`: the message alone


@dataclass(repr=False)
class Fitted:
    """A trained network's arrays, and a row of metrics for each epoch."""

    params: Tree
    state: Tree
    opt_state: Tree
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps of an epoch that was broken off; empty between epochs."""
    best: Fitted | None = None
    """The epoch with the lowest validation loss so far; None without validation rows."""

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in map(as_numpy, trees.leaves(self.params)))
        words = [f"{len(self.history)} epochs", f"{count:,} parameters"]
        last = self.history[-1] if self.history else {}
        words += [f"{name} {value:.4g}" for name, value in last.items() if name.endswith("_loss")]
        return f"Fitted({', '.join(words)})"


def train_step(
    net: Sequential,
    optimizer: Optimizer,
    params: Tree,
    state: Tree,
    opt_state: Tree,
    x: Array,
    targets: Array,
    loss: str = "cross_entropy",
    all_reduce: AllReduce | None = None,
) -> tuple[Tree, Tree, Tree, Array]:
    """One step: forward, loss, backward, update.

    Parameters
    ----------
    net : Sequential
    optimizer : Optimizer
    params, state, opt_state : dict
        *Donated*: they may be written into, so use what is returned.
    x : array
        The batch, shape (N, inputs).
    targets : array
        Class numbers (N,) for "cross_entropy", values of the output's shape for the others.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
    all_reduce : callable, optional
        Sums an array over ranks. x and targets then are this rank's share of the batch, which may be empty,
        and what is returned is the same on every rank. Gradients, loss and count travel in one flat array.
        Batch statistics are the share's own unless the network is `net.with_norms(all_reduce=...)`.

    Returns
    -------
    params, state, opt_state : dict
    loss : array
        0-dimensional, on the device: the mean over the batch.

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
    instance("optimizer", optimizer, Optimizer, "an Optimizer such as optimizers.adam()")
    output, state, residuals = net.forward(params, state, x, training=True)
    if all_reduce is None:
        value, doutput = _fitting(loss_function(loss), output, targets)
        grads = net.backward(params, residuals, doutput)
    else:
        value, doutput = loss_sum(loss, output, targets)
        grads, value = _mean_over_ranks(net.backward(params, residuals, doutput), value, x.shape[0], all_reduce)
    params, opt_state = optimizer.update(params, grads, opt_state)
    return trees.settled((params, state, opt_state, value))


def fit(
    net: Sequential,
    optimizer: Optimizer,
    train: Rows,
    *,
    validation: Rows | None = None,
    loss: str = "cross_entropy",
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    backend: Backend | str | None = None,
    start: Fitted | None = None,
    early_stopping: int | None = None,
    precise_bn: bool = False,
    on_nonfinite: str = "stop",
    communicator: Communicator | None = None,
    sync_ranks: int | None = None,
    callback: Callable[[dict[str, Any], Fitted], object] | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    interrupted: Callable[[], object] | None = None,
) -> Fitted:
    """Train a network on rows of host data.

    Parameters
    ----------
    net : Sequential
        A Standardize layer at its front is measured on the training rows first.
    optimizer : Optimizer
    train, validation : (x, targets)
        Host arrays, a sample in each row. They are put on the device once.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"}
    epochs, batch_size : int
        Rows left over make a smaller batch; one row left over joins the batch before it, since
        normalisation needs two.
    seed : int
        Of the initial parameters and the shuffles.
    backend : Backend or str, optional
        NumPy float32 by default; a name is a backend in float32.
    start : Fitted, optional
        Go on from here instead of from new parameters, to the same bits as without the break, also from
        the middle of an epoch; it is left as it is.
    early_stopping : int, optional
        Stop after so many epochs without a lower validation loss, and return the best epoch's network.
    precise_bn : bool
        Recompute the running statistics over the training data at the end (`precise_statistics`).
    on_nonfinite : {"stop", "skip"}
        "skip" leaves out the update of a step whose loss, gradients or results are not finite, and counts
        them in the history (`skipped`); the step still counts for the schedule. It costs a copy of the
        parameters and the optimiser's state each step.
    communicator : Communicator, optional
        The ranks that train together (`bnengine.parallel`), each with its own rows: those of all ranks, one
        after another, are the training rows. The result is the same on every rank, and that of one process
        with all the rows but for rounding.
    sync_ranks : int, optional
        Ranks that share batch statistics: all by default, 1 for statistics of each rank's own. Less than
        all changes the result, and batches in which a group has fewer than two rows are left out.
    callback : callable, optional
        Called with the epoch's metrics and the network so far, after each epoch; training ends where it
        returns True, on any rank.
    progress : callable, optional
        Wraps the iterable of an epoch's batches: tqdm.
    interrupted : callable, optional
        Asked before each step; where it returns True training ends there.

    Returns
    -------
    Fitted
        `.params`, `.state`, `.opt_state`, `.best` and `.history`, a dict for each epoch: epoch, step, seconds,
        learning_rate, train_loss (mean over the epoch's batches), train_accuracy (in inference, over at
        most 10,000 training rows; train_r2 for "mse"), validation_loss, validation_accuracy.

    Raises
    ------
    ValueError
        Where an argument does not fit.
    NonFiniteError
        At the end of an epoch in which a loss or a gradient was not finite, or with "skip" all of them. The
        epoch is then repeated from its start with a look at every value, to name the first step and layer.

    Notes
    -----
    Inside an epoch nothing waits for the host: losses stay on the device and are read once.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> x = np.random.default_rng(0).standard_normal((200, 5))
    >>> net = bn.mlp([5, 16, 2])
    >>> fitted = bn.fit(net, bn.optimizers.adam(0.01), (x, (x[:, 0] > 0).astype(int)), epochs=20, batch_size=20)
    >>> fitted.history[-1]["train_accuracy"] > 0.95
    True
    """
    backend, ranks = as_backend(backend), communicator or Alone()
    instance("optimizer", optimizer, Optimizer, "an Optimizer such as optimizers.adam()")
    for name, given in (("callback", callback), ("progress", progress), ("interrupted", interrupted)):
        function(name, given)
    x, targets = checked_rows("train", train, net, loss, ranks)
    held = None if validation is None else on_device(checked_rows("validation", validation, net, loss, ranks), backend)
    shares = Shares.of(ranks, len(x), sync_ranks)
    if shares.total < 2:
        raise ValueError(f"train: expected at least 2 rows, got {shares.total}")
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 2), ("seed", seed, 0)):
        integer(name, value, least)
    if early_stopping is not None:
        integer("early_stopping", early_stopping, 1)
    if early_stopping is not None and held is None:
        raise ValueError("early_stopping: expected validation rows to judge by, got none")
    one_of("on_nonfinite", on_nonfinite, ("stop", "skip"))
    instance("precise_bn", precise_bn, bool, "True or False")
    if start is not None:
        instance("start", start, Fitted, "None or what fit gave")
    if on_nonfinite == "skip" and shares.group.size < ranks.size:
        raise ValueError("on_nonfinite: ranks with their own statistics (sync_ranks) cannot skip the same steps")
    now = _begin(net, optimizer, start, x, seed, backend, ranks)
    rows = on_device((x, targets), backend)
    skip = on_nonfinite == "skip"
    loop = _Loop(net, optimizer, loss, batch_size, seed, backend, rows, held, skip, shares, progress, interrupted)
    began = time.perf_counter() - (now.history[-1]["seconds"] if now.history else 0.0)
    for epoch in range(len(now.history) + 1, epochs + 1):
        if early_stopping is not None and now.best and len(now.history) - len(now.best.history) >= early_stopping:
            break
        now, row = loop.epoch(now, epoch)
        if row is None:
            return now
        row["seconds"] = time.perf_counter() - began
        now = dataclasses.replace(now, history=[*now.history, row])
        if held is not None and (not now.best or row["validation_loss"] < now.best.history[-1]["validation_loss"]):
            now = dataclasses.replace(now, best=_copied(dataclasses.replace(now, best=None)))
        if any(ranks.gather(callback is not None and bool(callback(row, now)))):
            break
    if early_stopping is not None and now.best:
        now = dataclasses.replace(now.best, history=now.history, best=now.best)
    if precise_bn:
        now.state = precise_statistics(
            net, now.params, now.state, x, batch_size=batch_size, backend=backend, communicator=ranks
        )
    return now


@dataclass(frozen=True)
class _Loop:
    """What stays the same from epoch to epoch."""

    net: Sequential
    optimizer: Optimizer
    loss: str
    batch_size: int
    seed: int
    backend: Backend
    rows: tuple[Array, Array]
    held: tuple[Array, Array] | None
    skip: bool
    shares: Shares
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None
    interrupted: Callable[[], object] | None

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # the losses tell, at the end of the epoch
    def epoch(self, now: Fitted, epoch: int) -> tuple[Fitted, dict[str, Any] | None]:
        """One pass over the data, or what is left of it; no row where it was broken off. Nothing waits for the host."""
        start = _copied(now)
        order = self.shares.whole(
            data.batches(self.shares.total, self.batch_size, np.random.default_rng([self.seed, epoch]))
        )
        left: Iterable[Any] = order[len(now.losses) :]
        params, state, opt_state = now.params, now.state, now.opt_state
        losses: list[Array] = []
        blocks: list[Array] = []
        for done_before, chosen in enumerate(self.progress(left) if self.progress else left):
            if self.ends(done_before):
                break
            params, state, opt_state, value = self.step(params, state, opt_state, *self.batch(chosen))
            losses.append(value)
            if len(losses) == BLOCK:
                blocks.append(self.backend.xp.stack(losses))
                losses.clear()
        blocks += [self.backend.xp.stack(losses)] if losses else []
        values = [*now.losses, *(value for block in blocks for value in as_numpy(block).tolist())]
        state = _averaged(state, self.shares)
        done = dataclasses.replace(now, params=params, state=state, opt_state=opt_state, losses=values)
        if not self.good(done):
            cause = self.cause(start, done, order)
            raise NonFiniteError(f"the loss or a gradient was not finite in epoch {epoch}, first at {cause}", start)
        if len(values) < len(order):
            return done, None
        row = self.row(done, epoch)
        for name, metric in row.items():
            if isinstance(metric, float) and not np.isfinite(metric):
                raise NonFiniteError(f"{name} was not finite after epoch {epoch}, step {row['step']}", start)
        return dataclasses.replace(done, losses=[]), row

    def ends(self, steps: int) -> bool:
        """Whether training was interrupted, on any rank; several ask each other every 16 steps."""
        ranks = self.shares.ranks
        if self.interrupted is None or (ranks.size > 1 and steps % 16):
            return False
        return any(ranks.gather(bool(self.interrupted())))

    def batch(self, chosen: np.ndarray[Any, Any]) -> tuple[Array, Array]:
        index, xp = self.backend.asarray(self.shares.own(chosen)), self.backend.xp
        return xp.take(self.rows[0], index, axis=0), xp.take(self.rows[1], index, axis=0)

    @functools.cached_property
    def step(self) -> finite.Step:
        ranks, net = self.shares.ranks, self.net
        all_reduce = None if ranks.size == 1 else ranks.sum
        if all_reduce is not None and self.shares.group.size > 1:
            net = net.with_norms(all_reduce=self.shares.group.sum)
        step: finite.Step = functools.partial(_step, net, self.optimizer, self.loss, all_reduce=all_reduce)
        step = finite.skipping(step) if self.skip else step
        return self.backend.compiled(step) if all_reduce is None else step

    def good(self, done: Fitted) -> bool:
        """Whether losses, parameters and state are finite; with "skip", where they always are, any loss."""
        losses = np.isfinite(done.losses)
        if self.skip:
            return bool(losses.any()) or not done.losses
        made = {"params": done.params, "state": done.state, "opt_state": done.opt_state}
        return bool(losses.all()) and bool(finite.all_finite(made))

    def cause(self, start: Fitted, done: Fitted, order: list[np.ndarray[Any, Any]]) -> str:
        """The first step and layer that were not finite: the epoch once more, with a look at every value.

        Several ranks say the step alone: what each would see differs, and they would part ways.
        """
        now = _copied(start)
        params, state, opt_state = now.params, now.state, now.opt_state
        for chosen in order[len(start.losses) :] if self.shares.ranks.size == 1 else ():
            x, targets = self.batch(chosen)
            what = finite.first_nonfinite(self.net, self.loss, params, state, x, targets)
            params, state, opt_state, _ = self.step(params, state, opt_state, x, targets)
            made = {"parameter": params, "running statistic": state, "state of the optimiser": opt_state}
            what = what or finite.first_leaf(self.net, made)
            if what is not None:
                return f"step {int(opt_state['step'])}: {what}"
        bad = ~np.isfinite(done.losses)  # the library did not repeat its bits
        before = np.argmax(bad) if bad.any() else len(bad) - 1
        return f"step {int(done.opt_state['step']) - len(bad) + int(before) + 1}"

    def row(self, done: Fitted, epoch: int) -> dict[str, Any]:
        """The epoch's metrics."""
        step, losses = int(done.opt_state["step"]), np.asarray(done.losses)
        row: dict[str, Any] = {"epoch": epoch, "step": step}
        row["learning_rate"] = float(self.optimizer.rate(step - 1))
        row["train_loss"] = float(losses[np.isfinite(losses)].mean())
        if self.skip:
            row["skipped"] = int(np.sum(~np.isfinite(losses)))
        (x, targets), some, ranks = self.rows, self.shares.head(EVALUATED), self.shares.ranks
        seen = (x[:some, ...], targets[:some, ...])

        def metrics(of: tuple[Array, Array]) -> dict[str, float | None]:
            return measured(self.net, done.params, done.state, of, self.loss, self.backend, ranks)

        row |= _prefixed("train", metrics(seen), but="loss")
        if self.held is not None:
            row |= _prefixed("validation", metrics(self.held))
        return row


def _step(
    net: Sequential,
    optimizer: Optimizer,
    loss: str,
    params: Tree,
    state: Tree,
    opt_state: Tree,
    x: Array,
    targets: Array,
    all_reduce: AllReduce | None = None,
) -> tuple[Tree, Tree, Tree, Array]:
    """`train_step` with what is static in front, for `jax.jit`."""
    return train_step(net, optimizer, params, state, opt_state, x, targets, loss, all_reduce)


def _mean_over_ranks(grads: Tree, value: Array, rows: int, all_reduce: AllReduce) -> tuple[Tree, Array]:
    """Gradients and loss of a whole batch from their sums on each rank: one reduction of one flat array.

    Floating dtypes count rows exactly up to 2^24 of them in a batch.
    """
    leaves = trees.leaves(grads)
    xp, like = array_namespace(value), leaves[0] if leaves else value
    count = xp.asarray([rows], dtype=like.dtype, device=device(like))
    flat = [xp.reshape(leaf, (-1,)) for leaf in [*leaves, xp.astype(value, like.dtype)]]
    total = all_reduce(xp.concat([*flat, count]))
    mean, means, start = total[:-1] / total[-1], [], 0
    for leaf in leaves:
        means.append(xp.reshape(mean[start : start + leaf.size], leaf.shape))
        start += leaf.size
    return trees.rebuild(grads, means), mean[-1]


def _averaged(state: Tree, shares: Shares) -> Tree:
    """Running statistics of groups of ranks as those of all: their mean, as if the groups were batches one by one."""
    if shares.group.size == shares.ranks.size:
        return state
    own = {key: value for key, value in state.items() if "batches" in value}
    arrays = {f"{key}.{name}": value[name] for key, value in own.items() for name in ("mean", "var")}
    means = {name: shares.ranks.sum(array) / shares.ranks.size for name, array in arrays.items()}
    return state | {key: {**value, **trees.unflatten(means)[key]} for key, value in own.items()}


def _fitting(loss: Callable[[Array, Array], tuple[Array, Array]], output: Array, targets: Array) -> tuple[Array, Array]:
    try:
        return loss(output, targets)
    except (TypeError, ValueError) as error:
        raise ValueError(f"targets: they do not fit the network's outputs: {error}") from error


def _begin(
    net: Sequential,
    optimizer: Optimizer,
    start: Fitted | None,
    x: np.ndarray[Any, Any],
    seed: int,
    backend: Backend,
    ranks: Communicator,
) -> Fitted:
    if start is not None:
        return _copied(start)
    params, state = net.init(seed, backend=backend)
    return Fitted(params, net.measure(state, x, backend=backend, all_reduce=ranks.sum), optimizer.init(params))


def _copied(fitted: Fitted) -> Fitted:
    """A copy that later steps, which write into what they are given, leave alone."""
    return dataclasses.replace(fitted, params=trees.copied(fitted.params), opt_state=trees.copied(fitted.opt_state))


def _prefixed(prefix: str, metrics: dict[str, float | None], but: str = "") -> dict[str, float | None]:
    return {f"{prefix}_{name}": value for name, value in metrics.items() if name != but}
