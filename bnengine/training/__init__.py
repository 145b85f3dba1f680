"""Fitting a network: a step, the loop around it, evaluation, and running statistics taken anew."""

from .compiled import Compiled as Compiled
from .compiled import compiled as compiled
from .evaluation import evaluate as evaluate
from .evaluation import predict as predict
from .fitted import Fitted as Fitted
from .fitted import NonFiniteError as NonFiniteError
from .fitting import Settings as Settings
from .fitting import fit as fit
from .running_statistics import precise_statistics as precise_statistics
from .running_statistics import recalibrate as recalibrate
from .running_statistics import statistics_gap as statistics_gap
from .step import train_step as train_step
