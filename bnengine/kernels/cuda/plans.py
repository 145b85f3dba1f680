"""The rule that chooses among the kernels of batch normalisation: by shape, dtype, addresses and chip, nothing else.

1. float64, chips before sm_70, and arrays that are empty or have 2^30 vectors or more in a channel take the
   portable kernels; so does a dy of another dtype than x.
2. Loads are as wide as the rows (channels beside each other) or planes (values beside each other) and all addresses
   allow: 16 bytes, 8 bytes or one value.
3. A training pass whose tile fits on chip reads it once: in one block, or from sm_90 on in a cluster of up to 8
   whose blocks see each other's shared memory. Half of a multiprocessor's shared memory is the most for a block,
   so that one block computes while another loads. The most blocks win, up to one for each multiprocessor; then
   tiles that fill cache lines; then the smallest clusters. A block has 512 threads, or fewer where each would have
   less than 64 bytes of the tile, down to 128; half of that where a thread has several channels of a half type.
4. Else statistics or sums are taken by blocks that share a tile, as many as fill whole waves of what runs at once,
   and a second pass over x follows, from its end.

The shape alone decides for a chip, so the same input gives the same bits there.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

OLDEST = 70
CLUSTERS = (1, 2, 4, 8)
HELD_THREADS, SPLIT_THREADS = (512, 256, 128), 256
FOR_EACH = 64
"""Bytes that each thread of a block which holds a tile has of it, if the tile has as many for the fewest."""
SIDE_BY_SIDE = 64
"""Channels of the widest tile of rows: 128 bytes of float16, and two such lines of float32."""
LINE, SECTOR = 128, 32
"""Bytes of a cache line, and those that memory is read in: a narrower tile would read its neighbours' too."""
BLOCKS = 3
"""Blocks that run at once on a multiprocessor where a tile is split; two where a thread has many channels."""
BATCH, MOST = 8, 64
"""Vectors that a thread of a split tile has at least, and at most: float32 sums stay exact to 1e-6."""


class Chip(NamedTuple):
    """What the rule knows of a GPU."""

    architecture: int
    multiprocessors: int
    shared: int
    """Bytes of shared memory that a block may ask for."""

    @property
    def clusters(self) -> tuple[int, ...]:
        return CLUSTERS if self.architecture >= 90 else CLUSTERS[:1]

    @property
    def half(self) -> int:
        """Bytes for each of two blocks on a multiprocessor, each of which costs a KiB more."""
        return (self.shared - 1024) // 2


