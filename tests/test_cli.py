"""The commands as a user gives them: in their own process where the process matters, else through main()."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libraries import need

import bnengine as bn
from bnengine import data, trees
from bnengine.cli import main
from bnengine.options import fields
from bnengine.runs import classes, run_directory
from bnengine.runs.config import Config
from bnengine.runs.curves import confusion_picture

QUICK = ["--epochs", "2", "--hidden", "32", "--batch-size", "50", "--learning-rate", "0.02"]


def run(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    return status, *capsys.readouterr()


@pytest.fixture
def digits_run(capsys):
    assert run(capsys, "train", "--out", "run", *QUICK)[0] == 0
    return Path("run")


def test_train_writes_a_whole_run_directory(digits_run):
    assert set(os.listdir(digits_run)) == {*run_directory.FILES, ".lock"}
    rows = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"step", "seconds", "train_loss", "validation_loss", "validation_accuracy"} <= set(rows[0])
    summary = json.loads((digits_run / "summary.json").read_text())
    expected = "test_accuracy test_loss epochs steps seconds backend device dtype kernels parameters seed version"
    assert set(expected.split()) <= set(summary)
    assert (summary["epochs"], summary["steps"], summary["backend"]) == (2, 52, "numpy")
    assert summary["test_accuracy"] > 0.7
    assert (digits_run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_gives_the_same_network(digits_run, capsys):
    assert run(capsys, "train", "--out", "again", "--config", digits_run / "config.toml")[0] == 0
    first, second = (bn.load(f"{name}/model.safetensors") for name in ("run", "again"))
    for a, b in zip(trees.leaves(first.params), trees.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluate_repeats_the_test_accuracy(digits_run, capsys):
    status, out, _ = run(capsys, "evaluate", digits_run)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert status == 0
    assert f"accuracy: {summary['test_accuracy']:.6g}\n" in out
    assert "rows: 360" in out


def test_figures_of_each_class_are_scikit_learn_s(digits_run, capsys):
    from sklearn.metrics import classification_report

    digits, loaded = data.load("digits"), bn.load(digits_run / "model.safetensors")
    given = bn.predict(loaded.net, loaded.params, loaded.state, digits.x_test).argmax(axis=1)
    report = classification_report(digits.y_test, given, output_dict=True)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert list(summary["classes"]) == list(digits.classes)
    for name, figures in summary["classes"].items():
        expected = [report[name][word] for word in ("precision", "recall", "f1-score", "support")]
        assert list(figures.values()) == pytest.approx(expected)
    pairs = [(true, guess) for true in range(10) for guess in range(10)]
    counts = [int(np.sum((digits.y_test == true) & (given == guess))) for true, guess in pairs]
    assert summary["confusion"] == np.reshape(counts, (10, 10)).tolist()
    assert (digits_run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    out = run(capsys, "evaluate", digits_run)[1].splitlines()
    zero = summary["classes"]["0"]
    cells = [f"{zero[word]:.4f}" for word in ("precision", "recall", "f1")]
    assert out[5].split() == ["0", *cells, "36", *map(str, summary["confusion"][0])]


def test_tables_and_pictures_of_many_classes():
    def figures(count):
        return {f"${i}$": {"precision": None, "recall": 0.0, "f1": i / count, "rows": i} for i in range(count)}

    few, some, many = (figures(count) for count in (3, 30, 60))
    assert classes.table({"\x1b[2J": few["$0$"]}, [[1]])[1].startswith("\\x1b[2J")
    assert len({len(line) for line in classes.table(few, [[1, 2, 3]] * 3)}) == 1
    assert classes.table(some, [[0] * 30] * 30)[-1].split() == ["$29$", "-", "0.0000", "0.9667", "29"]
    assert classes.table(many, None)[-2:] == [
        "$49$           -  0.0000  0.8167    49",
        "and 10 more classes with a higher f1",
    ]
    for names in (few, some):
        summary = {"data": "猫", "classes": names, "test_accuracy": 0.5, "confusion": [[0] * len(names)] * len(names)}
        assert confusion_picture(summary).startswith(b"\x89PNG")


def test_predict_needs_nothing_but_the_run(digits_run, capsys):
    dataset = data.load("digits")
    np.savez("rows.npz", x=dataset.x_test)  # raw rows: standardisation is in the model
    for name in ("summary.json", "metrics.jsonl", "checkpoint.safetensors", "curves.png"):
        (digits_run / name).unlink()
    status, out, _ = run(capsys, "predict", digits_run, "--data", "rows.npz")
    assert status == 0
    rows = list(csv.DictReader(out.splitlines()))
    assert list(rows[0]) == ["prediction", *(f"p({i})" for i in range(10))]
    guesses = np.asarray([int(row["prediction"]) for row in rows])
    assert np.mean(guesses == dataset.y_test) > 0.7
    assert sum(float(rows[0][f"p({i})"]) for i in range(10)) == pytest.approx(1, abs=1e-5)
    assert run(capsys, "predict", digits_run, "--data", "rows.npz", "--out", "guesses.csv")[:2] == (0, "")
    assert Path("guesses.csv").read_text() == out


def test_a_csv_from_training_to_prediction(capsys, rng):
    x = rng.standard_normal((300, 2)) * [1, 1e3]
    kind = np.where(x[:, 0] > 0, "right", "left")
    with Path("points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "east", "north"])
        writer.writerows([k, *row] for k, row in zip(kind, x, strict=True))
    assert (
        run(capsys, "train", "--data", "points.csv", "--label", "kind", "--out", "run", *QUICK, "--epochs", 20)[0] == 0
    )
    status, out, _ = run(capsys, "evaluate", "run", "--data", "points.csv")
    assert status == 0
    assert float(out.split("accuracy: ")[1].split()[0]) > 0.95
    Path("new.csv").write_text("north,east,remark\n5,2,x\n5,-2,y\n")  # other order, no label, one column more
    status, out, _ = run(capsys, "predict", "run", "--data", "new.csv")
    assert [line.split(",")[0] for line in out.splitlines()] == ["prediction", "right", "left"]
    Path("new.csv").write_text("north,east,label\n5,2,right\n")
    status, _, err = run(capsys, "evaluate", "run", "--data", "new.csv")  # its last column is not the label by chance
    assert (status, err) == (2, "bnengine: new.csv: no column 'kind'; its columns are north, east, label\n")
    assert run(capsys, "evaluate", "run", "--data", "new.csv", "--label", "label")[0] == 0
    Path("new.csv").write_text("north,east,kind\n5,2,right\n\n5,2,Up\x1b[2J\n")
    status, _, err = run(capsys, "evaluate", "run", "--data", "new.csv")
    assert err == "bnengine: new.csv, line 4: label 'Up\\x1b[2J' is none of the classes left, right\n"
    Path("new.csv").write_text("north\n5\n")
    assert run(capsys, "predict", "run", "--data", "new.csv") == (
        2,
        "",
        "bnengine: new.csv: no column east; its columns are north\n",
    )


def test_training_on_all_rows_leaves_nothing_to_test_on(capsys):
    status, out, _ = run(capsys, "train", "--test", "0", "--data", "breast-cancer", "--out", "run", *QUICK)
    assert status == 0
    assert "512 training, 57 validation rows, none for testing" in out
    assert "no test rows: how good the network is can be told on other data" in out
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["test_accuracy"], summary["test_loss"]) == (None, None)
    reason = "the run was trained on all rows of breast-cancer; name other rows with --data"
    assert run(capsys, "evaluate", "run") == (2, "", f"bnengine: data: {reason}\n")


def test_a_test_file_is_measured_by_train_and_evaluate(capsys, rng):
    x = rng.standard_normal((150, 2))
    lines = [f"{a},{b},{'right' if a > 0 else 'left'}" for a, b in x]
    Path("points.csv").write_text("\n".join(["a,b,kind", *lines[:100], ""]))
    Path("more.csv").write_text("\n".join(["a,b,kind", *lines[100:], ""]))
    options = ["--data", "points.csv", "--test-data", "more.csv", "--out", "run", *QUICK, "--epochs", 10]
    status, out, _ = run(capsys, "train", *options)
    assert status == 0
    assert "90 training, 10 validation, 50 test rows" in out.replace("validation rows", "validation")
    summary = json.loads(Path("run/summary.json").read_text())
    for more in ([], ["--data", "more.csv"]):
        out = run(capsys, "evaluate", "run", *more)[1]
        assert "rows: 50\n" in out
        assert f"accuracy: {summary['test_accuracy']:.6g}\n" in out


def test_regression_from_training_to_prediction(capsys, rng):
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    np.savez("diabetes.npz", x=x, y=y)
    options = ["--task", "regression", "--out", "run", "--hidden", "0", "--epochs", 40, "--learning-rate", 0.02]
    status, out, _ = run(capsys, "train", "--data", "diabetes.npz", *options)
    assert status == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test_r2"] > 0.3
    assert 40 < summary["test_rmse"] < 70  # in the units of the targets, whose standard deviation is 77
    status, out, _ = run(capsys, "predict", "run", "--data", "diabetes.npz")
    values = np.asarray([float(line) for line in out.splitlines()[1:]])
    assert np.corrcoef(values, y)[0, 1] > 0.6
    assert abs(values.mean() - y.mean()) < 15
    status, out, _ = run(capsys, "evaluate", "run")
    assert f"r2: {summary['test_r2']:.6g}" in out


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "none"],
        ["--norm-position", "post", "--activation", "tanh"],
        ["--no-standardize", "--activation", "leaky_relu", "--initialization", "normal", "--initial-scale", "0.05"],
        ["--optimizer", "nesterov", "--schedule", "step", "--warm-up", "1", "--weight-decay", "1e-4", "--clip", "1"],
        ["--early-stopping", "1", "--precise-bn", "--schedule", "constant", "--dtype", "float64"],
        ["--data", "breast-cancer", "--hidden", "0", "--validation", "0", "--on-nonfinite", "skip"],
    ],
)
def test_options_train(capsys, options):
    status, out, err = run(capsys, "train", "--out", "run", *QUICK, *options)
    assert (status, err) == (0, "")
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test_accuracy"] > 0.2
    assert f"test_accuracy {summary['test_accuracy']:.4f}" in out


@pytest.mark.parametrize(("epochs", "stopping"), [(200, 2), (2, 2), (2, None)])
def test_a_run_says_which_epoch_it_kept(capsys, epochs, stopping):
    options = ["--learning-rate", 0.05, "--epochs", epochs, *(["--early-stopping", stopping] if stopping else [])]
    out = run(capsys, "train", "--out", "run", *QUICK, *options)[1]
    summary = json.loads(Path("run/summary.json").read_text())
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = 1 + int(np.argmin([row["validation_loss"] for row in rows]))
    assert (summary["kept_epoch"], summary["stopped_early"]) == (best if stopping else 2, epochs == 200)
    words = {
        (
            200,
            2,
        ): f"stopped after epoch {len(rows)}: validation loss has not fallen since epoch {best}, whose network is kept",
        (2, 2): f"the network of epoch {best} of 2, that with the lowest validation loss, is kept",
        (2, None): "the network of the last epoch, 2, is kept",
    }
    assert words[epochs, stopping] in out.splitlines()


def test_without_normalisation_a_batch_may_be_a_row(capsys):
    np.savez("rows.npz", x=np.arange(12.0)[:, None] % 2, y=np.arange(12) % 2)
    options = ["--data", "rows.npz", "--batch-size", 1, "--epochs", 2, "--validation", 0, "--hidden", 4, "--out", "run"]
    status, out, _ = run(capsys, "train", *options, "--norm", "none", "--precise-bn")
    assert (status, out.splitlines()[1]) == (0, "rows: 9 training, 3 test rows, 1 feature, 2 classes")
    assert json.loads(Path("run/summary.json").read_text())["steps"] == 18


def test_a_network_larger_than_the_memory_is_refused(capsys):
    status, _, err = run(capsys, "train", "--hidden", "2000000,2000000", "--out", "run")
    assert (status, err.partition(" parameters")[0]) == (2, "bnengine: --hidden: 4,000,156,000,010")
    assert not Path("run").exists()


def test_resume_needs_no_options_again(capsys):
    assert run(capsys, "train", "--out", "run", *QUICK)[0] == 0
    before = Path("run/metrics.jsonl").read_text()
    assert run(capsys, "train", "--out", "run", "--resume")[0] == 0
    assert Path("run/metrics.jsonl").read_text() == before


def test_resume_where_nothing_was_says_so_and_asks_after_a_slip(capsys):
    resume = ["train", *QUICK, "--epochs", "1", "--resume", "--out"]
    status, out, _ = run(capsys, *resume, "r/first-1")
    assert (status, out.splitlines()[0]) == (0, "nothing at r/first-1 yet: starting a new run")
    assert "nothing at" not in run(capsys, *resume, "r/first-1")[1]
    asked = "nothing at r/frist-1; did you mean r/first-1? Without --resume a new run starts there"
    assert run(capsys, *resume, "r/frist-1") == (2, "", f"bnengine: --out: {asked}\n")
    assert os.listdir("r") == ["first-1"]
    for another in ("r/first-2", "r/second-1", "frist-1"):  # the next of a series, another name, another place
        assert run(capsys, *resume, another)[0] == 0


def test_a_run_with_a_constant_schedule_can_be_lengthened(capsys):
    options = [*QUICK, "--schedule", "constant", "--warm-up", "1"]
    assert run(capsys, "train", "--out", "whole", *options, "--epochs", "4")[0] == 0
    assert run(capsys, "train", "--out", "longer", *options)[0] == 0
    assert run(capsys, "train", "--out", "longer", "--resume", "--epochs", "4")[0] == 0
    whole, longer = (bn.load(f"{name}/model.safetensors") for name in ("whole", "longer"))
    for a, b in zip(trees.leaves(whole.params), trees.leaves(longer.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "epochs = 4\n" in Path("longer/config.toml").read_text()
    status, _, err = run(capsys, "train", "--out", "longer", "--resume", "--epochs", "3")
    assert (status, err) == (
        2,
        "bnengine: --resume: epochs was 4 in longer and is 3 now; a resumed run keeps its configuration\n",
    )


def test_a_schedule_that_ends_cannot_be_lengthened(digits_run, capsys):
    status, _, err = run(capsys, "train", "--out", digits_run, "--resume", "--epochs", "9")
    reason = "only a run with a constant schedule can be lengthened, this one's is cosine; bnengine train --start run "
    reason += "trains its network further, as a run of its own"
    assert (status, err) == (2, f"bnengine: --resume: epochs was 2 in run and is 9 now; {reason}\n")


@pytest.mark.parametrize("freeze", [[], ["--freeze", "1,BatchNorm"]])
def test_a_run_starts_from_the_network_of_another(digits_run, capsys, freeze):
    base = bn.load(digits_run / "model.safetensors")
    start = ["train", "--start", digits_run, "--epochs", 2, "--learning-rate", "0.001", *freeze]
    status, out, _ = run(capsys, *start, "--out", "tuned")
    assert status == 0
    assert ("starting from the network of run, layers 1, 2 stay as they are" in out) == bool(freeze)
    tuned, rows = bn.load("tuned/model.safetensors"), Path("tuned/metrics.jsonl").read_text().splitlines()
    before, after = ({**trees.flatten(net.params), **trees.flatten(net.state)} for net in (base, tuned))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    frozen = {"1.weight", *(f"2.{name}" for name in ("gamma", "beta", "mean", "var", "batches"))}
    assert same == {"0.mean", "0.var"} | (frozen if freeze else set())
    first = json.loads((digits_run / "metrics.jsonl").read_text().splitlines()[0])
    assert json.loads(rows[0])["validation_loss"] < first["validation_loss"]
    assert "hidden = [\n    32,\n]" in Path("tuned/config.toml").read_text()
    assert run(capsys, *start, "--out", "again")[0] == 0
    for name in ("model", "checkpoint"):  # goes on after its first epoch to the same bits
        Path(f"again/{name}.safetensors").unlink()
    assert len(bn.load("again/previous.safetensors").metadata["history"]) == 1
    assert run(capsys, "train", "--resume", "--out", "again")[0] == 0
    for a, b in zip(trees.leaves(bn.load("again/model.safetensors").params), trees.leaves(tuned.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for file in digits_run.iterdir():
        file.unlink()
    assert run(capsys, "evaluate", "tuned")[0] == 0  # needs nothing but the run


def test_a_run_that_starts_from_another_keeps_the_scale_of_its_targets(capsys, rng):
    x = rng.standard_normal((80, 3))
    np.savez("one.npz", x=x, y=x @ [1.0, 2.0, 3.0])
    np.savez("two.npz", x=x, y=x @ [1.0, 2.0, 3.0] * 5 + 100)
    assert run(capsys, "train", "--data", "one.npz", "--task", "regression", "--out", "one", *QUICK)[0] == 0
    still = ["--start", "one", "--epochs", 1, "--learning-rate", 1e-30, "--freeze", "BatchNorm"]
    assert run(capsys, "train", *still, "--data", "two.npz", "--out", "two")[0] == 0
    one, two = (run(capsys, "predict", name, "--data", "one.npz")[1] for name in ("one", "two"))
    assert one == two
    summary = json.loads(Path("two/summary.json").read_text())
    values = np.asarray([float(line) for line in run(capsys, "predict", "two", "--data", "two.npz")[1].split()[1:]])
    assert summary["test_rmse"] == pytest.approx(100, rel=0.3)
    assert abs(values.mean()) < 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--hidden", "8"], "--hidden: was (32,) in run and is (8,) now; its network stays as it is"),
        (["--data", "breast-cancer"], "--start: the network of run has classes ['0', '1', '2'"),
        (["--freeze", "0"], "--freeze: '0' is no layer with parameters; those are 1 (Linear without bias), 2 (Batch"),
        (["--freeze", "Linear,2"], "--freeze: expected some layers with parameters to be left for training"),
        (["--start", "nothing"], "--start: expected the directory of a finished run, with model.safetensors in it"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(digits_run, capsys, options, reason):
    status, _, err = run(capsys, "train", "--start", digits_run, "--out", "tuned", *options)
    assert (status, err[: len(reason) + 10]) == (2, f"bnengine: {reason}")
    assert not Path("tuned").exists()


def test_checkpoints_of_another_run_are_refused(digits_run, capsys):
    """Another network, dtype or option, and one that is no checkpoint; each where it took the place of both."""
    kept = {name: (digits_run / name).read_bytes() for name in ("checkpoint.safetensors", "previous.safetensors")}
    for options, words in (
        (["--hidden", "16"], "holds another network than the run's"),
        (["--dtype", "float64"], "holds float64 parameters, the run's are float32"),
        (["--seed", "1"], "belongs to a run with another seed"),
    ):
        assert run(capsys, "train", "--out", "other", "--overwrite", *QUICK, *options)[0] == 0
        for name in kept:
            (digits_run / name).write_bytes(Path("other/checkpoint.safetensors").read_bytes())
        status, _, err = run(capsys, "train", "--out", digits_run, "--resume")
        assert status == 2
        assert err.startswith(
            f"bnengine: run/checkpoint.safetensors: {words}; run/previous.safetensors: {words}; --over"
        )
    for name in kept:
        (digits_run / name).write_bytes((digits_run / "model.safetensors").read_bytes())
    assert "holds a network and no state of its training" in run(capsys, "train", "--out", digits_run, "--resume")[2]
    (digits_run / "previous.safetensors").write_bytes(kept["previous.safetensors"])
    status, out, _ = run(capsys, "train", "--out", digits_run, "--resume")
    assert status == 0
    assert out.startswith("run/checkpoint.safetensors: holds a network and no state of its training, so nothing can ")
    assert "going on from run/previous.safetensors, epoch 1\n" in out


def test_a_best_epoch_that_is_lost(capsys):
    assert run(capsys, "train", "--out", "run", *QUICK)[0] == 0
    Path("run/best.safetensors").write_bytes(b"?")
    status, out, _ = run(capsys, "train", "--out", "run", "--resume")
    assert status == 0
    assert out.startswith("run/best.safetensors: not a whole safetensors file")
    assert run(capsys, "train", "--out", "run", "--overwrite", *QUICK, "--early-stopping", "1")[0] == 0
    Path("run/best.safetensors").unlink()
    status, _, err = run(capsys, "train", "--out", "run", "--resume")
    assert (status, err) == (
        2,
        "bnengine: run/best.safetensors: no such file; early stopping needs the best epoch; --overwrite starts anew\n",
    )


def test_a_second_process_on_a_run_is_refused(digits_run, capsys):
    with run_directory.open_directory(str(digits_run), "digits", overwrite=False, resume=True):
        for option in ("--resume", "--overwrite"):
            status, _, err = run(capsys, "train", "--out", digits_run, option)
            assert (status, err) == (2, f"bnengine: --out: run is in use by process {os.getpid()}\n")
    assert set(os.listdir(digits_run)) == {*run_directory.FILES, ".lock"}


def test_a_damaged_model_is_written_anew(digits_run, capsys):
    model = digits_run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    status, _, err = run(capsys, "evaluate", digits_run)
    assert status == 2
    assert err.endswith("; bnengine train --resume --out run writes it anew\n")
    assert run(capsys, "train", "--resume", "--out", "run")[0] == 0
    assert run(capsys, "evaluate", digits_run)[0] == 0


def test_statistics_that_are_far_from_the_rows_are_reported(digits_run, capsys):
    assert run(capsys, "evaluate", digits_run)[2] == ""
    dataset = data.load("digits")
    np.savez("far.npz", x=dataset.x_test * 3 + 40, y=dataset.y_test)
    status, out, err = run(capsys, "evaluate", digits_run, "--data", "far.npz")
    assert status == 0
    assert "running" not in out
    assert re.fullmatch(
        r"bnengine: warning: running statistics are far from the rows': means by up to [\d.e+]+ standard deviations, "
        r"variances by a factor of up to [\d.]+; see --precise-bn of bnengine train\n",
        err,
    )


@pytest.mark.parametrize("offset", [1.7e9, 1e20])
def test_features_that_float32_cannot_hold_are_refused(capsys, rng, offset):
    x = rng.standard_normal((60, 2)) + np.asarray([0, offset])
    np.savez("far.npz", x=x, y=np.arange(60) % 2)
    status, _, err = run(capsys, "train", "--data", "far.npz", "--out", "run", *QUICK)
    assert status == 2
    assert "dtype: feature 1 has values up to" in err
    assert "use --dtype float64" in err
    if offset < 1e10:
        assert run(capsys, "train", "--data", "far.npz", "--out", "run", *QUICK, "--dtype", "float64")[0] == 0


@pytest.mark.parametrize("backend", ["torch", "jax", "array-api-strict", "dask"])
def test_every_backend_trains_the_same_network(capsys, backend, digits_run):
    need({"array-api-strict": "array_api_strict", "dask": "dask.array"}.get(backend, backend))
    status, _, _ = run(capsys, "train", "--backend", backend, "--out", "other", *QUICK)
    assert status == 0
    ours, theirs = (json.loads(Path(name, "summary.json").read_text()) for name in ("run", "other"))
    assert theirs["backend"] == backend
    assert theirs["test_loss"] == pytest.approx(ours["test_loss"], rel=1e-2)
    assert run(capsys, "evaluate", "other", "--backend", "numpy")[0] == 0


@pytest.mark.parametrize("options", [[], ["--hidden", "64,32,16", "--clip", "0.3", "--optimizer", "adamw"]])
def test_resume_goes_on_to_the_same_bits(capsys, monkeypatch, options):
    """With clipping too: the norm is summed in the order of the parameters, which a file must not change."""
    options = [*QUICK, *options, "--epochs", "4"]
    assert run(capsys, "train", "--out", "whole", *options)[0] == 0
    with monkeypatch.context() as interrupted:
        interrupted.setattr("bnengine.cli._epoch_lines", _interrupted_after_two)
        assert run(capsys, "train", "--out", "cut", *options, "--resume")[0] == 130  # starts where nothing was
    assert run(capsys, "train", "--out", "cut", *options, "--resume")[0] == 0
    whole, resumed = (bn.load(f"{name}/model.safetensors") for name in ("whole", "cut"))
    for a, b in zip(trees.leaves(whole.params), trees.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [
        [json.loads(line)["train_loss"] for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def _interrupted_after_two(row):
    if row["epoch"] == 2:
        raise KeyboardInterrupt
    return ""


def test_a_loss_that_blows_up_is_exit_status_1_with_the_last_good_network(capsys):
    options = ["--norm", "none", "--optimizer", "sgd", "--no-standardize"]
    status, _, err = run(capsys, "train", "--out", "run", *QUICK, *options, "--learning-rate", "1e30")
    assert status == 1
    assert re.fullmatch(
        r"bnengine: the loss or a gradient was not finite in epoch 1, first at step \d: .+ layer \d \(\w+\); "
        r"no epoch was good, so no network is saved\n",
        err,
    )
    assert not Path("run/model.safetensors").exists()
    # A linear network whose learning rate rises a little each epoch, until the loss explodes.
    options += ["--activation", "identity", "--schedule", "constant", "--learning-rate", "0.2"]
    options += ["--warm-up", "40", "--epochs", "40"]
    status, _, err = run(capsys, "train", "--out", "run", "--overwrite", *QUICK, *options)
    assert status == 1
    good = int(re.search(r"; the network of epoch (\d+) is in run/model.safetensors\n$", err)[1])
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == good
    assert all(np.isfinite(leaf).all() for leaf in trees.leaves(bn.load("run/model.safetensors").params))


# ---- data that are not what they were


def table(names="abk", kinds="xy", rows=60, first=0.0):
    rng = np.random.default_rng(0)
    lines = [f"{a:.3f},{b:.3f},{kinds[int(a > 0)]}" for a, b in rng.standard_normal((rows, 2))]
    return "\n".join([",".join(names), f"{first},0.5,{kinds[0]}", *lines]) + "\n"


CHANGED = {
    "values have changed": table(first=0.001),
    "rows were [48, 13] and are [32, 9] now": table(rows=40),
    "classes were ['x', 'y'] and are ['y', 'z'] now": table(kinds="zy"),
    "classes have": table(kinds="yx"),
    "columns were ['a', 'b'] and are ['b', 'a'] now": table("bak"),
    "label was": table("abd"),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("epochs", [1, 3])
def test_resume_refuses_other_data(capsys, change, epochs):
    options = [
        "train",
        "--data",
        "rows.csv",
        "--schedule",
        "constant",
        "--validation",
        "0",
        "--hidden",
        "4",
        "--out",
        "run",
    ]
    Path("rows.csv").write_text(table())
    assert run(capsys, *options, "--epochs", "1")[0] == 0
    kept = Path("run/model.safetensors").read_bytes()
    Path("rows.csv").write_text(CHANGED[change])
    status, _, err = run(capsys, *options, "--epochs", epochs, "--resume")
    assert status == 2
    words = {"classes have": "values have changed", "label was": "label were 'k' and are 'd' now"}.get(change, change)
    assert (
        err == f"bnengine: --data: rows.csv is not what the run was trained on: its {words}; --overwrite starts anew\n"
    )
    assert Path("run/model.safetensors").read_bytes() == kept


def test_evaluate_refuses_its_own_data_with_other_names(capsys):
    Path("rows.csv").write_text(table())
    assert run(capsys, "train", "--data", "rows.csv", "--epochs", "1", "--hidden", "4", "--out", "run")[0] == 0
    Path("rows.csv").write_text(table(kinds="zy"))
    status, _, err = run(capsys, "evaluate", "run")
    assert (status, err) == (2, "bnengine: rows.csv: its classes are no longer those that the run was trained on\n")


def test_predict_spares_the_rows_and_the_run(digits_run, capsys):
    np.savez("rows.npz", x=data.load("digits").x_test)
    for out, reason in (("rows.npz", "is the file of --data too"), ("run/model.safetensors", "is a file of the run")):
        before = Path(out).read_bytes()
        status, _, err = run(capsys, "predict", "run", "--data", "rows.npz", "--out", out)
        assert (status, err) == (2, f"bnengine: --out: {out} {reason}; choose another\n")
        assert Path(out).read_bytes() == before


def test_predict_refuses_rows_without_a_finite_output(digits_run, capsys):
    x = data.load("digits").x_test.astype(np.float64)
    x[3, 5] = 1e308
    np.savez("rows.npz", x=x)
    status, out, err = run(capsys, "predict", "run", "--data", "rows.npz")
    assert (status, out) == (2, "")
    assert err.startswith("bnengine: rows.npz: row 4, with values up to 1e+308, is too far from the training rows")
    assert err.count("\n") == 1


def test_targets_that_have_no_standard_deviation_are_refused(capsys):
    rng = np.random.default_rng(0)
    np.savez("t.npz", x=rng.random((50, 4)), y=rng.random(50) * 1e300)
    status, _, err = run(capsys, "train", "--data", "t.npz", "--out", "run")
    assert (status, Path("run").exists()) == (2, False)
    assert err.startswith("bnengine: --data: targets up to ")
    assert err.count("\n") == 1


WRONG = [
    (["train", "--epochs", "0"], "bnengine: --epochs: expected at least 1, got 0"),
    (["train", "--learning-rate", "-1"], "bnengine: --learning-rate: expected a positive number, got -1.0"),
    (["train", "--data", ""], "data: expected a name or a path, got ''"),
    (["train", "--data", "\x1b[2J\n.csv"], "data: no file or directory \\x1b[2J .csv"),
    (["train", "--data", "nothing.csv"], "data: no file or directory nothing.csv"),
    (["train", "--data", "digits", "--label", "y"], "label: only a CSV, TSV or Parquet file has columns to choose"),
    (["train", "--config", "none.toml"], "config: no such file: none.toml"),
    (["train", "--resume"], "resume: name the run with --out"),
    (["train", "--resume", "--overwrite", "--out", "x"], "resume: excludes --overwrite"),
    (["train", "--out", "existing"], "out: existing exists; --resume goes on with it, --overwrite starts anew"),
    (["train", "--backend", "numpy", "--device", "cuda:0"], "device: numpy has only 'cpu', got 'cuda:0'"),
    (["train", "--validation", "0", "--early-stopping", "2"], "--early-stopping: needs validation rows"),
    (["train", "--hidden", "a,b"], "hidden: expected sizes such as 256,128, got 'a,b'"),
    (["evaluate", "nowhere"], "nowhere: expected the directory of a finished run"),
    (["evaluate", "nowhere", "--label", "y"], "label: says which column of --data holds the labels"),
    (["predict", "nowhere", "--data", "digits"], "nowhere: expected the directory of a finished run"),
    (["train", "--norm", "layer"], "argument --norm: invalid choice: 'layer'"),
    (["train", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    (["train", "--out", "file/run"], "bnengine: file/run: Not a directory"),
    (["train", "--seed", "4294967296"], "seed: expected less than 2**32, got 4294967296"),
    (["fly"], "invalid choice: 'fly'"),
    (["train", "--task", "regression"], "--task: digits has classes to tell apart and no values to predict"),
    (["predict", "x"], "bnengine: the following arguments are required: --data; bnengine predict --help"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_request_is_exit_status_2_in_one_line(capsys, arguments, message):
    Path("existing").mkdir()
    Path("existing/config.toml").write_text("")
    Path("file").write_text("")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("bnengine: ")
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_network_that_is_no_run_s_is_refused(digits_run, capsys):
    net, params, state, *_, metadata, _ = bn.load(digits_run / "model.safetensors")
    good = digits_run / "model.safetensors"
    for change, reason in (
        ({"task": None}, "no task in its metadata, so it is no network of a run"),
        ({"classes": ["a", "b"]}, "its metadata describes 64 features and 2 outputs, its layers have 64 and 10"),
        ({"features": 3}, "its metadata describes 3 features and 10 outputs"),
        ({"columns": [3]}, "its metadata describes 64 features"),
    ):
        bn.save(good, net, params, state, metadata=metadata | change)
        for command in ("predict", "evaluate"):
            status, _, err = run(capsys, command, digits_run, "--data", "digits")
            assert status == 2
            assert err.startswith(f"bnengine: run/model.safetensors: {reason}")


def test_wrong_data_for_a_run(digits_run, capsys):
    np.savez("narrow.npz", x=np.ones((3, 5)), y=np.zeros(3, int))
    for command in ("predict", "evaluate"):
        status, _, err = run(capsys, command, digits_run, "--data", "narrow.npz")
        assert (status, err) == (2, "bnengine: narrow.npz: the run was trained on 64 features, got 5\n")
    np.savez("strange.npz", x=np.ones((3, 64)), y=np.asarray([1, 2, 11]))
    status, _, err = run(capsys, "evaluate", digits_run, "--data", "strange.npz")
    assert status == 2
    assert "strange.npz, row 2: label '11' is none of the classes" in err


def test_resume_refuses_another_configuration(digits_run, capsys):
    status, _, err = run(capsys, "train", "--out", digits_run, "--resume", *QUICK, "--learning-rate", "0.5")
    assert status == 2
    assert err.startswith("bnengine: --resume: learning_rate was 0.02 in run and is 0.5 now")


def test_help_is_complete(capsys):
    status, out, _ = run(capsys, "train", "--help")
    assert status == 0
    for name in (*fields(Config), "config", "debug"):
        assert f"--{name.replace('_', '-')}" in out, name
    assert run(capsys)[0] == 2
    assert run(capsys, "--version")[1] == f"bnengine {bn.__version__}\n"


def test_backends_says_what_is_usable(capsys):
    status, out, _ = run(capsys, "backends")
    assert status == 0
    lines = out.splitlines()
    assert lines[1].startswith("numpy ")
    assert np.__version__ in lines[1]
    if "not usable" in lines[2]:
        assert "install the extra cuda12 or cuda13" in lines[2] or "no GPU answers" in lines[2]


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(data.DataError):
        main(["train", "--data", "nothing.csv", "--debug"])


def bnengine(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "bnengine", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_as_a_process():
    assert bnengine("train", *QUICK).returncode == 0
    assert os.listdir("runs") == ["digits-001"]
    assert bnengine("predict", "runs/digits-001", "--data", "digits").stdout.startswith("prediction,")
    failed = bnengine("evaluate", "runs")
    assert (failed.returncode, failed.stdout) == (2, "")


def test_a_closed_pipe_ends_quietly_but_not_as_done(digits_run):
    command = f"{sys.executable} -m bnengine train --epochs 300 | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1] == "141"
    assert result.stderr in ("", "bnengine: compiling CPU kernels (once; cached)\n")


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal that can be closed")
@pytest.mark.usefixtures("usual_signals")
def test_a_terminal_that_closes_ends_a_run_as_its_signal():
    words = ["train", "--epochs", "100000", "--hidden", "8", "--schedule", "constant", "--out", "run"]
    own = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # the process's own, which hangs up on it
    code = f"{own}; from bnengine import cli; sys.exit(cli.main({words}))"
    terminal, end = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    seen = b""
    while b"validation_loss" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert process.wait(timeout=60) == 129
    assert Path("run/checkpoint.safetensors").exists()


def test_a_missing_extra_is_named(digits_run):
    code = """
import sys
sys.modules["{module}"] = None
from bnengine.cli import main
sys.exit(main({arguments}))
"""
    cases = [
        ("sklearn", ["train"], "data: digits comes with scikit-learn; install the extra train"),
        ("safetensors", ["predict", "run", "--data", "digits"], "needs safetensors; install the extra train"),
    ]
    for module, arguments, message in cases:
        program = code.format(module=module, arguments=arguments)
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert not Path("runs").exists()
