"""Training steps without what is between their kernels: on NumPy recorded once and then replayed, on JAX compiled."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args

from .._typing import AllReduce, Array, BackendName, OnNonfinite, Tree
from ..arguments import function, instance, integer, one_of
from ..backends import Backend, as_backend
from ..functional import Loss, loss_function
from ..functional.losses import LossName
from ..layer import Layer
from ..networks import LAYERS, Sequential
from ..optimizers import Optimizer, OptimizerLike
from ..optimizers.freezing import Frozen
from .finite import Step, skipping
from .replaying import Recorded
from .step import check_optimizer, train_step


def compiled(
    net: Sequential,
    optimizer: OptimizerLike,
    loss: LossName | Loss = "cross_entropy",
    backend: Backend | BackendName = "numpy",
    *,
    seed: int = 0,
    on_nonfinite: OnNonfinite = "stop",
    all_reduce: AllReduce | None = None,
    sync_statistics: AllReduce | None = None,
) -> Compiled:
    """A training step that does the same as `train_step`, and is made faster where that can be.

    On NumPy the step is recorded: the second time that a batch of some shape comes, the kernels that `train_step` calls
    are noted together with their memory. From then on these calls are made one after another, without the checks and
    the choices between them. The first replay is compared with `train_step` bit by bit; what cannot be recorded, or is
    not the same, is done by `train_step` itself.

    Parameters
    ----------
    net, optimizer, loss
        As in `train_step`. A loss, a schedule and a rule of your own are called in every step. With a layer or an
        optimiser class of your own nothing is recorded.
    backend : Backend or str
        Of the arrays that will come: "numpy" is recorded, on "jax" the step goes through `jax.jit`, elsewhere it is
        `train_step`.
    seed : int
        Of what dropout draws.
    on_nonfinite : {"stop", "skip"}
        "skip" leaves out the update of a step whose results are not finite; its loss is NaN then.
    all_reduce, sync_statistics : callable, optional
        Between ranks, as in `train_step`; nothing is recorded then.

    Returns
    -------
    Compiled
        `step(params, state, opt_state, x, targets, weights=None)` gives what `train_step` gives. All three trees are *donated*, the
        state too: what is returned stands in the same memory each time. `step.recorded` says whether steps are
        replayed, `step.why_not` why they are not. Steps with weights of rows are those of `train_step`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as described.

    Notes
    -----
    A recording keeps the memory of a step, all its results at once; there are at most four, for different shapes of
    batches. Batches are read where they are, without a copy. One thread at a time replays; another that calls the
    same step meanwhile gets `train_step`.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net, optimizer = bn.mlp([2, 8, 2]), bn.optimizers.adam(0.05)
    >>> step = bn.compiled(net, optimizer)
    >>> params, state = net.init(0, backend=bn.backend("numpy"))
    >>> opt_state = optimizer.init(params)
    >>> x, targets = np.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.asarray([0, 1, 1, 0])
    >>> for _ in range(50):
    ...     params, state, opt_state, loss = step(params, state, opt_state, x, targets)
    >>> bool(loss < 0.1), step.recorded
    (True, True)
    """
    return Compiled(net, optimizer, loss, as_backend(backend), seed, on_nonfinite, all_reduce, sync_statistics)


@dataclass(frozen=True)
class Compiled:
    """A step made by `compiled`: call it as `train_step`, with params, state, opt_state, x, targets and weights."""

    net: Sequential
    optimizer: OptimizerLike
    loss: LossName | Loss
    backend: Backend
    seed: int
    on_nonfinite: OnNonfinite
    all_reduce: AllReduce | None
    sync_statistics: AllReduce | None

    def __post_init__(self) -> None:
        instance("net", self.net, Sequential, "a Sequential")
        check_optimizer(self.optimizer)
        loss_function(self.loss)
        integer("seed", self.seed, 0)
        one_of("on_nonfinite", self.on_nonfinite, get_args(OnNonfinite))
        function("all_reduce", self.all_reduce)
        function("sync_statistics", self.sync_statistics)
        step, refusal = self.ordinary(), self._refusal()
        if refusal is None:
            step = Recorded(step)
        elif self.all_reduce is None:
            step = self.backend.compiled(step)
        object.__setattr__(self, "_step", step)
        object.__setattr__(self, "_refused", refusal)

    def __call__(
        self, params: Tree, state: Tree, opt_state: Tree, x: Array, targets: Array, weights: Array | None = None
    ) -> tuple[Tree, Tree, Tree, Array]:
        """The new params, state and opt_state, and the loss; the trees that are handed over are donated."""
        step: Step = self._step  # type: ignore[attr-defined]
        if weights is None:
            return step(params, state, opt_state, x, targets)
        if isinstance(step, Recorded):  # what rows weigh together is a number, of each batch another
            step.why_not = step.why_not and "steps with weights of rows are not recorded"
            step = step.step
        return step(params, state, opt_state, x, targets, weights)

    @property
    def recorded(self) -> bool:
        """Whether steps on some shape of batch are replayed."""
        step = self.__dict__["_step"]
        return isinstance(step, Recorded) and step.replays

    @property
    def why_not(self) -> str | None:
        """Why not, or why not on the last shape that was refused; None where nothing was."""
        step = self.__dict__["_step"]
        return step.why_not if isinstance(step, Recorded) else self.__dict__["_refused"]

    def ordinary(self) -> Step:
        """`train_step` with these settings."""
        options: dict[str, Any] = {"loss": self.loss, "seed": self.seed}
        if self.all_reduce is not None or self.sync_statistics is not None:
            options |= {"all_reduce": self.all_reduce, "sync_statistics": self.sync_statistics}
        step: Step = functools.partial(_train_step, self.net, self.optimizer, options)
        return skipping(step) if self.on_nonfinite == "skip" else step

    def _refusal(self) -> str | None:
        """Why nothing can be recorded; None where it can."""
        if self.backend.name != "numpy":
            return f"steps are recorded on NumPy alone, not on {self.backend.name}"
        if self.all_reduce is not None or self.sync_statistics is not None:
            return "ranks sum in the middle of a step"
        optimizer = self.optimizer
        while isinstance(optimizer, Frozen):
            optimizer = optimizer.optimizer
        foreign = next(_foreign(self.net), None if type(optimizer) is Optimizer else optimizer)
        if foreign is not None:
            return f"{type(foreign).__name__} is not of bnengine, and may compute with what changes from step to step"
        return None

    def __reduce__(self) -> tuple[type[Compiled], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, part.name) for part in fields(self))  # recordings are this process's


def _train_step(
    net: Sequential,
    optimizer: OptimizerLike,
    options: dict[str, Any],
    params: Tree,
    state: Tree,
    opt_state: Tree,
    x: Array,
    targets: Array,
    weights: Array | None = None,
) -> tuple[Tree, Tree, Tree, Array]:
    return train_step(net, optimizer, params, state, opt_state, x, targets, weights=weights, **options)


def _foreign(layer: Layer) -> Iterator[Layer]:
    """The layer, or layers that it consists of, whose class is not of this package, or which sum over ranks."""
    if type(layer) not in LAYERS.values() or getattr(layer, "_all_reduce", None) is not None:
        yield layer
    for part in getattr(layer, "layers", ()):
        yield from _foreign(part)
