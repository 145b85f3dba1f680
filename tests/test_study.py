"""The study: its plan, one trial, its files, processes that are killed, requests that are refused."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from bnengine import study
from bnengine.cli import main
from bnengine.runs import run_directory
from bnengine.runs.config import ConfigError
from bnengine.study import processes, summary, trial
from bnengine.study.experiments import EXPERIMENTS, Trial, trials

TINY = ["--quick", "--seeds", "2", "--steps", "12", "--jobs", "2"]
NAMES = "section_4_1,norm_position,bias,geometry"


def run(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    try:
        status = main(["study", *map(str, arguments)])
    except SystemExit as stop:  # argparse
        status = stop.code
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny study, made through the command line once for the module."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("study") / "tiny"
    assert main(["study", *TINY, "--experiment", NAMES, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def record(directory):
    return json.loads((directory / "study.json").read_text())


# ---- the plan


def planned(*names, quick=False):
    return trials(names or tuple(EXPERIMENTS), seeds=3, steps=2000, quick=quick)


def test_the_plan_is_what_the_study_promises():
    every = planned()
    assert len(every) == len(set(every))
    assert min(trial.steps for trial in every if trial.experiment != "geometry") == 2000
    assert {(trial.steps, trial.hidden) for trial in planned("geometry")} == {(0, 50)}
    assert {trial.experiment for trial in every if trial.norm == "dyt"} == {"learning_rate", "depth", "geometry"}
    assert {trial.seed for trial in every} == {0, 1, 2}
    for panel in EXPERIMENTS["learning_rate"].panels:
        rates = sorted(
            {trial.learning_rate for trial in every if (trial.experiment, trial.panel) == ("learning_rate", panel)}
        )
        assert len(rates) == 10
        assert math.log10(rates[-1] / rates[0]) >= 4
    scales = [trial.scale for trial in planned("initial_scale")]
    assert math.log10(max(scales) / min(scales)) >= 4
    assert {2, 50} <= {trial.hidden for trial in planned("depth")}
    assert {trial.optimizer for trial in planned("optimizer")} == {"sgd", "momentum", "nesterov", "rmsprop", "adam"}
    assert min(trial.batch_size for trial in planned("batch_size")) == 2
    assert {(trial.value, trial.norm) for trial in planned("norm_position")} == {
        ("pre", "batch"),
        ("post", "batch"),
        ("none", "none"),
    }
    assert {trial.bias for trial in planned("bias")} == {"with", "without"}


def test_the_arms_differ_by_the_normalisation_alone():
    every = set(planned("learning_rate", "matched", "initial_scale", "optimizer", "batch_size", "depth"))
    with_none = {trial for trial in every if trial.norm == "none"}
    assert {dataclasses.replace(trial, norm="none") for trial in every if trial.norm == "batch"} == with_none
    dyt = {trial for trial in every if trial.norm == "dyt"}
    assert {dataclasses.replace(trial, norm="none") for trial in dyt} < with_none


def test_quick_takes_every_second_value():
    assert sorted({trial.learning_rate for trial in planned("learning_rate", quick=True)}) == [0.001, 0.01, 0.1, 1, 10]
    assert len(planned(quick=True)) < 0.6 * len(planned())


# ---- one trial


@pytest.fixture(scope="module")
def problem():
    pytest.importorskip("sklearn")
    return trial.Problem.of("digits")


def tiny(**fields):
    return Trial(**{"experiment": "x", "panel": "x", "value": 1, "norm": "none", "seed": 0, "steps": 30, **fields})


def test_inputs_are_standardised_by_the_training_rows(problem):
    varied = problem.x.std(axis=0) > 0
    np.testing.assert_allclose(problem.x.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(problem.x.std(axis=0, dtype=np.float64)[varied], 1, rtol=1e-5)


def test_validation_rows_are_no_training_and_no_test_rows(problem):
    parts = (problem.x, problem.x_validation, problem.x_test)
    assert [len(part) for part in parts] == [1293, 144, 360]
    seen = [{row.tobytes() for row in part} for part in parts]
    assert len(set.union(*seen)) == sum(map(len, parts))
    assert np.bincount(problem.y_validation).min() >= 13


def test_a_trial_is_looked_at_where_it_says_and_counts_steps_to_the_target(problem):
    row, curve = trial.train(tiny(norm="batch", learning_rate=0.3), problem, 0.8)
    assert curve["step"] == trial.looks(30) == [11, 15, 21, 30]
    first = next(step for step, seen in zip(curve["step"], curve["test_accuracy"], strict=True) if seen >= 0.8)
    assert row["steps_to_target"] == first < 30
    assert row["test_accuracy"] == curve["test_accuracy"][-1] > 0.8
    assert row["validation_accuracy"] == curve["validation_accuracy"][-1] != row["test_accuracy"]
    assert curve["validation_accuracy"][curve["step"].index(row["validation_steps_to_target"])] >= 0.8
    assert (row["diverged"], row["diverged_at"], row["network"]) == (False, None, "3 x 100 relu")
    assert trial.train(tiny(norm="batch", learning_rate=0.3), problem, 0.999)[0]["steps_to_target"] is None


def test_a_trial_that_diverges_stops_and_counts_as_guessing(problem):
    row, curve = trial.train(tiny(learning_rate=1e4), problem, 0.8)
    assert row["diverged"]
    assert row["diverged_at"] < 30
    assert row["test_accuracy"] == row["validation_accuracy"] == pytest.approx(0.1)
    assert row["steps_to_target"] is row["validation_steps_to_target"] is None
    assert np.isfinite(curve["loss"]).all()


def wrap_steps(monkeypatch, wrapper):
    """wrapper(step, *arguments) in the place of each trial's step."""
    compiled = trial.compiled
    monkeypatch.setattr(
        trial, "compiled", lambda *given, **options: functools.partial(wrapper, compiled(*given, **options))
    )


