from __future__ import annotations

import re
from pathlib import Path

import pytest

from bnengine import bench, study
from bnengine.arguments import ConfigError
from bnengine.options import fields
from bnengine.runs.config import Config, resolve, to_toml


def toml(text):
    Path("run.toml").write_text(text)
    return "run.toml"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(monkeypatch):
    monkeypatch.setenv("BNENGINE_BACKEND", "torch")
    file = toml('backend = "jax"\nepochs = 3\n')
    assert resolve({"backend": "numpy"}, file).backend == "numpy"
    assert resolve({}, file).backend == "jax"
    assert resolve({}, file).epochs == 3
    assert resolve({}).backend == "torch"
    monkeypatch.delenv("BNENGINE_BACKEND")
    assert resolve({}).backend == "auto"


def test_every_option_can_stand_in_a_file():
    given = {"label": "y", "device": "cpu", "clip": 1.0, "early_stopping": 2, "hidden": (3, 4), "sync_ranks": 2}
    given |= {"test_data": "b.csv", "delimiter": ";", "drop": 'id,"a,b",-1'}
    Path("run").mkdir()
    Path("run/config.toml").write_text("hidden = [3, 4]\n")
    Path("run/model.safetensors").touch()
    config = resolve(given | {"start": "run", "freeze": "0"})
    assert config.drop == ("id", "a,b", "-1")
    text = to_toml(config)
    own = {"out", "resume", "overwrite", "distributed", "timeout"}  # where a run goes, not what it is
    assert {line.partition(" = ")[0] for line in text.splitlines()} >= set(fields(Config)) - own
    assert resolve({}, toml(text)) == config
    assert resolve({}, toml('out = "here"\nresume = true\n')).out == "here"


def test_sizes_in_all_their_forms():
    assert resolve({"hidden": 8}).hidden == (8,)
    for value in ("64,32", [64, 32], (64, 32)):
        assert resolve({"hidden": value}).hidden == (64, 32)
    assert resolve({"hidden": "0"}).hidden == resolve({"hidden": []}).hidden == ()


REFUSED = [
    ("epoch = 3", r"run.toml: unknown option 'epoch'; did you mean epochs\?"),
    ("zzz = 3", "unknown option 'zzz'; the options are data, label"),
    ("epochs = ", r"run.toml: cannot be read as TOML: Invalid value"),
    ("epochs = 'three'", "epochs: expected int, got 'three'"),
    ("epochs = true", "epochs: expected int, got True"),
    ("epochs = 2.5", "epochs: expected int, got 2.5"),
    ("precise_bn = 1", "precise_bn: expected bool, got 1"),
    ("hidden = ['a']", r"hidden: expected sizes such as 256,128, got \['a'\]"),
    ("hidden = [4, -1]", "hidden: expected positive sizes, got 4,-1"),
    ("norm = 'layer'", "norm: expected batch, dyt, none, got 'layer'"),
    ("optimizer = 'sophia'", "optimizer: expected sgd, momentum, nesterov, rmsprop, adam, adamw, nadam, lion, got"),
    ("epochs = 0", "epochs: expected at least 1, got 0"),
    ("batch_size = 1", "batch_size: expected at least 2 rows to take batch statistics of, got 1"),
    ("learning_rate = 0", "learning_rate: expected a positive number, got 0.0"),
    ("learning_rate = nan", "learning_rate: expected a positive number, got nan"),
    ("clip = -1", "clip: expected a positive number, got -1.0"),
    ("weight_decay = -1", "weight_decay: expected a number of at least 0, got -1.0"),
    ("test = 1", "test: expected a part between 0 and 1, got 1.0"),
    ("validation = 1", "validation: expected a part between 0 and 1, got 1.0"),
    ("validation = 0\nearly_stopping = 2", "early_stopping: needs validation rows"),
    ("seed = -1", "seed: expected at least 0, got -1"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_files_are_refused_by_option(text, message):
    with pytest.raises(ConfigError, match=message):
        resolve({}, toml(text))


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match=r"config: no such file: nowhere\.toml"):
        resolve({}, "nowhere.toml")


WRONG_ALONE = [
    ("epochs = 2.5", {"epochs": 3}, "run.toml: epochs: expected int, got 2.5"),
    ("batch_size = 0", {"batch_size": 8}, "run.toml: batch_size: expected at least 1, got 0"),
    ("hidden = [4, -1]", {"hidden": "4"}, "run.toml: hidden: expected positive sizes, got 4,-1"),
    ("norm = 'layer'", {"norm": "batch"}, "run.toml: norm: expected batch, dyt, none, got 'layer'"),
]


@pytest.mark.parametrize(("text", "given", "message"), WRONG_ALONE, ids=range(len(WRONG_ALONE)))
def test_a_wrong_value_in_a_file_names_the_file_though_the_command_line_overrules_it(text, given, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        resolve(given, toml(text))


def test_the_study_and_the_bench_read_files_too():
    file = toml('experiment = "depth"\nquick = true\nbackend = "torch"\n')
    wanted = study.Options.resolve({"seeds": 2, "jobs": 2}, file)
    assert wanted.command() == "bnengine study --experiment depth --quick --seeds 2 --backend torch"
    assert {trial.backend for trial in wanted.trials()} == {"torch"}
    wanted = bench.Options.resolve({"quick": True, "out": "x.json"}, toml("kernels = true\ndraw = 3\nminutes = 2\n"))
    assert wanted.command() == "bnengine bench --kernels --draw 3 --minutes 2.0"
    for kind, text in ((study.Options, "epochs = 3"), (bench.Options, "jobs = 3")):
        with pytest.raises(ConfigError, match=r"^run.toml: unknown option '(epochs|jobs)'"):
            kind.resolve({}, toml(text))


def test_the_command_line_repeats_options_that_are_switched_off():
    assert resolve({"standardize": False, "batch_size": 9}).command() == (
        "bnengine train --no-standardize --batch-size 9"
    )


@pytest.mark.parametrize("kind", [Config, study.Options, bench.Options])
def test_every_option_has_a_text(kind):
    for field in fields(kind).values():
        assert field.metadata["help"], field.name
