"""Batch normalisation as an array engine."""

__version__ = "0.1.0"

from . import data as data
from . import optimizers as optimizers
from .backends import Backend as Backend
from .backends import backend as backend
from .checkpoints import CheckpointError as CheckpointError
from .checkpoints import Loaded as Loaded
from .checkpoints import load as load
from .checkpoints import save as save
from .context import Context as Context
from .context import Draws as Draws
from .functional import Gradients as Gradients
from .functional import LinearGradients as LinearGradients
from .functional import Residuals as Residuals
from .functional import RunningStats as RunningStats
from .functional import batch_norm as batch_norm
from .functional import batch_norm_backward as batch_norm_backward
from .functional import binary_cross_entropy as binary_cross_entropy
from .functional import linear as linear
from .functional import linear_backward as linear_backward
from .functional import mean_squared_error as mean_squared_error
from .functional import normalize as normalize
from .functional import normalize_backward as normalize_backward
from .functional import softmax_cross_entropy as softmax_cross_entropy
from .functional.activations import *  # so that a new one is named in its file alone
from .layers import Activation as Activation
from .layers import BatchNorm as BatchNorm
from .layers import Dropout as Dropout
from .layers import Layer as Layer
from .layers import Linear as Linear
from .layers import Shapes as Shapes
from .layers import Standardize as Standardize
from .networks import Residual as Residual
from .networks import Sequential as Sequential
from .networks import mlp as mlp
from .optimizers import Optimizer as Optimizer
from .training import fit as fit
from .training.evaluation import evaluate as evaluate
from .training.evaluation import predict as predict
from .training.fitting import Fitted as Fitted
from .training.fitting import NonFiniteError as NonFiniteError
from .training.fitting import Settings as Settings
from .training.running_statistics import precise_statistics as precise_statistics
from .training.running_statistics import statistics_gap as statistics_gap
from .training.step import train_step as train_step
