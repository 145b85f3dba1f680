"""Estimators of scikit-learn's kind on this engine: `MLPClassifier` and `MLPRegressor`.

They take the parameters of scikit-learn's own of these names and mean the same by them, and add batch normalisation
and what else the engine has. scikit-learn is imported here and nowhere above.
"""

try:
    from sklearn.utils.validation import validate_data as validate_data  # not in what is too old
except ImportError as error:
    raise ImportError("bnengine.sklearn needs scikit-learn 1.7 or newer; install the extra sklearn") from error

from .classifier import MLPClassifier as MLPClassifier
from .regressor import MLPRegressor as MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
