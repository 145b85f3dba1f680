from __future__ import annotations

import signal
from collections.abc import Iterator

import libraries
import numpy as np
import pytest


@pytest.fixture(params=libraries.NAMES)
def library(request: pytest.FixtureRequest) -> libraries.Library:
    return libraries.library(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150211)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """No test writes into the directory that the suite is run from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BNENGINE_BACKEND", raising=False)


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Signals that programs started here do not find ignored, as a shell's & and nohup leave them."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the whole grid out unless it is asked for with `-m grid`."""
    if "grid" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("grid")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("grid")]
