"""Batch normalisation as an array engine."""

__version__ = "0.1.0"

from . import data, layers, optimizers
from .backends import Backend, backend
from .checkpoints import CheckpointError, Loaded, load, save
from .context import Context, Draws
from .fully_connected import mlp
from .functional import (
    Gradients,
    LinearGradients,
    Residuals,
    RunningStats,
    activations,
    batch_norm,
    batch_norm_backward,
    binary_cross_entropy,
    like,
    linear,
    linear_backward,
    mean_squared_error,
    normalize,
    normalize_backward,
    softmax_cross_entropy,
)
from .functional.activations import *  # so that a new one is named in its file alone
from .layers import *
from .networks import Residual, Sequential
from .optimizers import Optimizer
from .training.compiled import Compiled, compiled
from .training.evaluation import evaluate, predict
from .training.fitted import Fitted, NonFiniteError
from .training.fitting import Settings, fit
from .training.running_statistics import precise_statistics, recalibrate, statistics_gap
from .training.step import train_step

__all__ = [
    "Backend",
    "CheckpointError",
    "Compiled",
    "Context",
    "Draws",
    "Fitted",
    "Gradients",
    "LinearGradients",
    "Loaded",
    "NonFiniteError",
    "Optimizer",
    "Residual",
    "Residuals",
    "RunningStats",
    "Sequential",
    "Settings",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy",
    "compiled",
    "data",
    "evaluate",
    "fit",
    "like",
    "linear",
    "linear_backward",
    "load",
    "mean_squared_error",
    "mlp",
    "normalize",
    "normalize_backward",
    "optimizers",
    "precise_statistics",
    "predict",
    "recalibrate",
    "save",
    "softmax_cross_entropy",
    "statistics_gap",
    "train_step",
]
__all__ += activations.__all__
__all__ += layers.__all__
del activations
