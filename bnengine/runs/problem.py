"""A configuration with its data, network and optimiser: what a run trains."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, checkpoints, kernels
from ..arguments import ConfigError, quantity
from ..backends import Backend
from ..backends import backend as make_backend
from ..data import batches as batches_of
from ..data import shards
from ..data.inputs import Watch
from ..data.readers import DataError, HostArray
from ..data.sets import Dataset, fingerprint
from ..fully_connected import mlp
from ..functional.losses import LossName
from ..networks import Sequential
from ..optimizers import BY_NAME, Optimizer, OptimizerLike, Schedule, cosine, freeze, step_decay, warm_up
from ..parallel import Communicator, Shares
from ..training.fitted import Fitted
from .config import Config
from .start import Beginning, in_its_scale, load_beginning

LEFT_OUT = "in each a group of ranks (--sync-ranks) has fewer than two rows; larger batches leave out fewer"


@dataclass(frozen=True)
class Problem:
    """A configuration with its data, network and optimiser."""

    config: Config
    dataset: Dataset
    validation: tuple[HostArray, HostArray] | None
    counts: list[int]
    """Rows for training, validation and testing, of all ranks."""
    net: Sequential
    optimizer: OptimizerLike
    backend: Backend
    target: tuple[float, float]
    """Mean and standard deviation of the training targets in regression, which learns standardised ones."""
    ranks: Communicator
    rows: dict[str, Any]
    """What tells the data from other data: names, how many rows, a number that follows from their values."""
    left_out: int
    """Batches, of all epochs, in which a group of ranks has fewer than the two rows that statistics take."""
    begin: Beginning | None
    """The network that it starts from, where it is another run's."""

    @classmethod
    def of(cls, config: Config, ranks: Communicator, watch: Watch | None = None) -> Problem:
        """What the options say, made: data read, network built, ranks agreed."""
        backend = make_backend(config.backend, dtype=config.dtype, device=config.device)
        asked = replace(config.reading(), watch=watch)
        parts = shards.load(config.data, ranks, asked, validation=config.validation)
        begin = load_beginning(config, parts, backend) if config.start else None
        dataset, validation, target = in_its_scale(parts, begin.target) if begin else parts
        lengths = len(dataset.y_train), len(validation[1]) if validation else 0, len(dataset.y_test)
        counts = ranks.sum(np.asarray(lengths)).tolist()
        if config.dtype == "float32":
            _refuse_what_float32_loses(dataset, ranks)
        steps, left_out = _count_steps(config, Shares.of(ranks, len(dataset.y_train), config.sync_ranks))
        net = begin.net if begin else _build_network(config, dataset)
        _refuse_what_memory_cannot_hold(net, config)
        optimizer: OptimizerLike = _build_optimizer(config, steps)
        if begin and begin.frozen:
            optimizer = freeze(optimizer, begin.frozen)
        made = net, optimizer, backend, target, ranks, _describe_rows(dataset, validation, ranks), left_out
        return cls(config, dataset, validation, counts, *made, begin)

    @property
    def loss(self) -> LossName:
        """Cross-entropy for classes, the squared error for values."""
        return "cross_entropy" if self.dataset.task == "classification" else "mse"

    @property
    def start(self) -> Fitted | None:
        """What training begins with; None: new parameters."""
        if self.begin is None:
            return None
        params, state = self.begin.loaded.params, self.begin.loaded.state
        return Fitted(params, state, self.optimizer.init(params))

    @property
    def train(self) -> tuple[HostArray, HostArray]:
        """Training rows and targets of this rank."""
        return self.dataset.x_train, self.dataset.y_train

    def to_bytes(self, fitted: Fitted, *, resumable: bool = False) -> bytes:
        """A file that `predict` can work from alone, or one that training can go on from too.

        The random state is the seed, the epoch and the position in it: each epoch draws its own order.
        """
        metadata: dict[str, Any] = {
            "task": self.dataset.task,
            "classes": self.dataset.classes,
            "columns": self.dataset.columns,
            "label": self.dataset.label,
            "encoding": self.dataset.encoding.to_metadata(),
            "features": self.dataset.features,
            "target_mean": self.target[0],
            "target_std": self.target[1],
            "version": __version__,
        }
        if not resumable:
            return checkpoints.packed(self.net, fitted.params, fitted.state, metadata=metadata)
        metadata |= {
            "config": self.config.kept(),
            "history": fitted.history,
            "epoch": len(fitted.history),
            "position": len(fitted.losses),
            "losses": fitted.losses,
            "rows": self.rows,
        }
        return checkpoints.packed(self.net, fitted.params, fitted.state, opt_state=fitted.opt_state, metadata=metadata)

    def describe(self, directory: Path) -> str:
        """What is about to be trained, for a person."""
        train, held, test = self.counts
        rows = f"{train} training" + (f", {held} validation" if held else "")
        rows += f", {test} test rows" if test else " rows, none for testing"
        task = f"{len(self.dataset.classes)} classes" if self.dataset.task == "classification" else "regression"
        read = "".join(f"{line}\n" for line in (*self.dataset.notes, f"predicting {self.dataset.predicts}"))
        return read + (
            f"{self.dataset.name}: {rows}, {quantity(self.dataset.features, 'feature')}, "
            f"{task}\n{self.net.summary()}\n{self._beginning_words()}{self.config.optimizer}, {self.backend.name} {self.config.dtype}, "
            f"kernels {kernels_in_use(self.backend)}"
            f"{f', {self.ranks.size} ranks' if self.ranks.size > 1 else ''}, writing to {directory}"
            + (f"\n{self.left_out} batches are left out: {LEFT_OUT}" if self.left_out else "")
        )

    def _beginning_words(self) -> str:
        if self.begin is None:
            return ""
        frozen = f", layers {', '.join(self.begin.frozen)} stay as they are" if self.begin.frozen else ""
        return f"starting from the network of {self.config.start}{frozen}\n"


