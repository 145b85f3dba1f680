"""A run as data: every option of `bnengine train` with its default, from the command line or a TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import backends, layers, optimizers, parallel
from ..arguments import ConfigError


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None, *, kept: bool = True) -> Any:
    """A field; one that is not `kept` says where a run goes, not what it is, and is left out of its files."""
    return dataclasses.field(default=default, compare=kept, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What a run does. Field names are the options with underscores."""

    data: str = _option(
        "digits", "digits, breast-cancer, fashion-mnist, FILE.npz, FILE.csv or a directory of IDX files"
    )
    label: str | None = _option(
        None,
        "column of a CSV file to predict, by name or position (0 is the first, -1 the last); the last where not given",
    )
    task: str = _option(
        "auto",
        "kind of label; auto: text and few different whole numbers are classes",
        ("auto", "classification", "regression"),
    )
    test: float = _option(0.2, "part of the rows held out for testing, where the data has no test part")
    validation: float = _option(0.1, "part of the training rows held out for validation; 0: none")
    standardize: bool = _option(True, "bring each input feature to mean 0 and variance 1")
    hidden: tuple[int, ...] = _option((256, 256), "sizes of the hidden layers, separated by commas; 0: no hidden layer")
    activation: str = _option("relu", "activation function of the hidden layers", layers.ACTIVATIONS)
    norm: str = _option("batch", "normalisation of the hidden layers", ("batch", "none"))
    norm_position: str = _option("pre", "normalise before (pre) or after (post) the activation", ("pre", "post"))
    initialization: str = _option(
        "auto", "spread of the initial weights; auto: he for ReLUs, glorot otherwise", ("auto", *layers.INITIALIZATIONS)
    )
    initial_scale: float = _option(1.0, "factor of the initial weights")
    optimizer: str = _option("adam", "update rule", tuple(optimizers.BY_NAME))
    learning_rate: float = _option(0.003, "first or largest learning rate")
    schedule: str = _option(
        "cosine",
        "course of the learning rate; step: a tenth after a half and again after three quarters of the training",
        ("constant", "step", "cosine"),
    )
    warm_up: int = _option(0, "epochs in which the learning rate rises to the schedule")
    weight_decay: float = _option(0.0, "weight decay; gamma, beta and biases do not decay")
    clip: float | None = _option(None, "largest norm of all gradients together; no clipping where not given")
    batch_size: int = _option(64, "rows in a mini-batch")
    epochs: int = _option(30, "passes over the training rows")
    early_stopping: int | None = _option(None, "stop after so many epochs without a lower validation loss")
    precise_bn: bool = _option(False, "recompute the running statistics over the training rows at the end")
    on_nonfinite: str = _option(
        "stop",
        "where a loss or gradient is not finite, stop at the end of the epoch or skip the step's update",
        ("stop", "skip"),
    )
    seed: int = _option(0, "seed of the splits, the initial weights and the shuffles")
    backend: str = _option(
        "auto", "array library; auto: cupy where a GPU answers, else numpy", ("auto", *backends.NAMES)
    )
    device: str | None = _option(None, "device in the library's words, such as cuda:1; its default where not given")
    dtype: str = _option("float32", "floating dtype of parameters and data", ("float32", "float64"))
    sync_ranks: int | None = _option(None, "ranks that share batch statistics, 1: each its own; all where not given")
    distributed: str = _option("none", "how ranks that a launcher started communicate", parallel.KINDS, kept=False)
    timeout: float = _option(300.0, "seconds to wait for other ranks before giving them up", kept=False)
    out: str | None = _option(None, "directory of the run; a new one under runs/ where not given", kept=False)
    resume: bool = _option(False, "go on with the run in --out, or start it where nothing was", kept=False)
    overwrite: bool = _option(False, "start anew in an existing --out", kept=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices is not None and getattr(self, field.name) not in choices:
                raise ConfigError(f"{field.name}: expected {', '.join(choices)}, got {getattr(self, field.name)!r}")
        for name, low, high in (("test", 0, 1), ("validation", 0, 1)):
            if not low <= getattr(self, name) < high or (name == "test" and self.test == 0):
                raise ConfigError(f"{name}: expected a part between 0 and 1, got {getattr(self, name)!r}")
        for name, least in (
            ("batch_size", 2),
            ("epochs", 1),
            ("seed", 0),
            ("warm_up", 0),
            ("early_stopping", 1),
            ("sync_ranks", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name}: expected at least {least}, got {value!r}")
            if value is not None and value >= 2**32:
                raise ConfigError(f"{name}: expected less than 2**32, got {value}")
        for name in ("learning_rate", "clip", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        for name in ("weight_decay", "initial_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number of at least 0, got {getattr(self, name)!r}")
        if any(size >= 2**31 for size in self.hidden):
            raise ConfigError("hidden: expected sizes below 2**31, got a larger one")
        if any(size < 1 for size in self.hidden):
            raise ConfigError(f"hidden: expected positive sizes, got {','.join(map(str, self.hidden))}")
        if self.early_stopping is not None and self.validation == 0:
            raise ConfigError("early_stopping: needs validation rows to judge by, but validation is 0")
        if self.resume and self.overwrite:
            raise ConfigError("resume: excludes --overwrite")
        if self.resume and self.out is None:
            raise ConfigError("resume: name the run with --out")

    def kept(self) -> dict[str, Any]:
        """What the run is, without what is not set and where it goes."""
        kept = {name: getattr(self, name) for name, field in FIELDS.items() if field.compare}
        return {name: value for name, value in kept.items() if value is not None} | {"hidden": list(self.hidden)}

    def changed(self, now: Config) -> str | None:
        """The first option in which a run that goes on differs; more epochs of a constant schedule are no change."""
        longer = now.epochs > self.epochs and self.schedule == "constant"
        names = [name for name, field in FIELDS.items() if field.compare and not (longer and name == "epochs")]
        return next((name for name in names if getattr(self, name) != getattr(now, name)), None)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def resolve(given: dict[str, Any], file: str | None = None) -> Config:
    """The configuration from options given on the command line, then a TOML file, the environment, defaults.

    Examples
    --------
    >>> from bnengine.runs.config import resolve
    >>> resolve({"hidden": "64,32", "epochs": 5}).hidden
    (64, 32)
    """
    values = {} if file is None else read_toml(Path(file))
    values |= given
    if "backend" not in values and os.environ.get("BNENGINE_BACKEND"):
        values["backend"] = os.environ["BNENGINE_BACKEND"]
    return Config(**{name: _converted(name, value) for name, value in values.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """Options by name from a TOML file; unknown names are refused."""
    if not path.is_file():
        raise ConfigError(f"config: no such file: {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: what is no TOML, no UTF-8, too long a number
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    for name in values:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; the options are {', '.join(FIELDS)}"
            raise ConfigError(f"{path}: unknown option {name!r}{hint}")
    return values


def to_toml(config: Config) -> str:
    """What a run is, as TOML; options that are not set, and those that say where it goes, are left out."""
    try:
        import tomli_w
    except ImportError as error:
        raise ImportError("config.toml needs tomli-w; install the extra train") from error

    text: str = tomli_w.dumps(config.kept())
    return text


def _converted(name: str, value: Any) -> Any:
    """A value of the field's type from text or TOML, or a ConfigError that names the option."""
    kind = str(FIELDS[name].type).removesuffix(" | None")
    if kind == "tuple[int, ...]":
        return _sizes(name, value)
    if isinstance(value, int) and abs(value) >= 2**63:  # too long to be shown, or for a float
        raise ConfigError(f"{name}: expected a number below 2**63, got a larger one")
    accepted = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
    if kind == "str" and name == "label" and type(value) is int:
        return str(value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{name}: expected {kind}, got {value!r}")
    return float(value) if kind == "float" else value


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if type(value) is int else value
    try:
        sizes = tuple(map(int if isinstance(value, str) else operator.index, parts))
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected sizes such as 256,128, got {value!r}") from None
    return () if sizes == (0,) else sizes
