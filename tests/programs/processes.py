"""Several trainings at once that share one empty cache of compiled kernels end with the bits of a training alone.

python tests/programs/processes.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = "from bnengine.cli import main; main(['train', '--epochs', '3', '--hidden', '64,32', '--out', '{out}'])"
COUNT = 4


def at_once(programs: list[str], cache: str) -> list[tuple[int, str]]:
    """(exit status, standard output) of Python programs that start together."""
    places = {"NUMBA_CACHE_DIR": str(Path(cache).absolute()), "OPENBLAS_NUM_THREADS": "1"}
    pipe = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | places}
    started = [subprocess.Popen([sys.executable, "-c", program], **pipe) for program in programs]
    outputs = [process.communicate()[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]


def main() -> int:
    import crashes

    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        statuses = [status for status, _ in at_once([TRAIN.format(out=f"run{i}") for i in range(COUNT)], "fresh")]
        alone = at_once([TRAIN.format(out="alone")], "another")[0][0]
        wrong = [] if {alone, *statuses} == {0} else [f"exit statuses {statuses} and {alone}"]
        for i in range(COUNT):
            wrong += [f"run{i}: {name}" for name in crashes.differences(f"run{i}", "alone")]
        kernels = len(list(Path("fresh").rglob("*.nbc")))
        os.chdir("/")
    print("\n".join(wrong) or f"{COUNT} trainings at once, {kernels} kernels in one cache: the bits of one alone")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
