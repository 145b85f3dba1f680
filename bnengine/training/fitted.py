"""What training gives, and the error that ends it with the last good of that."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import trees
from .._typing import Tree
from ..arguments import instance, number, quantity
from ..backends import as_numpy


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

    @property
    def kept_epoch(self) -> int:
        """The epoch, from 1, whose network this is: the last, after early stopping the best; 0 before the first."""
        kept = self.best if self.best is not None and self.params is self.best.params else self
        return len(kept.history)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in map(as_numpy, trees.leaves(self.params)))
        epochs, kept = len(self.history), self.kept_epoch
        words = [
            quantity(epochs, "epoch"),
            *([f"network of epoch {kept}"] if kept < epochs else []),
            f"{count:,} parameters",
        ]
        row = self.history[kept - 1] if self.history else {}
        words += [f"{name} {value:.4g}" for name, value in row.items() if name.endswith("_loss")]
        return f"Fitted({', '.join(words)})"

    def _repr_html_(self) -> str:
        """The history as a table, for notebooks."""
        names = list(self.history[-1]) if self.history else []
        rows = [names, *([_cell(row.get(name)) for name in names] for row in self.history)]
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        return f"<p>{html.escape(repr(self))}</p><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def copy_of(fitted: Fitted) -> Fitted:
    """A copy that later steps, which write into what they are given, leave alone."""
    params, state, opt_state = map(trees.copied, (fitted.params, fitted.state, fitted.opt_state))
    return dataclasses.replace(fitted, params=params, state=state, opt_state=opt_state)


def _cell(value: Any) -> str:
    """A metric in a table."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value}"


def average_params(params: Sequence[Tree], /, weights: Sequence[float] | None = None) -> Tree:
    """The weighted average of several networks' parameters: model soups, averages of epochs, federated averaging.

    Batch statistics of an averaged network are not the average of theirs: call `recalibrate` afterwards.

    Parameters
    ----------
    params : sequence of dict
        Of one network, each as `Sequential.init` and `fit` give them; at least one.
    weights : sequence of float, optional
        One for each, at least 0 and not all 0; they need not sum to 1. None: 1 each.

    Returns
    -------
    dict
        New arrays of the first one's dtypes, each averaged in the dtype it has.

    Raises
    ------
    TypeError, ValueError
        Where trees or shapes differ, or weights do not fit.

    References
    ----------
    Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization, arXiv:1803.05407.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> first, second = ({"0": {"weight": np.full((1, 1), value)}} for value in (1.0, 5.0))
    >>> bn.average_params([first, second], weights=[3, 1])
    {'0': {'weight': array([[2.]])}}
    """
    instance("params", params, (list, tuple), "a list of trees of parameters")
    if not params:
        raise ValueError("params: expected at least one tree of parameters, got none")
    given = [1.0] * len(params) if weights is None else list(weights)
    if len(given) != len(params):
        raise ValueError(f"weights: expected {len(params)}, one for each tree, got {len(given)}")
    for weight in given:
        number("weights", weight, 0)
    if not sum(given):
        raise ValueError("weights: expected at least one above 0, got zeros")
    shapes = {name: trees.shape_of(leaf) for name, leaf in trees.flatten(params[0]).items()}
    for i, tree in enumerate(params):
        trees.check(f"params[{i}]", tree, shapes)  # type: ignore[arg-type]
    shares = [weight / sum(given) for weight in given]
    columns = zip(*(trees.leaves(tree, params[0]) for tree in params), strict=True)
    averages = [sum(leaf * share for leaf, share in zip(leaves, shares, strict=True)) for leaves in columns]
    return trees.rebuild(params[0], averages)