def test_a_trial_that_diverges_late_counts_as_guessing_too(problem, monkeypatch):
    losses = iter([*[None] * 15, np.float32(np.nan)])

    def breaking(step, *arguments):
        *rest, loss = step(*arguments)
        broken = next(losses)
        return *rest, loss if broken is None else broken

    wrap_steps(monkeypatch, breaking)
    row, curve = trial.train(tiny(norm="batch", learning_rate=0.3), problem, 0.3)
    assert curve["step"] == [11, 15]
    assert max(curve["test_accuracy"]) > 0.5
    assert (row["diverged_at"], row["steps_to_target"]) == (16, 11)
    assert row["test_accuracy"] == pytest.approx(0.1)


def test_a_trial_repeats_with_its_seed_and_not_with_another(problem):
    curves = [trial.train(tiny(norm="batch", seed=seed), problem, 0.8)[1] for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]


def test_the_redundant_bias_is_there_and_changes_nothing(problem, monkeypatch):
    drawn = []

    def watched(step, params, *rest):
        bias = params["0"].get("bias")
        drawn.append(bias if bias is None else bias.copy())
        return step(params, *rest)

    wrap_steps(monkeypatch, watched)
    ours, other = (
        trial.train(tiny(norm="batch", dtype="float64", bias=bias), problem, 0.8)[1] for bias in ("with", "without")
    )
    assert 0.5 < drawn[0].std() < 2
    assert drawn[-1] is None
    np.testing.assert_allclose(ours["loss"], other["loss"], rtol=0, atol=1e-12)


def test_a_trial_with_dynamic_tanh_has_it_and_trains(problem):
    net = trial.network(tiny(norm="dyt"), 64, 10)
    assert [str(layer) for layer in net.layers[:3]] == ["Linear", "DynamicTanh", "relu"]
    row, _ = trial.train(tiny(norm="dyt", learning_rate=0.3), problem, 0.8)
    assert row["test_accuracy"] > 0.8


@pytest.mark.parametrize("norm", ["batch", "dyt", "none"])
def test_the_geometry_of_layers_is_that_of_plain_numpy(problem, norm):
    """Each layer written out, the rank by singular values, angles by arctan2 of cross and dot products."""
    chosen = tiny(experiment="geometry", norm=norm, hidden=2, steps=0, seed=3, dtype="float64")
    row, curve = trial.train(chosen, problem, 0.8)
    assert (row["test_accuracy"], row["steps_to_target"], row["diverged"]) == (0.1, None, False)
    net = trial.network(chosen, 64, 10)
    params, _ = net.init(3, backend="numpy")
    a = problem.x[next(trial._batches(chosen, len(problem.x)))].astype(np.float64)
    weights = [layer["weight"].astype(np.float64) for layer in params.values() if "weight" in layer]
    for i in range(3):
        values = np.linalg.svd(a, compute_uv=False)
        assert curve["rank"][i] == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=1e-3)
        between = np.asarray([[degrees(a[j], a[k]) for k in range(60) if k != j] for j in range(60)])
        np.testing.assert_allclose(curve["angle_percentiles"][i], np.percentile(between, (15, 50, 85)), rtol=1e-3)
        assert curve["furthest"][i] == pytest.approx(np.median(between, axis=1).max(), rel=1e-3)
        z = a @ weights[i]
        z = {"batch": (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5), "dyt": np.tanh(z / 2), "none": z}[norm]
        a = np.maximum(z, 0)
    assert curve["layer"] == [0, 1, 2]


