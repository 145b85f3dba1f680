"""Ctrl-C, SIGTERM and SIGHUP: collected while a run trains, so that it can stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASK_TO_END = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Beside SIGINT; SIGHUP, sent where a terminal closes, does not exist on Windows."""

Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """Asked to end by a signal, whose number is `.signal`."""

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signal = number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return type(self), (self.signal, str(self))


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Signals that ask to end go into the list; a second one raises at once.

    Only the main thread is sent signals; elsewhere the list stays empty.
    """
    asked: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # as signal.signal has it
        if asked:
            raise Interrupted(number)
        asked.append(number)

    with _handle(collect, signal.SIGINT, *ASK_TO_END):
        yield asked


@contextmanager
def raise_when_asked_to_end() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Interrupted, as Ctrl-C raises KeyboardInterrupt."""

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Interrupted(number)

    with _handle(end, *ASK_TO_END):
        yield


@contextmanager
def _handle(handler: Handler, *numbers: int) -> Iterator[None]:
    """Handle these signals, but for those that whoever started the process wants ignored, as nohup does."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
