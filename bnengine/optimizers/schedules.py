"""Learning rates that change: functions of the number of updates done so far."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from ..arguments import number, shown

Schedule: TypeAlias = Callable[[Any], Any]
"""From the number of updates done so far (0 at first; an array under `jax.jit`) to a learning rate."""


def step_decay(rate: float, *, at: Sequence[int], factor: float = 0.1) -> Schedule:
    """The rate, times `factor` from each of the updates `at` on.

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.step_decay(1.0, at=[100, 200], factor=0.5)
    >>> schedule(99), schedule(100), schedule(250)
    (1.0, 0.5, 0.25)
    """
    check_rate("rate", rate)
    if type(at) not in (list, tuple) or not all(type(update) is int for update in at):
        raise TypeError(f"at: expected numbers of updates such as [100, 200], got {shown(at)}")
    number("factor", factor, 0)
    return functools.partial(_step_decay, rate, tuple(at), factor)


def cosine(rate: float, *, steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from rate to `final` over `steps` updates, then `final`.

    At update t: final + (rate - final) * (1 + cos(pi * t / steps)) / 2 (Loshchilov and Hutter 2016,
    arXiv:1608.03983, equation 5, without restarts).

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.cosine(1.0, steps=100)
    >>> schedule(0), round(schedule(50), 6), schedule(200)
    (1.0, 0.5, 0.0)
    """
    check_rate("rate", rate)
    number("steps", steps, 1)
    number("final", final, 0)
    return functools.partial(_cosine, rate, steps, final)


def warm_up(schedule: float | Schedule, *, steps: int) -> Schedule:
    """The first `steps` updates rise in a straight line to the schedule, which begins at update 0 all the same.

    Examples
    --------
    >>> import bnengine as bn
    >>> schedule = bn.optimizers.warm_up(1.0, steps=4)
    >>> [schedule(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    check_rate("schedule", schedule)
    number("steps", steps, 1)
    return functools.partial(_warm_up, schedule, steps)


def check_rate(name: str, value: Any) -> None:
    """Refuse what is neither a learning rate nor a schedule."""
    if isinstance(value, type) or not callable(value):
        number(name, value, 0, words="a finite number of at least 0")


# Functions of the module, not closures: a schedule can be pickled.


def _step_decay(rate: float, at: tuple[int, ...], factor: float, step: Any) -> Any:
    if is_array_api_obj(step):  # a number beyond the step's dtype cannot be compared with it, nor is it ever reached
        largest = array_namespace(step).iinfo(step.dtype).max
        at = tuple(update for update in at if update <= largest)
    return rate * factor ** sum((step >= update) * 1 for update in at)


def _cosine(rate: float, steps: int, final: float, step: Any) -> Any:
    xp = namespace(step)
    return _plain(final + (rate - final) * 0.5 * (1 + xp.cos(np.pi * _part(step, steps))), step)


def _warm_up(schedule: float | Schedule, steps: int, step: Any) -> Any:
    return _plain(_part(step + 1, steps) * (schedule(step) if callable(schedule) else schedule), step)


def _part(step: Any, steps: int) -> Any:
    """step / steps, 1 at most."""
    xp = namespace(step)
    part = xp.asarray(step / float(steps))  # steps may be beyond the step's dtype
    return xp.where(part < 1, part, xp.ones_like(part))


def namespace(step: Any) -> Any:
    """The namespace of a traced step; NumPy's of a number."""
    return array_namespace(step) if is_array_api_obj(step) else np


def _plain(rate: Any, step: Any) -> Any:
    return rate if is_array_api_obj(step) else float(rate)
