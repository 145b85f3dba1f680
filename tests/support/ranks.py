"""Threads of one process that stand in for ranks."""

from __future__ import annotations

import copy
import threading

from bnengine.parallel import Alone, Communicator


class Threads(Communicator):
    """One of several threads; they meet at a barrier around a common slate."""

    def __init__(self, rank, slate, barrier):
        super().__init__(rank, len(slate))
        self.slate, self.barrier = slate, barrier

    def _sum(self, a):
        parts = self._gather(a)
        return sum(parts[1:], copy.copy(parts[0]))

    def _gather(self, raw):
        self.slate[self.rank] = raw
        self.barrier.wait(30)
        everything = list(self.slate)
        self.barrier.wait(30)
        return everything

    def _split(self, size):
        group = self.rank // size * size
        made = [slates(size) if rank % size == 0 else None for rank in range(self.size)]
        slate, barrier = self._gather(made)[group][group]
        return Threads(self.rank - group, slate, barrier) if size > 1 else Alone()


def slates(size):
    return [None] * size, threading.Barrier(size)


def together(size, function):
    """function(communicator) of so many ranks at once, by rank; the first error is raised."""
    slate, barrier = slates(size)
    results, errors = [None] * size, []

    def run(rank):
        try:
            results[rank] = function(Threads(rank, slate, barrier) if size > 1 else Alone())
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # noqa: BLE001
            errors.append((rank, error))
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise min(errors, key=lambda pair: pair[0])[1]
    return results
