"""A run as data: every option of `bnengine train` with its default, from the command line or a TOML file."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._typing import BackendName, DTypeName, Initialization, Norm, NormPosition, OnNonfinite, Transport
from ..arguments import ConfigError
from ..data.reading import Reading
from ..functional.activations import ActivationName
from ..optimizers import OptimizerName
from ..options import NOT_NEGATIVE, POSITIVE, Options, Range, at_least, fields, option, read_toml

PART = "a part between 0 and 1"

NETWORK = (
    *("standardize", "hidden", "activation", "norm", "norm_position"),
    *("dropout", "residual", "initialization", "initial_scale"),
)
"""Options that a network follows from: a run that starts from another's has the same."""

ROWS = (
    *("data", "test_data", "label", "features", "drop", "delimiter", "missing", "text"),
    *("task", "test", "validation", "seed", "dtype"),
)
"""Options that rows follow from: those of the run that a run starts from, where they are not given."""


@dataclass(frozen=True)
class Config(Options):
    """What a run does. Field names are the options with underscores."""

    COMMAND = "train"

    data: str = option(
        "digits",
        "digits, breast-cancer, fashion-mnist, FILE.npz, FILE.csv, FILE.tsv (also .gz), FILE.parquet, - for a CSV by standard input, "
        "or a directory of IDX files",
    )
    label: str | None = option(
        None,
        "column of a CSV file to predict, by name or position (0 is the first, -1 the last); the last where not given",
    )
    features: tuple[str, ...] = option(
        (), "columns of a CSV file to learn from, by name or position; all but the label where not given"
    )
    drop: tuple[str, ...] = option((), "columns of a CSV file to leave out, by name or position")
    delimiter: str | None = option(
        None,
        "what separates the columns of a CSV file: a character, or comma, semicolon, tab, space; "
        "where not given, what its first lines show",
    )
    missing: Literal["refuse", "impute"] = option(
        "refuse",
        "missing values of a CSV file (empty, NA, N/A, nan, null, None, ?); impute: the median of the training rows, and "
        "a feature that says where",
    )
    text: Literal["refuse", "onehot"] = option(
        "refuse", "columns of text of a CSV file; onehot: a feature for each different text"
    )
    task: Literal["auto", "classification", "regression"] = option(
        "auto", "kind of label; auto: text and few different whole numbers are classes"
    )
    test: float = option(
        0.2,
        "part of the rows held out for testing, where the data has no test part; 0: train on all of them",
        within=Range(PART, 0, 1),
    )
    test_data: str | None = option(
        None, "a second CSV or npz file, of the same columns and classes, to test on; then no row of --data is held out"
    )
    validation: float = option(
        0.1, "part of the training rows held out for validation; 0: none", within=Range(PART, 0, 1)
    )
    standardize: bool = option(True, "bring each input feature to mean 0 and variance 1")
    hidden: tuple[int, ...] = option(
        (256, 256),
        "sizes of the hidden layers, separated by commas; 0: no hidden layer",
        within=Range("positive sizes", 1, 2**31, "sizes below 2**31"),
    )
    activation: ActivationName = option("relu", "activation function of the hidden layers")
    norm: Literal[Norm, "none"] = option(
        "batch", "normalisation of the hidden layers; dyt: Dynamic Tanh in its place, which takes no statistics"
    )
    norm_position: NormPosition = option("pre", "normalise before (pre) or after (post) the activation")
    dropout: float = option(
        0.0,
        "part of the values of each hidden layer that is dropped in training",
        within=Range("a part in [0, 1)", 0, 1),
    )
    residual: bool = option(False, "a skip around each hidden layer that gives as many features as it takes")
    initialization: Literal["auto", Initialization] = option(
        "auto", "spread of the initial weights; auto: what suits the activation"
    )
    initial_scale: float = option(1.0, "factor of the initial weights", within=NOT_NEGATIVE)
    optimizer: OptimizerName = option("adam", "update rule")
    learning_rate: float = option(0.003, "first or largest learning rate", within=POSITIVE)
    schedule: Literal["constant", "step", "cosine"] = option(
        "cosine",
        "course of the learning rate; step: a tenth after a half and again after three quarters of the training",
    )
    warm_up: int = option(0, "epochs in which the learning rate rises to the schedule", within=at_least(0))
    weight_decay: float = option(0.0, "weight decay; gamma, beta and biases do not decay", within=NOT_NEGATIVE)
    clip: float | None = option(
        None, "largest norm of all gradients together; no clipping where not given", within=POSITIVE
    )
    batch_size: int = option(64, "rows in a mini-batch", within=at_least(1))
    epochs: int = option(30, "passes over the training rows", within=at_least(1))
    early_stopping: int | None = option(
        None, "stop after so many epochs without a lower validation loss", within=at_least(1)
    )
    precise_bn: bool = option(False, "recompute the running statistics over the training rows at the end")
    on_nonfinite: OnNonfinite = option(
        "stop", "where a loss or gradient is not finite, stop at the end of the epoch or skip the step's update"
    )
    seed: int = option(0, "seed of the splits, the initial weights and the shuffles", within=at_least(0))
    backend: BackendName = option("auto", "array library; auto: cupy where a GPU answers, else numpy")
    device: str | None = option(None, "device in the library's words, such as cuda:1; its default where not given")
    dtype: DTypeName = option("float32", "floating dtype of parameters and data")
    sync_ranks: int | None = option(
        None, "ranks that share batch statistics, 1: each its own; all where not given", within=at_least(1)
    )
    start: str | None = option(
        None, "directory of a finished run whose network is trained further, on its data where no other are named"
    )
    freeze: str | None = option(
        None, "layers of --start that stay as they are, by position or kind, separated by commas: 0,BatchNorm"
    )
    distributed: Transport = option("none", "how ranks that a launcher started communicate", kept=False)
    timeout: float = option(300.0, "seconds to wait for other ranks before giving them up", within=POSITIVE, kept=False)
    out: str | None = option(None, "directory of the run; a new one under runs/ where not given", kept=False)
    resume: bool = option(False, "go on with the run in --out, or start it where nothing was", kept=False)
    overwrite: bool = option(False, "start anew in an existing --out", kept=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping is not None and self.validation == 0:
            raise ConfigError("early_stopping: needs validation rows to judge by, but validation is 0")
        if self.batch_size == 1 and self.norm == "batch" and self.hidden:
            raise ConfigError("batch_size: expected at least 2 rows to take batch statistics of, got 1")
        if self.freeze is not None and self.start is None:
            raise ConfigError("freeze: needs a network whose layers stay as they are, but start is not given")
        if self.resume and self.overwrite:
            raise ConfigError("resume: excludes --overwrite")
        if self.resume and self.out is None:
            raise ConfigError("resume: name the run with --out")

    def reading(self) -> Reading:
        """How the data is read."""
        names = {field.name for field in dataclasses.fields(Reading)} & set(fields(Config))
        return Reading(**{name: getattr(self, name) for name in names})

    def kept(self) -> dict[str, Any]:
        """What the run is, without what is not set and where it goes."""
        kept = {name: getattr(self, name) for name, field in fields(Config).items() if field.compare}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        return {name: value for name, value in kept.items() if value is not None}

    def changed(self, now: Config) -> str | None:
        """The first option in which a run that goes on differs; more epochs of a constant schedule are no change."""
        longer = now.epochs > self.epochs and self.schedule == "constant"
        names = [name for name, field in fields(Config).items() if field.compare and not (longer and name == "epochs")]
        return next((name for name in names if getattr(self, name) != getattr(now, name)), None)


def resolve(given: dict[str, Any], file: str | None = None) -> Config:
    """The configuration from options given on the command line, then a TOML file, the environment, defaults.

    Examples
    --------
    >>> from bnengine.runs.config import resolve
    >>> resolve({"hidden": "64,32", "epochs": 5}).hidden
    (64, 32)
    """
    chosen = os.environ.get("BNENGINE_BACKEND")
    environment = {"backend": chosen} if chosen else {}
    start = given.get("start") or (read_toml(Path(file), Config).get("start") if file else None)
    if start is None:
        return Config.resolve(given, file, environment)
    if not Path(start, "model.safetensors").is_file():
        raise ConfigError(f"start: expected the directory of a finished run, with model.safetensors in it, got {start}")
    before = read_config(start)
    config = Config.resolve(given, file, {name: getattr(before, name) for name in (*NETWORK, *ROWS)} | environment)
    for name in NETWORK:
        was, now = getattr(before, name), getattr(config, name)
        if was != now:
            raise ConfigError(f"{name}: was {was!r} in {start} and is {now!r} now; its network stays as it is")
    return config


def read_config(run: str | os.PathLike[str]) -> Config:
    """What a run is, from its directory."""
    return Config.resolve({}, str(Path(run, "config.toml")))


def to_toml(config: Config) -> str:
    """What a run is, as TOML; options that are not set, and those that say where it goes, are left out."""
    try:
        import tomli_w
    except ImportError as error:
        raise ImportError("config.toml needs tomli-w; install the extra train") from error

    text: str = tomli_w.dumps(config.kept())
    return text
