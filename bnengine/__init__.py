"""Batch normalisation as an array engine."""

from .functional import Gradients as Gradients
from .functional import Residuals as Residuals
from .functional import RunningStats as RunningStats
from .functional import batch_norm as batch_norm
from .functional import batch_norm_backward as batch_norm_backward
from .functional import binary_cross_entropy as binary_cross_entropy
from .functional import identity as identity
from .functional import identity_backward as identity_backward
from .functional import leaky_relu as leaky_relu
from .functional import leaky_relu_backward as leaky_relu_backward
from .functional import linear as linear
from .functional import linear_backward as linear_backward
from .functional import mean_squared_error as mean_squared_error
from .functional import normalize as normalize
from .functional import normalize_backward as normalize_backward
from .functional import relu as relu
from .functional import relu_backward as relu_backward
from .functional import sigmoid as sigmoid
from .functional import sigmoid_backward as sigmoid_backward
from .functional import softmax_cross_entropy as softmax_cross_entropy
from .functional import tanh as tanh
from .functional import tanh_backward as tanh_backward

__version__ = "0.1.0"
