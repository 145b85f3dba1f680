"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import csv
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from . import __version__, backends
from ._typing import BackendName
from .arguments import ConfigError, printable
from .options import add_options
from .parallel import Communicator
from .runs import interrupts
from .runs.config import Config, resolve
from .runs.interrupts import Interrupted
from .training import running_statistics


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status: 0 done, 1 the run failed, 2 the request was wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        with interrupts.raise_when_asked_to_end():
            status: int = options.run(options)
    except KeyboardInterrupt as error:
        return _failed(str(error) or "interrupted", _status(error))
    except BrokenPipeError:
        _silence(sys.stdout)
        return 141  # as a program that the signal ends: not everything was done
    except Exception as error:
        if options.debug:
            raise
        return _failed(_as_given(_reason(error), vars(options)), _status(error))
    return status


WRONG_REQUEST = (
    *(ValueError, TypeError, ImportError),
    *(FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
)
"""Errors of the person who asked; others are errors of the run."""


def _reason(error: BaseException) -> str:
    """One line of printable characters, whatever a file has put into it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    words = " ".join(text.split()) or type(error).__name__
    shown = words if len(words) <= 1000 else f"{words[:1000]}..."
    return printable(shown)


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):  # as a shell has it
        return 128 + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)
    return 2 if isinstance(error, WRONG_REQUEST) else 1


def _as_given(reason: str, given: dict[str, Any]) -> str:
    """The reason with the name of an option as it stands on the command line."""
    name, colon, rest = reason.partition(":")
    option = name in given and name not in ("command", "run", "directory", "debug")
    return f"--{name.replace('_', '-')}{colon}{rest}" if option else reason


def _failed(reason: str, status: int) -> int:
    _say(f"bnengine: {reason}", sys.stderr)
    return status


def _say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, at once; to nobody where the terminal has closed, of which a signal (SIGHUP) tells."""
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")  # ranks share the terminal, print would write the end separately
        stream.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Let what is left of a stream go nowhere, or Python complains of it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# ---- parsing


class _Parser(argparse.ArgumentParser):
    """Says what was wrong in one line, not below twenty of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(_failed(f"{message}; {self.prog} --help shows what there is", 2))


def _parser() -> argparse.ArgumentParser:
    from . import bench, study
    from .runs import export

    parser = _Parser(prog="bnengine", description="Batch-normalised networks on any array library.")
    parser.add_argument("--version", action="version", version=f"bnengine {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    add_options(_command(commands, "train", _train, "train a network on data and write a run directory"), Config)
    evaluate = _command(commands, "evaluate", _evaluate, "measure a trained run on data")
    evaluate.add_argument("directory", metavar="RUN", help="directory of the run")
    evaluate.add_argument("--data", metavar="DATA", help="default: the test part of the run's own data")
    evaluate.add_argument("--label", metavar="COLUMN", help="column of a CSV file that holds the labels")
    predict = _command(commands, "predict", _predict, "predictions of a trained run for raw rows, as CSV")
    predict.add_argument("directory", metavar="RUN", help="directory of the run")
    predict.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="CSV or npz file of rows, labels not needed; -: a CSV by standard input",
    )
    predict.add_argument("--out", metavar="FILE", help="file to write (default: standard output)")
    for command in (evaluate, predict):
        add_options(command, Config, ("delimiter", "backend", "device"))
    words = "write a trained run as a file for NumPy alone, PyTorch or ONNX"
    export.add_arguments(_command(commands, "export", _export, words))
    _command(commands, "backends", _backends, "array libraries: usable or why not, version, device, fast path")
    add_options(_command(commands, "study", _study, "batch normalisation against none, as experiments"), study.Options)
    words = "measure against the memory limit and other libraries"
    add_options(_command(commands, "bench", _bench, words), bench.Options)
    warmup = _command(commands, "warmup", _warmup, "compile the kernels ahead of their first use")
    warmup.add_argument("--dtype", choices=("float32", "float64"), help="default: all")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    # Options that were not given are absent, so that a configuration file can supply them.
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", argument_default=argparse.SUPPRESS
    )
    command.add_argument("--debug", action="store_true", default=False, help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


# ---- commands


def _train(options: argparse.Namespace) -> int:
    from . import parallel

    given = vars(options)
    asked = given.get("distributed", Config.distributed)
    communicator = parallel.join(asked, timeout=given.get("timeout", Config.timeout))
    try:  # from here on the ranks that were asked for answer together
        config = resolve(given, _config_file(given))
        if config.distributed != asked:  # only the file says it
            communicator = parallel.join(config.distributed, timeout=config.timeout)
        return _train_on(communicator, config)
    except (Exception, KeyboardInterrupt) as error:
        if communicator.together():  # every rank has come here by itself: one of them tells why
            if communicator.rank == 0:
                raise
            return _status(error)
        if options.debug:
            traceback.print_exc()
        _failed(f"rank {communicator.rank} of {communicator.size}: {_reason(error)}", 1)
        return communicator.abort(_status(error))


def _train_on(communicator: Communicator, config: Config) -> int:
    from .runs import train

    first = communicator.rank == 0
    directory, summary = train.train(
        config,
        communicator=communicator,
        on_start=_say if first else None,
        on_warning=_warn if first else None,
        on_read=_reading if first and sys.stderr.isatty() else None,
        on_epoch=(lambda row: _say(_epoch_lines(row))) if first else None,
        progress=_bar if first and sys.stderr.isatty() else None,
    )
    if not first:
        return 0
    gap = summary["running_statistics"]
    if gap:
        _say(
            f"running statistics: means within {gap['mean_gap']:.2g} standard deviations of the training data's, "
            f"variances within a factor of {gap['var_ratio']:.3g}, after {gap['batches']} batches"
        )
    _warn_of(gap)
    if summary["test_loss"] is None:
        _say("no test rows: how good the network is can be told on other data, by bnengine evaluate RUN --data FILE")
    else:
        _say(", ".join(f"{name} {_number(value)}" for name, value in summary.items() if name.startswith("test_")))
    _say(train.kept_words(summary, config.early_stopping))
    _say(f"{summary['steps']} steps in {summary['seconds']:.1f} s, written to {directory}")
    return 0


def _warn(line: str) -> None:
    _failed(f"warning: {line}", 0)


def _reading(read: int, size: int) -> None:
    """How much of a file has been read, in a line that goes when it is whole."""
    words = f"reading: {read / max(size, 1):4.0%}" if read < size else " " * 14
    sys.stderr.write(f"\r{words}\r")
    sys.stderr.flush()


def _reading_options(given: dict[str, Any]) -> dict[str, Any]:
    """How evaluate and predict read and where; what is told of it goes to standard error, beside predictions."""
    from .runs.predict import Listener

    watch = _reading if sys.stderr.isatty() else None
    listener = Listener(_warn, lambda line: _say(f"bnengine: {line}", sys.stderr), watch)
    named = {name: given.get(name) for name in ("delimiter", "device")}
    return {**named, "backend": _backend(given), "listener": listener}


def _warn_of(gap: dict[str, Any]) -> None:
    wrong = running_statistics.far_apart(gap)
    if wrong is not None:
        print(f"bnengine: warning: {wrong}; see --precise-bn of bnengine train", file=sys.stderr)


def _config_file(given: dict[str, Any]) -> str | None:
    """The file asked for, or for --resume alone the configuration of the run that is to go on."""
    own = Path(given["out"], "config.toml") if given.get("resume") and given.get("out") else None
    return given.get("config") or (str(own) if own is not None and own.is_file() else None)


def _bar(batches: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    bar: Iterable[Any] = tqdm(batches, leave=False, unit="step", dynamic_ncols=True)
    return bar


def _epoch_lines(row: dict[str, Any]) -> str:
    """The epoch's metrics in columns, with their names above the first."""
    metrics = {name: value for name, value in row.items() if name.startswith(("train_", "validation_"))}
    columns = {"epoch": f"{row['epoch']}", **{name: _number(value) for name, value in metrics.items()}}
    columns["seconds"] = f"{row['seconds']:.1f}"
    line = "  ".join(f"{cell:>{len(name)}}" for name, cell in columns.items())
    return f"{'  '.join(columns)}\n{line}" if row["epoch"] == 1 else line


def _number(value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _evaluate(options: argparse.Namespace) -> int:
    from .runs import classes, predict

    given = vars(options)
    metrics = predict.evaluate_run(
        options.directory, source=given.get("data"), label=given.get("label"), **_reading_options(given)
    )
    gap, of_each = metrics.pop("running_statistics"), metrics.pop("classes", None)
    confusion = metrics.pop("confusion", None)
    for name, value in metrics.items():
        print(
            f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {'undefined' if value is None else value}"
        )
    for line in classes.table(of_each, confusion) if of_each else ():
        print(line)
    _warn_of(gap)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from . import files
    from .runs import predict

    given = vars(options)
    if "out" in given:
        _spare(Path(options.out), options.data, options.directory)
    header, rows = predict.predict_run(options.directory, options.data, **_reading_options(given))
    if "out" not in given:
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])
        return 0
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    files.write(options.out, text.getvalue())
    return 0


