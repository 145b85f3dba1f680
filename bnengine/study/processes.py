"""Trials over processes, each row kept as it comes, so that a killed study goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import files
from ..arguments import ConfigError
from ..provenance import commit
from .experiments import Trial
from .records import Curve, Row
from .trial import Problem, train

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Read by libraries as they are imported: the processes share the processors, not the matrix products."""

Result = tuple[Row, Curve]
Progress = Callable[[Iterable[Result], int], Iterable[Result]]
"""Wraps results as they come, told how many there will be."""


class RowsFile:
    """`rows.jsonl`: a line that says what the rows are of, then a line for each finished trial and each session.

    `about` must agree with the file's; `made` says where and with what, and is that of the first session.
    """

    def __init__(self, path: Path, about: dict[str, Any], made: dict[str, Any]) -> None:
        self.path = path
        self.made = made
        self.done: dict[Trial, Result] = {}
        self.sessions: list[dict[str, Any]] = []
        whole, _, torn = (path.read_text(encoding="utf-8") if path.exists() else "").rpartition("\n")
        if torn:  # the process ended in the middle of a line
            files.write(path, f"{whole}\n" if whole else "")
        if whole:
            self._read(whole.split("\n"), about)
        else:
            self._append({**about, "made": made})

    def _read(self, lines: list[str], about: dict[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                self._take(json.loads(line), about if number == 1 else None)
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ConfigError(
                    f"out: {self.path}, line {number}: expected a row of a study; without the line --resume goes on"
                ) from error

    def _take(self, entry: dict[str, Any], about: dict[str, Any] | None) -> None:
        if about is not None:
            self.made = entry["made"]
            for name, value in about.items():
                if entry[name] != value:
                    kept = f"{self.path} holds rows of {name} {entry[name]}"
                    raise ConfigError(f"out: {kept}, expected {value}; choose another directory")
        elif "session" in entry:
            self.sessions.append(entry["session"])
        else:
            self.done[_trial_of(entry["row"])] = entry["row"], entry["curve"]

    def add(self, result: Result) -> None:
        """Keep a result."""
        row, curve = result
        self._append({"row": row, "curve": curve})
        self.done[_trial_of(row)] = result

    def end_session(self, session: dict[str, Any]) -> None:
        """Keep how many trials were made at one go, by how many processes, in how many seconds."""
        self._append({"session": session})
        self.sessions.append(session)

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry, allow_nan=False)}\n")
            file.flush()
            os.fsync(file.fileno())  # on the disk when this returns


def _trial_of(row: Row) -> Trial:
    fields: Any = row
    return Trial(**{field.name: fields[field.name] for field in dataclasses.fields(Trial) if field.name in fields})


def finish(trials: list[Trial], file: RowsFile, *, source: str, target: float, jobs: int, progress: Progress) -> None:
    """Make the trials that the file does not hold yet, and add each as it is done."""
    missing = [trial for trial in trials if trial not in file.done]
    if not missing:
        return
    began, before = time.perf_counter(), len(file.done)
    try:
        with _one_thread_each():
            for result in progress(_results(missing, source, target, min(jobs, len(missing))), len(missing)):
                file.add(result)
    except BrokenProcessPool as error:
        words = "a process was killed, perhaps for want of memory; --resume goes on, fewer --jobs take less"
        raise ChildProcessError(words) from error
    finally:
        seconds = round(time.perf_counter() - began, 1)
        file.end_session({"runs": len(file.done) - before, "jobs": jobs, "seconds": seconds, "commit": commit()})


def _results(trials: list[Trial], source: str, target: float, jobs: int) -> Iterator[Result]:
    # Spawned, not forked: the threads of NumPy and Numba do not survive a fork.
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(source, target)) as pool:
        try:
            for future in as_completed([pool.submit(_train, trial) for trial in trials]):
                yield future.result()
        except BaseException:  # Ctrl-C too: nobody waits for the trials that have begun
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The environment that child processes inherit."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ---- in a child process

_given: dict[str, Any] = {}


def _begin(source: str, target: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback; the parent tells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _given.update(problem=Problem.of(source), target=target)


def _end_with_parent() -> None:
    """A child waits for work for ever where its parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(trial: Trial) -> Result:
    return train(trial, **_given)
