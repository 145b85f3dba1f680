"""Data sets as host arrays, and the order of mini-batches."""

from .readers import DataError as DataError
from .sets import Dataset as Dataset
from .sets import batches as batches
from .sets import hold_out as hold_out
from .sets import load as load
