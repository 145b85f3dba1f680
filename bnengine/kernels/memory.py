"""Memory for results that is used again.

The C library gives large blocks back to the system when they are freed, so a loop that makes the
same results each step pays a page fault for every 4 KiB, each step. Blocks from here stay.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64  # bytes: a cache line, and what streaming stores need
SMALLEST = 1 << 16  # bytes: smaller blocks the C library keeps itself

PAST_CACHE = 6 << 20
"""Bytes read and written from which results stream past the caches: an ordinary store first reads what it overwrites.

Both ways in turn in one process, the fastest of 40, on a core with 1 MiB of second-level cache: streaming made forward
passes 1.0 times as fast at 3 MiB, 1.2 at 6, 1.4 at 8 and 1.2 at 32, backward passes 0.9 at 9, 1.1 at 24 and 2.3 at 96.
"""


def _largest() -> int:
    """Bytes that may be kept in all: an eighth of the memory that there is, or that a container may use."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on this system
        return 1 << 28
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found // 8


LARGEST = _largest()


def past_cache(traffic: int) -> bool:
    """Whether a pass that moves so many bytes should leave the caches to what it reads."""
    return traffic > PAST_CACHE


def _references_when_idle() -> int:
    """What getrefcount says of a block that only its list holds: it differs between versions of Python."""
    blocks = [np.empty(1)]
    return sys.getrefcount(blocks[0])


IDLE = _references_when_idle()


class _Blocks:
    """Blocks of one size, and where in each the aligned part begins."""

    def __init__(self) -> None:
        self.blocks: list[npt.NDArray[np.uint8]] = []
        self.offsets: list[int] = []

    def idle(self) -> int | None:
        """The number of a block that nobody uses."""
        for i in range(len(self.blocks)):
            if sys.getrefcount(self.blocks[i]) == IDLE:
                return i
        return None

    def add(self, size: int) -> None:
        block = np.empty(size + ALIGNMENT, np.uint8)
        self.blocks.append(block)
        self.offsets.append(-block.__array_interface__["data"][0] % ALIGNMENT)

    def drop(self, i: int) -> None:
        del self.blocks[i], self.offsets[i]


class Memory:
    """Blocks by size. A block is free when only its list refers to it: any view of a result keeps it busy."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew: a forked child may find the lock taken by a thread that it does not have."""
        self._lock = threading.Lock()
        self._sizes: dict[int, _Blocks] = {}
        self._held = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> npt.NDArray[np.floating]:
        """As numpy.empty; aligned to 64 bytes from 64 KiB on."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        with self._lock:
            blocks = self._sizes.get(size) or self._sizes.setdefault(size, _Blocks())
            i = blocks.idle()
            if i is None:
                self._make_room(size)
                blocks.add(size)
                i = -1
            result: npt.NDArray[np.floating] = np.ndarray(shape, dtype, blocks.blocks[i], blocks.offsets[i])
            if i == -1 and self._held + size > LARGEST:
                blocks.drop(i)  # the result keeps it alive
            elif i == -1:
                self._held += size
            return result

    def empty_like(self, x: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The same for the shape and dtype of x, which is C-contiguous."""
        return np.empty_like(x) if x.nbytes < SMALLEST else self.empty(x.shape, x.dtype)

    def _make_room(self, size: int) -> None:
        """Drop idle blocks if with another of this size there would be too much."""
        if self._held + size <= LARGEST:
            return
        for held, blocks in self._sizes.items():
            while (i := blocks.idle()) is not None:
                blocks.drop(i)
                self._held -= held


_memory = Memory()
empty, empty_like = _memory.empty, _memory.empty_like

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.forget)
