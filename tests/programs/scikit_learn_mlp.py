"""scikit-learn's own tests of its networks, which its wheel brings, with our estimators in the place of its own.

`python tests/programs/scikit_learn_mlp.py` runs them. What cannot pass stands in CANNOT with the reason, and has to fail.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from typing import Any

import pytest
from sklearn import neural_network

import bnengine.sklearn

CANNOT = {
    "test_fit": "writes private attributes before the first fit, which takes weights of its own there",
    "test_gradient": "calls a private method with arguments of its own; test_sklearn.py compares whole trainings",
    "test_alpha": "compares sums of weights of one seed, whose second layer starts small here; of seeds 1 to 5 four pass",
    "test_lbfgs_regression_maxfun": "wants 10 evaluations to be too few for a linear network, which has converged here",
    "test_early_stopping_stratified": "wants scikit-learn's words for a class of one row, where ours name the argument and the label",
}
"""Tests that cannot pass, and why."""


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class MLPClassifier(bnengine.sklearn.MLPClassifier):
    """Without normalisation, which its numbers are for."""

    norm: Any = None


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class MLPRegressor(bnengine.sklearn.MLPRegressor):
    """Without normalisation, which its numbers are for."""

    norm: Any = None


class Swap:
    """Puts our classes where the tests import theirs from, and marks what cannot pass."""

    def pytest_configure(self) -> None:
        neural_network.MLPClassifier, neural_network.MLPRegressor = MLPClassifier, MLPRegressor

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        missing = CANNOT.keys() - {item.originalname for item in items}
        assert not missing, f"no longer among the tests: {missing}"
        for item in items:
            if item.originalname in CANNOT:
                item.add_marker(pytest.mark.xfail(reason=CANNOT[item.originalname], strict=True))


def main(*arguments: str) -> int:
    """The exit status of pytest."""
    found = importlib.util.find_spec("sklearn.neural_network.tests.test_mlp")
    assert found is not None
    options = [str(found.origin), "-c", os.devnull, "-p", "no:cacheprovider", "-q", "-rxX"]
    return pytest.main([*options, *arguments], plugins=[Swap()])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