class Wide(NamedTuple):
    """An array as vectors: a row of channels, or with `rows` false a plane of values."""

    rows: bool
    channels: int
    vector: int
    """Values of a load."""
    vectors: int
    """Of a row, or of a plane."""
    items: int
    """Vectors of a channel, or of a lane."""
    itemsize: int

    def tiles(self, lanes: int) -> int:
        return -(-self.vectors // lanes) if self.rows else self.channels

    @property
    def many(self) -> bool:
        """As the function of that name says."""
        return many(self.rows, self.itemsize, self.vector)

    @property
    def lanes(self) -> tuple[int, ...]:
        """Vectors side by side in a tile, the widest first."""
        if not self.rows:
            return (1,)
        wide = [n for n in (32, 16, 8, 4, 2, 1) if n * self.vector <= SIDE_BY_SIDE and n < 2 * self.vectors]
        return tuple(n for n in wide if n * self.vector * self.itemsize >= SECTOR) or (wide[0],)


class Plan(NamedTuple):
    """A launch: what is compiled in (rows, vector, threads, cluster), and what is told."""

    kernel: str
    """held, or split."""
    wide: Wide
    threads: int
    lanes: int
    cluster: int
    parts: int
    """Blocks that share a tile."""
    shared: int
    """Bytes of dynamic shared memory."""

    @property
    def blocks(self) -> int:
        return self.wide.tiles(self.lanes) * self.parts


def wide(outer: int, channels: int, inner: int, itemsize: int, addresses: int = 0) -> Wide | None:
    """The array of memory (outer, channels, inner) as vectors; None where it is empty or too large."""
    rows = inner == 1
    length = channels if rows else inner
    vector = next(n for n in widths(itemsize) if length % n == 0 and addresses % (n * itemsize) == 0)
    items = outer if rows else outer * (inner // vector)
    if not 0 < items < 2**30 or not 0 < channels < 2**30:
        return None
    return Wide(rows, channels, vector, length // vector, items, itemsize)


def many(rows: bool, itemsize: int, vector: int) -> bool:
    """Whether a thread has several channels of a half type: it then takes twice the registers."""
    return rows and itemsize == 2 and vector > 1


def widths(itemsize: int) -> tuple[int, ...]:
    """Values of a load, the most first."""
    return 16 // itemsize, 8 // itemsize, 1


@functools.lru_cache(maxsize=4096)
def held(w: Wide, chip: Chip, arrays: int) -> Plan | None:
    """The training pass that keeps so many arrays on chip; None where no tile fits."""
    found = [_held(w, arrays, lanes, cluster) for lanes in w.lanes for cluster in chip.clusters]
    fitting = [plan for plan in found if plan.shared <= chip.half and (plan.cluster == 1 or _busy(plan))]

    def worth(plan: Plan) -> tuple[int, int, int]:
        width = plan.lanes * w.vector * w.itemsize
        return min(plan.blocks, chip.multiprocessors), min(width, LINE), -plan.cluster

    return max(fitting, key=worth, default=None)


def _held(w: Wide, arrays: int, lanes: int, cluster: int) -> Plan:
    threads = _threads(w, -(-w.items * lanes * w.vector * w.itemsize // cluster))
    each = -(-w.items // (cluster * threads // lanes))
    values = arrays * each * threads * w.vector * w.itemsize
    shared = _scratch(w, lanes, threads, 4 - arrays) + values
    return Plan("held", w, threads, lanes, cluster, cluster, shared)


def _threads(w: Wide, size: int) -> int:
    """Of a block that holds so many bytes."""
    possible = HELD_THREADS[1:] if w.many else HELD_THREADS
    return next((n for n in possible if n * FOR_EACH <= size), possible[-1])


def _busy(plan: Plan) -> bool:
    """Whether a tile has values for more than half of the most threads that its blocks may have."""
    return 2 * plan.wide.items > plan.parts * HELD_THREADS[0] // plan.lanes


@functools.lru_cache(maxsize=4096)
def split(w: Wide, chip: Chip) -> Plan:
    """Tiles that several blocks share: for sums over them, and for a pass with known statistics."""
    lanes = w.lanes[0]
    for_each = SPLIT_THREADS // lanes
    room, tiles = (BLOCKS - w.many) * chip.multiprocessors, w.tiles(lanes)
    waves = -(-tiles * -(-w.items // (for_each * MOST)) // room)  # whole ones: a part of one takes as long
    parts = max(1, min(waves * room // tiles, w.items // (for_each * BATCH)))
    return Plan("split", w, SPLIT_THREADS, lanes, 1, parts, _scratch(w, lanes, SPLIT_THREADS, 8))


def _scratch(w: Wide, lanes: int, threads: int, sums: int) -> int:
    """Bytes for so many sums over a tile, each of which has its own."""
    kept = w.vector if w.rows else 1
    return -(-4 * (threads // 32 + 2) * lanes * kept * sums // 16) * 16


_LAYOUT = np.dtype(
    [(name, np.int32) for name in ("channels", "vectors", "items", "lanes", "parts", "shift")] + [("factor", np.int64)]
)
_FLAGS = ("has_gamma", "has_beta", "relu", "given", "has_rest")
_OPTIONS = np.dtype([("inv_count", "f4"), ("eps", "f4"), *((flag, "i4") for flag in _FLAGS)])


@functools.lru_cache(maxsize=4096)
def layout(plan: Plan) -> Any:
    """What the kernel is told of it: the `Layout` of tiles.cuh. A scalar: CuPy takes 6 us to pass an array."""
    w = plan.wide
    shift = 31 + (w.vectors - 1).bit_length()
    factor = 2**shift // w.vectors + 1  # exact for what is below 2^31 (Granlund and Montgomery 1994)
    return np.array((w.channels, w.vectors, w.items, plan.lanes, plan.parts, shift, factor), _LAYOUT)[()]


@functools.lru_cache(maxsize=4096)
def options(count: int, eps: float, *flags: bool) -> Any:
    """The `Options` of tiles.cuh; the flags are those of `_FLAGS`."""
    return np.array((1 / max(count, 1), eps, *flags), _OPTIONS)[()]
