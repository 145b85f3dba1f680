"""Batch normalisation as an array engine."""

__version__ = "0.1.0"

from . import data, layers, optimizers
from .backends import Backend, backend
from .checkpoints import CheckpointError, Loaded, load, save
from .context import Context, Draws
from .exchange.folding import fold
from .exchange.from_onnx import from_onnx
from .exchange.from_torch import from_torch
from .exchange.to_torch import to_torch
from .fully_connected import mlp
from .functional import (
    Gradients,
    LinearGradients,
    Moments,
    Residuals,
    RunningStats,
    SecondGradients,
    absolute_error,
    activations,
    batch_norm,
    batch_norm_backward,
    batch_norm_double_backward,
    batch_renorm,
    binary_cross_entropy,
    huber,
    like,
    linear,
    linear_backward,
    mean_squared_error,
    merge,
    moments,
    normalize,
    normalize_backward,
    poisson,
    quantile,
    softmax_cross_entropy,
)
from .functional.activations import *  # so that a new one is named in its file alone
from .layers import *
from .networks import Residual, Sequential
from .optimizers import Optimizer
from .training.compiled import Compiled, compiled
from .training.evaluation import evaluate, predict
from .training.fitted import Fitted, NonFiniteError, average_params
from .training.fitting import Settings, fit
from .training.running_statistics import adapt, precise_statistics, recalibrate, statistics_gap
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
    "Moments",
    "NonFiniteError",
    "Optimizer",
    "Residual",
    "Residuals",
    "RunningStats",
    "SecondGradients",
    "Sequential",
    "Settings",
    "absolute_error",
    "adapt",
    "average_params",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_renorm",
    "binary_cross_entropy",
    "compiled",
    "data",
    "evaluate",
    "fit",
    "fold",
    "from_onnx",
    "from_torch",
    "huber",
    "like",
    "linear",
    "linear_backward",
    "load",
    "mean_squared_error",
    "merge",
    "mlp",
    "moments",
    "normalize",
    "normalize_backward",
    "optimizers",
    "poisson",
    "precise_statistics",
    "predict",
    "quantile",
    "recalibrate",
    "save",
    "softmax_cross_entropy",
    "statistics_gap",
    "to_torch",
    "train_step",
]
__all__ += activations.__all__
__all__ += layers.__all__
del activations
