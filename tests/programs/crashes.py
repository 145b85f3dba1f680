"""`bnengine train --resume`, killed over and over, ends with the bits of a run that was left alone.

    python tests/programs/crashes.py                        # 100 kills, 20 of them inside a write, and a full disk
    python tests/programs/crashes.py --kills 10 --inside 4

Kills come in three kinds: after a random time; at a random call that changes the run directory (an audit hook counts
them, before they are done); and by the kernel in the middle of writing a file, part of which is then on the disk
(RLIMIT_FSIZE, whose signal ends the process).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bnengine import cli, data
from bnengine.runs import run_directory
from bnengine.training import fitting

EPOCHS = 100
OPTIONS = ["--data", "digits.npz", "--hidden", "32,16", "--epochs", str(EPOCHS), "--early-stopping", str(EPOCHS)]
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


def write_data() -> None:
    digits = data.load("digits")
    np.savez("digits.npz", x=digits.x_train[:600], y=digits.y_train[:600])


def start(out: str, *limits: str, options: list[str] = OPTIONS) -> subprocess.Popen[str]:
    """`bnengine train --resume` in a process of its own, with the limits of `child`."""
    command = [sys.executable, __file__, "--child", *limits, "--", "train", "--out", out, "--resume", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(out: str, *limits: str, options: list[str] = OPTIONS) -> tuple[int, str]:
    """(exit status, standard error)"""
    process = start(out, *limits, options=options)
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors


def killed_after(out: str, seconds: float, *, training: bool) -> int:
    """The exit status of a run that is killed so long after its start, or after its first line."""
    process = start(out)
    if training:
        process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode


def differences(out: str, whole: str) -> list[str]:
    """In what the directory of a run differs from another's; times aside."""
    found = [name for name in os.listdir(out) if name not in os.listdir(whole)]
    for name in (run_directory.MODEL, run_directory.LAST, run_directory.BEST):
        found += [name] if arrays(Path(out, name)) != arrays(Path(whole, name)) else []
    rows, expected = (metrics(Path(place, run_directory.METRICS)) for place in (out, whole))
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or rows != expected:
        found.append(run_directory.METRICS)
    return found


def arrays(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: array.tobytes() for name, array in load_file(path).items()}


def metrics(path: Path, but: tuple[str, ...] = ("seconds",)) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in but} for row in rows]


# ---- the process that is killed


def child(options: argparse.Namespace, arguments: list[str]) -> int:
    """The command line, until the `--change`-th call that changes the run directory, or beyond files of `--size`;
    `--signal` is sent within the `--step`-th step."""
    if options.size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.size, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN if options.full else signal.SIG_DFL)
    if options.signal is not None:
        _signal_at(options.step, options.signal)
    if options.change is not None:
        _kill_at(options.change, str(Path(arguments[arguments.index("--out") + 1]).resolve()))
    return cli.main(arguments)


def _signal_at(step: int, number: int) -> None:
    """From inside, so that no load of the machine can let the run end before it is sent."""
    compiled, left = fitting.compiled, [step]

    def counting(*arguments: object, **options: object) -> object:
        step = compiled(*arguments, **options)

        def stepped(*given: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), number)
            return step(*given)

        return stepped

    fitting.compiled = counting


def _kill_at(change: int, directory: str) -> None:
    left = [change]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename", "os.link", "os.chmod", "os.remove", "os.mkdir"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if isinstance(arguments[0], str | os.PathLike) and str(Path(arguments[0]).absolute()).startswith(directory):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


# ---- a hundred kills


def crashes(kills: int, inside: int, seed: int) -> dict[str, object]:
    """Runs that are killed ten times each, at random, and then left to end; each is compared with a whole one."""
    rng = random.Random(seed)
    write_data()
    assert finished("warm")[0] == 0, "compiles, and keeps, the kernels"
    assert finished("whole") == (0, "")
    seconds = metrics(Path("whole", run_directory.METRICS), but=())[-1]["seconds"]
    size = Path("whole", run_directory.LAST).stat().st_size
    kinds = ["size"] * inside + ["change"] * (inside // 2) + ["time"] * (kills - inside - inside // 2)
    rng.shuffle(kinds)
    counts, wrong, epochs = Counter[str](), [], []
    for run in range(0, kills, 10):
        out = f"run{run}"
        for kind in kinds[run : run + 10]:
            counts[_kill(kind, out, seconds, size, rng)] += 1
            rows = Path(out, run_directory.METRICS)
            epochs.append(len(rows.read_text().splitlines()) if rows.exists() else 0)
        status, errors = finished(out)
        wrong += [f"{out}: {errors}"] if status else []
        wrong += [] if status else [f"{out}: {name}" for name in differences(out, "whole")]
    return {"kills": dict(counts), "epochs_at_kills": epochs, "runs": -(-kills // 10), "wrong": wrong}


def _kill(kind: str, out: str, seconds: float, size: int, rng: random.Random) -> str:
    """Kill a run in one of three ways, and say in which; one that ends before it is killed is tried again."""
    for _ in range(20):
        if kind == "time":
            training = rng.random() < 0.8
            longest = seconds / 12 if training else 1.0
            status, words = killed_after(out, rng.uniform(0, longest), training=training), "after a random time"
        elif kind == "change":
            status, words = finished(out, "--change", str(rng.randint(1, 60)))[0], "before a call on the directory"
        else:
            status, words = finished(out, "--size", str(rng.randint(1, size - 1)))[0], "inside a write"
        if status in KILLED:
            return words
        for name in (run_directory.LAST, run_directory.PREVIOUS):  # it had ended: go on with another start
            Path(out, name).unlink(missing_ok=True)
    raise AssertionError(f"{out}: not killed by {kind}")


def full_disk() -> dict[str, object]:
    """A run on a disk of its own that is too small; then room is made, and it goes on to the same bits."""
    Path("disk").mkdir()
    script = f"""
mount -t tmpfs -o size=100k tmpfs disk || exit 77
{sys.executable} {__file__} --child -- train --out disk/run --resume {" ".join(OPTIONS)} 2> errors
echo $? > status
ls -A disk/run > listing
mount -o remount,size=10m disk
{sys.executable} {__file__} --child -- train --out disk/run --resume {" ".join(OPTIONS)} && cp -r disk/run run-on-disk
"""
    status = subprocess.run(["unshare", "-rm", "bash", "-c", script], stdout=subprocess.DEVNULL, check=False).returncode
    if status == 77:
        return {"skipped": "no tmpfs can be mounted here"}
    return {
        "status": Path("status").read_text().strip(),
        "error": Path("errors").read_text().strip(),
        "left": Path("listing").read_text().split(),
        "wrong": [str(status)] if status else differences("run-on-disk", "whole"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--inside", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--change", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--signal", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    own, _, rest = " ".join(sys.argv[1:]).partition(" -- ")
    options = parser.parse_args(own.split())
    if options.child:
        return child(options, rest.split())
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        record = crashes(options.kills, options.inside, options.seed)
        record["full_disk"] = full_disk()
        os.chdir("/")
    print(json.dumps(record, indent=2))
    return bool(record["wrong"] or record["full_disk"].get("wrong"))


if __name__ == "__main__":
    sys.exit(main())
