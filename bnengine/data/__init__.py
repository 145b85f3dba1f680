"""Data sets as host arrays, and the order of mini-batches."""

from .readers import DataError as DataError
from .sets import Dataset as Dataset
from .sets import load as load
from .splits import batches as batches
from .splits import hold_out as hold_out
