"""`bnengine` as a rank of an MPI run, with a fault where the environment asks for one: FAULT=KIND:RANK:STEP."""

import os
import signal
import sys

from bnengine import cli
from bnengine.training import fitting


def faulty(step, kind, at):
    steps = 0

    def stepped(*arguments, **keywords):
        nonlocal steps
        steps += 1
        if steps == at:
            if kind == "raise":
                raise MemoryError("planted")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[kind])
        return step(*arguments, **keywords)

    return stepped


def main():
    arguments = sys.argv[1:]
    kind, rank, at = os.environ.get("FAULT", "none:-1:0").split(":")
    mine = int(os.environ["PMI_RANK"])
    if mine == int(rank):
        if kind == "option":
            arguments += ["--learning-rate", "0.5"]
        elif kind == "version":
            from bnengine.runs import train

            train.__version__ = "0.0.1"
        else:
            fitting.train_step = faulty(fitting.train_step, kind, int(at))
    sys.exit(cli.main(arguments))


if __name__ == "__main__":
    main()
