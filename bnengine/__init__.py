"""Batch normalisation as an array engine."""

__version__ = "0.1.0"

from . import data, optimizers
from .backends import Backend, backend
from .checkpoints import CheckpointError, Loaded, load, save
from .functional import (
    Gradients,
    LinearGradients,
    Residuals,
    RunningStats,
    batch_norm,
    batch_norm_backward,
    binary_cross_entropy,
    identity,
    identity_backward,
    leaky_relu,
    leaky_relu_backward,
    linear,
    linear_backward,
    mean_squared_error,
    normalize,
    normalize_backward,
    relu,
    relu_backward,
    sigmoid,
    sigmoid_backward,
    softmax_cross_entropy,
    tanh,
    tanh_backward,
)
from .layers import Activation, BatchNorm, Linear, Sequential, Standardize, mlp
from .optimizers import Optimizer
from .training import fit
from .training.evaluation import evaluate, predict
from .training.fitting import Fitted, NonFiniteError, train_step
from .training.running_statistics import precise_statistics, statistics_gap

__all__ = [
    "Activation",
    "Backend",
    "BatchNorm",
    "CheckpointError",
    "Fitted",
    "Gradients",
    "Linear",
    "LinearGradients",
    "Loaded",
    "NonFiniteError",
    "Optimizer",
    "Residuals",
    "RunningStats",
    "Sequential",
    "Standardize",
    "backend",
    "batch_norm",
    "batch_norm_backward",
    "binary_cross_entropy",
    "data",
    "evaluate",
    "fit",
    "identity",
    "identity_backward",
    "leaky_relu",
    "leaky_relu_backward",
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
    "relu",
    "relu_backward",
    "save",
    "sigmoid",
    "sigmoid_backward",
    "softmax_cross_entropy",
    "statistics_gap",
    "tanh",
    "tanh_backward",
    "train_step",
]
