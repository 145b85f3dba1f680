"""The experiments as data: what each varies, on which networks, and the trials that this makes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .._typing import DTypeName, Library, Norm, NormPosition
from ..functional.activations import ActivationName
from ..optimizers import OptimizerName

WIDTH = 100
"""Units of every hidden layer, as in the paper's section 4.1."""

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DECADES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
OPTIMIZERS = ("sgd", "momentum", "nesterov", "rmsprop", "adam")

Arm: TypeAlias = Literal[Norm, "none"]

THREE_ARMS: tuple[Arm, ...] = ("batch", "dyt", "none")

Settings = Mapping[str, Any]
"""Fields of `Trial`; where a field has a tuple of values, each is tried."""


@dataclass(frozen=True)
class Experiment:
    """One question, the field of `Trial` that it varies, and what it is asked on."""

    title: str
    question: str
    varies: str
    panels: Mapping[str, Settings]
    arms: tuple[Arm, ...] = ("batch", "none")
    """How the hidden layers are normalised: words of `Config.norm`."""


@dataclass(frozen=True)
class Trial:
    """Everything that decides one training, but for the data."""

    experiment: str
    panel: str
    value: float | str
    """What the experiment varies."""
    norm: Arm
    seed: int
    steps: int
    hidden: int = 3
    activation: ActivationName = "relu"
    norm_position: NormPosition = "pre"
    scale: float = 1.0
    """Factor of the initial weights: he for ReLU, glorot otherwise."""
    bias: str = "without"
    """ "with": a bias, drawn at random, that the normalisation after it cancels."""
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    batch_size: int = 60
    dtype: DTypeName = "float32"
    backend: Library = "numpy"
    device: str | None = None

    @property
    def network(self) -> str:
        """Hidden layers, their width and activation in one line."""
        return f"{self.hidden} x {WIDTH} {self.activation}"


EXPERIMENTS: dict[str, Experiment] = {
    "section_4_1": Experiment(
        "The paper's first experiment",
        "As in section 4.1 of Ioffe and Szegedy (2015, arXiv:1502.03167): how does test accuracy rise over the steps, and "
        "how does the input of a unit move meanwhile?",
        "learning_rate",
        {"3 x 100 sigmoid": {"activation": "sigmoid", "learning_rate": (0.5,), "steps": 10}},
    ),
    "learning_rate": Experiment(
        "Learning rate",
        "Which learning rates of plain gradient descent work?",
        "learning_rate",
        {
            "3 x 100 sigmoid": {"activation": "sigmoid", "learning_rate": RATES},
            "10 x 100 ReLU": {"hidden": 10, "learning_rate": RATES},
        },
        arms=THREE_ARMS,
    ),
    "matched": Experiment(
        "Matched against largest learning rate",
        "With more steps, does batch normalisation win at the same learning rate, or only by allowing a larger one?",
        "learning_rate",
        {"10 x 100 ReLU": {"hidden": 10, "learning_rate": (0.03, 0.3), "steps": 2}},
    ),
    "initial_scale": Experiment(
        "Initial scale",
        "By which factor may the initial weights be wrong?",
        "scale",
        {"3 x 100 ReLU": {"scale": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}},
    ),
    "optimizer": Experiment(
        "Optimiser",
        "Do other optimisers need batch normalisation as much?",
        "optimizer",
        {"3 x 100 ReLU": {"optimizer": OPTIMIZERS, "learning_rate": DECADES}},
    ),
    "norm_position": Experiment(
        "Before or after the activation",
        "Normalise z, before the activation, or its output?",
        "norm_position",
        {
            "3 x 100 ReLU": {"norm_position": ("pre", "post"), "learning_rate": (0.1, 1.0)},
            "3 x 100 sigmoid": {
                "activation": "sigmoid",
                "norm_position": ("pre", "post"),
                "learning_rate": (0.1, 1.0),
            },
        },
    ),
    "batch_size": Experiment(
        "Batch size",
        "How small may a mini-batch be whose statistics normalise?",
        "batch_size",
        {"3 x 100 ReLU": {"batch_size": (2, 4, 8, 16, 32, 64), "learning_rate": (0.01, 0.1)}},
    ),
    "bias": Experiment(
        "The bias that normalisation cancels",
        "Is the trajectory the same with a bias in front of the normalisation?",
        "bias",
        {"3 x 100 ReLU": {"bias": ("with", "without"), "dtype": "float64"}},
        arms=("batch",),
    ),
    "depth": Experiment(
        "Depth",
        "How many hidden layers still train?",
        "hidden",
        {
            "ReLU": {"hidden": (2, 5, 10, 20, 50), "learning_rate": (0.003, 0.03)},
            "sigmoid": {"hidden": (2, 5, 10, 20, 50), "activation": "sigmoid", "learning_rate": 1.0},
        },
        arms=THREE_ARMS,
    ),
    "geometry": Experiment(
        "Geometry at initialisation",
        "What do the layers of an untrained network make of a mini-batch: do its rows stay apart?",
        "hidden",
        {
            "50 x 100 ReLU": {"hidden": 50, "steps": 0},
            "50 x 100 linear": {"hidden": 50, "activation": "identity", "steps": 0},
        },
        arms=THREE_ARMS,
    ),
}
"""By name. The field `steps` of a panel is a factor of the study's step budget."""


def trials(names: tuple[str, ...], *, seeds: int, steps: int, quick: bool) -> list[Trial]:
    """Every trial of these experiments; `quick` leaves out every second of more than three values."""
    found = []
    for name in names:
        experiment = EXPERIMENTS[name]
        for panel, fields in experiment.panels.items():
            for point in _points(fields, quick):
                point["steps"] = point.get("steps", 1) * steps
                for norm, seed in itertools.product(experiment.arms, range(seeds)):
                    value = point[experiment.varies]
                    found.append(Trial(name, panel, value, norm, seed, **point))
    return list(dict.fromkeys(map(_without_norm, found)))


def _points(fields: Settings, quick: bool) -> list[dict[str, Any]]:
    axes = [values if isinstance(values, tuple) else (values,) for values in fields.values()]
    if quick:
        axes = [values[::2] if len(values) > 3 else values for values in axes]
    return [dict(zip(fields, point, strict=True)) for point in itertools.product(*axes)]


def _without_norm(trial: Trial) -> Trial:
    """Where nothing is normalised, before and after are the same trial."""
    if trial.experiment == "norm_position" and trial.norm == "none":
        return dataclasses.replace(trial, value="none", norm_position="pre")
    return trial
