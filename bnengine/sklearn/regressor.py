"""`MLPRegressor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if

from .._typing import Array
from ..arguments import one_of
from .base import MultilayerPerceptron
from .documentation import documented
from .objectives import VALUES, objective


@documented
@dataclass(eq=False, repr=False, kw_only=True)
class MLPRegressor(RegressorMixin, MultilayerPerceptron):
    """A fully connected network with batch normalisation that predicts values; scikit-learn's of this name, and more.

    Parameters
    ----------
    {parameters}
    loss : str, default "squared_error"
        "squared_error" (half of it), "absolute_error", "huber", "quantile" or "poisson" (half the deviance; the network
        gives the logarithm of the prediction, and y is at least 0). Summed over outputs.
    quantile : float, default 0.5
        The quantile that loss "quantile" finds.
    delta : float, default 1.0
        The error from which "huber" grows in a straight line, in standard deviations of y where it is standardised.

    Attributes
    ----------
    {attributes}

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from bnengine.sklearn import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> network = MLPRegressor((32,), max_iter=30, learning_rate_init=0.02, schedule="cosine", random_state=0).fit(X, y)
    >>> bool(network.score(X, y) > 0.4)
    True
    """

    loss: str = "squared_error"
    quantile: float = 0.5
    delta: float = 1.0

    _numeric = True

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> MLPRegressor:
        """Train the network.

        Parameters
        ----------
        X : array or sparse matrix of shape (rows, features)
            A data frame, an array of NumPy, or with scikit-learn's `array_api_dispatch` of another library. Sparse
            rows are filled.
        y : array of shape (rows,) or (rows, outputs)
            Values.
        sample_weight : array of shape (rows,), optional
            A weight of k does what k equal rows in the batch would do, in the loss and in batch statistics.
        X_val, y_val, sample_weight_val : optional
            Rows to judge by, in the place of those that early_stopping would hold out. Without it they are only
            measured: `validation_loss_curve_`, `validation_scores_`.

        Returns
        -------
        MLPRegressor
            The estimator itself.

        Raises
        ------
        ValueError
            Where an argument does not fit, or the parameters of the network are not finite at the end.
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val))

    @available_if(lambda self: self.solver != "lbfgs")
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """One more epoch on these rows."""
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """The values of each row: (N,), or (N, outputs) where the targets were so."""
        return self._final(self._predicted(X, "predict"))

    # ---- what the base asks

    def _check_parameters(self) -> None:
        super()._check_parameters()
        one_of("loss", self.loss, VALUES)

    def _encoded(
        self, y: np.ndarray[Any, Any], *, first: bool = False, incremental: bool = False
    ) -> np.ndarray[Any, Any]:
        del incremental
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        values = y.reshape(len(y), -1).astype(np.float64)
        if first:
            self.n_outputs_ = values.shape[1]
            self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        if values.shape[1] != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} columns as before, got {values.shape[1]}")
        if self.loss == "poisson" and (values < 0).any():
            raise ValueError(f"y: expected values of at least 0 with loss='poisson', got {values.min():g}")
        return values

    def _scaled(self, targets: np.ndarray[Any, Any], weights: Any, *, first: bool = False) -> np.ndarray[Any, Any]:
        if first:
            self._scale = [(0.0, 1.0)] * self.n_outputs_
            if self._standardized() and self.loss != "poisson":
                mean = np.average(targets, axis=0, weights=weights)
                std = np.sqrt(np.average((targets - mean) ** 2, axis=0, weights=weights))
                self._scale = [(m, s or 1.0) for m, s in zip(mean.tolist(), std.tolist(), strict=True)]
        mean, std = np.transpose(self._scale)
        return (targets - mean) / std

    def _chosen_loss(self) -> Any:
        options = {"huber": {"delta": self.delta}, "quantile": {"level": self.quantile}}
        return objective(self.loss, **options.get(self.loss, {}))

    def _groups(self, targets: np.ndarray[Any, Any]) -> None:
        """Rows are held out whatever their values."""

    def _link(self, outputs: Array) -> Array:
        if self.out_activation_ == "exp":
            return array_namespace(outputs).exp(outputs)
        mean, std = (self._backend.asarray(part) for part in np.transpose(self._scale))
        return outputs * std + mean

    def _final(self, predicted: Array) -> Any:
        return predicted[:, 0] if predicted.shape[1] == 1 else predicted

    def _score(self, y: Any, predicted: Any, weights: Any) -> float:
        return float(r2_score(y, predicted, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
