"""How `fit` trains, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from .._typing import OnNonfinite
from ..arguments import instance, integer, one_of


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
