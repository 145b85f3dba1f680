"""How the CUDA kernels see an array: its memory as (outer, channels, inner), and the threads that share it."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from ..._typing import Native

THREADS = 2**18
"""Threads to aim for: what the largest GPUs hold at once."""
FEWEST, MOST = 32, 256
"""Values for each thread: enough to pay for its set-up, and few enough that float32 sums stay exact to 1e-6."""


IN_ORDER = tuple(range(64))
"""Axes in the order of memory where that is C's, of as many as any array has."""


class Dense(NamedTuple):
    """An array as its memory: (outer, channels, inner), and the threads that share it."""

    flat: Native
    outer: int
    channels: int
    inner: int
    rows: int
    """Threads that share a channel's outer indices."""
    columns: int
    """Threads that share a channel's inner indices."""
    order: tuple[int, ...]
    """The axes in the order of memory."""
    shape: tuple[int, ...]

    @property
    def walk(self) -> tuple[int, int, int, int, int]:
        """What a kernel needs to find its values: the sizes, and how many threads share them."""
        return self.outer, self.channels, self.inner, self.rows, self.columns

    @property
    def values(self) -> int:
        """Of a channel."""
        return self.outer * self.inner

    @property
    def threads(self) -> int:
        """Of a launch."""
        return self.rows * self.channels * self.columns

    def restored(self, flat: Native) -> Native:
        """Values in this order of memory as an array in the order of its axes."""
        there = flat.reshape(self.shape)
        if self.order == IN_ORDER[: len(self.order)]:
            return there
        return there.transpose(tuple(self.order.index(i) for i in range(len(self.order))))


def laid_out(x: Native, axis: int) -> Dense:
    """x without a copy where its values lie without gaps in any order of axes, else copied once."""
    outer, channels, inner, rows, columns, order, shape = _described(x.shape, x.strides, axis)
    return Dense(memory(x, order), outer, channels, inner, rows, columns, order, shape)


@functools.lru_cache(maxsize=4096)
def _described(shape: tuple[int, ...], strides: tuple[int, ...], axis: int) -> tuple[Any, ...]:
    """Of a `Dense` all but the values: the host's time for a call is that of looking it up."""
    order = tuple(sorted(range(len(shape)), key=lambda i: -abs(strides[i])))
    shape, place = tuple(shape[i] for i in order), order.index(axis)
    outer, channels, inner = math.prod(shape[:place]), shape[place], math.prod(shape[place + 1 :])
    return outer, channels, inner, *split(outer, channels, inner), order, shape


def memory(x: Native, order: tuple[int, ...]) -> Native:
    """The values of x, axes in this order, one beside the other: a copy only where they lie otherwise."""
    if order != IN_ORDER[: len(order)]:
        x = x.transpose(order)
    return (x if x.flags.c_contiguous else x.copy(order="C")).reshape(-1)


def split(outer: int, channels: int, inner: int) -> tuple[int, int]:
    """Threads for each channel, over outer and inner indices: by shape alone, so that sums round alike everywhere."""
    values = outer * inner
    wanted = max(-(-THREADS // max(channels, 1)), -(-values // MOST))
    wanted = max(1, min(wanted, -(-values // FEWEST)))
    columns = max(1, -(-inner // max(1, -(-inner // wanted))))
    rows = max(1, min(outer, -(-wanted // columns)))
    if rows * channels * columns >= 2**31:
        raise ValueError(
            f"x: expected fewer than 2^31 channels and 2^39 values on a GPU, got {channels} times {values}"
        )
    return rows, columns
