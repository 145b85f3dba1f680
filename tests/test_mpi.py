"""Real ranks: mpiexec starts them, and they end by themselves or are ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_parallel import distance

import bnengine as bn
from bnengine import cli

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
if find_spec("mpi4py") is None or MPIEXEC is None:
    if os.environ.get("BNENGINE_TEST_ALL"):
        pytest.fail("mpi4py and mpiexec are needed: pip install --group mpi", pytrace=False)
    pytest.skip("needs mpi4py and mpiexec: pip install --group mpi", allow_module_level=True)

PROGRAM = Path(__file__).with_name("support") / "mpi_program.py"
ENVIRONMENT = {
    "PYTHONPATH": str(Path(bn.__file__).parents[1]),
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
TINY = ["--hidden", "16,8", "--epochs", "3", "--dtype", "float64", "--batch-size", "200"]


def mpiexec(ranks, *arguments, seconds=120, **environment):
    """The finished process, and how long it took."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, str(PROGRAM), *arguments]
    variables = os.environ | ENVIRONMENT | environment
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False, env=variables, stdin=subprocess.DEVNULL
    )
    return done, time.monotonic() - began


def train(ranks, out, *arguments, **more):
    return mpiexec(ranks, "train", "--distributed", "mpi", *TINY, "--out", out, *arguments, **more)


def said(done):
    """The lines of bnengine, without the launcher's."""
    return [line for line in done.stderr.splitlines() if line.startswith("bnengine: ") and "compiling" not in line]


def network(directory):
    return bn.load(Path(directory) / "model.safetensors", backend=bn.backend("numpy", dtype="float64"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run in one process."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    assert cli.main(["train", *TINY, "--out", str(directory)]) == 0
    return directory


def test_three_ranks_train_the_network_of_one_process(alone):
    done, _ = train(3, "ranks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 ranks, writing to ranks") == 1
    assert done.stdout.count("test_accuracy") == 1
    assert distance(network(alone).params, network("ranks").params) < 1e-8
    assert distance(network(alone).state, network("ranks").state) < 1e-8
    one, several = (json.loads((Path(path) / "summary.json").read_text()) for path in (alone, "ranks"))
    for name in ("test_accuracy", "test_loss", "running_statistics", "steps"):
        assert several[name] == pytest.approx(one[name], rel=1e-9)
    assert several["ranks"] == 3


def test_a_run_goes_on_with_another_number_of_ranks(alone):
    first, _ = train(2, "run", FAULT="raise:1:10")  # in the second epoch
    assert first.returncode == 1
    assert said(first) == ["bnengine: rank 1 of 2: planted"]
    then, _ = mpiexec(3, "train", "--distributed", "mpi", "--resume", "--out", "run", FAULT="term:2:3")
    assert then.returncode == 128 + signal.SIGTERM
    assert said(then) == ["bnengine: interrupted after step 14; --resume --out run goes on from there"]
    done, _ = mpiexec(4, "train", "--distributed", "mpi", "--resume", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["epoch"] for line in Path("run", "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert distance(network(alone).params, network("run").params) < 1e-8


def test_a_rank_that_is_killed_ends_all():
    done, seconds = train(3, "run", FAULT="kill:2:3")
    assert done.returncode != 0
    assert "Killed (signal 9)" in done.stdout + done.stderr
    assert seconds < 60


def test_a_rank_that_is_stuck_is_given_up(rng):
    """Of this the launcher cannot know."""
    x, y = rng.standard_normal((60, 3)), np.arange(60) % 2
    np.savez("rows.npz", x=x, y=y, x_test=x, y_test=y)  # quick to load: the others wait for that too
    quick = ["--data", "rows.npz", "--validation", "0", "--batch-size", "10", "--timeout", "6"]
    done, seconds = train(3, "run", *quick, FAULT="stop:1:3")
    assert done.returncode != 0
    given_up = "waited 6 s for the others; one of them has died or is stuck"
    assert said(done)
    assert set(said(done)) <= {f"bnengine: rank {rank} of 3: {given_up}" for rank in (0, 2)}
    assert seconds < 60


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("option:1:0", "learning_rate is 0.003 on rank 0 and 0.5 on rank 1; every rank has to be started alike"),
        (
            "version:1:0",
            f"version is '{bn.__version__}' on rank 0 and '0.0.1' on rank 1; every rank has to be started alike",
        ),
    ],
)
def test_ranks_that_differ_are_refused_in_one_line(fault, message):
    done, _ = train(2, "run", FAULT=fault)
    assert done.returncode == 1
    assert said(done) == [f"bnengine: --distributed: {message}"]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sync-ranks", "3"], "--sync-ranks: expected a divisor of the number of ranks, 2, got 3"),
        (["--data", "none.npz"], "--data: no file or directory none.npz; the data sets by name are "),
        (["--learning-rate", "0"], "--learning-rate: expected a positive number, got 0.0"),
    ],
)
def test_a_wrong_request_is_answered_once(arguments, message):
    done, _ = train(2, "run", *arguments)
    assert done.returncode == 2
    assert len(said(done)) == 1, done.stderr
    assert said(done)[0].startswith(f"bnengine: {message}")
    assert not Path("run").exists()


def test_batches_that_are_left_out_are_told_of_and_do_not_count_for_the_schedule():
    done, _ = train(2, "run", "--sync-ranks", "1", "--batch-size", "4", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    last = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert f"{summary['batches_left_out']} batches are left out: " in done.stdout
    assert summary["batches_left_out"] > 100
    assert summary["steps"] + summary["batches_left_out"] == 2 * 323  # of 1293 rows, the last batch of five
    assert last["learning_rate"] < 1e-6  # the end of the cosine


def test_a_launcher_of_another_mpi_is_noticed():
    environment = os.environ | ENVIRONMENT | {"OMPI_COMM_WORLD_SIZE": "4"}
    command = [sys.executable, "-m", "bnengine", "train", "--distributed", "mpi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert "the launcher started 4 processes (OMPI_COMM_WORLD_SIZE) but MPI knows of 1" in done.stderr


@pytest.mark.grid
@pytest.mark.parametrize("ranks", range(1, 9))
@pytest.mark.parametrize("batch_size", [4, 64])
def test_one_to_eight_ranks_train_the_network_of_one_process(tmp_path, ranks, batch_size):
    """Batches of four over eight ranks: shares of no row and of one. Minutes: `nox -s mpi` runs it."""
    options = ["train", "--epochs", "3", "--dtype", "float64", "--hidden", "64,32", "--batch-size", str(batch_size)]
    assert cli.main([*options, "--out", "alone"]) == 0
    done, _ = mpiexec(ranks, *options, "--distributed", "mpi", "--out", "ranks", seconds=900)
    assert done.returncode == 0, done.stderr
    worst = max(
        distance(network("alone").params, network("ranks").params),
        distance(network("alone").state, network("ranks").state),
    )
    print(f"{ranks} ranks, batch {batch_size}: largest difference {worst:.1e}")
    assert worst < 1e-8
