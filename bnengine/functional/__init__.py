"""The public functions of arrays: pure, on any array-API library."""

from .activations import *  # so that a new one is named in its file alone
from .activations import ACTIVATIONS as ACTIVATIONS
from .double_backward import SecondGradients as SecondGradients
from .double_backward import batch_norm_double_backward as batch_norm_double_backward
from .linear import LinearGradients as LinearGradients
from .linear import linear as linear
from .linear import linear_backward as linear_backward
from .losses import LOSSES as LOSSES
from .losses import Loss as Loss
from .losses import absolute_error as absolute_error
from .losses import binary_cross_entropy as binary_cross_entropy
from .losses import huber as huber
from .losses import loss_function as loss_function
from .losses import loss_sum as loss_sum
from .losses import mean_squared_error as mean_squared_error
from .losses import poisson as poisson
from .losses import quantile as quantile
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .moments import Moments as Moments
from .moments import merge as merge
from .moments import moments as moments
from .normalization import batch_norm as batch_norm
from .normalization import batch_norm_backward as batch_norm_backward
from .normalization import normalize as normalize
from .normalization import normalize_backward as normalize_backward
from .renormalization import batch_renorm as batch_renorm
from .residuals import Gradients as Gradients
from .residuals import Residuals as Residuals
from .running import RunningStats as RunningStats
from .running import like as like
