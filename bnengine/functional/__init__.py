"""The public functions of arrays: pure, on any array-API library."""

from .activations import identity as identity
from .activations import identity_backward as identity_backward
from .activations import leaky_relu as leaky_relu
from .activations import leaky_relu_backward as leaky_relu_backward
from .activations import relu as relu
from .activations import relu_backward as relu_backward
from .activations import sigmoid as sigmoid
from .activations import sigmoid_backward as sigmoid_backward
from .activations import tanh as tanh
from .activations import tanh_backward as tanh_backward
from .linear import LinearGradients as LinearGradients
from .linear import linear as linear
from .linear import linear_backward as linear_backward
from .losses import LOSSES as LOSSES
from .losses import binary_cross_entropy as binary_cross_entropy
from .losses import mean_squared_error as mean_squared_error
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .normalization import Gradients as Gradients
from .normalization import Residuals as Residuals
from .normalization import RunningStats as RunningStats
from .normalization import batch_norm as batch_norm
from .normalization import batch_norm_backward as batch_norm_backward
from .normalization import normalize as normalize
from .normalization import normalize_backward as normalize_backward
