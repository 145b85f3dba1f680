"""Streams, events and graphs of the stand-in: launches run at once, so a clock of the host takes the events' place."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

from . import memory

NAME = b"the host harness: no device"


class Graph:
    """Work that was captured."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: Any = None) -> None:
        for work in self.work:
            work()


class Stream:
    """The one stream, entered as CuPy's are."""

    null: Stream

    def __init__(self, *, non_blocking: bool = False) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        assert memory.captured is None, "a stream that is captured cannot be waited for"

    def begin_capture(self) -> None:
        memory.captured = []

    def end_capture(self) -> Graph:
        work, memory.captured = memory.captured, None
        assert work is not None, "nothing was captured"
        return Graph(work)


class Event:
    """A moment on the host's clock."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass


def elapsed(start: Event, stop: Event) -> float:
    """Milliseconds."""
    return 1e3 * (stop.seconds - start.seconds)


Stream.null = Stream()

cuda = SimpleNamespace(
    Device=memory.Device,
    Event=Event,
    Stream=Stream,
    get_current_stream=Stream,
    get_elapsed_time=elapsed,
    runtime=SimpleNamespace(
        driverGetVersion=lambda: 0,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": NAME, "totalGlobalMem": 0},
        runtimeGetVersion=lambda: 0,
    ),
)
