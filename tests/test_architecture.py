"""What importing costs and brings in, and which way imports point."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import bnengine as bn
from bnengine import _typing, backends, functional, kernels

PACKAGE = Path(bn.__file__).parent
OPTIONAL = [
    "cupy",
    "numba",
    "torch",
    "jax",
    "dask",
    "sklearn",
    "matplotlib",
    "mpi4py",
    "safetensors",
    "tqdm",
    "tomli_w",
    "filelock",
    "array_api_strict",
]


def in_a_fresh_process(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_importing_brings_in_no_optional_library():
    code = "import bnengine, sys, json; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    assert not set(OPTIONAL) & set(in_a_fresh_process(code))


def test_the_command_line_starts_without_them_too():
    code = "import bnengine.cli, sys, json; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    assert not set(OPTIONAL) & set(in_a_fresh_process(code))


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_the_reference_uses_nothing_but_the_array_api():
    found = set(imports_of(PACKAGE / "kernels" / "reference.py"))
    assert found <= {"__future__", "math", "typing", "array_api_compat"}


def test_the_public_surface_is_what_all_says():
    """Other modules of the package can be imported, but are promised to nobody."""
    names = {name for name in dir(bn) if not name.startswith("_")}
    modules = {name for name in names if inspect.ismodule(getattr(bn, name))}
    assert names - modules | {"data", "optimizers"} == set(bn.__all__)
    assert len(bn.__all__) == len(names - modules) + 2
    assert all(inspect.getdoc(getattr(bn, name)) for name in bn.__all__)


@pytest.mark.parametrize(
    ("words", "table"),
    [
        (functional.activations.ActivationName, functional.ACTIVATIONS),
        (functional.losses.LossName, functional.LOSSES),
        (bn.optimizers.OptimizerName, bn.optimizers.BY_NAME),
        (_typing.Library, backends._NAMESPACES),
        (_typing.Implementation, ["reference", *itertools.chain(*kernels.FAST.values())]),
    ],
)
def test_words_of_a_type_are_the_rows_of_its_table(words, table):
    assert get_args(words) == tuple(table)


def test_the_extras_of_cuda_bring_its_libraries():
    """CuPy loads cuBLAS where a matrix product is taken: its package alone brings no library of CUDA."""
    extras = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for version in ("12", "13"):
        (needed,) = extras[f"cuda{version}"]
        assert needed.startswith(f"cupy-cuda{version}x[ctk]>=")
