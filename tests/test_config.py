from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bnengine.runs.config import FIELDS, Config, ConfigError, read_toml, resolve, to_toml


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
    config = resolve(
        {"label": "y", "device": "cpu", "clip": 1.0, "early_stopping": 2, "hidden": (3, 4), "sync_ranks": 2}
    )
    text = to_toml(config)
    own = {"out", "resume", "overwrite", "distributed", "timeout"}  # where a run goes, not what it is
    assert {line.partition(" = ")[0] for line in text.splitlines()} >= set(FIELDS) - own
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
    ("norm = 'layer'", "norm: expected batch, none, got 'layer'"),
    ("optimizer = 'sophia'", "optimizer: expected sgd, momentum, nesterov, rmsprop, adam, adamw, nadam, lion, got"),
    ("epochs = 0", "epochs: expected at least 1, got 0"),
    ("batch_size = 1", "batch_size: expected at least 2, got 1"),
    ("learning_rate = 0", "learning_rate: expected a positive number, got 0.0"),
    ("learning_rate = nan", "learning_rate: expected a positive number, got nan"),
    ("clip = -1", "clip: expected a positive number, got -1.0"),
    ("weight_decay = -1", "weight_decay: expected a number of at least 0, got -1.0"),
    ("test = 0", "test: expected a part between 0 and 1, got 0.0"),
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
        read_toml(Path("nowhere.toml"))


def test_every_option_has_a_text():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"], field.name
