"""Memory for results that is used again.

The C library gives large blocks back to the system when they are freed, so a loop that makes the
same results each step pays a page fault for every 4 KiB, each step. Blocks from here stay.
"""

from __future__ import annotations

import math
import os
import sys
import threading

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64  # bytes: a cache line, and what streaming stores need
SMALLEST = 1 << 16  # bytes: smaller blocks the C library keeps itself
LARGEST = 1 << 28  # bytes that may be kept in all

PAST_CACHE = 24 << 20  # bytes read and written from which results stream past the caches


def past_cache(traffic: int) -> bool:
    """Whether a pass that moves so many bytes should leave the caches to what it reads."""
    return traffic > PAST_CACHE


def _references_when_idle() -> int:
    """What getrefcount says of a block that only its list holds: it differs between versions of Python."""
    count = 0
    for block in [np.empty(1)]:
        count = sys.getrefcount(block)
    return count


IDLE = _references_when_idle()


class Memory:
    """Blocks by size. A block is free when only its list refers to it: any view of a result keeps it busy."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew: a forked child may find the lock taken by a thread that it does not have."""
        self._lock = threading.Lock()
        self._blocks: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self._held = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.floating]) -> npt.NDArray[np.floating]:
        """As numpy.empty; aligned to 64 bytes from 64 KiB on."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        with self._lock:
            block = self._idle(size)
            if block is None:
                block = np.empty(size + ALIGNMENT, np.uint8)
                self._keep(size, block)
            offset = -block.__array_interface__["data"][0] % ALIGNMENT
            return np.ndarray(shape, dtype, buffer=block, offset=offset)

    def _idle(self, size: int) -> npt.NDArray[np.uint8] | None:
        for block in self._blocks.get(size, ()):
            if sys.getrefcount(block) == IDLE:
                return block
        return None

    def _keep(self, size: int, block: npt.NDArray[np.uint8]) -> None:
        if self._held + size > LARGEST:
            self._drop_idle()
        if self._held + size <= LARGEST:
            self._blocks.setdefault(size, []).append(block)
            self._held += size

    def _drop_idle(self) -> None:
        for size, blocks in list(self._blocks.items()):
            busy = []
            for block in blocks:
                if sys.getrefcount(block) > IDLE:
                    busy.append(block)  # a comprehension would hold another reference
            self._held -= size * (len(blocks) - len(busy))
            self._blocks[size] = busy
            if not busy:
                del self._blocks[size]


_memory = Memory()
empty = _memory.empty

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory.forget)