def degrees(u, v):
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    return 2 * np.degrees(np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


# ---- a whole study


def test_a_study_writes_its_record_table_plots_and_page(directory, record):
    names = NAMES.split(",")
    assert {path.name for path in directory.iterdir()} == {
        run_directory.LOCK,
        *study.FILES[:4],
        *(f"{name}.png" for name in names),
    }
    meta = record["meta"]
    assert {"command", "versions", "data", "seeds", "steps", "target", "usable", "commit", "sessions"} <= set(meta)
    assert meta["command"] == f"bnengine study --experiment {NAMES} --quick --seeds 2 --steps 12"
    assert (meta["data"], meta["seeds"], meta["steps"], meta["target"]) == ("digits", [0, 1], 12, 0.8)
    assert [session["runs"] for session in meta["sessions"]] == [len(record["rows"])] == [4 + 24 + 4 + 12]
    wanted = "experiment network norm value optimizer learning_rate batch_size seed steps seconds test_accuracy"
    for row in record["rows"]:
        assert {*wanted.split(), "steps_to_target", "diverged"} <= set(row)
    assert len(record["curves"]) == len(record["rows"])
    assert all((directory / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_csv_holds_the_rows(directory, record):
    with (directory / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(record["rows"][0])
    for row, expected in zip(rows, record["rows"], strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in expected.items()}


def test_the_sentences_of_a_record_follow_from_its_rows(record):
    said = summary.sentences(record["rows"], record["curves"], record["meta"]["target"])
    assert said == record["summary"]


def test_the_paper_s_curve_holds_percentiles_gamma_and_beta(record):
    curves = [curve for curve in record["curves"] if curve["experiment"] == "section_4_1"]
    assert {curve["step"][-1] for curve in curves} == {120}
    for curve in curves:
        inputs = np.asarray(curve["input_percentiles"])
        assert inputs.shape == (len(curve["step"]), 3)
        assert (np.diff(inputs, axis=1) >= 0).all()
        assert ("gamma" in curve) == (curve["norm"] == "batch")
    learned = next(curve for curve in curves if curve["norm"] == "batch")
    assert learned["gamma"][-1] != 1
    assert learned["beta"][-1] != 0


def test_resume_makes_no_trial_twice(directory, capsys, monkeypatch):
    before = (directory / "rows.jsonl").read_bytes()
    monkeypatch.setattr(processes, "_results", None)  # no process is started
    status, out, _ = run(capsys, *TINY, "--experiment", NAMES, "--out", directory, "--resume")
    assert status == 0
    assert (directory / "rows.jsonl").read_bytes() == before
    assert f"written to {directory}" in out


def started(*arguments):
    command = [sys.executable, "-m", "bnengine", "study", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def rows_of(path):
    """Finished trials by what they are; a torn last line does not count."""
    whole = path.read_text().rpartition("\n")[0].split("\n")[1:] if path.exists() else []
    entries = [json.loads(line) for line in whole]
    return {processes._trial_of(entry["row"]): entry for entry in entries if "row" in entry}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
def test_resume_with_other_experiments_adds_them(directory, capsys, tmp_path):
    shutil.copytree(directory, tmp_path / "more")
    status, _, _ = run(capsys, *TINY, "--experiment", "matched", "--out", tmp_path / "more", "--resume")
    assert status == 0
    before, after = (json.loads((place / "study.json").read_text()) for place in (directory, tmp_path / "more"))
    names = list(dict.fromkeys(row["experiment"] for row in after["rows"]))
    assert set(names) == {*NAMES.split(","), "matched"}
    assert f"--experiment {','.join(names)} " in after["meta"]["command"]
    assert [row for row in after["rows"] if row["experiment"] != "matched"] == before["rows"]
    page = (tmp_path / "more" / "study.html").read_text()
    assert all(EXPERIMENTS[name].title.partition("'")[0] in page for name in names)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (
            BrokenProcessPool("raw words"),
            1,
            "a process was killed, perhaps for want of memory; --resume goes on, fewer --jobs take less",
        ),
        (KeyboardInterrupt(), 130, "interrupted; 0 trials are kept, --resume --out x goes on"),
    ],
)
def test_what_ends_a_study_early_says_how_to_go_on(capsys, monkeypatch, error, status, words):
    def ended(*arguments):
        raise error
        yield

    monkeypatch.setattr(processes, "_results", ended)
    got, _, err = run(capsys, *TINY, "--experiment", "bias", "--out", "x")
    assert (got, err.splitlines()[-1]) == (status, f"bnengine: {words}")


def test_a_killed_study_goes_on_where_it_was(capsys, problem):
    pytest.importorskip("matplotlib")
    options = ["--quick", "--steps", "200", "--experiment", "initial_scale", "--jobs", "2", "--out", "cut"]
    process = started(*options)
    file = Path("cut/rows.jsonl")
    while len(rows_of(file)) < 3 and process.poll() is None:
        time.sleep(0.01)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]  # no orphan goes on
    kept = rows_of(file)
    assert 3 <= len(kept) < 20
    with file.open("a") as torn:
        torn.write('{"row": {"experim')
    status, _, err = run(capsys, *options, "--resume")
    assert status == 0, err
    done = rows_of(file)
    assert len(done) == 20
    assert kept.items() <= done.items()  # not made again: seconds and all
    record = json.loads(Path("cut/study.json").read_text())
    assert [session["runs"] for session in record["meta"]["sessions"]] == [20 - len(kept)]
    for one in (0, -1):  # of both sessions: the same numbers as a trial by itself
        row, curve = trial.train(list(done)[one], problem, 0.8)
        assert curve == done[list(done)[one]]["curve"]
        assert row | {"seconds": 0} == done[list(done)[one]]["row"] | {"seconds": 0}


# ---- requests that are refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--experiment", "depth,width"], "--experiment: expected some of section_4_1, learning_rate, "),
        (["--experiment", " ,"], "--experiment: expected some of section_4_1, learning_rate, "),
        (["--seeds", "2"], "--seeds: expected at least 3, got 2; --quick takes less"),
        (["--steps", "100"], "--steps: expected at least 2000, got 100; --quick takes less"),
        (["--quick", "--seeds", "1"], "--seeds: expected at least 2, got 1"),
        (["--quick", "--steps", "0"], "--steps: expected at least 1, got 0"),
        (["--target", "1.5"], "--target: expected a test accuracy between 0 and 1, got 1.5"),
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--resume"], "--resume: name the study with --out"),
        (["--resume", "--overwrite", "--out", "x"], "--resume: excludes --overwrite"),
        (["--data", "nothing.csv"], "--data: no file or directory nothing.csv"),
    ],
)
def test_requests_that_cannot_be_met(capsys, arguments, reason):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"bnengine: {reason}")
    assert err.count("\n") == 1
    assert os.listdir() == []


