"""Training over rows of host data: the loop around `train_step`."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from .. import data
from .._typing import Array, BackendName, OnNonfinite, Tree
from ..arguments import function, instance, integer, one_of
from ..backends import Backend, as_backend, as_numpy
from ..context import Context, Draws
from ..functional import Loss
from ..functional.losses import LossName
from ..networks import Sequential
from ..optimizers import OptimizerLike
from ..parallel import Alone, Communicator, Shares
from . import finite
from .compiled import compiled
from .evaluation import measured
from .fitted import Fitted, NonFiniteError, copy_of
from .rows import Rows, checked_rows, checked_weights, on_device
from .running_statistics import recalibrate, running_averages, with_averages
from .step import check_optimizer, train_step

EVALUATED = 10_000
"""Training rows, at most, over which an epoch's training accuracy is measured."""

BLOCK = 256
"""Losses that are put into one array at a time, so that an epoch of many steps keeps few arrays."""


@dataclass(frozen=True)
class Settings:
    """How `fit` trains: its short keywords as one value.

    Examples
    --------
    >>> import bnengine as bn
    >>> bn.Settings(epochs=3, batch_size=32).epochs
    3
    """

    epochs: int = 10
    batch_size: int = 128
    """Rows left over make a smaller batch; one row left over joins the batch before it, since normalisation needs two.
    1 is for networks without batch statistics."""
    seed: int = 0
    """Of the initial parameters, the shuffles and what dropout draws."""
    early_stopping: int | None = None
    """Stop after so many epochs without a lower validation loss, and return the best epoch's network."""
    precise_bn: bool = False
    """Recompute the running statistics over the training data at the end (`recalibrate`)."""
    on_nonfinite: OnNonfinite = "stop"
    """"skip" leaves out the update of a step whose loss, gradients or results are not finite, and counts them in the
    history (`skipped`); the step still counts for the schedule. It costs a copy of the parameters and the optimiser's
    state each step."""
    sync_ranks: int | None = None
    """Ranks that share batch statistics: all by default, 1 for statistics of each rank's own. Less than all changes
    the result, and batches in which a group has fewer than two rows are left out."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("seed", self.seed, 0),
        ):
            integer(name, value, least)
        if self.early_stopping is not None:
            integer("early_stopping", self.early_stopping, 1)
        one_of("on_nonfinite", self.on_nonfinite, get_args(OnNonfinite))
        instance("precise_bn", self.precise_bn, bool, "True or False")


def fit(
    net: Sequential,
    optimizer: OptimizerLike,
    train: Rows,
    *,
    validation: Rows | None = None,
    loss: LossName | Loss = "cross_entropy",
    settings: Settings | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    early_stopping: int | None = None,
    precise_bn: bool | None = None,
    on_nonfinite: OnNonfinite | None = None,
    sync_ranks: int | None = None,
    backend: Backend | BackendName | None = None,
    start: Fitted | None = None,
    communicator: Communicator | None = None,
    weights: Any = None,
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
        Or an object of one's own with init and update: `optimizers.OptimizerLike`.
    train, validation : (x, targets)
        Host arrays, a sample in each row. They are put on the device once.
    loss : {"cross_entropy", "binary_cross_entropy", "mse"} or callable
        Of one's own: loss(outputs, targets) gives the mean over the batch, 0-dimensional, and its gradient by
        the outputs; targets are handed on as they are. With weights, loss(outputs, targets, weights).
    settings : Settings, optional
        The keywords of the next line as one value, `Settings()` by default.
    epochs, batch_size, seed, early_stopping, precise_bn, on_nonfinite, sync_ranks
        Each takes the place of its field of `settings`, where it is not None: see `Settings`.
    backend : Backend or str, optional
        NumPy float32 by default; a name is a backend in float32.
    start : Fitted, optional
        Go on from here instead of from new parameters, to the same bits as without the break, also from
        the middle of an epoch; it is left as it is. `Fitted(params, state, optimizer.init(params))` trains a
        network further that was loaded, say: fine-tuning, with `optimizers.freeze` where layers are to stay.
    communicator : Communicator, optional
        The ranks that train together (`bnengine.parallel`), each with its own rows: those of all ranks, one
        after another, are the training rows. The result is the same on every rank, and that of one process
        with all the rows but for rounding.
    weights : array, optional
        Host numbers of shape (N,): how often each training row counts, in statistics, loss and metrics alike. Rows of
        weight 0 are left out. See `moments`.
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
        `.params`, `.state`, `.opt_state`, `.kept_epoch`, which epoch's they are, `.best` and `.history`, a dict for
        each epoch: epoch, step, seconds, learning_rate, train_loss (mean over the epoch's batches), train_accuracy (in inference, over at
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
    check_optimizer(optimizer)
    for name, given in (("callback", callback), ("progress", progress), ("interrupted", interrupted)):
        function(name, given)
    how = settings if settings is not None else Settings()
    instance("settings", how, Settings, "None or Settings")
    short: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "early_stopping": early_stopping}
    short |= {"precise_bn": precise_bn, "on_nonfinite": on_nonfinite, "sync_ranks": sync_ranks}
    how = dataclasses.replace(how, **{name: value for name, value in short.items() if value is not None})
    x, targets = checked_rows("train", train, net, loss, ranks)
    w = checked_weights(weights, len(x), ranks)
    if w is not None and not w.all():
        x, targets, w = (array[w > 0] for array in (x, targets, w))
    held = None if validation is None else on_device(checked_rows("validation", validation, net, loss, ranks), backend)
    shares = Shares.of(ranks, len(x), how.sync_ranks)
    if shares.total < 2:
        raise ValueError(f"train: expected at least 2 rows, got {shares.total}")
    if how.batch_size == 1 and any(layer.cancels_bias for _, layer in net.named()):
        raise ValueError("batch_size: expected at least 2 rows to take batch statistics of, got 1")
    if how.early_stopping is not None and held is None:
        raise ValueError("early_stopping: expected validation rows to judge by, got none")
    if start is not None:
        instance("start", start, Fitted, "None or what fit gave")
    if how.on_nonfinite == "skip" and shares.group.size < ranks.size:
        raise ValueError("on_nonfinite: ranks with their own statistics (sync_ranks) cannot skip the same steps")
    now = _begin(net, optimizer, start, x, how.seed, backend, ranks, w)
    rows = on_device((x, targets), backend)
    loop = _Loop(net, optimizer, loss, how, backend, rows, held, shares, progress, interrupted, w)
    began = time.perf_counter() - (now.history[-1]["seconds"] if now.history else 0.0)
    for epoch in range(len(now.history) + 1, how.epochs + 1):
        if how.early_stopping and now.best and len(now.history) - len(now.best.history) >= how.early_stopping:
            break
        now, row = loop.epoch(now, epoch)
        if row is None:
            return now
        row["seconds"] = time.perf_counter() - began
        now = dataclasses.replace(now, history=[*now.history, row])
        if held is not None and (not now.best or row["validation_loss"] < now.best.history[-1]["validation_loss"]):
            now = dataclasses.replace(now, best=copy_of(dataclasses.replace(now, best=None)))
        if any(ranks.gather(callback is not None and bool(callback(row, now)))):
            break
    if how.early_stopping is not None and now.best:
        now = dataclasses.replace(now.best, history=now.history, best=now.best)
    if how.precise_bn:
        now.state = recalibrate(
            *(net, now.params, now.state, x),
            batch_size=how.batch_size,
            backend=backend,
            communicator=ranks,
            weights=w,
        )
    return now


@dataclass(frozen=True)
class _Loop:
    """What stays the same from epoch to epoch."""

    net: Sequential
    optimizer: OptimizerLike
    loss: LossName | Loss
    how: Settings
    backend: Backend
    rows: tuple[Array, Array]
    held: tuple[Array, Array] | None
    shares: Shares
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None
    interrupted: Callable[[], object] | None
    weights: np.ndarray[Any, Any] | None

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # the losses tell, at the end of the epoch
    def epoch(self, now: Fitted, epoch: int) -> tuple[Fitted, dict[str, Any] | None]:
        """One pass over the data, or what is left of it; no row where it was broken off. Nothing waits for the host."""
        start = copy_of(now)
        order = self.shares.whole(
            data.batches(self.shares.total, self.how.batch_size, np.random.default_rng([self.how.seed, epoch]))
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

    def batch(self, chosen: np.ndarray[Any, Any]) -> tuple[Array, ...]:
        """Inputs and targets of these rows; of several ranks their places in the batch too; their weights, if any."""
        own, xp = self.shares.own(chosen), self.backend.xp
        index = self.backend.asarray(own)
        given = [xp.take(array, index, axis=0) for array in self.rows]
        if self.shares.ranks.size > 1:
            given.append(self.backend.asarray(self.shares.places(chosen)))
        if self.weights is not None:
            given.append(self.backend.asarray(self.weights[own]))
        return tuple(given)

    @functools.cached_property
    def step(self) -> finite.Step:
        """One training step, given what `batch` gives."""
        ranks, group = self.shares.ranks, self.shares.group
        if ranks.size == 1:
            settings: dict[str, Any] = {"seed": self.how.seed, "on_nonfinite": self.how.on_nonfinite}
            return compiled(self.net, self.optimizer, self.loss, self.backend, **settings)
        names = ["x", "targets", "rows", *([] if self.weights is None else ["weights"])]
        how: dict[str, Any] = {"loss": self.loss, "seed": self.how.seed}
        how |= {"all_reduce": ranks.sum, "sync_statistics": group.sum if group.size > 1 else None}

        def step(params: Tree, state: Tree, opt_state: Tree, *given: Array) -> tuple[Tree, Tree, Tree, Array]:
            batch: dict[str, Any] = dict(zip(names, given, strict=True))
            return train_step(self.net, self.optimizer, params, state, opt_state, **batch, **how)

        return finite.skipping(step) if self.how.on_nonfinite == "skip" else step

    def good(self, done: Fitted) -> bool:
        """Whether losses, parameters and state are finite; with "skip", where they always are, any loss."""
        losses = np.isfinite(done.losses)
        if self.how.on_nonfinite == "skip":
            return bool(losses.any()) or not done.losses
        made = {"params": done.params, "state": done.state, "opt_state": done.opt_state}
        return bool(losses.all()) and bool(finite.all_finite(made))

    def cause(self, start: Fitted, done: Fitted, order: list[np.ndarray[Any, Any]]) -> str:
        """The first step and layer that were not finite: the epoch once more, with a look at every value.

        Several ranks say the step alone: what each would see differs, and they would part ways.
        """
        now = copy_of(start)
        params, state, opt_state = now.params, now.state, now.opt_state
        for chosen in order[len(start.losses) :] if self.shares.ranks.size == 1 else ():
            x, targets, *rest = self.batch(chosen)
            weights = rest[0] if rest else None
            number = opt_state["step"]
            what = finite.first_nonfinite(
                *(self.net, self.loss, params, state, x, targets),
                context=lambda number=number, weights=weights: Context(  # type: ignore[misc]
                    True, draws=Draws(self.how.seed, number), weights=weights
                ),
            )
            params, state, opt_state, _ = self.step(params, state, opt_state, x, targets, *rest)
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
        rate = getattr(self.optimizer, "rate", None)  # one of the user's own need not have it
        row |= {"learning_rate": float(rate(step - 1))} if rate else {}
        row["train_loss"] = float(losses[np.isfinite(losses)].mean())
        if self.how.on_nonfinite == "skip":
            row["skipped"] = int(np.sum(~np.isfinite(losses)))
        (x, targets), some, ranks = self.rows, self.shares.head(EVALUATED), self.shares.ranks
        seen = (x[:some, ...], targets[:some, ...])

        def metrics(of: tuple[Array, Array], weights: Any = None) -> dict[str, float | None]:
            return measured(self.net, done.params, done.state, of, self.loss, self.backend, ranks, weights)

        row |= _prefixed("train", metrics(seen, None if self.weights is None else self.weights[:some]), but="loss")
        if self.held is not None:
            row |= _prefixed("validation", metrics(self.held))
        return row


def _averaged(state: Tree, shares: Shares) -> Tree:
    """Running statistics of groups of ranks as those of all: their mean, as if the groups were batches one by one."""
    if shares.group.size == shares.ranks.size:
        return state
    total, size = shares.ranks.sum, shares.ranks.size
    averages = running_averages(state)
    means = {
        name: own._replace(mean=total(own.mean) / size, var=total(own.var) / size) for name, own in averages.items()
    }
    return with_averages(state, means)


def _begin(
    net: Sequential,
    optimizer: OptimizerLike,
    start: Fitted | None,
    x: np.ndarray[Any, Any],
    seed: int,
    backend: Backend,
    ranks: Communicator,
    weights: np.ndarray[Any, Any] | None,
) -> Fitted:
    if start is not None:
        return copy_of(start)
    params, state = net.init(seed, backend=backend)
    state = net.measure(state, x, backend=backend, all_reduce=ranks.sum, weights=weights)
    return Fitted(params, state, optimizer.init(params))


def _prefixed(prefix: str, metrics: dict[str, float | None], but: str = "") -> dict[str, float | None]:
    return {f"{prefix}_{name}": value for name, value in metrics.items() if name != but}
