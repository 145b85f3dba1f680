"""A study's runs on other array libraries than NumPy."""

from __future__ import annotations

import dataclasses

import libraries
import numpy as np
import pytest

from bnengine.backends import as_numpy
from bnengine.study import trial
from bnengine.study.experiments import Trial

TRIAL = Trial("section_4_1", "x", 0.1, "batch", 0, 30, activation="sigmoid", bias="with", dtype="float64")


@pytest.mark.parametrize(("backend", "module"), [("torch", "torch"), ("array-api-strict", "array_api_strict")])
def test_another_library_trains_the_same_run(monkeypatch, backend, module):
    libraries.need(module)
    pytest.importorskip("sklearn")
    seen, compiled = [], trial.compiled

    def watching(*arguments, **options):
        step = compiled(*arguments, **options)

        def watched(params, state, opt_state, x, labels):
            seen.extend([x, labels, params["0"]["bias"]])
            return step(params, state, opt_state, x, labels)

        return watched

    monkeypatch.setattr(trial, "compiled", watching)
    problem = trial.Problem.of("digits")
    row, curve = trial.train(dataclasses.replace(TRIAL, backend=backend), problem, 0.8)
    assert {type(array).__module__.partition(".")[0] for array in seen} == {module}
    assert {as_numpy(array).dtype.kind for array in seen} == {"f", "i"}
    expected_row, expected = trial.train(TRIAL, problem, 0.8)
    assert curve.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(curve[name], expected[name], rtol=1e-9, atol=1e-12)
    assert {name for name in row if row[name] != expected_row[name]} <= {"backend", "seconds"}
