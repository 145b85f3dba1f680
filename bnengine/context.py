"""What a pass through a network knows beside its input; handed down to every layer as one argument."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device, is_array_api_obj

from ._typing import AllReduce, Array
from .recording import made


@dataclass
class Draws:
    """Random numbers of one training step: a function of seed, step and how many were drawn in the step before.

    The same numbers come out on every array library and device, and again when training goes on from a checkpoint:
    nothing is kept but the seed and the step. Computed on the device, also under `jax.jit`.

    Parameters
    ----------
    seed : int
    step : int or array
        Number of the step; a 0-dimensional array while it is traced.
    rows : array, optional
        Integers: the place of each row in the whole batch, where this is a part of it (one of several ranks).

    Notes
    -----
    A counter-based generator: the bits of element i are a hash of i and the key. The hash is the finalizer of
    MurmurHash3 (A. Appleby, 2011) in 32-bit integers that wrap around, which every array library has.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> draws = bn.Draws(seed=0, step=7)
    >>> u = draws.bits(np.zeros((1000, 10))) * 2.0**-24  # uniform in [0, 1)
    >>> abs(u.mean() - 0.5) < 0.01
    np.True_
    """

    seed: int
    step: Any
    rows: Array | None = None
    drawn: int = 0
    """How often `bits` was called."""

    def bits(self, x: Array, /) -> Array:
        """24 random bits for each element of x, as int32: other ones at every call, in the order of calls."""
        number, self.drawn = self.drawn, self.drawn + 1
        return made(_bits, x, self.seed, self.step, number, self.rows)


class Context(NamedTuple):
    """What a pass knows: whether it trains, how ranks sum, the random numbers of its step, and the weights of its rows.

    Examples
    --------
    >>> import numpy as np, bnengine as bn
    >>> net = bn.Sequential((bn.Linear(4, 8), bn.Dropout(0.5)))
    >>> params, state = net.init(0, backend="numpy")
    >>> x = np.ones((2, 4), np.float32)
    >>> context = bn.Context(training=True, draws=bn.Draws(seed=0, step=1))
    >>> y, state, residuals = net.forward(params, state, x, context)
    >>> bool((y == 0).any())
    True
    """

    training: bool
    """Batch statistics and dropout, or running statistics and none."""
    all_reduce: AllReduce | None = None
    """Sums an array over the ranks that share batch statistics; None: this process has the whole batch."""
    draws: Draws | None = None
    """Random numbers of this step; needed in training by a layer that draws."""
    weights: Array | None = None
    """Of the rows, shape (N,), for statistics in which a row counts as often as its weight says; None: 1 each."""


def _bits(x: Array, seed: int, step: Any, drawn: int, rows: Array | None) -> Array:
    """24 bits for each element of x."""
    xp, place = array_namespace(x), device(x)
    key = xp.zeros((1,), dtype=xp.int32, device=place)
    for part in (seed, seed >> 32, step, drawn):
        key = _hash(key ^ _as_int32(part, key))
    width = math.prod(x.shape[1:])
    rows = xp.arange(x.shape[0], dtype=xp.int32, device=place) if rows is None else rows
    number = xp.reshape(xp.astype(rows, xp.int32), (-1, 1)) * width
    number = number + xp.reshape(xp.arange(width, dtype=xp.int32, device=place), (1, -1))
    # ~key and not key ^ 1, which would be the key of element 1: that one would be drawn the same at every step.
    return xp.reshape(_shifted(_hash(_hash(number ^ key) ^ _hash(~key)), 8), x.shape)


def _hash(h: Array) -> Array:
    """MurmurHash3's 32-bit finalizer: every bit of the input changes each bit of the output with probability 1/2."""
    h = (h ^ _shifted(h, 16)) * -2048144789  # 0x85ebca6b
    h = (h ^ _shifted(h, 13)) * -1028477387  # 0xc2b2ae35
    return h ^ _shifted(h, 16)


def _shifted(h: Array, by: int) -> Array:
    """h >> by with zeros coming in: int32 is signed, and unsigned integers are not everywhere."""
    return (h >> by) & ((1 << (32 - by)) - 1)


def _as_int32(value: Any, like: Array) -> Array:
    """The lowest 32 bits of an integer, signed; of a traced one its value."""
    xp = array_namespace(like)
    if not isinstance(value, int) and is_array_api_obj(value):  # torch.compile traces ints, and asks them nothing
        return xp.astype(xp.reshape(value, (1,)), xp.int32)
    return xp.full((1,), (int(value) + 2**31) % 2**32 - 2**31, dtype=xp.int32, device=device(like))