def _export(options: argparse.Namespace) -> int:
    from .runs import export

    print(export.export_run(vars(options)))
    return 0


def _backends(options: argparse.Namespace) -> int:  # noqa: ARG001
    rows = [("backend", "version", "device", "fast path"), *(_backend_words(row) for row in backends.listed())]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())
    return 0


def _backend_words(row: backends.Row) -> tuple[str, str, str, str]:
    if row.usable:
        return row.name, row.version, row.device, row.fast_path
    return row.name, "not usable", "", " ".join(row.why_not.split())


def _study(options: argparse.Namespace) -> int:
    from . import study

    given = vars(options)
    wanted = study.Options.resolve(given, given.get("config"))
    directory, record = study.run(wanted, progress=_run_bar, tell=lambda text: print(text, flush=True))
    for line in study.lines(record):
        print(line)
    print(f"written to {directory}; the page is {directory / 'study.html'}")
    return 0


def _run_bar(results: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    # Where nobody watches, a line a minute.
    pace = {"dynamic_ncols": True} if sys.stderr.isatty() else {"mininterval": 60, "ncols": 80}
    bar: Iterable[Any] = tqdm(results, total=total, unit="trial", **pace)
    return bar


def _bench(options: argparse.Namespace) -> int:
    from . import bench, files, provenance
    from .bench import pictures

    given = vars(options)
    wanted = bench.Options.resolve(given, given.get("config"))
    out = files.writable("out", wanted.out) if wanted.out is not None else None
    plot = files.writable("plot", wanted.plot) if wanted.plot is not None else None
    if plot is not None:
        bench.check_plot(wanted, plot, out)
    busy = provenance.busy()
    if busy:
        print(f"bnengine: {busy}", file=sys.stderr, flush=True)

    def keep(record: dict[str, Any]) -> None:
        if out is not None:
            files.write(out, bench.to_json(record))

    record = bench.run(wanted, lambda line: print(line, flush=True), keep)
    keep(record)
    if plot is not None:
        draw = pictures.fractions if wanted.backend == "cupy" else pictures.speeds
        files.write(plot, draw(record))
    wrong = bench.wrong(record)
    return _failed(f"not timed: {'; '.join(wrong)}", 1) if wrong else 0


def _warmup(options: argparse.Namespace) -> int:
    from .runs.warmup import warmup

    given = vars(options)
    for line in warmup([given["dtype"]] if "dtype" in given else []):
        print(line, flush=True)
    return 0


def _spare(out: Path, source: str, directory: str) -> None:
    """Refuse to write predictions over the rows that they are of, or over a file of the run."""
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ConfigError(f"out: {out} is the file of --data too; choose another")
    if out.exists() and out.resolve().parent == Path(directory).resolve():
        raise ConfigError(f"out: {out} is a file of the run; choose another")


def _backend(given: dict[str, Any]) -> BackendName:
    """The backend asked for: option, environment, auto."""
    return resolve({"backend": given["backend"]} if "backend" in given else {}).backend
