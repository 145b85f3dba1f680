"""`MLPClassifier`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .._typing import Array
from ..arguments import shown
from ..backends import as_numpy
from ..functional import sigmoid
from .base import MultilayerPerceptron
from .documentation import documented
from .objectives import objective


@documented
@dataclass(eq=False, repr=False, kw_only=True)
class MLPClassifier(ClassifierMixin, MultilayerPerceptron):
    """A fully connected network with batch normalisation that classifies; scikit-learn's of this name, and more.

    It minimises the cross-entropy of the classes: of the softmax of an output for each, of the sigmoid of one output
    for two classes, or, where y is a matrix of 0 and 1 (multi-label), of the sigmoid of each output, summed.

    Parameters
    ----------
    {parameters}
    class_weight : dict, "balanced" or None, default None
        Weights of the rows of each class, times `sample_weight`.
    label_smoothing : float, default 0
        The part of each target that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567, section 7).

    Attributes
    ----------
    classes_ : array of shape (classes,)
        Labels, sorted.
    {attributes}

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.model_selection import cross_val_score
    >>> from bnengine.sklearn import MLPClassifier
    >>> X, y = load_wine(return_X_y=True)  # features in units of their own: nothing has to be scaled
    >>> network = MLPClassifier(max_iter=30, learning_rate_init=0.02, schedule="cosine", random_state=0)
    >>> bool(cross_val_score(network, X, y).mean() > 0.95)
    True
    """

    class_weight: Any = None
    label_smoothing: float = 0.0

    _numeric = False

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> MLPClassifier:
        """Train the network.

        Parameters
        ----------
        X : array or sparse matrix of shape (rows, features)
            A data frame, an array of NumPy, or with scikit-learn's `array_api_dispatch` of another library. Sparse
            rows are filled.
        y : array of shape (rows,) or (rows, outputs)
            Labels, numbers or text; or a matrix of 0 and 1.
        sample_weight : array of shape (rows,), optional
            A weight of k does what k equal rows in the batch would do, in the loss and in batch statistics.
        X_val, y_val, sample_weight_val : optional
            Rows to judge by, in the place of those that early_stopping would hold out. Without it they are only
            measured: `validation_loss_curve_`, `validation_scores_`.

        Returns
        -------
        MLPClassifier
            The estimator itself.

        Raises
        ------
        ValueError
            Where an argument does not fit, or the parameters of the network are not finite at the end.
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val))

    @available_if(lambda self: self.solver != "lbfgs")
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """One more epoch on these rows."""
        if self.class_weight == "balanced":
            raise ValueError("class_weight: expected weights as a dict for partial_fit, which sees a part of the rows")
        if not self.__sklearn_is_fitted__():
            if classes is None:
                raise ValueError("classes: expected all classes on the first call of partial_fit, got None")
            self._set_classes(y if type_of_target(y).startswith("multilabel") else classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"classes: expected {self.classes_} as on the first call, got {classes}")
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """The class of each row, or of multi-label targets a matrix of 0 and 1."""
        return self._final(self._predicted(X, "predict"))

    def predict_proba(self, X: Any) -> Any:
        """Probabilities, (N, classes); of multi-label targets of each label by itself."""
        return self._probabilities(X, "predict_proba")

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities."""
        probabilities = self._probabilities(X, "predict_log_proba")
        with np.errstate(divide="ignore"):
            return array_namespace(probabilities).log(probabilities)

    def _probabilities(self, X: Any, method: str) -> Any:
        predicted = self._predicted(X, method)
        if self._multilabel or self.n_outputs_ > 1:
            return predicted
        xp = array_namespace(predicted)
        if len(self.classes_) == 1:
            return xp.ones_like(predicted)
        return xp.concat([1 - predicted, predicted], axis=1)

    # ---- what the base asks

    def _set_classes(self, y: Any) -> None:
        self._multilabel = type_of_target(y).startswith("multilabel")
        self.classes_ = np.arange(np.shape(y)[1]) if self._multilabel else unique_labels(y)
        self.n_outputs_ = 1 if len(self.classes_) <= 2 and not self._multilabel else len(self.classes_)
        self.out_activation_ = "logistic" if self._multilabel or self.n_outputs_ == 1 else "softmax"

    def _encoded(
        self, y: np.ndarray[Any, Any], *, first: bool = False, incremental: bool = False
    ) -> np.ndarray[Any, Any]:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise ValueError(
                "y: expected one column of classes, or a matrix of 0 and 1 for labels, got multioutput classes"
            )
        if first and not incremental:
            self._set_classes(y)
        else:
            self._check_classes(y, warm=self.warm_start and not incremental)
        if self._multilabel:
            return y.astype(bool)
        number = np.searchsorted(self.classes_, y)
        return number.astype(bool)[:, None] if self.n_outputs_ == 1 else number

    def _check_classes(self, y: np.ndarray[Any, Any], *, warm: bool) -> None:
        """Refuse classes that the network has no output for."""
        found = np.arange(y.shape[1]) if y.ndim == 2 else unique_labels(y)
        if warm and set(found) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {found}"
            )
        if len(np.setdiff1d(found, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {found}."
            )

    def _chosen_loss(self) -> Any:
        smoothing = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return objective("softmax" if self.out_activation_ == "softmax" else "log_loss", **smoothing)

    def _row_weights(self, sample_weight: Any, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        weights = super()._row_weights(sample_weight, y)
        if self.class_weight is None:
            return weights
        of_class = compute_sample_weight(self.class_weight, y)
        return of_class if weights is None else weights * of_class

    def _groups(self, targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        if self._multilabel:
            return None
        numbers, counts = np.unique(targets, return_counts=True)
        labels = self.classes_[numbers.astype(int)]
        if self.n_outputs_ == 1 and counts.min() < 2:
            few = shown(labels[[counts.argmin()]].tolist()[0])
            raise ValueError(
                f"early_stopping: expected at least 2 rows of each class, to hold some out, got 1 of {few}"
            )
        held = int(np.ceil(self.validation_fraction * len(targets)))
        scarce = counts.min() < 2 or min(held, len(targets) - held) < len(numbers)
        return None if scarce and self.n_outputs_ > 1 else np.ravel(targets)

    def _link(self, outputs: Array) -> Array:
        if self.out_activation_ == "logistic":
            return sigmoid(outputs)
        xp = array_namespace(outputs)
        powers = xp.exp(outputs - xp.max(outputs, axis=1, keepdims=True))
        return powers / xp.sum(powers, axis=1, keepdims=True)

    def _final(self, predicted: Array) -> Any:
        xp = array_namespace(predicted)
        if self._multilabel:
            return xp.astype(predicted > 0.5, xp.int64)
        one = self.n_outputs_ == 1
        number = xp.astype(predicted[:, 0] > 0.5, xp.int64) if one else xp.argmax(predicted, axis=1)
        number = number * 0 if len(self.classes_) == 1 else number
        if self.classes_.dtype.kind not in "biuf" or xp is array_namespace(self.classes_):
            return self.classes_[as_numpy(number)]
        return xp.take(xp.asarray(self.classes_, device=device(predicted)), number)

    def _score(self, y: Any, predicted: Any, weights: Any) -> float:
        return float(accuracy_score(y, predicted, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