@pytest.mark.parametrize("module", ["matplotlib", "tqdm"])
def test_what_the_end_needs_is_asked_for_at_the_start(capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    status, out, err = run(capsys, *TINY)
    assert (status, out, err) == (2, "", f"bnengine: study: needs {module}; install the extra train\n")
    assert os.listdir() == []


def test_values_are_no_classes(capsys):
    Path("values.csv").write_text("a,b\n" + "".join(f"{i},{i / 7}\n" for i in range(60)))
    status, _, err = run(capsys, "--data", "values.csv")
    assert (status, err) == (2, "bnengine: --data: the study needs classes to learn, and values.csv has values\n")


def test_a_directory_that_is_no_study_or_another_s_is_refused(capsys, directory):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    status, _, err = run(capsys, *TINY, "--out", "mine", "--overwrite")
    assert (status, os.listdir("mine")) == (2, ["letter.txt"])
    assert err.startswith("bnengine: --out: mine holds letter.txt and no rows.jsonl")
    status, _, err = run(capsys, *TINY, "--out", directory)
    assert status == 2
    assert "--resume goes on with it, --overwrite starts anew in it" in err
    status, _, err = run(capsys, *TINY, "--out", directory, "--resume", "--target", "0.7")
    assert status == 2
    assert "holds rows of target 0.8, expected 0.7; choose another directory" in err
    status, _, err = run(capsys, *TINY, "--out", directory, "--resume", "--steps", "13")
    assert status == 2
    assert "holds rows of steps 12, expected 13; choose another directory" in err


@pytest.mark.parametrize("line", ["nothing", "[1]", '{"row": {}}', '{"row": {"experiment": "x"}, "curve": {}}'])
def test_a_damaged_file_of_rows_is_refused_by_line(tmp_path, line):
    about = {"format": 1, "data": "digits"}
    file = tmp_path / "rows.jsonl"
    processes.RowsFile(file, about, {})
    with file.open("a") as damaged:
        damaged.write(f"{line}\n")
    with pytest.raises(
        ConfigError, match=r"rows.jsonl, line 2: expected a row of a study; without the line --resume goes on"
    ):
        processes.RowsFile(file, about, {})


def test_a_study_that_was_killed_at_its_first_line_starts_anew(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"format": 1, "da')
    assert processes.RowsFile(file, {"format": 1}, {"date": "today"}).done == {}
    assert json.loads(file.read_text()) == {"format": 1, "made": {"date": "today"}}
