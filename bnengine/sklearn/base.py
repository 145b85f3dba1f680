"""What the two estimators share: parameters, the way of rows to the backend, fit, and the attributes of a network."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .. import backends, trees
from .._typing import Array, BackendName, DTypeName, NormPosition
from ..arguments import instance, number, one_of
from ..backends import Backend, as_numpy
from ..exchange.folding import fold
from ..fully_connected import mlp
from ..functional import ACTIVATIONS
from ..functional.activations import ActivationName
from ..training.evaluation import _outputs as outputs_of
from ..training.fitted import Fitted
from ..training.running_statistics import recalibrate
from .descent import Descent, Rows
from .inputs import device_words, library_of, on_host, whole, wide
from .objectives import Objective
from .solvers import SOLVERS, minimized


@dataclass(eq=False, repr=False)
class MultilayerPerceptron(BaseEstimator):
    """Parameters and fit of both estimators; `MLPClassifier` and `MLPRegressor` say what they mean."""

    hidden_layer_sizes: Any = (100,)
    activation: ActivationName | Literal["logistic"] = "relu"
    _: KW_ONLY
    solver: str = "adam"
    alpha: float = 1e-4
    batch_size: Any = "auto"
    learning_rate: str = "constant"
    learning_rate_init: float = 1e-3
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: Any = None
    tol: float = 1e-4
    verbose: Any = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: Any = 10
    max_fun: int = 15000
    norm: Literal["batch"] | None = "batch"
    norm_position: NormPosition = "pre"
    standardize: bool | None = None
    dropout: float = 0.0
    residual: bool = False
    schedule: Any = None
    scoring: Any = None
    n_ens: int = 1
    backend: BackendName | None = None
    device: str | None = None
    dtype: DTypeName | None = None

    # ---- what each of the two says of itself

    def _encoded(
        self, y: np.ndarray[Any, Any], *, first: bool = False, incremental: bool = False
    ) -> np.ndarray[Any, Any]:
        """The targets as the loss takes them, on the host; at first learns from them what the outputs mean."""
        raise NotImplementedError

    def _scaled(self, targets: np.ndarray[Any, Any], weights: Any, *, first: bool = False) -> np.ndarray[Any, Any]:  # noqa: ARG002
        """The targets in units of the first rows' own, where the two differ."""
        return targets

    def _chosen_loss(self) -> Objective:
        """From outputs and targets to the mean loss and its gradient."""
        raise NotImplementedError

    def _groups(self, targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """The classes by which rows are held out, or None."""
        raise NotImplementedError

    def _link(self, outputs: Array) -> Array:
        """What outputs of the network say: probabilities or values."""
        raise NotImplementedError

    def _final(self, predicted: Array) -> Any:
        """What `predict` gives of probabilities or values."""
        raise NotImplementedError

    def _score(self, y: Any, predicted: Any, weights: Any) -> float:
        """By which training stops early, of its own accord."""
        raise NotImplementedError

    # ---- fit

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        held: tuple[Any, Any, Any] | None = None,
        *,
        incremental: bool = False,
    ) -> Any:
        self._check_parameters()
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True: it sees a part of the rows at a time")
        first = not self.__sklearn_is_fitted__() or not (self.warm_start or incremental)
        X, y = validate_data(self, X, y, **self._input(X), multi_output=True, y_numeric=self._numeric, reset=first)
        y = on_host(y)
        targets = self._encoded(y, first=first, incremental=incremental)
        weights = self._row_weights(sample_weight, y)
        if weights is not None and not weights.all():  # rows that weigh nothing are none
            some = np.flatnonzero(weights)
            X, y, targets, weights = (_safe_indexing(part, some) for part in (X, y, targets, weights))
        targets = self._scaled(targets, weights, first=first)
        self._loss = self._chosen_loss()
        if first:
            self._begin(X, len(targets), weights)
        rows, judged = self._parts(X, y, targets, weights, held)
        if self.solver == "lbfgs":
            self._minimize(rows)
        else:
            Descent(self, rows, judged, incremental=incremental).run(
                1 if incremental else self.max_iter, incremental=incremental
            )
        self._refuse_nonfinite()
        return self

    def _check_parameters(self) -> None:
        for name, least in (("max_iter", 1), ("max_fun", 1), ("n_ens", 1)):
            whole(name, getattr(self, name), least)
        if self.batch_size != "auto":
            whole("batch_size", self.batch_size, 1, or_else="'auto' or ")
        if self.n_iter_no_change != math.inf:
            whole("n_iter_no_change", self.n_iter_no_change, 1)
        for name in ("alpha", "power_t", "tol"):
            number(name, getattr(self, name), 0)
        number("momentum", self.momentum, 0, 1)
        number("learning_rate_init", self.learning_rate_init, math.ulp(0.0), words="a positive number")
        number("epsilon", self.epsilon, math.ulp(0.0), words="a positive number")
        number("validation_fraction", self.validation_fraction, 0, math.nextafter(1, 0), words="a part in [0, 1)")
        for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping"):
            instance(name, getattr(self, name), (bool, np.bool_), "True or False")
        one_of("solver", self.solver, SOLVERS)
        one_of("activation", self.activation, ("logistic", *ACTIVATIONS))
        one_of("learning_rate", self.learning_rate, ("constant", "invscaling", "adaptive"))
        one_of("norm", self.norm, ("batch", None))
        if self.schedule is not None and self.learning_rate != "constant":
            raise ValueError(f"schedule: expected None with learning_rate={self.learning_rate!r}, which is one itself")
        if self.solver == "lbfgs" and (self.dropout or self.early_stopping):
            raise ValueError("solver: 'lbfgs' needs dropout=0 and early_stopping=False: it looks at one fixed loss")

    def _input(self, X: Any) -> dict[str, Any]:
        """What `validate_data` is to make of X: floating rows, sparse or dense, of its own library where that is on."""
        own = get_config()["array_api_dispatch"] and is_array_api_obj(X)
        xp = array_namespace(X) if own else np
        return {"accept_sparse": ["csr", "csc"], "dtype": [xp.float64, xp.float32]}

    def _row_weights(self, sample_weight: Any, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """A weight for each row, or None where all are 1."""
        if sample_weight is None:
            return None
        given = np.full(len(y), float(sample_weight)) if isinstance(sample_weight, Real) else on_host(sample_weight)
        weights = check_array(given, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weights.shape != (len(y),):
            raise ValueError(f"sample_weight: expected shape ({len(y)},), got {weights.shape}")
        if (weights < 0).any() or not weights.any():
            raise ValueError("sample_weight: expected weights of at least 0 that are not all zero, got others")
        return weights

    def _begin(self, X: Any, count: int, weights: Any) -> None:
        """New networks, and the curves of a new training."""
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._backend = self._backend_for(X)
        self.n_layers_ = len(self._hidden()) + 2
        if self.norm is not None and count < 2:
            raise ValueError(f"norm: expected None, or more rows to take batch statistics of, for n_samples = {count}")
        self.network_ = mlp(
            [X.shape[1], *self._hidden(), self.n_outputs_],
            norm=self.norm,
            activation="sigmoid" if self.activation == "logistic" else self.activation,
            norm_position=self.norm_position,
            standardize=self._standardized(),
            initialization="glorot" if self.norm is None else None,  # scikit-learn's
            dropout=float(self.dropout),
            residual=bool(self.residual),
        )
        self.members_ = [self._new_member(number, X, weights) for number in range(self.n_ens)]
        self.t_ = self._epochs = self._no_improvement_count = 0
        self.loss_curve_: Any = []
        self.best_loss_: Any = None
        self.validation_scores_: Any = None
        self.validation_loss_curve_: Any = None
        self.best_validation_score_: Any = None
        self.__dict__.pop("_optimizer", None)

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        listed = [sizes] if isinstance(sizes, Integral) else list(sizes)
        for size in listed:
            whole("hidden_layer_sizes", size, 1)
        return [int(size) for size in listed]

    def _standardized(self) -> bool:
        return self.norm is not None if self.standardize is None else bool(self.standardize)

    def _new_member(self, number: int, X: Any, weights: Any) -> Fitted:
        params, state = self.network_.init(np.random.default_rng([self._seed, number]), self._backend)
        measured = self.network_.measure(state, on_host(X), backend=self._backend, weights=weights)
        return Fitted(params, measured, {})

    def rows_in_batch(self, count: int) -> int:
        """Rows of a full batch, of so many."""
        size = min(200 if self.batch_size == "auto" else int(self.batch_size), count)
        if size == 1 < count and self.norm is not None:
            raise ValueError("batch_size: expected at least 2 rows to take batch statistics of, got 1; or norm=None")
        return size

    # ---- rows

    def _parts(
        self, X: Any, y: Any, targets: np.ndarray[Any, Any], weights: Any, held: tuple[Any, Any, Any] | None
    ) -> tuple[Rows, Rows | None]:
        """Rows to train on and rows to judge by: those that are given, or a part held out for early stopping."""
        given = held is not None and held[0] is not None
        if (given or self.early_stopping) and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
        if held is not None and given:
            return self._rows(X, targets, weights), self._given(*held)
        if not self.early_stopping:
            return self._rows(X, targets, weights), None
        train, judged = self._split(targets)
        if len(judged) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        parts = [X, targets] if weights is None else [X, targets, weights]
        seen, unseen = ([_safe_indexing(part, rows) for part in parts] for rows in (train, judged))
        return self._rows(*seen), self._judges(*unseen, y=y[judged])

    def _split(self, targets: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Row numbers to train on and to judge by."""
        groups = self._groups(targets)
        how = {"test_size": self.validation_fraction, "random_state": self._seed, "stratify": groups}
        return train_test_split(np.arange(len(targets)), **how)

    def _given(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        if y is None:
            raise ValueError("y_val: expected the targets of X_val, got None")
        X, y = validate_data(self, X, y, **self._input(X), multi_output=True, y_numeric=self._numeric, reset=False)
        y = on_host(y)
        return self._judges(X, self._scaled(self._encoded(y), None), self._row_weights(sample_weight, y), y=y)

    def _judges(self, X: Any, targets: Any, weights: Any = None, *, y: Any) -> Rows:
        scored = None if self.scoring in (None, "loss") else on_host(X)
        return self._rows(X, targets, weights)._replace(X=scored, y=y, sample_weight=weights)

    def _rows(self, X: Any, targets: np.ndarray[Any, Any], weights: Any = None) -> Rows:
        return Rows(self._placed(X), self._placed(targets), None if weights is None else self._placed(weights))

    def _backend_for(self, X: Any) -> Backend:
        """The backend that is asked for, or that of the rows: everything follows X."""
        name: Any = self.backend or library_of(X)
        place = self.device
        if self.backend is None and place is None:
            place = device_words(X)
        dtype = self.dtype or ("float32" if str(X.dtype).endswith("float32") else "float64")
        if self.solver == "lbfgs" and name != "numpy":
            raise ValueError(f"solver: 'lbfgs' is SciPy's and takes NumPy arrays, got those of {name}")
        return backends.backend(name, dtype=dtype, device=place)

    def _placed(self, a: Any) -> Array:
        """An array on the backend, in its dtype where it is floating; sparse ones filled."""
        backend = self._backend
        if library_of(a) != backend.name or backend.name == "numpy":
            return backend.asarray(on_host(a))
        floating = backend.xp.isdtype(a.dtype, "real floating")
        return backend.xp.asarray(a, dtype=backend.dtype if floating else None, device=backend.device)

    # ---- L-BFGS

    def _minimize(self, rows: Rows) -> None:
        """Full batches through SciPy, then the running statistics of all rows."""
        count = rows.x.shape[0]
        weight = count if rows.weights is None else float(as_numpy(rows.weights).sum())
        for member in self.members_:
            member.params, self.n_iter_, self.loss_ = minimized(
                self.network_,
                member,
                lambda outputs: self._loss(outputs, rows.targets, rows.weights),
                rows.x,
                rows.weights,
                penalty=self.alpha / weight,
                max_iter=self.max_iter,
                max_fun=self.max_fun,
                tol=self.tol,
            )
            if self.norm is not None:
                given = (self.network_, member.params, member.state, rows.x)
                member.state = recalibrate(*given, backend=self._backend, weights=rows.weights)
        self.t_ += self.n_iter_ * count

    def _refuse_nonfinite(self) -> None:
        for member in self.members_:
            for name, leaf in trees.flatten(member.params).items():
                if not np.isfinite(as_numpy(leaf)).all():
                    raise ValueError(
                        "Solver produced non-finite parameter weights. The input data may contain large values and "
                        f"need to be preprocessed. ({name} of the network; a smaller learning_rate_init may help too.)"
                    )

    # ---- predict

    def _predicted(self, X: Any, method: str) -> Array:
        """Probabilities or values for new rows, in their library."""
        check_is_fitted(self)
        own = get_config()["array_api_dispatch"] and is_array_api_obj(X) and self.backend is None
        if own and library_of(X) != self._backend.name:
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(): expected arrays of {self._backend.name}, got those of {library_of(X)}; convert "
                "them, or say backend="
            )
        X = validate_data(self, X, **self._input(X), reset=False)
        found = self._averaged([self._link(outputs) for outputs in self._outputs(self._placed(X))])
        return found if library_of(X) == self._backend.name else as_numpy(found)

    def _outputs(self, x: Array) -> list[Array]:
        return [outputs_of(self.network_, each.params, each.state, x, self._backend) for each in self.members_]

    def _averaged(self, each: list[Array]) -> Array:
        return each[0] if len(each) == 1 else self._backend.xp.mean(self._backend.xp.stack(each), axis=0)

    def _judged(self, held: Rows) -> tuple[list[float], Array]:
        """The loss of each member, and what they predict together."""
        outputs = self._outputs(held.x)
        losses = [float(self._loss(each, held.targets, held.weights)[0]) for each in outputs]
        return losses, self._averaged([self._link(each) for each in outputs])

    # ---- attributes

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "members_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.array_api_support = True
        return tags

    @property
    def coefs_(self) -> list[Any]:
        """The weights of each Linear layer, (inputs, outputs), with the normalisations beside it folded in."""
        return [leaf for name, leaf in self._folded() if name.endswith("weight")]

    @property
    def intercepts_(self) -> list[Any]:
        """The biases that go with them."""
        return [leaf for name, leaf in self._folded() if name.endswith("bias")]

    def _folded(self) -> list[tuple[str, Any]]:
        """Weights and biases by name; folded on the host in float64, and rounded once."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError("coefs_, intercepts_: expected a fitted network; call fit first")
        if len(self.members_) > 1:
            raise AttributeError(f"coefs_, intercepts_: expected n_ens=1, got {len(self.members_)}; see members_")
        member = self.members_[0]
        if self.norm is None and not self._standardized():
            return list(trees.flatten(member.params).items())
        params, state = (trees.map_leaves(wide, tree) for tree in (member.params, member.state))
        _, params, _ = fold(self.network_, params, state)
        leaves = trees.flatten(params)
        mean, std = np.transpose(getattr(self, "_scale", [(0.0, 1.0)]))
        *_, weight, bias = leaves
        leaves |= {weight: leaves[weight] * std, bias: leaves[bias] * std + mean}
        return [(name, self._backend.asarray(leaf)) for name, leaf in leaves.items()]
