"""Threads for large arrays: kernels that release the GIL, over blocks fixed by the shape.

Which thread computes a block has no influence on its bits. Not Numba's own threads: its OpenMP layer
ends the process after a fork, its work queue when two Python threads call at once, and both wait
at a barrier for BLAS threads that still spin after a matrix product. Here the caller works through
the blocks itself and waits only for blocks that another thread has begun.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

Task = Callable[[int], None]

SERIAL = 1 << 19
"""Values below which handing work over costs more than it gains.

On two cores with nothing else to do, backward passes over 800,000 values took 1 / 1.2 of the time of one thread, and
forward passes the same: this is about where two begin to help.
"""

SPLIT = 1 << 18  # values of a block at least
MOST = 64  # blocks


def parts(size: int) -> int:
    """Into how many blocks to divide `size` values: by the size alone, so that the bits do not depend on threads."""
    return 1 if size < SERIAL else min(MOST, size // SPLIT)


def ranges(n: int, count: int) -> list[tuple[int, int]]:
    """0 to n in `count` ranges of almost the same length."""
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def available() -> int:
    """Threads to use: the processors of this process, or OMP_NUM_THREADS where that says less."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(processors, int(limit)) if limit.isdecimal() and int(limit) > 0 else processors


class _Job:
    """One call of `run`: blocks still to do, dealt out one at a time."""

    def __init__(self, task: Task, order: Iterator[int]) -> None:
        self.task = task
        self.order = order
        self.error: BaseException | None = None

    def work(self) -> None:
        try:
            for i in self.order:
                self.task(i)
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            self.error = error


class Workers:
    """`threads` threads, the caller among them; the others start with the first call and never end."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queues: list[SimpleQueue[tuple[_Job, threading.Lock]]] = []
        self._starting = threading.Lock()

    def run(self, task: Task, count: int, *, backwards: bool = False) -> None:
        """task(i) for every i below `count`."""
        order = iter(range(count - 1, -1, -1) if backwards else range(count))
        job, working = _Job(task, order), []
        if count > 1 and self.threads > 1:
            self._start()
            for queue in self._queues[: count - 1]:
                working.append(threading.Lock())
                queue.put((job, working[-1]))
        job.work()
        # A thread holds its lock while it works. One that comes later finds no block left.
        for lock in working:
            with lock:
                pass
        if job.error is not None:
            raise job.error

    def _start(self) -> None:
        with self._starting:
            while len(self._queues) < self.threads - 1:
                queue: SimpleQueue[tuple[_Job, threading.Lock]] = SimpleQueue()
                threading.Thread(target=_serve, args=(queue,), daemon=True, name="bnengine").start()
                self._queues.append(queue)


def _serve(queue: SimpleQueue[tuple[_Job, threading.Lock]]) -> None:
    while True:
        job, lock = queue.get()
        with lock:
            job.work()
        del job, lock  # or its arrays would live until the next call


_workers = Workers(available())


def run(task: Task, count: int, *, backwards: bool = False) -> None:
    """task(i) for every i below `count`, on all threads; backwards where a pass before has left the end in cache."""
    _workers.run(task, count, backwards=backwards)


def threads() -> int:
    """Threads in use."""
    return _workers.threads


def set_threads(threads: int) -> None:
    """Use this many threads from now on."""
    global _workers  # noqa: PLW0603  # one set of threads for the process
    _workers = Workers(threads)


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=lambda: set_threads(_workers.threads))