def kernels_in_use(backend: Backend) -> str:
    """The name of the module whose kernels this backend's arrays take."""
    probe = backend.xp.zeros((2, 1), dtype=backend.dtype, device=backend.device)
    return kernels.select(probe).__name__.rpartition(".")[2]


def _count_steps(config: Config, shares: Shares) -> tuple[int, int]:
    """(steps of all epochs, batches that are left out)."""

    def batches(*seed: int) -> list[HostArray]:
        return batches_of(shares.total, config.batch_size, np.random.default_rng(seed))

    planned = config.epochs * len(batches(0))
    if shares.group.size == shares.ranks.size:
        return planned, 0
    steps = sum(len(shares.whole(batches(config.seed, epoch))) for epoch in range(1, config.epochs + 1))
    return steps, planned - steps


def _build_network(config: Config, dataset: Dataset) -> Sequential:
    return mlp(
        [dataset.features, *config.hidden, dataset.outputs],
        norm=None if config.norm == "none" else config.norm,
        activation=config.activation,
        norm_position=config.norm_position,
        standardize=config.standardize,
        initialization=None if config.initialization == "auto" else config.initialization,
        scale=config.initial_scale,
        dropout=config.dropout,
        residual=config.residual,
    )


def _build_optimizer(config: Config, total: int) -> Optimizer:
    """The optimiser, for so many steps in all."""
    rate = config.learning_rate
    rates: dict[str, float | Schedule] = {
        "constant": rate,
        "cosine": cosine(rate, steps=total),
        "step": step_decay(rate, at=(total // 2, 3 * total // 4)),
    }
    chosen = rates[config.schedule]
    if config.warm_up:
        chosen = warm_up(chosen, steps=max(1, config.warm_up * total // config.epochs))
    return BY_NAME[config.optimizer](chosen, weight_decay=config.weight_decay, clip=config.clip)


def _refuse_what_memory_cannot_hold(net: Sequential, config: Config) -> None:
    """Refuse a network whose parameters and their gradients alone are larger than the machine's memory."""
    needed = 2 * net.parameters * np.dtype(config.dtype).itemsize
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # not on Windows
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > memory:
            raise ConfigError(
                f"hidden: {net.parameters:,} parameters and their gradients take {needed / 2**30:,.0f} GiB, "
                f"this machine has {memory / 2**30:,.0f} GiB; use smaller layers"
            )


def _refuse_what_float32_loses(dataset: Dataset, ranks: Communicator) -> None:
    """Refuse features of which float32 would keep nothing: far from zero for their spread, or too large to square."""
    x = dataset.x_train
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        mean = ranks.sum(x.sum(axis=0, dtype=np.float64)) / ranks.sum(np.asarray([len(x)]))
        blocks = np.array_split(x, len(x) // 2**16 + 1)  # of all rows at once two more arrays would be held
        squares = np.sum([np.square(block - mean).sum(axis=0) for block in blocks], axis=0)
        spread = np.sqrt(ranks.sum(squares) / ranks.sum(np.asarray([len(x)])))
    own = np.max([np.abs(block).max(axis=0, initial=0) for block in blocks], axis=0).astype(np.float64)
    largest = np.max(ranks.gather(own), axis=0)
    lost = (spread > 0) & (largest * 2.0**-25 > 0.1 * spread)  # a quarter of a unit in the last place
    for column in np.flatnonzero(lost | (largest > 1e18))[:1]:
        name = dataset.columns[column] if dataset.columns else column
        raise DataError(
            f"dtype: feature {name} has values up to {largest[column]:.3g} with standard deviation "
            f"{spread[column]:.3g}, which float32 cannot hold; use --dtype float64, or rescale or shift it"
        )


def _describe_rows(
    dataset: Dataset, validation: tuple[HostArray, HostArray] | None, ranks: Communicator
) -> dict[str, Any]:
    names = {"classes": list(dataset.classes), "columns": list(dataset.columns), "label": dataset.label}
    parts = [
        (dataset.x_train, dataset.y_train),
        (dataset.x_test, dataset.y_test),
        *([validation] if validation else []),
    ]
    shares = [Shares.of(ranks, len(y)) for _, y in parts]
    own = [fingerprint(x, y, share.first) for (x, y), share in zip(parts, shares, strict=True)]
    values = [sum(part) % 2**64 for part in zip(*ranks.gather(own), strict=True)]
    return {**names, "rows": [share.total for share in shares], "values": [f"{value:016x}" for value in values]}
