"""The study: what batch normalisation changes, as experiments that anyone can repeat."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import io
import json
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import backends, files, provenance
from .._typing import DTypeName, Library
from ..arguments import ConfigError
from ..options import Options as _Options
from ..options import Range, at_least, option
from ..runs import run_directory
from ..runs.interrupts import Interrupted
from . import page, plots, points, summary
from .experiments import EXPERIMENTS, WIDTH, Trial, trials
from .processes import Progress, Result, RowsFile, finish
from .records import Record, Row
from .trial import Problem

FORMAT = 2
"""Of the record; raised when a reader of older ones would misread it."""

SEEDS, STEPS = 3, 2000
"""The least of a study that is not --quick, and its default."""

QUICK_SEEDS, QUICK_STEPS = 2, 300
"""Of a study that is --quick; one seed would say nothing of how seeds differ."""

ROWS = "rows.jsonl"
FILES = (ROWS, "study.json", "study.csv", "study.html", *(f"{name}.png" for name in EXPERIMENTS))
"""What a study's directory holds; the first tells it from others."""

LABELS = ("experiment", "panel", "value", "norm", "learning_rate", "seed")
"""Of a row, which its curve in the record has too."""


@dataclass(frozen=True)
class Options(_Options):
    """What to study. Field names are the options of `bnengine study` with underscores."""

    COMMAND = "study"

    experiment: str | None = option(
        None, "only these, such as learning_rate,depth; all where not given", metavar="NAME,..."
    )
    data: str = option("digits", "as for train; labels are classes", metavar="DATA")
    quick: bool = option(False, "2 seeds, 300 steps and half of the values: shows large differences only")
    seeds: int | None = option(
        None,
        "trials of each setting (default and least: 3; with --quick 2); from 5 on every comparison gets a verdict",
    )
    steps: int | None = option(None, "steps of a trial (default and least: 2000; with --quick 1)")
    target: float = option(
        0.8,
        "test accuracy to count steps to",
        within=Range("a test accuracy between 0 and 1", math.ulp(0.0), 1),
    )
    backend: Library = option("numpy", "array library of the networks")
    device: str | None = option(None, "device in the library's words, such as cuda:1; its default where not given")
    dtype: DTypeName | None = option(None, "of every run; float32, and float64 for bias, where not given")
    jobs: int | None = option(None, "processes; one for each processor where not given", within=at_least(1), kept=False)
    out: str | None = option(
        None, "directory of the study; a new one under runs/ where not given", metavar="DIR", kept=False
    )
    resume: bool = option(False, "go on with the study in --out, or start it there", kept=False)
    overwrite: bool = option(False, "start anew in an existing --out", kept=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names() or ("",):
            if name not in EXPERIMENTS:
                raise ConfigError(f"experiment: expected some of {', '.join(EXPERIMENTS)}, got {name!r}")
        for name, least, quick in (("seeds", SEEDS, QUICK_SEEDS), ("steps", STEPS, 1)):
            value = getattr(self, name)
            if value is not None and value < (quick if self.quick else least):
                hint = "" if self.quick else "; --quick takes less"
                raise ConfigError(f"{name}: expected at least {quick if self.quick else least}, got {value}{hint}")
        if self.resume and self.overwrite:
            raise ConfigError("resume: excludes --overwrite")
        if self.resume and self.out is None:
            raise ConfigError("resume: name the study with --out")

    def names(self) -> tuple[str, ...]:
        """The experiments, in the order of the table."""
        if self.experiment is None:
            return tuple(EXPERIMENTS)
        asked = [name.strip() for name in self.experiment.split(",") if name.strip()]
        return tuple(sorted(dict.fromkeys(asked), key=[*EXPERIMENTS, *asked].index))

    def size(self) -> tuple[int, int]:
        """(seeds, steps of a trial)."""
        seeds, steps = (QUICK_SEEDS, QUICK_STEPS) if self.quick else (SEEDS, STEPS)
        return self.seeds or seeds, self.steps or steps

    def trials(self) -> list[Trial]:
        """Every trial of these experiments."""
        seeds, steps = self.size()
        return [
            dataclasses.replace(trial, backend=self.backend, device=self.device, dtype=self.dtype or trial.dtype)
            for trial in trials(self.names(), seeds=seeds, steps=steps, quick=self.quick)
        ]


def run(options: Options, *, progress: Progress, tell: Callable[[str], None]) -> tuple[Path, Record]:
    """Make the trials that are missing, then the record, its table, plots and page; return directory and record.

    Raises
    ------
    ConfigError, DataError, FileExistsError, ImportError
        Where the request cannot be met; nothing has been written then.
    """
    for module in ("matplotlib", "tqdm"):  # or hours of trials would end in this
        if find_spec(module) is None:
            raise ImportError(f"study: needs {module}; install the extra train")
    seeds, steps = options.size()
    planned = options.trials()
    Problem.of(options.data)  # refused here, before processes and files; and so are backends that cannot be used
    for dtype in dict.fromkeys(trial.dtype for trial in planned):
        backends.backend(options.backend, dtype=dtype, device=options.device)
    with run_directory.open_directory(
        options.out, "study", overwrite=options.overwrite, resume=options.resume, known=FILES
    ) as directory:
        tell(f"{len(planned)} trials of {steps} steps or more on {options.data}, {seeds} seeds, into {directory}")
        if seeds < points.ENOUGH:
            tell(f"{seeds} seeds: large differences only can be shown; --seeds {points.ENOUGH} gives every verdict")
        file = open_rows(directory, options)
        jobs = options.jobs or provenance.cores()
        try:
            finish(planned, file, source=options.data, target=options.target, jobs=jobs, progress=progress)
        except KeyboardInterrupt as error:
            words = f"interrupted; {len(file.done)} trials are kept, --resume --out {directory} goes on"
            raise Interrupted(getattr(error, "signal", signal.SIGINT), words) from error
        whole = finished(options, file)
        results = [file.done[trial] for trial in whole.trials()]
        record = assemble(_meta(whole, file, results), results)
        write(directory, record)
    return directory, record


def finished(options: Options, file: RowsFile) -> Options:
    """The options with all experiments of which the file holds every trial: those asked for now, and before."""
    names = [
        name
        for name in EXPERIMENTS
        if all(trial in file.done for trial in dataclasses.replace(options, experiment=name).trials())
    ]
    return dataclasses.replace(options, experiment=None if len(names) == len(EXPERIMENTS) else ",".join(names))


def open_rows(directory: Path, options: Options) -> RowsFile:
    """The rows of a study's directory."""
    seeds, steps = options.size()
    about = {"format": FORMAT, "data": options.data, "target": options.target, "seeds": seeds, "steps": steps}
    made = {"date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), **provenance.describe()}
    return RowsFile(directory / ROWS, about, made)


def _meta(options: Options, file: RowsFile, results: Sequence[Result]) -> dict[str, Any]:
    seeds, steps = options.size()
    return {
        "format": FORMAT,
        "command": options.command(),
        **file.made,
        "data": options.data,
        "seeds": list(range(seeds)),
        "steps": steps,
        "width": WIDTH,
        "target": options.target,
        "usable": points.USABLE,
        "chosen": points.CHOSEN,
        "diverged": "a trial whose loss is not finite stops and counts with the accuracy of guessing",
        "run_seconds": round(sum(row["seconds"] for row, _ in results), 1),
        "sessions": file.sessions,
    }


def assemble(meta: dict[str, Any], results: Sequence[Result]) -> Record:
    """The record: how it was made, what it says in words, a row and a curve for each trial."""
    rows: list[Any] = [row for row, _ in results]
    curves = [{name: row[name] for name in LABELS} | curve for row, (_, curve) in zip(rows, results, strict=True)]
    said = summary.sentences(rows, curves, meta["target"])
    return {"meta": meta, "summary": said, "rows": rows, "curves": curves}


def write(directory: Path, record: Record) -> None:
    """study.json, study.csv, study.html, and a plot for each experiment."""
    files.write(directory / "study.json", provenance.to_json(record))
    files.write(directory / "study.csv", to_csv(record["rows"]))
    files.write(directory / "study.html", page.html(record))
    for name, picture in plots.pictures(record):
        files.write(directory / f"{name}.png", picture)


def rewrite(directory: Path) -> None:
    """Say, draw and write a study anew from the rows of its study.json, with no trial."""
    record = json.loads((directory / "study.json").read_text(encoding="utf-8"))
    results = [
        (row, {name: value for name, value in curve.items() if name not in LABELS})
        for row, curve in zip(record["rows"], record["curves"], strict=True)
    ]
    write(directory, assemble(record["meta"], results))


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV; empty where a value is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines(record: Record) -> list[str]:
    """The result in words, for a terminal: what was done, what usable means, and a sentence for each finding."""
    meta, found = record["meta"], []
    found.append(
        f"{len(record['rows'])} trials on {meta['data']}: {len(meta['seeds'])} seeds, {meta['steps']} steps (the budget), "
        f"target test accuracy {meta['target']:g}"
    )
    found.append(f"usable: {meta['usable']}; brackets: lowest and highest seed")
    found += [points.TEST, meta["chosen"]]
    for name, experiment in EXPERIMENTS.items():
        texts = [sentence["text"] for sentence in record["summary"] if sentence["experiment"] == name]
        found += ["", experiment.title, *(f"  {text}" for text in texts)] if texts else []
    return [*found, ""]
