"""Which values are gone through together: parts of an array with one pattern, and blocks of them that stay in cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..._typing import Array
from .. import views
from ..views import View

BLOCK = 1 << 16  # values: with their intermediate results they fit in the second-level cache
ROWS = 256  # of a block at most
TOGETHER = 32  # rows summed in the dtype of x: after an outlier of 1e6 more of them would cost digits
SHORT = 16  # runs of a channel that are not worth a loop of their own
WIDE = 512  # values of a row, if one is shorter and there are rows enough


class Part(NamedTuple):
    """Some samples of a flat array, seen as (n, positions, run): a position belongs to one channel.

    Runs that are short become positions of their own, and so do several samples side by side.
    """

    start: int
    stop: int
    shape: tuple[int, int, int]
    channels: int
    length: int
    """Positions side by side that belong to one channel."""

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        n, positions, run = self.shape
        rows = max(1, min(ROWS if run == 1 else n, BLOCK // (positions * run)))
        columns = positions if self.length * self.channels != positions or run == 1 else max(1, BLOCK // run)
        for i in range(0, n, rows):
            for j in range(0, positions, columns):
                for k in range(0, run, BLOCK):
                    yield slice(i, i + rows), slice(j, j + columns), slice(k, k + BLOCK)

    def first(self, x: Array) -> Array:
        """The first value of each channel."""
        sample = self.channels * self.length * self.shape[2]
        values: Array = x[self.start : self.start + sample].reshape(self.channels, -1)[:, 0]
        return values

    def spread(self, v: Array) -> Array:
        """Values of the channels for each position, shaped to broadcast."""
        repeated = np.repeat(v, self.length) if self.length > 1 else v
        tiles = self.shape[1] // repeated.size
        return (np.tile(repeated, tiles) if tiles > 1 else repeated)[:, None]

    def total(self, d: Array) -> Array:
        """The sum of a block for each of its channels, in float64."""
        if self.shape[2] > 1:
            return np.add.reduce(np.add.reduce(d, axis=2), axis=0, dtype=np.float64)
        rows, whole = d[:, :, 0], len(d) - len(d) % TOGETHER
        sums = np.add.reduce(rows[:whole].reshape(-1, TOGETHER, rows.shape[1]), axis=1)
        total = np.add.reduce(sums, axis=0, dtype=np.float64) + np.add.reduce(rows[whole:], axis=0)
        return np.add.reduce(total.reshape(-1, self.channels, self.length), axis=(0, 2))


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...], axis: int, order: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[View, list[Part]]:
    view = View(shape, axis, order, dtype)
    samples, channels, length = view.seen
    size = samples * channels * length
    if length >= SHORT:
        return view, [Part(0, size, view.seen, channels, 1)]
    pattern = channels * length
    together = max(1, min(WIDE // pattern, samples // ROWS))
    rows = samples // together
    whole = rows * together * pattern
    parts = [
        Part(0, whole, (rows, together * pattern, 1), channels, length),
        Part(whole, size, (samples - rows * together, pattern, 1), channels, length),
    ]
    return view, [part for part in parts if part.stop > part.start]


def of(x: Array, axis: int) -> tuple[View, list[Part]]:
    return _plan(x.shape, axis, views.order(x), x.dtype)


class Block(NamedTuple):
    """Some positions of a part: what they hold of the arrays, and the vectors spread over them."""

    arrays: list[Array]
    vectors: list[Array]
    channels: slice
    """The channels that the positions belong to."""


def each(part: Part, arrays: list[Array], vectors: list[Array]) -> Iterator[Block]:
    seen = [a[part.start : part.stop].reshape(part.shape) for a in arrays]
    spread = [part.spread(v) for v in vectors]
    for n, c, k in part.blocks():
        channels = c if part.shape[2] > 1 else slice(None)
        yield Block([a[n, c, k] for a in seen], [v[c] for v in spread], channels)


class Scratch:
    """Memory for an intermediate result of a block, used again for the next."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.memory = np.empty(0, dtype)

    def like(self, block: Array) -> Array:
        if self.memory.size < block.size:
            self.memory = np.empty(block.size, self.memory.dtype)
        return self.memory[: block.size].reshape(block.shape)
